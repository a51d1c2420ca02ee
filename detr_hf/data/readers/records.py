"""What readers collect: images and objects of a split in columns, checked at once and turned into an Arrow table.

Columns of numbers, not a dict per annotation: COCO's 860,000 annotations are a hundred megabytes here and several
gigabytes as Python objects. Faults do not stop a reader; they go to a `FindingLog`, so that `check` can show all of
them and loading can refuse.
"""

import json
import math
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..detection_data import NO_MASK, Categories, detection_features
from ..findings import FindingLog, left_out_for
from .faults import box_fault, id_fault, number_fault
from .mask_text import segmentation_fault
from .paths import FileIndex

# A box may leave its picture by this much before it is worth a word: annotation tools round.
TOLERANCE_PX = 1.5
LARGEST_COORDINATE = 1e7


@dataclass
class SplitRecords:
    """Images and objects of one split; boxes as the source has them, which `check_boxes` turns into xywh pixels.

    `panoptic_paths` are there for panoptic data only; the segment pictures of a `datasets` source stay in its column
    `panoptic_column`, and the paths are None. `unread_masks` counts those that `keep_masks` passes over. `unusable`
    are the rows of images with a fault for which the picture is left out; `labels_from` says where the reader looked
    for labels. `things` and `class_ids` are what rows of `datasets` say of classes: by id whether they are things, and
    the ids of names.
    """

    name: str
    log: FindingLog = field(default_factory=FindingLog)
    keep_masks: bool = True
    image_ids: list[int | str] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)
    panoptic_paths: list[str | None] | None = None
    panoptic_column: str | None = None
    widths: array = field(default_factory=lambda: array("q"))
    heights: array = field(default_factory=lambda: array("q"))
    rows: array = field(default_factory=lambda: array("q"))
    object_ids: list[int | str] = field(default_factory=list)
    category_ids: list[int | str] = field(default_factory=list)
    boxes: array = field(default_factory=lambda: array("d"))
    areas: array = field(default_factory=lambda: array("d"))
    iscrowd: array = field(default_factory=lambda: array("b"))
    segmentations: list[str | None] = field(default_factory=list)
    unusable: set[int] = field(default_factory=set)
    labels_from: str = ""
    unread_masks: int = 0
    things: dict[int | str, set[Any]] = field(default_factory=dict)
    class_ids: dict[str, int] = field(default_factory=dict)

    def add_image(self, image_id: int | str, file_name: str, path: str | None, width: int = 0, height: int = 0) -> int:
        """Adds an image and returns its row; a size of 0 x 0 means that it is not known."""
        self.image_ids.append(image_id)
        self.file_names.append(file_name)
        self.paths.append(path)
        self.widths.append(width)
        self.heights.append(height)
        return len(self.image_ids) - 1

    def add_object(
        self,
        row: int,
        object_id: int | str,
        category_id: Any,
        bbox: Any,
        area: Any = None,
        iscrowd: Any = 0,
        segmentation: Any = None,
        segmentation_text: str | None = None,
    ) -> None:
        """Adds an object of image `row`, or logs why it cannot be one; one whose mask cannot be used has none.

        `segmentation_text` is the segmentation as JSON, where the caller has it, or `NO_MASK`.
        """
        if fault := box_fault(bbox):
            self.fault("box-malformed", fault, row, object_id)
        elif fault := id_fault(category_id):
            self.fault("category-malformed", f"category_id: {fault}", row, object_id)
        elif iscrowd not in (0, 1, None):
            self.fault("iscrowd-malformed", f"iscrowd is {str(iscrowd)[:60]!r}, expected 0 or 1", row, object_id)
        else:
            has_mask = segmentation is not None and segmentation != []
            if has_mask and (fault := segmentation_fault(segmentation, self.heights[row], self.widths[row])):
                has_mask = False
                code, severity = ("mask-malformed", "error") if self.keep_masks else ("mask-unused", "warning")
                self.fault(code, fault, row, object_id, severity)
            self.rows.append(row)
            self.object_ids.append(object_id)
            self.category_ids.append(category_id)
            self.boxes.extend(bbox)
            usable = not number_fault(area) and abs(area) < 1e15 and area >= 0
            self.areas.append(float(area) if usable else math.nan)
            self.iscrowd.append(int(iscrowd or 0))
            self.unread_masks += has_mask and not self.keep_masks
            kept = has_mask and self.keep_masks
            text = segmentation_text or json.dumps(segmentation, separators=(",", ":")) if kept else None
            self.segmentations.append(NO_MASK if segmentation_text == NO_MASK else text)

    def place(self, row: int, object_id: int | str | None = None) -> dict[str, Any]:
        """Returns the place fields of a `Finding`."""
        return {
            "split": self.name,
            "file_name": self.file_names[row],
            "image_id": self.image_ids[row],
            "annotation_id": object_id,
        }

    def fault(
        self, code: str, message: str, row: int, object_id: int | str | None = None, severity: str = "error"
    ) -> None:
        """Logs a fault of an image or object; for some faults the image cannot be used."""
        if left_out_for(code) == "picture":
            self.unusable.add(row)
        self.log.add(code, severity, message, **self.place(row, object_id))

    def boxes_array(self) -> np.ndarray:
        """Returns boxes `(N, 4)` float64."""
        return np.array(self.boxes, dtype=np.float64).reshape(-1, 4)

    def sizes_wh(self) -> np.ndarray:
        """Returns width and height of each image `(images, 2)` float64; 0 where it is not known."""
        return np.stack([np.array(self.widths, dtype=np.float64), np.array(self.heights, dtype=np.float64)], axis=1)


