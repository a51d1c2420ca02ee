"""Augmentation with torchvision.transforms.v2: three presets, or any callable `(image, target) -> (image, target)`.

- `none`: the image as it is; the image processor resizes it.
- `paper`: DETR's recipe (datasets/coco.py of the original): flip; then multi-scale (shortest side 480..800 in steps of
  32, longest at most 1333), or with probability one half resize to 400, 500 or 600, crop 384..600 on a side, and
  multi-scale.
- `strong`: `paper` or large-scale jitter (0.1 to 2.0, cut to as many pixels; arXiv:2012.07177) with equal chance, and
  photometric distortion.

`image` is a `tv_tensors.Image (3, H, W)` uint8; `target` holds `boxes` (`tv_tensors.BoundingBoxes (N, 4)` xyxy in
pixels), `labels (N,)`, `index (N,)` (the row of each object in the source) and, when asked for, `masks`
(`tv_tensors.Mask (N, H, W)`). A callable that removes objects removes them from boxes, labels and masks; `index` may
stay as it is, since transforms of others do not know it, and then an area is its box's. Albumentations' `Compose` with
`bbox_params` is called as it wants to be (`given.py`).

Different on purpose from the original: all chance comes from torch's generator, so a worker's seed decides it; boxes
below one pixel are left out, where the original keeps slivers of any width above zero; an area shrinks with its box,
where the original sets it to the box after a crop; with masks, a box ends where its mask does after a crop, where the
original leaves it at the crop's edge, be there anything of the object or not.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv_functional

from ...processing.mask_annotations_detr import masks_to_boxes, resize_masks
from .given import AlbumentationsCompose, is_albumentations

PRESETS = ("none", "paper", "strong")
Sample = tuple[tv_tensors.Image, dict[str, Any]]
# The recipe's numbers, for a shortest side of 800: in proportion for other sizes.
PAPER_SHORTEST = 800
PAPER_LONGEST = 1333
PAPER_SCALES = range(480, 801, 32)
PAPER_CROP_SCALES = (400, 500, 600)
PAPER_CROP_SIDES = (384, 600)
JITTER = (0.1, 2.0)
SMALLEST_BOX_PX = 1.0
# A box and its mask are taken to be of one place up to this difference of their sides: in COCO's own it is up to 5.
AGREEMENT_PX = 5.0


class RandomSizeCrop(v2.Transform):
    """Cuts out a part whose sides are drawn evenly from `[shortest, longest]`, each at most the image's."""

    def __init__(self, shortest: int, longest: int):
        super().__init__()
        self.shortest, self.longest = shortest, longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Returns top, left, height and width of the part."""
        height, width = v2.query_size(flat_inputs)
        part_h, part_w = (_draw(min(self.shortest, side), min(self.longest, side)) for side in (height, width))
        return {"top": _draw(0, height - part_h), "left": _draw(0, width - part_w), "height": part_h, "width": part_w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cuts one of image, boxes and masks."""
        return self._call_kernel(tv_functional.crop, inpt, **params)


def _draw(low: int, high: int) -> int:
    """Returns an integer from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


class MasksAtPixelCentres:
    """What torchvision's resizes lack: masks go with the pixels, where theirs move by up to half a pixel."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one of image, boxes and masks."""
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(resize_masks(inpt.as_subclass(Tensor), tuple(params["size"])))
        return super().transform(inpt, params)  # type: ignore[misc]  # of the resize that this stands before


class RandomShortestSize(MasksAtPixelCentres, v2.RandomShortestSize):
    """Resizes the shorter side to one of some lengths."""


class ScaleJitter(MasksAtPixelCentres, v2.ScaleJitter):
    """Resizes by a factor drawn evenly."""


class Augmentation:
    """A preset: its transforms, and whether the image leaves it in the size that the model shall see."""

    def __init__(self, name: str, transform: Callable | None, resizes: bool):
        self.name = name
        self.transform = transform
        self.resizes = resizes

    def __call__(self, image: tv_tensors.Image, target: dict[str, Any]) -> Sample:
        """Returns the augmented image and target."""
        return (image, target) if self.transform is None else self.transform(image, target)

    def __repr__(self) -> str:
        return f"Augmentation({self.name!r})"


def _paper_sizes(shortest: int, longest: int) -> v2.Transform:
    def scaled(values: Sequence[int]) -> list[int]:
        return [max(round(value * shortest / PAPER_SHORTEST), 1) for value in values]

    multi_scale = RandomShortestSize(scaled(PAPER_SCALES), max_size=longest)
    crop = [RandomShortestSize(scaled(PAPER_CROP_SCALES)), RandomSizeCrop(*scaled(PAPER_CROP_SIDES)), multi_scale]
    return v2.RandomChoice([multi_scale, v2.Compose(crop)])


