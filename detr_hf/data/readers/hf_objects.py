"""Hugging Face `datasets` with an `objects` column: from the Hub, from a local folder, in memory, or streamed.

`objects` is a dict of lists (`{"bbox": [...], "category": [...]}`) or a list of dicts. Boxes are x, y, width, height
in pixels unless `box_format` says otherwise; boxes that look like something else are refused, not converted, because
Hub data sets come in every format.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image as ImageFeature, IterableDataset, IterableDatasetDict

from ...errors import AnnotationError, LayoutError
from ..detection_data import Categories, detection_features
from ..pictures import read_header, upright_size
from .faults import box_fault, id_fault
from .records import SplitRecords, suspect_format, to_xywh

BOX_KEYS = ("bbox", "boxes", "bboxes", "box")
CATEGORY_KEYS = ("category", "category_id", "categories", "label", "labels", "class", "classes")
ID_KEYS = ("id", "bbox_id", "annotation_id")
PEEK_ROWS = 16


def load_hf(path: str, local: bool, streaming: bool, **load_options: Any) -> dict[str, Any]:
    """Returns the splits of a saved folder, a folder that `datasets` can read, or a Hub id.

    Raises:
        LayoutError: `datasets` cannot load it; its own words are repeated.
    """
    try:
        if local and ((Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file()):
            splits = as_splits(datasets.load_from_disk(path))
            return {name: split.to_iterable_dataset() if streaming else split for name, split in splits.items()}
        return as_splits(datasets.load_dataset(path, streaming=streaming, **load_options))
    except Exception as error:  # datasets raises some twenty kinds here, its own and those of the network below it
        place = "folder" if local else "Hub id (no such file or folder is here)"
        raise LayoutError(
            f"{path!r} could not be loaded as a {place} with `datasets`: {type(error).__name__}: {str(error)[:400]}"
        ) from error


def as_splits(loaded: Any) -> dict[str, Any]:
    """Returns the splits by name of anything that `datasets` gives; a single one keeps its name, or is `"train"`."""
    if isinstance(loaded, Dataset | IterableDataset):
        return {str(loaded.split) if loaded.split else "train": loaded}
    if isinstance(loaded, DatasetDict | IterableDatasetDict | dict):
        return dict(loaded)
    raise LayoutError(f"Got a {type(loaded).__name__}, expected a Dataset, IterableDataset or a dict of them.")


def object_fields(row_or_features: dict[str, Any], where: str) -> tuple[str, str]:
    """Returns the names of the box field and of the class field in an `objects` column.

    Raises:
        LayoutError: a field is missing, or two could be it.
    """
    objects = row_or_features.get("objects")
    if isinstance(objects, list):
        objects = objects[0] if objects else None
    elif hasattr(objects, "feature"):  # a List of structs
        objects = objects.feature
    if "image" not in row_or_features or not isinstance(objects, dict):
        raise LayoutError(
            f"{where} has the columns {', '.join(map(str, row_or_features))}; looked for `image`, and `objects` with "
            "boxes and classes in it."
        )
    found = []
    for keys in (BOX_KEYS, CATEGORY_KEYS):
        present = [key for key in keys if key in objects]
        if len(present) != 1:
            raise LayoutError(
                f"{where}: `objects` has the fields {', '.join(map(str, objects))}; looked for exactly one of "
                f"{', '.join(keys)}, found {', '.join(present) or 'none'}. Rename or remove columns first."
            )
        found.append(present[0])
    return found[0], found[1]


def class_names(features: Any, category_key: str) -> list[str] | None:
    """Returns the names of the ClassLabel below `objects`, or None."""
    objects = (features or {}).get("objects")
    objects = getattr(objects, "feature", objects)
    field = objects.get(category_key) if isinstance(objects, dict) else None
    while field is not None and not isinstance(field, ClassLabel):
        field = getattr(field, "feature", None)
    return list(field.names) if isinstance(field, ClassLabel) else None


def hf_categories(splits: dict[str, Any], id2label: dict[Any, str] | None, where: str) -> Categories:
    """Returns the classes: from `id2label`, from a ClassLabel, or the names that occur when classes are texts.

    Raises:
        LayoutError: the ids are plain integers, or the data is streamed and has no ClassLabel; `id2label` is needed.
    """
    if id2label:
        return Categories.of(id2label)
    found: dict[str, list[str]] = {}
    for name, split in splits.items():
        if split.features is not None:
            _, category_key = object_fields(split.features, where)
            names = class_names(split.features, category_key)
            if names is not None:
                found[name] = names
    if found:
        if len({tuple(names) for names in found.values()}) > 1:
            raise LayoutError(
                f"The splits of {where} have different class names: {found}. Pass id2label={{id: name}}."
            )
        names = next(iter(found.values()))
        return Categories(names, list(range(len(names))))
    if any(isinstance(split, IterableDataset) for split in splits.values()):
        raise LayoutError(
            f"{where} is streamed and its features have no ClassLabel, so its classes are not known before it is read "
            "to the end. Pass id2label={id in the data: name}, or load it without streaming."
        )
    texts = sorted(
        {str(value) for split in splits.values() for value in _category_values(split, where) if isinstance(value, str)}
    )
    if texts:
        return Categories(texts, list(texts))
    raise LayoutError(
        f"The classes of {where} are plain integers without names. Pass id2label={{id in the data: name}}."
    )


def _category_values(split: Dataset, where: str) -> Iterator[Any]:
    _, category_key = object_fields(split.features, where)
    for row in split.select_columns("objects"):
        yield from objects_as_columns(row["objects"], category_key)


def objects_as_columns(objects: Any, key: str) -> list[Any]:
    """Returns a field of an `objects` value as a list, whichever way round it is stored; empty where it is absent."""
    if isinstance(objects, dict):
        values = objects.get(key)
        return [] if values is None else list(values)
    return [entry.get(key) for entry in objects or []]


def read_hf(name: str, split: Dataset, keep_masks: bool = True) -> SplitRecords:
    """Returns a split as records; boxes are as stored, sizes from the columns or the pictures' headers."""
    keys = object_fields(split.features, f"split {name!r}")
    records = SplitRecords(name, keep_masks=keep_masks)
    for number, row in enumerate(split.with_format(None).cast_column("image", ImageFeature(decode=False))):
        _add_row(records, row, number, keys, upright_size)
    return records


