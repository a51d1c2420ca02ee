"""The two models of every comparison: this package's and transformers' own, with the same random weights."""

import torch
from torch import Tensor, nn

from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection, DETRForSegmentation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """Returns the torch dtype of a name.

    Raises:
        ValueError: for any other name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def random_pair(
    device: str = "cpu", masks: bool = False, **config: object
) -> tuple[DETRForObjectDetection, nn.Module]:
    """Returns both models in float32 and eval mode on the device; nothing is downloaded."""
    ours = random_model(masks, **config)
    peer = ours.to_transformers().eval()
    return ours.to(device), peer.to(device)


def random_model(masks: bool = False, **config: object) -> DETRForObjectDetection:
    """Returns this package's model in float32 and eval mode, the same one for the same configuration.

    It is a detector, or with `masks` a segmentation model. The frozen statistics are random too, so that a norm that
    is folded wrongly shows.
    """
    torch.manual_seed(0)
    model_class = DETRForSegmentation if masks else DETRForObjectDetection
    model = model_class(DETRConfig(**{"backbone": "resnet50", **config})).eval()
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "weight")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + 0.9)
        elif name.endswith(("running_mean", "bias")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 - 0.1)
    return model


def random_pixels(batch: int, size_hw: tuple[int, int], device: str = "cpu", padded: bool = False):
    """Returns pixels (B, 3, H, W) and, when padded, a mask (B, H, W) int64; else None.

    Every second picture then fills three quarters of its canvas in both directions.
    """
    generator = torch.Generator().manual_seed(2)
    pixel_values = torch.randn(batch, 3, *size_hw, generator=generator)
    if not padded:
        return pixel_values.to(device), None
    pixel_mask = torch.ones(batch, *size_hw, dtype=torch.int64)
    pixel_mask[1::2, size_hw[0] * 3 // 4 :] = 0
    pixel_mask[1::2, :, size_hw[1] * 3 // 4 :] = 0
    return (pixel_values * pixel_mask[:, None]).to(device), pixel_mask.to(device)


def random_targets(
    batch: int, objects: int, num_classes: int, device: str = "cpu", seed: int = 3
) -> list[dict[str, Tensor]]:
    """Returns targets with `class_labels` (N,) and `boxes` (N, 4), cxcywh in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for _ in range(batch):
        size = torch.rand(objects, 2, generator=generator) * 0.4 + 0.05
        center = torch.rand(objects, 2, generator=generator) * (1 - size) + size / 2
        labels = torch.randint(num_classes, (objects,), generator=generator)
        targets.append({"class_labels": labels.to(device), "boxes": torch.cat([center, size], dim=1).to(device)})
    return targets


__all__ = ["DTYPES", "dtype_named", "random_model", "random_pair", "random_pixels", "random_targets"]
