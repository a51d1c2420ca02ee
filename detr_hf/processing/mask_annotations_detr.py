"""Segmentations of objects -> boolean masks: COCO polygons and run lengths, and COCO panoptic PNG files.

Everything is checked in Python before it reaches pycocotools, whose C code kills the process on a NaN or a huge
coordinate and on run lengths that do not fit the image; run lengths, compressed or not, are decoded here and need no
pycocotools at all. What differs from transformers on purpose: compressed run lengths are read; a panoptic file must
lie inside `masks_path` and have the image's size; a segment that the PNG does not hold is dropped instead of becoming
a box of a million pixels; crowd segments are dropped as in detection; a segment's box reaches to the outer edge of its
last pixel, so that a segment one pixel wide has an area.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.utils import logging

from .image_opening_detr import refuse_bomb
from .run_lengths_detr import run_length_mask

logger = logging.get_logger(__name__)

_LARGEST_COORDINATE = 1e6  # pixels; beyond about 4e8 pycocotools overflows an int, and long before it needs gigabytes
_LONGEST_OUTLINE = 1e6  # pixels along one polygon


def object_masks(objects: Sequence[tuple[str, Mapping[str, Any]]], image_hw: tuple[int, int]) -> Tensor:
    """Returns (N, H, W) bool masks of annotated objects, an empty mask and a warning where nothing is segmented.

    Args:
        objects: (name for errors, annotation) pairs; `segmentation` is a list of polygons [x1, y1, x2, y2, ...] in
            pixels or a run-length dict `{"size": [height, width], "counts": list, str or bytes}`.
        image_hw: (height, width) of the image that they refer to.

    Raises:
        ValueError, TypeError: naming the annotation.
        ImportError: polygons without pycocotools installed.
    """
    masks = np.zeros((len(objects), *image_hw), dtype=bool)
    for index, (name, item) in enumerate(objects):
        masks[index] = _object_mask(item, image_hw, name)
        if not masks[index].any():
            logger.warning_once(f"{name}: its segmentation covers no pixel of the image, although its box does.")
    return torch.from_numpy(masks)


def resize_masks(masks: Tensor, hw: tuple[int, int]) -> Tensor:
    """Returns (N, h, w) bool masks by nearest neighbour at pixel centres; masks is (N, H, W).

    The original takes the neighbour at pixel corners, which moves a mask by up to half a pixel against its image: a
    mask that is made larger and small again has lost a row and a column.
    """
    if masks.shape[0] == 0 or tuple(masks.shape[1:]) == tuple(hw):
        return masks.reshape(masks.shape[0], *hw)
    return torch.nn.functional.interpolate(masks[:, None].to(torch.uint8), size=hw, mode="nearest-exact")[:, 0].bool()


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Returns (N, 4) float64 xyxy boxes in pixels around (N, H, W) bool masks; zeros for an empty mask."""
    boxes = torch.zeros(masks.shape[0], 4, dtype=torch.float64)
    for index, mask in enumerate(masks):
        columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
        if len(columns):
            boxes[index] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten()
    return boxes