def _check_picture(records: SplitRecords, image: Any, row: int, number: int) -> None:
    """Logs a row without a picture that can be read; `number` is the row's in the source."""
    if image is not None and not isinstance(image, dict):  # one that is decoded, in a stream
        return
    path, content = ((image or {}).get(key) for key in ("path", "bytes"))
    if path is None and content is None:
        records.fault("image-missing", f"row {number} has no picture: `image` is None", row)
    elif content is None and "://" not in path and not Path(path).is_file():
        records.fault("image-missing", f"row {number}: there is no file {path}", row)
    elif not records.widths[row]:
        records.fault("image-unreadable", f"row {number}: the picture cannot be read", row)


def _add_row(
    records: SplitRecords,
    row: dict[str, Any],
    number: int,
    keys: tuple[str, str],
    size_of: Callable[[Any, str], tuple[int, int]],
) -> None:
    """Adds an image and its objects, boxes and classes at `keys`; without columns for it, `size_of` tells its size."""
    image_id, image, objects = row.get("image_id"), row["image"], row["objects"]
    path = image.get("path") if isinstance(image, dict) else None
    file_name = str(row.get("file_name") or path or f"row {number}")
    width, height = row.get("width"), row.get("height")
    if type(width) is not int or type(height) is not int:
        width, height = size_of(image, file_name)
    index = records.add_image(number if id_fault(image_id) else image_id, file_name, None, width, height)
    _check_picture(records, image, index, number)
    boxes, classes = (objects_as_columns(objects, key) for key in keys)
    count = len(boxes)
    if count != len(classes):
        records.fault("objects-uneven", f"{count} boxes and {len(classes)} classes", index)
        return
    id_key = next((key for key in ID_KEYS if len(objects_as_columns(objects, key)) == count), None)
    optional = [objects_as_columns(objects, key) for key in ("area", "iscrowd", "segmentation")]
    ids = objects_as_columns(objects, id_key) if id_key else []
    for position, (box, category) in enumerate(zip(boxes, classes, strict=True)):
        number = len(records.object_ids) + 1
        object_id = ids[position] if ids and id_fault(ids[position]) is None else number
        area, crowd, mask = (values[position] if len(values) == count else None for values in optional)
        crowd = int(crowd) if isinstance(crowd, bool) else crowd
        mask = mask if isinstance(mask, list | dict) else None
        box = box.tolist() if hasattr(box, "tolist") else box  # of a stream without features
        records.add_object(index, object_id, category, box, area, crowd, mask)


