"""YOLO data sets: pictures, and one text file of objects for each.

Where they lie is told by `yolo_yaml`, `yolo_layout` and `yolo_labels`, what a line means by `yolo_lines`.

A picture without a text file is a background picture, which is said. What is passed over (label files that no picture
has, numbers behind a box, pictures that occur twice) is counted in the log.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from ...errors import AnnotationError, LayoutError
from ..detection_data import Categories
from ..findings import FindingLog
from ..pictures import upright_size
from .paths import FileIndex
from .records import SplitRecords
from .text import read_text
from .yolo_labels import LabelFinder
from .yolo_layout import YoloLayout, find_split_folders, layout_from_folders
from .yolo_lines import FRACTION_SLACK, LineKind, infer_kind, parse_line, parse_numbers
from .yolo_names import NAME_FILES, check_repeated_names
from .yolo_yaml import find_description, layout_from_file

# Lines that are looked at to tell polygons from key points, and label files that are opened for them.
PROBED_LINES, PROBED_FILES = 200, 1000


def is_yolo(root: Path) -> bool:
    """Whether a folder is a YOLO data set.

    Raises:
        LayoutError: it can be read in two ways.
    """
    return find_description(root) is not None or bool(find_split_folders(root, FileIndex()))


def find_layout(path: Path, image_root: Path | Mapping[str, Path] | None = None) -> YoloLayout | None:
    """Returns where the pictures of a data set are; None for a folder that is no YOLO data set.

    Raises:
        LayoutError: it cannot be read, or can be read in two ways.
    """
    path = Path(os.path.abspath(path))
    description = path if path.is_file() else find_description(path)
    if description is None:
        return layout_from_folders(path)
    if isinstance(image_root, Mapping):
        image_root = {split: Path(os.path.abspath(root)) for split, root in image_root.items()}
    elif image_root is not None:
        image_root = Path(os.path.abspath(image_root))
    return layout_from_file(description, image_root)


def read_yolo(layout: YoloLayout, chosen: Mapping[str, str], masks: bool, log: FindingLog) -> dict[str, SplitRecords]:
    """Returns the pictures and objects of the chosen splits (new name to the layout's) as records.

    Boxes become x, y, width, height in pixels. What is about the whole data set goes to `log`.

    Raises:
        LayoutError: a chosen split is not there, or its lines can be read in two ways.
    """
    for split in chosen.values():
        if split in layout.missing:
            raise layout.missing[split]
    labels = LabelFinder(layout)
    labels.remark_leftovers()
    kind = layout.kind or infer_kind(_probe(labels), layout.root)
    if kind.long == "key points" and layout.kind is None:
        message = f"no kpt_shape says so: lines of {kind.count} numbers are a box and key points by their visibility"
        layout.remark(None, "key-points-inferred", "info", message)
    records = {}
    for new_name, split in chosen.items():
        records[new_name] = _read_split(layout, labels, split, SplitRecords(new_name, keep_masks=masks), kind)
        for remark in layout.remarks.get(split, []):
            records[new_name].log.add(*remark[:3], split=new_name, file_name=remark.file_name)
    for remark in layout.remarks.get(None, []):
        log.add(*remark[:3], file_name=remark.file_name)
    for first, second in combinations(records, 2):
        shared = set(map(os.path.normpath, records[first].paths)) & set(map(os.path.normpath, records[second].paths))
        if shared:
            message = (
                f"{len(shared)} pictures are in {first!r} and in {second!r}: a score measured on them means nothing"
            )
            log.add("splits-overlap", "warning", message)
    return records


def _probe(labels: LabelFinder) -> Iterator[list[float]]:
    """Yields the numbers of some lines of label files that have more than a box."""
    paths = (found.path for found in labels.found.values() if found.path)
    lines = (line for path in islice(paths, PROBED_FILES) for line in _lines_or_nothing(path))
    yield from islice(filter(lambda numbers: len(numbers) > 5, map(_numbers_or_nothing, lines)), PROBED_LINES)


def _numbers_or_nothing(line: str) -> list[float]:
    try:
        return parse_numbers(line) if line.strip() else []
    except AnnotationError:
        return []


def _lines_or_nothing(path: str) -> list[str]:
    try:
        return read_text(Path(path)).splitlines()
    except LayoutError:
        return []


def _read_split(
    layout: YoloLayout, labels: LabelFinder, split: str, records: SplitRecords, kind: LineKind
) -> SplitRecords:
    where = records.labels_from = labels.where(split)
    for number, (folder, name) in enumerate(layout.pictures[split], start=1):
        path = os.path.join(folder, name)
        row = records.add_image(number, name, path, *upright_size(path, name))
        found = labels.found[path]
        if found.fault:
            records.fault("label-ambiguous", found.fault, row)
        elif found.path:
            _read_labels(records, row, found.path, kind)
        else:
            message = f"it has no label file in {where}: a background picture"
            records.fault("label-missing", message, row, severity="info")
    return records


def _read_labels(records: SplitRecords, row: int, path: str, kind: LineKind) -> None:
    name = os.path.basename(path)
    try:
        lines = read_text(Path(path)).splitlines()
    except LayoutError as error:
        records.fault("label-file-unreadable", str(error), row)
        return
    notes: dict[tuple[str, str], int] = defaultdict(int)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {number} of {name}"
        try:
            category, values = parse_line(line, kind, lambda *note: notes.update({note: notes[note] + 1}))
        except AnnotationError as error:
            records.fault("label-malformed", f"{place}: {error}", row)
            continue
        _add_line(records, row, place, category, values)
    for (code, message), count in notes.items():
        severity = "info" if code == "key-points-not-read" else "warning"
        records.fault(code, f"{count} lines of {name}: {message}", row, severity=severity)


def _add_line(records: SplitRecords, row: int, place: str, category: int, values: list[float]) -> None:
    """Adds a line's object; its id is its number in the split."""
    width, height = records.widths[row], records.heights[row]
    finite = all(math.isfinite(value) for value in values)
    outside = finite and any(value < -FRACTION_SLACK or value > 1 + FRACTION_SLACK for value in values)
    if outside:
        shown = ", ".join(f"{value:g}" for value in values[:6])
        message = f"{place}: {shown}: YOLO's numbers are fractions of the picture, from 0 to 1"
        records.fault("box-not-normalised", message, row)
        return
    if not width:
        return  # the picture cannot be read, which the picture check reports
    segmentation = None
    if len(values) == 4:
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        box = [x - w / 2, y - h / 2, w, h]
    else:
        polygon = [value * (height if index % 2 else width) for index, value in enumerate(values)]
        xs, ys = polygon[0::2], polygon[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        segmentation = [polygon]
    records.add_object(row, len(records.object_ids) + 1, category, box, segmentation=segmentation)


def yolo_categories(layout: YoloLayout, id2label: dict[Any, str] | None, log: FindingLog) -> Categories:
    """Returns the classes of a YOLO data set.

    Raises:
        LayoutError: no file names them, and `id2label` was not given.
    """
    names = id2label or layout.names
    if not names:
        raise LayoutError(
            f"{layout.root} does not say what its classes are called; looked for data.yaml, {', '.join(NAME_FILES)}. "
            "Write a data.yaml with `names:`, or pass id2label={0: 'name', ...}."
        )
    check_repeated_names(names, log)
    return Categories.of(names)
