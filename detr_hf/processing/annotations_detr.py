"""COCO annotations of one image, detection or panoptic -> the target that the loss of DETR reads.

A detection annotation is COCO's `{"image_id": 7, "annotations": [{"bbox": [x, y, width, height], "category_id": 3,
...}, ...]}` with boxes in pixels of the upright image; a panoptic one `{"image_id", "file_name", "segments_info":
[...]}`. A target is a plain dict:

- `class_labels` (N,) int64; `boxes` (N, 4) float32, cxcywh in [0, 1] of the image without padding;
- `area` (N,) float32 and `iscrowd` (N,) int64, in pixels of the resized image; `masks` (N, h, w) bool where asked for;
- `orig_size` and `size` (2,) int64, (height, width) before and after the resize; `image_id` (1,) int64, or the string
  it was.

What differs from transformers on purpose: boxes and `size` never see the padded batch, so a target is the same alone
and in any batch, as in the original code; an annotation that cannot be right raises an error that names it and its
image; one without area inside the image is dropped, counted and named in a warning; crowds are dropped before their
masks are decoded, so that ordinary COCO does not crash; `area` may be missing; image ids may be strings. `keypoints`
are ignored, DETR has no use for them. Whether labels are below the number of classes is checked by the loss, which
knows it.
"""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers.utils import logging

from .mask_annotations_detr import masks_to_boxes, object_masks, panoptic_masks, resize_masks

logger = logging.get_logger(__name__)

_LARGEST_LABEL = 2**31 - 1


def detection_target(
    annotation: Mapping[str, Any],
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    *,
    normalize_boxes: bool = True,
    with_masks: bool = False,
) -> dict[str, Tensor | str]:
    """Returns the target of one image from its COCO annotation.

    Args:
        annotation: see the module's docstring. Objects with `iscrowd` 1 are left out.
        image_hw: (height, width) of the upright image that the boxes refer to.
        resized_hw: (height, width) after the resize.
        normalize_boxes: give cxcywh in [0, 1]; otherwise xyxy in pixels of the resized image.
        with_masks: also decode `segmentation` (polygons or run lengths) into `masks`.

    Raises:
        ValueError, TypeError: naming the annotation and the image.
    """
    image_name = f"image {annotation['image_id']!r}"
    objects = [
        (_object_name(index, item, image_name), item)
        for index, item in enumerate(annotation["annotations"])
        if not _is_crowd(item, _object_name(index, item, image_name))
    ]
    names = [name for name, _ in objects]
    labels = np.array([_class_label(item, name) for name, item in objects], dtype=np.int64)
    boxes_xywh_abs = np.array([_box(item, name) for name, item in objects], dtype=np.float64).reshape(-1, 4)
    boxes_xyxy_abs = _clip(boxes_xywh_abs, image_hw)
    keep = _keep_with_area(boxes_xyxy_abs, names, image_name, image_hw)
    _warn_of_duplicates(labels, boxes_xyxy_abs, keep, names, image_name)

    kept = [objects[index] for index in keep]
    boxes_xyxy_abs = boxes_xyxy_abs[keep]
    areas = [_area(item, box) for (_, item), box in zip(kept, boxes_xyxy_abs, strict=True)]
    return assemble_target(
        annotation["image_id"],
        image_hw,
        resized_hw,
        labels[keep],
        boxes_xyxy_abs,
        areas,
        object_masks(kept, image_hw) if with_masks else None,
        normalize_boxes=normalize_boxes,
    )


def panoptic_target(
    annotation: Mapping[str, Any],
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    masks_path: str | os.PathLike | None,
    *,
    normalize_boxes: bool = True,
    with_masks: bool = True,
) -> dict[str, Tensor | str]:
    """Returns the target of one image from its COCO panoptic annotation; boxes and areas are measured on the PNG.

    Args: as for `detection_target`, and `masks_path`, the folder of the PNG files.
    """
    image_name = f"image {annotation['image_id']!r}"
    segments, masks = panoptic_masks(annotation, masks_path, image_hw)
    names = [f"Segment {segment['id']} of {image_name}" for segment in segments]
    keep = [i for i, segment in enumerate(segments) if not _is_crowd(segment, names[i])]
    masks = masks[keep]
    return assemble_target(
        annotation["image_id"],
        image_hw,
        resized_hw,
        np.array([_class_label(segments[i], names[i]) for i in keep], dtype=np.int64),
        masks_to_boxes(masks),
        [segments[i]["area"] for i in keep],
        masks if with_masks else None,
        normalize_boxes=normalize_boxes,
    )