def peek_box_format(split: IterableDataset, box_format: str, where: str) -> None:
    """Refuses a stream whose first rows hold boxes that look like another format.

    Raises:
        AnnotationError: they do.
    """
    boxes, sizes = [], []
    box_key, _ = object_fields(split.features or next(iter(split)), where)
    undecoded = split.cast_column("image", ImageFeature(decode=False)) if split.features is not None else split
    for number, row in enumerate(undecoded.take(PEEK_ROWS)):
        header = read_header(row["image"], f"row {number}")
        found = [box for box in objects_as_columns(row["objects"], box_key) if box_fault(list(box)) is None]
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


def _streamed_row(
    row: dict[str, Any], number: int, split_name: str, categories: Categories, box_format: str, keep_masks: bool
) -> dict[str, Any]:
    """Returns a row in the schema of `detection_features`; a faulty one stops the stream with its number.

    Raises:
        AnnotationError: a box or a class of the row is malformed.
    """
    records = SplitRecords(split_name, keep_masks=keep_masks)
    keys = object_fields(row, f"row {number}")
    _add_row(records, row, number, keys, lambda image, name: read_header(image, name).upright_wh)
    objects = _objects_of(records, categories, box_format)
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
    }


def _objects_of(records: SplitRecords, categories: Categories, box_format: str) -> dict[str, list[Any]]:
    """Returns the objects of the only image in `records`, without those whose box has no area."""
    sizes = np.repeat(records.sizes_wh(), len(records.rows), axis=0)
    boxes = to_xywh(records.boxes_array(), box_format, sizes)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
        records.fault("box-malformed", "a box has a negative side or a number that is not finite", 0)
    for category in records.category_ids:
        if category not in categories.index_of:
            records.fault("category-unknown", f"category {category!r} is not in id2label", 0)
    areas = np.array(records.areas)
    areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    kept = np.flatnonzero((boxes[:, 2:] > 0).all(axis=1)).tolist()
    return {
        "id": [position + 1 for position in range(len(kept))],
        "bbox": [boxes[index].tolist() for index in kept],
        "category": [categories.index_of.get(records.category_ids[index], -1) for index in kept],
        "area": [float(areas[index]) for index in kept],
        "iscrowd": [records.iscrowd[index] for index in kept],
        "segmentation": [records.segmentations[index] for index in kept],
    }


def stream_split(
    name: str, split: IterableDataset, categories: Categories, box_format: str, keep_masks: bool
) -> IterableDataset:
    """Returns a stream in the schema; nothing is read until it is iterated."""
    if split.features is not None:
        split = split.cast_column("image", ImageFeature(decode=False))
    known = {"split_name": name, "categories": categories, "box_format": box_format, "keep_masks": keep_masks}
    columns = list(split.features) if split.features is not None else None
    features = detection_features(categories.names)
    return split.map(_streamed_row, with_indices=True, fn_kwargs=known, remove_columns=columns, features=features)
