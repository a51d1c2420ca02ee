"""Settings shared by all tests: no network, one thread, and tiny models made on the spot."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from detr_hf import DETRConfig, DETRForObjectDetection, DETRForSegmentation

from .capabilities import TOOK_PLAIN_FORM, closing_lines, has

torch.set_num_threads(1)


# A backbone of a few thousand weights, where its own are no matter.
NARROW = {"backbone_kwargs": {"channels": [8, 16, 16, 24], "layers": [1, 1, 1, 1]}}


def tiny_config(**changes) -> DETRConfig:
    """Returns the configuration of a DETR small enough for a test."""
    small = {
        "backbone": "resnet18",
        "hidden_dim": 32,
        "nheads": 4,
        "enc_layers": 2,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "num_queries": 7,
        "id2label": {0: "cat", 1: "dog", 2: "owl"},
    }
    return DETRConfig(**{**small, **changes})


def randomise_frozen_statistics(model: torch.nn.Module) -> None:
    """Gives every frozen batch norm its own numbers, so that a buffer that is dropped or swapped shows."""
    generator = torch.Generator().manual_seed(7)
    for name, buffer in model.named_buffers():
        if name.endswith(("weight", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + 0.9)
        elif name.endswith(("bias", "running_mean")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 - 0.1)


def tiny_model(seed: int = 0, **changes) -> DETRForObjectDetection:
    """Returns a random tiny DETR in eval mode."""
    torch.manual_seed(seed)
    model = DETRForObjectDetection(tiny_config(**changes)).eval()
    randomise_frozen_statistics(model)
    return model


@torch.no_grad()
def tiny_segmenter(seed: int = 3, **changes) -> DETRForSegmentation:
    """Returns a tiny segmentation model in eval mode whose queries differ, so that it finds several things."""
    torch.manual_seed(seed)
    model = DETRForSegmentation(tiny_config(**changes)).eval()
    randomise_frozen_statistics(model)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 12), size=(64, 96), mode="bilinear")
    states = model(image).last_hidden_state[0]
    mean = states.mean(dim=0)
    spread = (states - mean).norm(dim=-1).mean()
    for layer, factor in ((model.class_embed, 15), (model.bbox_attention.q_linear, 15)):
        layer.weight *= factor / spread
        layer.bias.copy_(-layer.weight @ mean)
    model.mask_head.lay1.weight[:, model.config.hidden_dim :] *= 200
    return model


def padded_batch(height: int = 96, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pixels and mask of two images, of which the second fills only a part of the canvas."""
    generator = torch.Generator().manual_seed(3)
    pixel_values = torch.randn(2, 3, height, width, generator=generator)
    pixel_mask = torch.ones(2, height, width, dtype=torch.int64)
    pixel_mask[1, height * 2 // 3 :] = 0
    pixel_mask[1, :, width * 3 // 4 :] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


def outputs_differ_by(one, other) -> float:
    """Returns how far logits and boxes of two outputs are apart at most."""
    return max((one.logits - other.logits).abs().max().item(), (one.pred_boxes - other.pred_boxes).abs().max().item())


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """A context in which no file can grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def some_labels(*counts: int, num_classes: int = 3, seed: int = 5) -> list[dict[str, torch.Tensor]]:
    """Returns random well-formed targets, one image for each count."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        size = torch.rand(count, 2, generator=generator) * 0.4 + 0.1
        center = torch.rand(count, 2, generator=generator) * (1 - size) + size / 2
        classes = torch.randint(num_classes, (count,), generator=generator)
        labels.append({"class_labels": classes, "boxes": torch.cat([center, size], dim=1)})
    return labels


@pytest.fixture
def model() -> DETRForObjectDetection:
    """A random tiny DETR in eval mode."""
    return tiny_model()


@pytest.fixture
def machine_has(request) -> Callable[[str], bool]:
    """Whether this machine has one of `CAPABILITIES`; that a check went without is said at the end of the run."""

    def ask(capability: str) -> bool:
        if not has(capability):
            request.node.user_properties.append((TOOK_PLAIN_FORM, capability))
        return has(capability)

    return ask


def pytest_terminal_summary(terminalreporter) -> None:
    """Says what this machine lacks; under xdist the properties of tests travel with their reports."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for line in closing_lines(reports):
        terminalreporter.write_line(line)