def panoptic_masks(
    annotation: Mapping[str, Any], masks_path: str | os.PathLike | None, image_hw: tuple[int, int]
) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns the segments that the annotation's PNG holds, and their (N, H, W) bool masks.

    Args:
        annotation: COCO panoptic, `{"image_id", "file_name", "segments_info": [{"id", "category_id", ...}]}`.
        masks_path: the folder that `file_name` lies in.
        image_hw: (height, width) that the PNG must have.

    Raises:
        ValueError, TypeError: a file name that leaves the folder, a PNG of another size or kind.
        FileNotFoundError: no folder or no file.
    """
    image_name = f"image {annotation['image_id']!r}"
    ids = read_panoptic_png(masks_path, annotation["file_name"], image_hw, image_name)
    return masks_of_segments(ids, annotation["segments_info"], image_name, annotation["file_name"])


def masks_of_segments(
    ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], image_name: str, file_name: Any
) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns the segments that a map of `ids` (H, W) holds, and their (N, H, W) bool masks; the names are for words.

    Raises:
        ValueError: an id is no integer.
    """
    found, areas, _ = measure_segments(ids)
    area_of = dict(zip(found.tolist(), areas.tolist(), strict=True))
    segments, absent = [], []
    for position, segment in enumerate(segments_info):
        identity = segment.get("id")
        if not _is_integer(identity):
            raise ValueError(f"Segment number {position} of {image_name} has id {identity!r}: expected an integer.")
        if int(identity) in area_of:
            segments.append({**segment, "id": int(identity), "area": area_of[int(identity)]})
        else:
            absent.append(str(identity))
    unlisted = sorted(set(area_of) - {segment["id"] for segment in segments})
    if absent:
        logger.warning_once(f"{image_name}: dropped segments that {file_name} does not hold: {', '.join(absent)}.")
    if unlisted:
        logger.warning_once(
            f"{image_name}: {file_name} holds segments that segments_info does not list, left out: "
            f"{', '.join(map(str, unlisted))}."
        )
    wanted = np.array([segment["id"] for segment in segments], dtype=ids.dtype)
    return segments, torch.from_numpy(ids[None] == wanted[:, None, None])


def _object_mask(item: Mapping[str, Any], image_hw: tuple[int, int], name: str) -> np.ndarray | bool:
    if "segmentation" not in item:
        raise ValueError(
            f"{name} has no 'segmentation', but masks are asked for; its keys are {sorted(map(str, item))}. "
            "Add it, or leave out return_segmentation_masks."
        )
    segmentation = item["segmentation"]
    if segmentation is None or (isinstance(segmentation, (list, tuple)) and len(segmentation) == 0):
        return False
    if isinstance(segmentation, Mapping):
        return run_length_mask(segmentation, image_hw, name)
    if isinstance(segmentation, (list, tuple)):
        return _polygon_mask(segmentation, image_hw, name)
    raise TypeError(
        f"{name} has a segmentation of type {type(segmentation).__name__}: expected a list of polygons or a "
        "run-length dict."
    )


def _polygon_mask(polygons: Sequence[Any], image_hw: tuple[int, int], name: str) -> np.ndarray:
    checked = [_polygon(polygon, name) for polygon in polygons]
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Masks from polygons need pycocotools: pip install pycocotools") from error
    height, width = image_hw
    runs = coco_mask.frPyObjects([polygon.tolist() for polygon in checked], height, width)
    return run_length_mask(coco_mask.merge(runs), image_hw, name)