@dataclass
class JudgedSplit:
    """A split's records after the checks.

    `boxes (N, 4)` are xywh in pixels, `indices (N,)` the classes, `kept (N,)` and `images` say what can be used.
    """

    records: SplitRecords
    boxes: np.ndarray
    indices: np.ndarray
    kept: np.ndarray
    images: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Returns which objects can be used, in images that can `(N,)`."""
        return self.kept & self.images[np.array(self.records.rows, dtype=np.int64)]


def to_xywh(boxes: np.ndarray, box_format: str, sizes_wh: np.ndarray) -> np.ndarray:
    """Returns boxes `(N, 4)` of any box format as xywh in pixels; `sizes_wh (N, 2)` are their pictures'."""
    layout, _, norm = box_format.partition("_")
    boxes = boxes.astype(np.float64, copy=True)
    if norm:
        boxes *= np.tile(sizes_wh, 2)
    if layout == "xyxy":
        boxes[:, 2:] -= boxes[:, :2]
    elif layout == "cxcywh":
        boxes[:, :2] -= boxes[:, 2:] / 2
    return boxes


def suspect_format(boxes: np.ndarray, sizes_wh: np.ndarray) -> str | None:
    """Returns `"xyxy"` or `"normalised"` when boxes `(N, 4)`, taken as xywh in pixels, look like that; else None.

    xyxy: a quarter of the boxes leave their picture, and nearly all would be proper boxes inside it as corners.
    normalised: no number is above 1 (a box of at most a pixel, in pictures of 16 pixels and more).
    """
    known = np.isfinite(boxes).all(axis=1) & (sizes_wh > 0).all(axis=1)
    boxes, sizes_wh = boxes[known], sizes_wh[known]
    if not len(boxes):
        return None
    if (boxes <= 1.0001).all() and (boxes[:, 2:] > 0).all() and (sizes_wh >= 16).all():
        return "normalised"
    slack = np.maximum(TOLERANCE_PX, 0.01 * sizes_wh)
    leaves = (boxes[:, :2] + boxes[:, 2:] > sizes_wh + slack).any(axis=1)
    proper = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes_wh + slack)).all(axis=1)
    return "xyxy" if leaves.mean() >= 0.25 and proper.mean() >= 0.98 else None


