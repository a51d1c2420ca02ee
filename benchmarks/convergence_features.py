"""Feature maps in the place of pictures: what a frozen backbone gives is computed once, and every arm trains on it.

One map is held as it is, (N, C, h, w). Several travel as one row a picture, (N, 1, 1, L), which `FixedFeatures`, in
the place of the backbone, takes apart.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from detr_hf.model.backbone_detr import Backbone
from detr_hf.model.configuration_detr import DETRConfig

if TYPE_CHECKING:
    from .convergence_tasks import Settings, Task

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]  # C, h, w
ONE_MAP = (16,)  # the last stage at stride 16, dilated
# Strides of the maps that an arm may take, and how many of a backbone's last stages they are.
MAPS = {ONE_MAP: 1, (8, 16, 32): 3}
AT_A_TIME = 16  # pictures


class FeatureMaps(list):
    """A backbone's maps, both as transformers' older models take them and as its newer ones (`feature_maps`)."""

    @property
    def feature_maps(self) -> list[Tensor]:
        return self


class FixedFeatures(nn.Module):
    """Stands in the place of a frozen backbone: the input is its feature maps already."""

    def __init__(self, shapes: Sequence[Shape] = ()):
        super().__init__()
        self.shapes = [tuple(shape) for shape in shapes]

    def forward(self, features: Tensor) -> FeatureMaps:
        if len(self.shapes) < 2:
            return FeatureMaps([features])
        parts = features.flatten(1).split([channels * h * w for channels, h, w in self.shapes], 1)
        return FeatureMaps(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))


class LastMaps(nn.Module):
    """The last `count` maps of this package's timm body, for a model of transformers."""

    def __init__(self, body: nn.Module, count: int):
        super().__init__()
        self.body, self.count = body, count

    def forward(self, pixel_values: Tensor) -> FeatureMaps:
        return FeatureMaps(self.body(pixel_values)[-self.count :])


def backbone_for(maps: Sequence[int], options: dict[str, Any]) -> Backbone:
    """Returns this package's backbone, which gives at least the maps of these strides, as its last ones."""
    several = MAPS[tuple(maps)] > 1
    return Backbone(DETRConfig(**{**options, "dilation": not several}), return_interm_layers=several)


@torch.no_grad()
def features_of(
    maps: Sequence[int], options: dict[str, Any], parts: Iterable[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Shape]]:
    """Returns features of normalised pictures, part by part, and the shape of each map."""
    body, rows = backbone_for(maps, options).eval(), []
    for part in parts:
        found = [features for features, _ in body(part, None)[-MAPS[tuple(maps)] :]]
        shapes = [tuple(features.shape[1:]) for features in found]
        row = found[0] if len(found) == 1 else torch.cat([one.flatten(1) for one in found], 1)[:, None, None]
        rows.append(row.to(dtype).contiguous())
    return torch.cat(rows), shapes


def frozen_task(settings: "Settings", maps: Sequence[int] = ONE_MAP) -> "Task":
    """The pictures of a data set as features of a frozen backbone: `settings.crops` crops of each, in half precision.

    The crops are the same for all arms, whatever maps they take. They are computed the first time, then read.
    """
    from .convergence_tasks import Pictures, Task

    path = Path(settings.work) / f"{_key(settings)}-{'-'.join(map(str, maps))}.pt"
    if not path.exists():
        logger.info("features of %d crops a picture are computed once: %s", settings.crops, path)
        _compute(settings, maps, path)
    held = torch.load(path, map_location="cpu", weights_only=True)
    return Task(
        id2label=held["id2label"],
        backbone=held["backbone"],
        are_features=True,
        shapes=held["shapes"],
        **{split: Pictures(**held[split]) for split in ("train", "validation")},
    )


def _compute(settings: "Settings", maps: Sequence[int], path: Path) -> None:
    from .convergence_tasks import crop_and_flip

    pictures = settings.pictures()
    train, validation = pictures.train, pictures.validation
    drawn = [
        (index, crop_and_flip(np.random.default_rng((number, index)), train.pixels[index], target, size_hw))
        for number in range(settings.crops)
        for index, (target, size_hw) in enumerate(zip(train.targets, train.sizes_hw, strict=True))
    ]
    origin = torch.tensor([index for index, _ in drawn])
    splits = {"train": [cut for _, (cut, _) in drawn], "validation": list(validation.pixels)}
    held: dict[str, Any] = {"id2label": pictures.id2label, "backbone": pictures.backbone}
    for split, all_pixels in splits.items():
        parts = (all_pixels[start : start + AT_A_TIME] for start in range(0, len(all_pixels), AT_A_TIME))
        normalised = (pictures.normalise(torch.stack(part)) for part in parts)
        features, held["shapes"] = features_of(maps, pictures.backbone, normalised, torch.float16)
        held[split] = {"pixels": features}
    held["train"] |= {"targets": [target for _, (_, target) in drawn], "truth": {}, "masks": None}
    held["validation"] |= {"targets": [], "truth": validation.truth, "sizes_hw": validation.sizes_hw, "masks": None}
    if not train.masks.all() or not validation.masks.all():
        held["train"]["masks"] = train.masks[origin].to(torch.uint8)
        held["validation"]["masks"] = validation.masks.to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".pt_new")
    torch.save(held, part)
    os.replace(part, path)


def _key(settings: "Settings") -> str:
    """Returns a file's name that changes with the data, the weights and what is made of them."""
    folder = Path(settings.data)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = [(file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    asked = (settings.side, settings.crops, settings.backbone, weights_digest(settings.backbone_weights))
    text = repr((found, asked, settings.mean, settings.std))
    return f"{folder.resolve().name}-{sha256(text.encode()).hexdigest()[:12]}"


def weights_digest(weights: str | None) -> str | None:
    """Returns what tells a file of weights from another; its own name where it is no file."""
    path = Path(weights or "")
    return sha256(path.read_bytes()).hexdigest()[:16] if weights and path.is_file() else weights


__all__ = [
    "MAPS",
    "ONE_MAP",
    "FeatureMaps",
    "FixedFeatures",
    "LastMaps",
    "backbone_for",
    "features_of",
    "frozen_task",
    "weights_digest",
]
