"""Streams of `datasets` in the schema: looked into at their start, then read row by row as they are iterated."""

from typing import Any

import numpy as np
from datasets import Image as ImageFeature, IterableDataset

from ...errors import AnnotationError
from ..detection_data import NO_MASK, Categories, detection_features
from ..pictures import read_header
from ..read_options import ReadOptions
from .faults import box_fault
from .hf_columns import Columns, as_column, find_columns
from .hf_objects import PEEK_ROWS, add_row, records_for
from .mask_checks import check_masks, check_segments
from .records import SplitRecords, suspect_format, to_xywh


def peek_box_format(split: IterableDataset, box_format: str, where: str, task: str | None = None) -> None:
    """Refuses a stream whose first rows hold boxes that look like another format.

    Raises:
        AnnotationError: they do.
    """
    boxes, sizes = [], []
    columns = find_columns(split.features or next(iter(split)), where, task)
    if columns.box is None:
        return
    for number, row in enumerate(undecoded(split).take(PEEK_ROWS)):
        header = read_header(row["image"], f"row {number}")
        found = [box for box in as_column(row[columns.objects], columns.box) if box_fault(list(box)) is None]
        boxes += [list(box) for box in found]
        sizes += [header.upright_wh] * len(found)
    suspect = suspect_format(
        np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(sizes, dtype=np.float64).reshape(-1, 2)
    )
    if suspect:
        raise AnnotationError(
            f"{where}: the boxes of the first {PEEK_ROWS} rows look {suspect}, read as {box_format!r}. Pass "
            "box_format= to say which of xywh, xyxy, cxcywh, xywh_norm, xyxy_norm, cxcywh_norm they are."
        )


def undecoded(split: IterableDataset) -> IterableDataset:
    """Returns a stream whose pictures stay as they are stored; one without features gives what it gives."""
    if split.features is None:
        return split
    return split.cast_column("image", ImageFeature(decode=False)).decode(False)


def _streamed_row(
    row: dict[str, Any],
    number: int,
    split_name: str,
    columns: Columns,
    categories: Categories,
    box_format: str,
    options: ReadOptions,
) -> dict[str, Any]:
    """Returns a row in the schema of `detection_features`; a faulty one stops the stream with its number.

    Raises:
        AnnotationError: an object of the row is malformed, or lacks what it needs.
    """
    records = records_for(split_name, columns, options.masks)
    add_row(records, row, number, columns, lambda image, name: read_header(image, name).upright_wh)
    objects = _objects_of(records, categories, box_format, options)
    faults = [finding for finding in records.log if finding.severity == "error"]
    if faults:
        raise AnnotationError(f"Row {number}: {faults[0]}.")
    image_id = records.image_ids[0]
    return {
        "image": row["image"],
        "image_id": image_id if isinstance(image_id, int) else number,
        "file_name": records.file_names[0],
        "width": records.widths[0],
        "height": records.heights[0],
        "objects": objects,
        **({"panoptic": row[columns.picture]} if columns.panoptic else {}),
    }


def _objects_of(
    records: SplitRecords, categories: Categories, box_format: str, options: ReadOptions
) -> dict[str, list[Any]]:
    """Returns the objects of the only image in `records`, without those whose box has no area."""
    sizes = np.repeat(records.sizes_wh(), len(records.rows), axis=0)
    boxes = to_xywh(records.boxes_array(), box_format, sizes)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
        records.fault("box-malformed", "a box has a negative side or a number that is not finite", 0)
    for category in records.category_ids:
        if category not in categories.index_of:
            records.fault("category-unknown", f"category {category!r} is not in id2label", 0)
    indices = np.array([categories.index_of.get(value, -1) for value in records.category_ids], dtype=np.int64)
    usable = (boxes[:, 2:] > 0).all(axis=1)
    check_masks(records, usable, options.task == "instance", options.allow_missing_masks)
    if records.panoptic_paths is not None:
        check_segments(records, categories, indices, usable & (indices >= 0))
    areas = np.array(records.areas)
    areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    kept = np.flatnonzero(usable).tolist()
    ids = list(range(1, len(kept) + 1))
    if records.panoptic_paths is not None:
        ids = [records.object_ids[index] for index in kept]
    bare = NO_MASK if options.boxes_alone else None
    objects = {
        "id": ids,
        "bbox": [boxes[index].tolist() for index in kept],
        "category": indices[kept].tolist(),
        "area": [float(areas[index]) for index in kept],
        "iscrowd": [records.iscrowd[index] for index in kept],
        "segmentation": [records.segmentations[index] or bare for index in kept],
    }
    if records.panoptic_paths is not None:
        objects["isthing"] = [int(categories.is_thing[index]) for index in objects["category"]]
    return objects


def stream_split(
    name: str, split: IterableDataset, categories: Categories, box_format: str, options: ReadOptions
) -> IterableDataset:
    """Returns a stream in the schema; nothing is read until it is iterated."""
    columns = find_columns(split.features or next(iter(split)), f"split {name!r}", options.task)
    known = {"split_name": name, "columns": columns, "categories": categories, "box_format": box_format}
    known["options"] = options
    there = list(split.features) if split.features is not None else None
    features = detection_features(categories.names, panoptic=columns.panoptic)
    split = undecoded(split)
    return split.map(_streamed_row, with_indices=True, fn_kwargs=known, remove_columns=there, features=features)
