"""`PictureTruth`: what the data says of a picture's masks, at the picture's own size: what evaluation measures by.

A target is resized, has no crowds and is for the loss; this travels beside it, and is decoded when it is asked for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import AnnotationError
from ..processing.mask_annotations_detr import segment_ids
from ..processing.run_lengths_detr import run_lengths
from .pictures import open_undecoded
from .readers.mask_text import decode_masks

TRUTH = "truth"  # where it stands in a target


@dataclass(frozen=True)
class PictureTruth:
    """A row in the schema of `detr_hf.data`, without its picture.

    Attributes:
        name: of the picture's file, for errors.
        size_hw: of the picture.
        objects: as the row has them, crowds too.
        panoptic: the PNG of segment ids, undecoded; None where the row has none.
    """

    name: str
    size_hw: tuple[int, int]
    objects: Mapping[str, Sequence[Any]]
    panoptic: Any = None

    @classmethod
    def of(cls, row: Mapping[str, Any], size_hw: tuple[int, int] | None = None) -> "PictureTruth":
        """Returns the truth of a row, whose picture has the size that the row records unless one is given."""
        name = str(row.get("file_name") or f"image {row.get('image_id')}")
        height, width = size_hw or (row["height"], row["width"])
        return cls(name, (int(height), int(width)), row["objects"], row.get("panoptic"))

    @property
    def has_masks(self) -> bool:
        """Whether an object has a mask."""
        return self.panoptic is not None or any(map(_is_mask, self.objects.get("segmentation") or []))

    @cached_property
    def ids(self) -> np.ndarray:
        """Segment ids (H, W), 0 for none: of the PNG, else each object's number from 1.

        Raises:
            AnnotationError: the PNG is of another size or kind; without one, an object has no mask or masks overlap.
        """
        if self.panoptic is not None:
            with open_undecoded(self.panoptic, f"{self.name}, segment picture") as image:
                try:
                    return segment_ids(image, self.size_hw, f"{self.name}: its segment picture")
                except (ValueError, OSError, SyntaxError) as error:
                    raise AnnotationError(str(error)) from error
        ids = np.zeros(self.size_hw, dtype=np.int32)
        for number, mask in enumerate(self._masks(), start=1):
            if mask is None or ids[mask].any():
                fault = "has no mask" if mask is None else f"overlaps object {ids[mask].max()}"
                raise AnnotationError(
                    f"{self.name}: object {number} {fault}; for panoptic quality each pixel belongs to one segment. "
                    "Give the data as COCO panoptic, or without is_thing: then mask AP alone is measured."
                )
            ids[mask] = number
        return ids

    def segments(self) -> tuple[dict[str, Any], int]:
        """Returns the truth as `PanopticEvaluator` takes it, by label, and how many listed or drawn segments it lacks.

        Left out are objects without a pixel, and ids of the PNG that are no object's: those pixels are void.
        """
        numbers = self._numbers()
        there = set(np.unique(self.ids).tolist()) - {0}
        foreign = there - set(numbers)
        crowds = self.objects.get("iscrowd") or [0] * len(numbers)
        segments = [
            {"id": number, "category_id": int(label), "iscrowd": int(crowd or 0)}
            for number, label, crowd in zip(numbers, self.objects["category"], crowds, strict=True)
            if number in there
        ]
        ids = np.where(np.isin(self.ids, list(foreign)), 0, self.ids) if foreign else self.ids
        odd = len(foreign) + len(numbers) - len(segments)
        return {"segmentation": ids, "segments_info": segments}, odd

    def run_lengths(self) -> list[dict[str, Any] | None]:
        """Returns the run lengths of each object's mask; None where it has none."""
        if self.panoptic is None:
            return [None if mask is None else run_lengths(mask) for mask in self._masks()]
        masks = (self.ids == number for number in self._numbers())
        return [run_lengths(mask) if mask.any() else None for mask in masks]

    def _numbers(self) -> list[int]:
        count = len(self.objects["bbox"])
        return [int(one) for one in self.objects["id"]] if self.panoptic is not None else list(range(1, count + 1))

    def _masks(self) -> list[np.ndarray | None]:
        texts = self.objects.get("segmentation") or [None] * len(self.objects["bbox"])
        ids = self.objects.get("id") or range(1, len(texts) + 1)
        names = [f"{self.name}, annotation {identity}" for identity in ids]
        masks = decode_masks(list(texts), *self.size_hw, names).numpy()
        return [mask if _is_mask(text) else None for mask, text in zip(masks, texts, strict=True)]


def _is_mask(text: str | None) -> bool:
    return bool(text) and bool(json.loads(text) if len(text) < 5 else True)  # `null` and `[]` are none
