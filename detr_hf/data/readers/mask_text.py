"""Masks of annotations: polygons and COCO run lengths, checked when they are read and decoded when they are used.

`segmentation_fault` is the quick check for a whole data set (6 microseconds an annotation of COCO); the drawing, and
its own checks, are the image processor's. Run lengths are COCO's: column-major, starting with zeros.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import AnnotationError
from ...processing.mask_annotations_detr import object_masks
from ..detection_data import NO_MASK
from .faults import plain_id
from .text import parse_json

LARGEST_COORDINATE = 1e6
LARGEST_PICTURE = 2**28
LONGEST_OUTLINE = 1e6  # what is surely below it is not measured


class Faulty(str):
    """Why a mask could not be read, in its place."""


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """Returns what is wrong with a COCO segmentation of a `height x width` picture (0 x 0: unknown), or None."""
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if isinstance(segmentation, Faulty):
        return str(segmentation)
    if not isinstance(segmentation, list):
        return f"the segmentation is a {type(segmentation).__name__}, expected a list of polygons or a run length dict"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return f"a polygon is a {type(polygon).__name__}, expected a list of x, y, x, y, ..."
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon has {len(polygon)} numbers, expected an even count of at least 6"
        if not set(map(type, polygon)) <= {float, int}:
            return "a polygon holds something that is not a number"
        if not (
            min(polygon) >= -LARGEST_COORDINATE and max(polygon) <= LARGEST_COORDINATE and math.isfinite(sum(polygon))
        ):
            return "a polygon holds a NaN, infinite or enormous coordinate"
        if (max(polygon) - min(polygon)) * len(polygon) > LONGEST_OUTLINE:
            try:
                object_masks([("the segmentation", {"segmentation": [polygon]})], (1, 1))
            except ValueError as error:
                return str(error)
            except ImportError:
                pass  # it is drawn elsewhere
    return None


def _rle_fault(rle: dict, height: int, width: int) -> str | None:
    size = [plain_id(side) for side in rle["size"]] if isinstance(rle.get("size"), list) else rle.get("size")
    whole = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not whole or size[0] * size[1] > LARGEST_PICTURE:
        return f"the run length's size is {str(size)[:60]}, expected [height, width]"
    if height and size != [height, width]:
        swapped = "; its sides stand the wrong way round" if size == [width, height] else ""
        return (
            f"the run length is for {size[0]}x{size[1]} and the picture is {height}x{width} (height x width){swapped}"
        )
    try:
        object_masks([("the segmentation", {"segmentation": rle})], (size[0], size[1]))
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return None


def decode_masks(segmentations: list[str | None], height: int, width: int, names: list[str]) -> Tensor:
    """Returns masks `(N, height, width)` bool of segmentations as JSON text; an empty one for `NO_MASK` or None.

    Raises:
        AnnotationError: a segmentation is malformed; `names (N,)` says whose it is.
        ImportError: a polygon is to be drawn and pycocotools is not installed.
    """
    masks = torch.zeros(len(segmentations), height, width, dtype=torch.bool)
    drawn = [index for index, text in enumerate(segmentations) if text and text != NO_MASK]
    parsed = []
    for text, name in ((segmentations[index], names[index]) for index in drawn):
        try:
            segmentation = parse_json(text)
        except ValueError as error:
            raise AnnotationError(f"{name}: the segmentation is no JSON ({error}).") from error
        fault = segmentation_fault(segmentation, height, width)
        if fault:
            raise AnnotationError(f"{name}: {fault}.")
        parsed.append((name, {"segmentation": segmentation}))
    try:
        masks[drawn] = object_masks(parsed, (height, width))
    except (ValueError, TypeError) as error:
        raise AnnotationError(str(error)) from error
    return masks