def assemble_target(
    image_id: int | str,
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    labels: np.ndarray | Tensor,
    boxes_xyxy_abs: np.ndarray | Tensor,
    areas: Sequence[float] | Tensor,
    masks: Tensor | None = None,
    *,
    normalize_boxes: bool = True,
) -> dict[str, Tensor | str]:
    """Returns the target dict from labels (N,), boxes (N, 4), areas (N,) and masks (N, H, W) that are checked already.

    All are in pixels of the image before the resize. Whoever holds arrays calls this; `detection_target` and
    `panoptic_target` are for annotations as COCO spells them.
    """
    ratio_h, ratio_w = resized_hw[0] / image_hw[0], resized_hw[1] / image_hw[1]
    boxes = torch.as_tensor(boxes_xyxy_abs, dtype=torch.float64).reshape(-1, 4)
    if normalize_boxes:  # fractions of the image do not change when it is resized
        boxes = box_convert(boxes / boxes.new_tensor([image_hw[1], image_hw[0]] * 2), "xyxy", "cxcywh")
    else:
        boxes = boxes * boxes.new_tensor([ratio_w, ratio_h] * 2)
    target = {
        "image_id": image_id if isinstance(image_id, str) else torch.tensor([image_id]),
        "class_labels": torch.as_tensor(labels, dtype=torch.int64),
        "boxes": boxes.to(torch.float32),
        "area": torch.as_tensor(areas, dtype=torch.float64).mul(ratio_h * ratio_w).to(torch.float32),
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
        "orig_size": torch.tensor(image_hw),
        "size": torch.tensor(resized_hw),
    }
    if masks is not None:
        target["masks"] = resize_masks(masks, resized_hw)
    return target