def augmentation(
    choice: str | Callable | None, shortest: int = PAPER_SHORTEST, longest: int = PAPER_LONGEST
) -> Callable:
    """Returns the preset of a name, or the callable that was given; sizes are those of the model's images.

    Raises:
        ValueError: there is no such preset.
    """
    if is_albumentations(choice):
        return AlbumentationsCompose(choice)
    if callable(choice):
        return choice
    if choice is None or choice == "none":
        return Augmentation("none", None, resizes=False)
    if choice not in PRESETS:
        raise ValueError(
            f"augment is {choice!r}; expected one of {', '.join(PRESETS)}, a callable (image, target) -> (image, "
            "target), or Albumentations' Compose."
        )
    steps = [v2.RandomHorizontalFlip(), _paper_sizes(shortest, longest)]
    if choice == "strong":
        # As many pixels as the largest image of the recipe: a batch fits into the same memory.
        side = round(math.sqrt(shortest * longest))
        jitter = v2.Compose([ScaleJitter((shortest, longest), JITTER), RandomSizeCrop(side, side)])
        steps = [steps[0], v2.RandomPhotometricDistort(p=0.5), v2.RandomChoice([steps[1], jitter])]
    return Augmentation(choice, v2.Compose(steps), resizes=True)


def in_agreement(target: dict[str, Any]) -> set[int]:
    """Returns the objects, by `index`, whose box ends where their mask does."""
    apart = (torch.as_tensor(target["boxes"]).as_subclass(Tensor) - masks_to_boxes(target["masks"])).abs()
    return set(target["index"][(apart <= AGREEMENT_PX).all(dim=1)].tolist())


def tighten(target: dict[str, Tensor], agreeing: set[int]) -> None:
    """Moves the sides of boxes that were at their masks, `agreeing` by `index`, to them where they are no longer."""
    if agreeing and "index" in target and len(target["boxes"]):
        tight = masks_to_boxes(target["masks"])
        moved = torch.tensor([index in agreeing for index in target["index"].tolist()])[:, None]
        moved = moved & ((target["boxes"] - tight).abs() > 1)
        target["boxes"] = torch.where(moved, tight, target["boxes"])


def sanitize(
    target: dict[str, Any], size_hw: tuple[int, int], bare: frozenset[int] = frozenset()
) -> dict[str, Tensor]:
    """Returns the target with boxes cut at the image's edges, without objects below a pixel or whose mask is gone.

    `bare` are the objects, by `index`, that never had one; where there are any, `has_mask` (N,) tells them.

    Raises:
        ValueError: the parts of the target are not equally many, boxes are not finite, or masks have another size.
    """
    height, width = size_hw
    boxes = torch.as_tensor(target["boxes"], dtype=torch.float64).as_subclass(Tensor).reshape(-1, 4)
    counts = {key: len(value) for key, value in target.items() if key in ("boxes", "labels", "masks")}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The augmentation returned {counts}: it has to remove an object from all of these.")
    if not torch.isfinite(boxes).all():
        raise ValueError("The augmentation returned boxes that are not finite.")
    boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=-1).flatten(1)  # (N, 4)
    keep = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_BOX_PX).all(dim=1)
    masks = target.get("masks")
    told = len(target.get("index", ())) == len(boxes)  # others' transforms remove objects and know nothing of it
    if bare and not told:
        raise ValueError(
            "It removed objects and left `index` as it was: which of the rest have no mask (allow_missing_masks=True) "
            "cannot be told. Remove them there too."
        )
    has_mask = (
        torch.tensor([index not in bare for index in torch.as_tensor(target["index"]).tolist()]) if bare else None
    )
    if masks is not None:
        masks = torch.as_tensor(masks).as_subclass(Tensor).bool()
        if len(masks) and tuple(masks.shape[1:]) != tuple(size_hw):
            raise ValueError(
                f"The augmentation returned masks of (height, width) {tuple(masks.shape[1:])} for an image of "
                f"{tuple(size_hw)}."
            )
        seen = masks.flatten(1).any(dim=1) if len(masks) else keep
        keep &= seen if has_mask is None else seen | ~has_mask
    kept = {"boxes": boxes[keep], "labels": torch.as_tensor(target["labels"])[keep]}
    if told:
        kept["index"] = torch.as_tensor(target["index"])[keep]
    if has_mask is not None:
        kept["has_mask"] = has_mask[keep]
    if masks is not None:
        kept["masks"] = masks[keep]
    return kept