def check_boxes(records: SplitRecords, box_format: str, explicit_format: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes as xywh pixels `(N, 4)` and which of them can be kept `(N,)`; every fault goes to the log."""
    rows = np.array(records.rows, dtype=np.int64)
    sizes_wh = records.sizes_wh()[rows]
    boxes = to_xywh(records.boxes_array(), box_format, sizes_wh)
    known = (sizes_wh > 0).all(axis=1)

    def log(code: str, severity: str, which: np.ndarray, message: str) -> None:
        for index in np.flatnonzero(which):
            size = "x".join(str(int(side)) for side in sizes_wh[index])
            text = (
                f"{message}: x, y, width, height = {', '.join(f'{value:g}' for value in boxes[index])}; picture {size}"
            )
            records.fault(code, text, int(rows[index]), records.object_ids[index], severity)

    finite = (np.abs(boxes) <= LARGEST_COORDINATE).all(axis=1)  # False for NaN too
    nan = np.isnan(boxes).any(axis=1)
    log("box-nan", "error", nan, "the box holds a NaN")
    log("box-infinite", "error", ~finite & ~nan, "the box holds an infinite or enormous number")
    safe = np.where(finite[:, None], boxes, 1.0)
    negative = finite & (safe[:, 2:] < 0).any(axis=1)
    log("box-negative", "error", negative, "the box has a negative width or height")
    empty = finite & ~negative & (safe[:, 2:] == 0).any(axis=1)
    log("box-empty", "warning", empty, "the box has no area and is left out")
    proper = finite & ~negative & ~empty
    suspect = None if explicit_format else suspect_format(boxes[finite & ~negative], sizes_wh[finite & ~negative])
    if suspect:
        records.log.add(f"boxes-look-{suspect}", "error", _suspect_message(suspect, box_format), split=records.name)
        return boxes, proper
    far = safe[:, :2] + safe[:, 2:]
    outside = proper & known & ((safe[:, :2] >= sizes_wh) | (far <= 0)).any(axis=1)
    log("box-outside", "warning", outside, "the box lies outside of the picture and is left out")
    slack = np.maximum(TOLERANCE_PX, 0.01 * sizes_wh)
    inside = np.minimum(far, np.where(known[:, None], sizes_wh, np.inf)) - np.maximum(safe[:, :2], 0)
    tiny = proper & ~outside & (inside < 1).any(axis=1)
    log("box-tiny", "warning", tiny, "the box is below one pixel and is left out of training")
    partly = proper & known & ~outside & ((safe[:, :2] < -slack) | (far > sizes_wh + slack)).any(axis=1)
    log("box-cut", "warning", partly, "the box reaches out of the picture and is cut at its edge in training")
    return boxes, proper & ~outside


def _suspect_message(suspect: str, box_format: str) -> str:
    if suspect == "normalised":
        return (
            f"all box numbers are at most 1: they look like fractions of the picture, read as {box_format!r} in "
            "pixels. If so, pass box_format='xywh_norm', 'xyxy_norm' or 'cxcywh_norm'; if not, pass box_format='xywh' "
            "to say that it is meant so"
        )
    return (
        "many boxes leave their picture and nearly all would fit as corners: they look like x0, y0, x1, y1, read as "
        f"{box_format!r}. If so, pass box_format='xyxy'; if not, pass box_format='xywh' to say that it is meant so"
    )


def check_ids(records: SplitRecords, kept: np.ndarray) -> None:
    """Logs ids that occur twice and objects that are the same twice.

    Ids of objects and images are then numbered anew. Those of panoptic segments name pixels: `kept (N,)` loses such
    a segment.
    """
    for row in repeated_rows(codes(records.image_ids)[:, None]):
        records.fault("image-id-repeated", "the image id occurs before in this split", row, severity="warning")
    rows = np.array(records.rows, dtype=np.float64)
    ids = codes(records.object_ids)
    if records.panoptic_paths is None:
        for index in repeated_rows(ids[:, None]):
            message = "the annotation id occurs before; objects are numbered anew"
            records.fault(
                "annotation-id-duplicate", message, records.rows[index], records.object_ids[index], "warning"
            )
    else:
        for index in repeated_rows(np.stack([rows, ids], axis=1)):
            message = "another segment of the image has the same id"
            records.fault("segment-id-duplicate", message, records.rows[index], records.object_ids[index])
            kept[index] = False
    for index in repeated_rows(np.column_stack([rows, codes(records.category_ids), records.boxes_array()])):
        message = "an object with the same box and class occurs before in this image"
        records.fault("object-duplicate", message, records.rows[index], records.object_ids[index], "warning")


def codes(values: list[int | str]) -> np.ndarray:
    """Returns a number for each value `(N,)` float64, equal where the values are equal."""
    known: dict[int | str, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.float64)


def repeated_rows(matrix: np.ndarray) -> list[int]:
    """Returns positions of the rows of a matrix `(N, columns)` that occurred before."""
    order = np.lexsort(matrix.T)
    same = (matrix[order[1:]] == matrix[order[:-1]]).all(axis=1)
    return np.sort(order[1:][same]).tolist()


def check_categories(records: SplitRecords, categories: Categories, kept: np.ndarray) -> np.ndarray:
    """Returns the class index of each object `(N,)`, -1 and a finding where the data set does not define the id."""
    indices = np.array([categories.index_of.get(value, -1) for value in records.category_ids], dtype=np.int64)
    kept &= indices >= 0
    if not categories.source_ids:
        return indices  # one finding says so, not one for each object
    shown = ", ".join(map(repr, categories.source_ids[:12])) + (", ..." if len(categories.source_ids) > 12 else "")
    for index in np.flatnonzero(indices < 0):
        message = f"category_id {records.category_ids[index]!r} is not defined; the data set defines {shown}"
        records.fault("category-unknown", message, records.rows[index], records.object_ids[index])
    return indices


def check_files(records: SplitRecords) -> None:
    """Logs images whose file is not there, or is listed before in the split."""
    index = FileIndex()
    first: dict[str, int] = {}
    counts = np.bincount(np.array(records.rows, dtype=np.int64), minlength=len(records.paths))
    for row, path in enumerate(records.paths):
        if path is None:
            continue
        if path not in index:
            records.fault("image-missing", f"there is no file {path}", row)
        elif first.setdefault(path, row) != row:
            first_id = records.image_ids[first[path]]
            message = f"the same file is image {first_id!r} too; here with {counts[row]} objects"
            records.fault("file-listed-twice", message, row)
    for row, path in enumerate(records.panoptic_paths or []):
        if path is not None and path not in index:
            records.fault("panoptic-missing", f"there is no file {path}", row)


def build_table(split: JudgedSplit, categories: Categories, boxes_alone: bool = False) -> pa.Table:
    """Returns the Arrow table of what can be used of a split; with `boxes_alone` objects may lack a mask."""
    records = split.records
    rows = np.array(records.rows, dtype=np.int64)
    new_row = np.cumsum(split.images) - 1
    order = np.flatnonzero(split.used)
    order = order[np.argsort(rows[order], kind="stable")]
    chosen = np.flatnonzero(split.images).tolist()
    counts = np.bincount(new_row[rows[order]], minlength=len(chosen))
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts))).astype(np.int32), type=pa.int32())

    object_ids = [records.object_ids[index] for index in order.tolist()]
    if records.panoptic_paths is None:
        object_ids = numbered(object_ids)
    boxes = split.boxes[order]
    areas = np.array(records.areas, dtype=np.float64)[order]
    areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    columns = {
        "id": pa.array(object_ids, type=pa.int64()),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), 4),
        "category": pa.array(split.indices[order], type=pa.int64()),
        "area": pa.array(areas),
        "iscrowd": pa.array(np.array(records.iscrowd, dtype=np.int8)[order]),
        "segmentation": pa.array(
            [records.segmentations[index] or (NO_MASK if boxes_alone else None) for index in order.tolist()],
            type=pa.large_string(),
        ),
    }
    if records.panoptic_paths is not None:
        things = np.array(categories.is_thing or [True] * len(categories.names), dtype=np.int8)
        columns["isthing"] = pa.array(things[split.indices[order]])
    objects = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
    image_ids = [records.image_ids[row] for row in chosen]
    renumbered = numbered(image_ids) is not image_ids
    data = {
        "image": _image_column([records.paths[row] for row in chosen]),
        "image_id": pa.array(numbered(image_ids), type=pa.int64()),
        "file_name": pa.array([records.file_names[row] for row in chosen], type=pa.string()),
        "width": pa.array([records.widths[row] for row in chosen], type=pa.int32()),
        "height": pa.array([records.heights[row] for row in chosen], type=pa.int32()),
        "objects": pa.StructArray.from_arrays(list(objects.values()), names=list(objects)),
    }
    if renumbered:
        data["source_image_id"] = pa.array([str(image_id) for image_id in image_ids], type=pa.string())
    if records.panoptic_paths is not None:
        data["panoptic"] = _image_column([records.panoptic_paths[row] for row in chosen])
    features = detection_features(categories.names, renumbered, records.panoptic_paths is not None)
    return pa.table(data).cast(features.arrow_schema)


def numbered(ids: list[int | str]) -> list[int]:
    """Returns the ids themselves when all are integers and different, else 1, 2, 3, ..."""
    usable = all(type(value) is int for value in ids) and len(set(ids)) == len(ids)
    return ids if usable else list(range(1, len(ids) + 1))


def _image_column(paths: list[str | None]) -> pa.StructArray:
    empty = pa.nulls(len(paths), type=pa.binary())
    return pa.StructArray.from_arrays([empty, pa.array(paths, type=pa.string())], names=["bytes", "path"])
