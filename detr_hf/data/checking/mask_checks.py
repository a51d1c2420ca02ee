"""What `check` learns from masks: empty ones, those that leave their picture or their box, and segment pictures.

Masks are decoded as for training; crowds, which are not trained on, are passed over.
"""

import json
from typing import Any

import numpy as np

from ...errors import AnnotationError
from ...processing.mask_annotations_detr import masks_to_boxes
from ..detection_data import NO_MASK
from ..pictures import inspect_segments
from ..preparing.augment import AGREEMENT_PX
from ..readers.mask_text import decode_masks
from ..readers.recognising import ReadData
from ..readers.records import TOLERANCE_PX, JudgedSplit
from .picture_checks import add, inspect_all, picture_sources


def check_masks(read: ReadData, judged: dict[str, JudgedSplit]) -> None:
    """Draws every mask of an object, and compares it with its picture and its box."""
    for name, split in judged.items():
        records = split.records
        if records.unread_masks:
            message = (
                f"{records.unread_masks} objects have segmentations, which are not looked into: masks= reads them"
            )
            read.log.add("masks-not-read", "info", message, split=name)
        if records.panoptic_paths is None:
            drawn = [text not in (None, NO_MASK) for text in records.segmentations]
            usable = np.flatnonzero(np.array(drawn, dtype=bool) & split.used & (np.array(records.iscrowd) == 0))
            try:
                for index in usable.tolist():
                    _look_into(read, split, index)
            except ImportError as error:
                read.log.add("masks-not-read", "info", f"masks are not looked into: {error}", split=name)


def _look_into(read: ReadData, split: JudgedSplit, index: int) -> None:
    records, text = split.records, split.records.segmentations[index]
    row, object_id = records.rows[index], records.object_ids[index]
    size = np.array([records.widths[row], records.heights[row]])
    if not size.all():
        return
    try:
        mask = decode_masks([text], int(size[1]), int(size[0]), ["the mask"])
    except AnnotationError as error:
        add(read, split, row, "mask-malformed", "error", str(error), object_id)
        return
    beyond = _reach(text, size)
    if not mask.any():
        where = "lies outside of the picture" if (beyond > 0).any() else "has no pixel in the picture"
        message = f"the mask {where}: the object is left out of training with masks"
        add(read, split, row, "mask-empty", "warning", message, object_id)
        return
    if (beyond > np.maximum(TOLERANCE_PX, 0.01 * size)).any():
        message = f"the mask reaches {beyond.max():g} pixels out of the picture and is cut at its edge"
        add(read, split, row, "mask-cut", "warning", message, object_id)
    _compare(read, split, index, masks_to_boxes(mask)[0].numpy())


def _reach(text: str, size_wh: np.ndarray) -> np.ndarray:
    """Returns how far (2,) polygons reach out of their picture, across and down; 0 of run lengths."""
    segmentation = json.loads(text)
    if isinstance(segmentation, dict):
        return np.zeros(2)
    points = np.concatenate([np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    return np.maximum(np.maximum(-points.min(axis=0), points.max(axis=0) - size_wh), 0)


def _compare(read: ReadData, split: JudgedSplit, index: int, mask_xyxy: np.ndarray) -> None:
    """Logs a box whose sides are not where those of its mask are."""
    records, box = split.records, split.boxes[index]
    row = records.rows[index]
    size = np.array([records.widths[row], records.heights[row]])
    corners = np.clip(np.concatenate([box[:2], box[:2] + box[2:]]), 0, np.tile(size, 2))
    apart = np.abs(corners - mask_xyxy).max()
    if apart > AGREEMENT_PX and not any(code.startswith("boxes-look") for code in records.log.counts):
        seen, wanted = (", ".join(f"{value:g}" for value in side) for side in (corners, mask_xyxy))
        message = (
            f"box and mask differ by {apart:g} pixels: the box is {seen} (x0, y0, x1, y1), that of the mask {wanted}"
        )
        add(read, split, row, "mask-box-differs", "warning", message, records.object_ids[index])


def check_segment_pictures(read: ReadData, judged: dict[str, JudgedSplit], workers: int | None = None) -> None:
    """Compares each segment picture with its picture's size, its listed segments and their boxes."""
    for split in judged.values():
        records = split.records
        if records.panoptic_paths is None:
            continue
        listed: list[dict[Any, int]] = [{} for _ in records.image_ids]
        for index, (row, segment) in enumerate(zip(records.rows, records.object_ids, strict=True)):
            if segment != 0:  # told already
                listed[row][segment] = index
        for row, seen in inspect_all(inspect_segments, picture_sources(split, read, segments=True), workers):
            recorded = (records.widths[row], records.heights[row])
            if isinstance(seen, str):
                add(read, split, row, "panoptic-unreadable", "error", seen)
            elif seen[0] != recorded:
                message = (
                    f"the segment picture is {seen[0][0]}x{seen[0][1]}, the picture {recorded[0]}x{recorded[1]} "
                    "(width x height)"
                )
                add(read, split, row, "panoptic-size-mismatch", "error", message)
            else:
                _compare_segments(read, split, row, listed[row], seen[1])


def _compare_segments(
    read: ReadData, split: JudgedSplit, row: int, listed: dict[Any, int], seen: dict[int, np.ndarray]
) -> None:
    for segment in sorted(listed.keys() - seen.keys(), key=str):
        message = "the segment has no pixel in the PNG and is left out"
        add(read, split, row, "segment-absent", "warning", message, segment)
    for segment in sorted(seen.keys() - listed.keys()):
        message = "the PNG holds a segment that segments_info does not list"
        add(read, split, row, "segment-unlisted", "warning", message, segment)
    for segment in seen.keys() & listed.keys():
        if split.kept[listed[segment]] and not split.records.iscrowd[listed[segment]]:
            _compare(read, split, listed[segment], seen[segment])