def _polygon(polygon: Any, name: str) -> np.ndarray:
    """Returns the coordinates [x1, y1, ...] once pycocotools can be trusted with them."""
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} has a polygon that is not a list of numbers [x1, y1, x2, y2, ...].") from error
    if coordinates.ndim != 1 or len(coordinates) < 6 or len(coordinates) % 2:
        raise ValueError(
            f"{name} has a polygon of shape {coordinates.shape}: expected an even count of at least 6 numbers "
            "[x1, y1, x2, y2, ...]."
        )
    if not np.isfinite(coordinates).all():
        raise ValueError(
            f"{name} has a polygon with a coordinate that is not finite. Correct or remove this annotation."
        )
    largest = np.abs(coordinates).max()
    points = coordinates.reshape(-1, 2)
    outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if largest > _LARGEST_COORDINATE or outline > _LONGEST_OUTLINE:
        raise ValueError(
            f"{name} has a polygon with coordinates up to {largest:.4g} px and an outline of {outline:.4g} px: "
            f"expected at most {_LARGEST_COORDINATE:.0e} and {_LONGEST_OUTLINE:.0e}."
        )
    return coordinates


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _panoptic_path(masks_path: str | os.PathLike | None, file_name: Any, image_name: str) -> Path:
    if masks_path is None:
        raise ValueError("Panoptic annotations need masks_path, the folder of their PNG files.")
    if not isinstance(masks_path, (str, os.PathLike)):
        raise TypeError(f"masks_path must be a str or a pathlib.Path, got {type(masks_path).__name__}.")
    if not isinstance(file_name, (str, os.PathLike)):
        raise TypeError(f"{image_name} has file_name {file_name!r}: expected the name of a PNG file.")
    folder, text = Path(masks_path), os.fsdecode(file_name)
    if not folder.is_dir():
        raise FileNotFoundError(f"masks_path is not a folder: {folder}")
    inside = PurePosixPath(text.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(text).drive or "://" in text:
        raise ValueError(
            f"{image_name} has file_name {text!r}: expected a name inside masks_path, not one that leaves it."
        )
    if not os.path.isfile(folder / text):  # also where no file can be called so
        raise FileNotFoundError(f"{image_name}: no panoptic PNG {folder / text}")
    return folder / text


def read_panoptic_png(
    folder: str | os.PathLike | None, file_name: Any, image_hw: tuple[int, int], image_name: str
) -> np.ndarray:
    """Returns (H, W) segment ids, R + 256 G + 65536 B, of a PNG in `folder`.

    Raises:
        ValueError: the name leaves the folder, or the file is no RGB picture of the image's size.
    """
    path = _panoptic_path(folder, file_name, image_name)
    return read_segment_ids(path, image_hw, image_name, f"the panoptic PNG {path}")


def read_segment_ids(source: Any, image_hw: tuple[int, int], image_name: str, png_name: str) -> np.ndarray:
    """Returns (H, W) int32 segment ids, R + 256 G + 65536 B, of an open picture or what `PIL.Image.open` opens.

    Raises:
        ValueError: it is no RGB picture of the image's size.
    """
    try:
        with source if isinstance(source, PIL.Image.Image) else PIL.Image.open(source) as image:
            if isinstance(source, str | os.PathLike):
                refuse_bomb(image, os.path.getsize(source), png_name)
            image.load()
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(f"{image_name}: {png_name} cannot be read: {error}") from error
    return segment_ids(image, image_hw, f"{image_name}: {png_name}")


def segment_ids(image: PIL.Image.Image, image_hw: tuple[int, int], name: str) -> np.ndarray:
    """Returns (H, W) int32 segment ids, R + 256 G + 65536 B, of an opened picture.

    Raises:
        ValueError: it is no RGB picture of the image's size; `name` says which.
    """
    hw = (image.height, image.width)
    if hw != tuple(image_hw):
        raise ValueError(f"{name} has (height, width) {hw}, the image has {tuple(image_hw)}.")
    if image.mode not in ("RGB", "RGBA", "P"):
        raise ValueError(f"{name} has mode {image.mode!r}; segment ids are coded in the colours of an RGB PNG.")
    colours = np.frombuffer(image.convert("RGB").tobytes("raw", "RGBX"), dtype="<u4")  # four bytes a pixel
    return (colours & 0xFFFFFF).astype(np.int32).reshape(hw)


def measure_segments(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the ids (S,) that a map (H, W) holds, without 0, their areas (S,) and boxes (S, 4) xyxy in pixels.

    Ids change a few thousand times in a picture: what lies between two changes in a row is taken at once.
    """
    changes = np.ones(ids.shape, dtype=bool)
    changes[:, 1:] = ids[:, 1:] != ids[:, :-1]
    start = np.flatnonzero(changes)
    length = np.diff(start, append=ids.size)
    row, left = np.divmod(start, ids.shape[1])
    found, place = np.unique(ids.reshape(-1)[start], return_inverse=True)
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(len(found)))
    low, high = ((left, row), (left + length, row + 1))
    sides = [np.minimum.reduceat(side[order], first) for side in low]
    sides += [np.maximum.reduceat(side[order], first) for side in high]
    areas, listed = np.add.reduceat(length[order], first), found != 0
    return found[listed], areas[listed], np.stack(sides, axis=1)[listed]