def check_annotations(
    annotations: Any, num_images: int, objects_key: str = "annotations", also_needed: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Returns one annotation dict per image with its `image_id` as int or str; a single dict is that of one image.

    `objects_key` is the key of the list of objects, "annotations" or "segments_info"; beside it and `image_id` every
    dict must have the keys `also_needed`.

    Raises:
        ValueError, TypeError: saying which annotation lacks what.
    """
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if not isinstance(annotations, (list, tuple)):
        raise TypeError(
            f"annotations must be a dict (one image) or a list of dicts, got {type(annotations).__name__}."
        )
    keys = ("image_id", *also_needed, objects_key)
    checked = [_checked_annotation(annotation, index, keys) for index, annotation in enumerate(annotations)]
    if len(checked) != num_images:
        raise ValueError(
            f"There are {num_images} images and {len(checked)} annotations: expected one annotation per image."
        )
    return checked


def _checked_annotation(annotation: Any, index: int, keys: tuple[str, ...]) -> dict[str, Any]:
    objects_key = keys[-1]
    expected = (
        "a dict like {" + ", ".join(f'"{key}": ...' for key in keys[:-1]) + f', "{objects_key}": [{{...}}, ...]}}'
    )
    if not isinstance(annotation, Mapping):
        raise TypeError(f"The annotation of image {index} is a {type(annotation).__name__}: expected {expected}.")
    if "bbox" in annotation and objects_key not in annotation:
        raise ValueError(
            f"annotations is a list of single objects (with the keys {sorted(map(str, annotation))}). "
            f"Gather the objects of one image into {expected}."
        )
    missing = [key for key in keys if annotation.get(key) is None]
    if missing:
        raise ValueError(
            f"The annotation of image {index} {' and '.join(lacks(annotation, key) for key in missing)}. "
            f"Expected {expected}."
        )
    image_id = _image_id(annotation["image_id"], index)
    objects = annotation[objects_key]
    if not isinstance(objects, (list, tuple)):
        raise TypeError(
            f"{objects_key!r} of image {image_id!r} must be a list of dicts, got {type(objects).__name__}."
        )
    for position, item in enumerate(objects):
        if not isinstance(item, Mapping):
            raise TypeError(
                f"Number {position} in {objects_key!r} of image {image_id!r} is a {type(item).__name__}: "
                "expected a dict."
            )
    return {**annotation, "image_id": image_id}


def lacks(item: Mapping[str, Any], key: str) -> str:
    """Returns in words that there is no value for a key: that it is None, or what keys there are."""
    return f"has {key!r}: None" if key in item else f"has no {key!r}; its keys are {sorted(map(str, item))}"


def _is_crowd(item: Mapping[str, Any], name: str) -> bool:
    """Returns whether the object is a crowd; a missing `iscrowd` means no."""
    value = _plain(item.get("iscrowd"))
    if value not in (None, 0, 1):
        raise ValueError(f"{name} has iscrowd {value!r}: expected 0 or 1.")
    return bool(value)


def _image_id(value: Any, index: int) -> int | str:
    value = _plain(value)
    if isinstance(value, str):
        return value
    number = _whole(value)
    if number is None:
        raise TypeError(f"The annotation of image {index} has image_id {value!r}: expected an integer or a string.")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"The annotation of image {index} has image_id {value}, which needs more than 64 bits.")
    return number


def _object_name(index: int, item: Mapping[str, Any], image_name: str) -> str:
    identity = (
        f"Annotation {item['id']}" if item.get("id") is not None else f"Annotation number {index} (it has no id)"
    )
    return f"{identity} of {image_name}"


def _class_label(item: Mapping[str, Any], name: str) -> int:
    """Returns the category id; raises for anything that is not a whole number from 0 up."""
    if "category_id" not in item:
        raise ValueError(f"{name} {lacks(item, 'category_id')}.")
    label = _whole(item["category_id"])
    if label is None:
        raise TypeError(f"{name} has category_id {_plain(item['category_id'])!r}: expected a whole number from 0 up.")
    if not 0 <= label <= _LARGEST_LABEL:
        raise ValueError(f"{name} has category_id {label}: expected an integer from 0 to the number of classes - 1.")
    return label


def _box(item: Mapping[str, Any], name: str) -> list[float]:
    """Returns x, y, width, height as finite floats."""
    if item.get("bbox") is None:
        raise ValueError(f"{name} {lacks(item, 'bbox')}.")
    box = item["bbox"]
    values = box.tolist() if isinstance(box, (np.ndarray, Tensor)) else box
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise ValueError(f"{name} has bbox {box!r}: expected four numbers [x, y, width, height].")
    values = [_plain(value) for value in values]
    if not all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{name} has bbox {box!r}: expected four numbers [x, y, width, height].")
    try:
        values = [float(value) for value in values]
    except OverflowError as error:
        raise ValueError(f"{name} has bbox {box!r}: a number is too large.") from error
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} has bbox {box!r}, which is not finite. Correct or remove this annotation.")
    return values


def _area(item: Mapping[str, Any], box_xyxy_abs: np.ndarray) -> float:
    """Returns the annotation's area, or the area of its box where that is missing or makes no sense."""
    area = _plain(item.get("area"))
    if isinstance(area, numbers.Real) and not isinstance(area, bool) and 0 <= area < 1e30:  # also false for NaN
        return float(area)
    left, top, right, bottom = box_xyxy_abs
    return float((right - left) * (bottom - top))


def _clip(boxes_xywh_abs: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Returns (N, 4) xyxy boxes inside the image; one with a negative side keeps it, and so has no area."""
    height, width = image_hw
    corners = np.concatenate([boxes_xywh_abs[:, :2], boxes_xywh_abs[:, :2] + boxes_xywh_abs[:, 2:]], axis=1)
    return np.clip(corners, 0, np.array([width, height, width, height]))


def _keep_with_area(
    boxes_xyxy_abs: np.ndarray, names: list[str], image_name: str, image_hw: tuple[int, int]
) -> list[int]:
    """Returns the positions of the boxes with area, and warns of the others by name, once."""
    boxes_xyxy_abs = boxes_xyxy_abs.astype(np.float32)  # as they are learnt
    has_area = (boxes_xyxy_abs[:, 2] > boxes_xyxy_abs[:, 0]) & (boxes_xyxy_abs[:, 3] > boxes_xyxy_abs[:, 1])
    if not has_area.all():
        lost = [name.partition(" of ")[0].lower() for name, kept in zip(names, has_area, strict=True) if not kept]
        logger.warning_once(
            f"{image_name}: dropped {len(lost)} of {len(names)} objects whose box has no area inside the image "
            f"({image_hw[1]} x {image_hw[0]} px): {_listed(lost)}."
        )
    return np.flatnonzero(has_area).tolist()


def _warn_of_duplicates(
    labels: np.ndarray, boxes_xyxy_abs: np.ndarray, keep: list[int], names: list[str], image_name: str
) -> None:
    first_of: dict[tuple, str] = {}
    twice = []
    for index in keep:
        name = names[index].partition(" of ")[0].lower()
        first = first_of.setdefault((labels[index], *boxes_xyxy_abs[index]), name)
        if first is not name:
            twice.append(f"{name} repeats {first}")
    if twice:
        logger.warning_once(f"{image_name}: objects with equal box and category, all kept: {_listed(twice)}.")


def _listed(items: list[str], limit: int = 10) -> str:
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def _whole(value: Any) -> int | None:
    """Returns a whole number as int, also one that an augmentation made a float; None for anything else."""
    value = _plain(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # which may be too large for a float
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _plain(value: Any) -> Any:
    """Returns numpy scalars and one-element arrays or tensors as Python values, anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, Tensor)) and math.prod(value.shape) == 1):
        return value.item()
    return value
