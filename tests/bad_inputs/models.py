"""A small detector on disk, to be broken by a case: the package's folder, transformers' and the original's file."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr_hf import DETRConfig, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor

SIZES = {"hidden_dim": 32, "nheads": 8, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 32, "num_queries": 5}
PROCESSOR = DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@functools.cache
def detector() -> DETRForObjectDetection:
    """Returns the same detector of two classes every time."""
    torch.manual_seed(0)
    return DETRForObjectDetection(DETRConfig(backbone="resnet18", id2label={0: "cat", 1: "dog"}, **SIZES)).eval()


@functools.cache
def segmenter() -> DETRForSegmentation:
    """Returns the same segmentation model of two classes every time."""
    return DETRForSegmentation(DETRConfig(backbone="test_resnet", id2label={0: "cat", 1: "dog"}, **SIZES)).eval()


def own(root: Path) -> None:
    """Writes the package's folder."""
    detector().save_pretrained(root)
    PROCESSOR.save_pretrained(root)


def foreign(root: Path) -> None:
    """Writes transformers' folder."""
    detector().to_transformers().save_pretrained(root)


def original(**containers: str) -> Callable[[Path], Path]:
    """Returns a `make`: a pickle of the weights under `container` with `prefix` before each name."""
    prefix, container = containers.get("prefix", ""), containers.get("container", "model")

    def make(root: Path) -> Path:
        weights = {prefix + name: tensor for name, tensor in detector().state_dict().items()}
        torch.save({container: weights} if container else weights, root / "weights.pth")
        return root / "weights.pth"

    return make


def weights_with(
    change: Callable[[dict[str, Tensor]], Any], write: Callable[[Path], None] = own
) -> Callable[[Path], None]:
    """Returns a `make`: a folder whose tensors are changed by `change`."""

    def make(root: Path) -> None:
        write(root)
        tensors = load_file(root / "model.safetensors")
        change(tensors)
        save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})

    return make


def without(*parts: str, write: Callable[[Path], None] = own) -> Callable[[Path], None]:
    """Returns a `make`: a folder without the tensors whose names begin so."""

    def remove(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(parts)]:
            del tensors[name]

    return weights_with(remove, write)
