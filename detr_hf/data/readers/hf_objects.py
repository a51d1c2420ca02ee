"""Hugging Face `datasets` with objects or segments: from the Hub, from a local folder, in memory, or streamed.

`objects` is a dict of lists (`{"bbox": [...], "category": [...]}`) or a list of dicts; what else there is, is told in
`hf_columns`. Boxes are x, y, width, height in pixels unless `box_format` says otherwise; boxes that look like
something else are refused, not converted, because Hub data sets come in every format.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Image as ImageFeature, IterableDataset, IterableDatasetDict

from ...errors import LayoutError, PictureError
from ...reaching import unreached_data_set
from ..detection_data import NO_MASK, Categories
from ..findings import FindingLog
from ..pictures import upright_size
from ..read_options import ReadOptions
from .coco_classes import tell_things
from .faults import id_fault, thing_flag
from .hf_columns import CLASS_IDS, Columns, as_column, find_columns, objects_of
from .records import SplitRecords

PEEK_ROWS = 16


def load_hf(path: str, local: bool, streaming: bool, **load_options: Any) -> dict[str, Any]:
    """Returns the splits of a saved folder, a folder that `datasets` can read, or a Hub id.

    Raises:
        LayoutError: `datasets` cannot load it; its own words are repeated.
    """
    if not local and (unreached := unreached_data_set(path)) is not None:
        raise LayoutError(unreached)
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


def class_names(features: Any, columns: Columns) -> list[str] | None:
    """Returns the names of the ClassLabel below the objects, or None."""
    objects = (features or {}).get(columns.objects)
    objects = getattr(objects, "feature", objects)
    field = objects.get(columns.category) if isinstance(objects, dict) else None
    while field is not None and not isinstance(field, ClassLabel):
        field = getattr(field, "feature", None)
    return list(field.names) if isinstance(field, ClassLabel) else None


def hf_categories(
    splits: dict[str, Any], id2label: dict[Any, str] | None, where: str, task: str | None = None
) -> Categories:
    """Returns the classes: from `id2label`, from the data, or the names that occur when classes are texts.

    The data has them as a ClassLabel, or by name in the rows of painted classes, of which `background` is none.

    Raises:
        LayoutError: the ids are plain integers, or the data is streamed and has no ClassLabel; `id2label` is needed.
    """
    if id2label:
        return Categories.of(id2label)
    found: dict[str, dict[int, str]] = {}
    columns = {}
    for name, split in splits.items():
        features = split.features or next(iter(split))
        columns[name] = find_columns(features, where, task)
        if columns[name].objects is None and CLASS_IDS in features:
            ids = next(iter(split.select_columns([CLASS_IDS])), {}).get(CLASS_IDS) or {}
            found[name] = {value: label for label, value in ids.items() if value is not None and label != "background"}
        elif split.features is not None:
            names = class_names(split.features, columns[name])
            if names is not None:
                found[name] = dict(enumerate(names))
    if found:
        if len({tuple(names.items()) for names in found.values()}) > 1:
            raise LayoutError(
                f"The splits of {where} have different class names: {found}. Pass id2label={{id: name}}."
            )
        return Categories.of(next(iter(found.values())))
    if any(isinstance(split, IterableDataset) for split in splits.values()):
        raise LayoutError(
            f"{where} is streamed and its features have no ClassLabel, so its classes are not known before it is read "
            "to the end. Pass id2label={id in the data: name}, or load it without streaming."
        )
    texts = set()
    for name, split in splits.items():
        if columns[name].objects is not None:
            for row in raw_rows(split, columns[name].objects):
                values = as_column(row[columns[name].objects], columns[name].category)
                texts.update(value for value in values if isinstance(value, str))
    if texts:
        return Categories(sorted(texts), sorted(texts))
    raise LayoutError(
        f"The classes of {where} are plain integers without names. Pass id2label={{id in the data: name}}."
    )


def settle_things(
    categories: Categories, splits: dict[str, Any], records: dict[str, SplitRecords], options: ReadOptions, where: str
) -> FindingLog:
    """Sets which classes of panoptic rows are things, and returns what is to be said of it.

    Raises:
        LayoutError: rows that are not panoptic, or are streamed and not read, leave an option without a meaning.
    """
    log = FindingLog()
    columns = [find_columns(split.features or next(iter(split)), where, options.task) for split in splits.values()]
    if options.box_format and any(one.box is None for one in columns):
        raise LayoutError(f"{where} has no boxes: they are measured on its masks. Leave out box_format=.")
    panoptic = any(one.panoptic for one in columns)
    if options.stuff is not None:
        if not panoptic:
            raise LayoutError(f"stuff= is for panoptic data; the rows of {where} hold none. Leave it out.")
        categories.call_stuff(options.stuff, where)
    elif panoptic and len(records) < len(splits):
        raise LayoutError(
            f"{where} is streamed: which of its classes are stuff is not known before it is read to the end. Pass "
            "stuff=[names of the stuff classes], an empty list where all are things."
        )
    elif panoptic:
        said: dict[Any, set[Any]] = {}
        for one in records.values():
            for category_id, told in one.things.items():
                said.setdefault(category_id, set()).update(told)
        tell_things(categories, said, set().union(*(one.category_ids for one in records.values())), log)
    return log


def read_hf(name: str, split: Dataset, keep_masks: bool = True, task: str | None = None) -> SplitRecords:
    """Returns a split as records; boxes are as stored, sizes from the columns or the pictures' headers."""
    columns = find_columns(split.features, f"split {name!r}", task)
    records = records_for(name, columns, keep_masks)
    for number, row in enumerate(raw_rows(split)):
        add_row(records, row, number, columns, upright_size)
    return records


def records_for(name: str, columns: Columns, keep_masks: bool) -> SplitRecords:
    """Returns the empty records of a split."""
    records = SplitRecords(name, keep_masks=keep_masks)
    if columns.panoptic:
        records.panoptic_paths, records.panoptic_column = [], columns.picture
    return records


def raw_rows(split: Dataset, *columns: str) -> Iterator[dict[str, Any]]:
    """Yields rows, or some columns of them, in which no picture is decoded, however deep it lies."""
    if "image" in split.features and not columns:
        split = split.cast_column("image", ImageFeature(decode=False))
    for table in (split.select_columns(list(columns)) if columns else split).with_format("arrow").iter(PEEK_ROWS):
        yield from table.to_pylist()


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


def add_row(
    records: SplitRecords,
    row: dict[str, Any],
    number: int,
    columns: Columns,
    size_of: Callable[[Any, str], tuple[int, int]],
) -> None:
    """Adds an image and its objects, which `columns` tell; without columns for it, `size_of` tells its size."""
    image_id, image = row.get("image_id"), row["image"]
    path = image.get("path") if isinstance(image, dict) else None
    file_name = str(row.get("file_name") or path or f"row {number}")
    width, height = row.get("width"), row.get("height")
    if type(width) is not int or type(height) is not int:
        width, height = size_of(image, file_name)
    index = records.add_image(number if id_fault(image_id) else image_id, file_name, None, width, height)
    _check_picture(records, image, index, number)
    if columns.panoptic:
        records.panoptic_paths.append(None)
        segments = row[columns.picture]
        if segments is None or (isinstance(segments, dict) and not _is_there(segments)):
            records.fault("panoptic-missing", f"row {number} has no segment picture in {columns.picture!r}", index)
            return
    if columns.objects is None:
        _compare_class_ids(records, row, index)
    try:
        found = objects_of(row, columns, (width, height), records.keep_masks)
    except PictureError as error:
        records.fault("panoptic-unreadable", str(error), index)
        return
    if len(found.boxes) != len(found.categories):
        message = f"{len(found.boxes)} boxes and {len(found.categories)} classes"
        records.fault("objects-uneven", message, index)
        return
    for box, category, object_id, area, crowd, mask, thing in zip(*found, strict=True):
        if columns.panoptic and (type(object_id) is not int or id_fault(object_id)):
            records.fault("annotation-malformed", f"a segment has the id {str(object_id)[:60]!r}", index)
            continue
        object_id = len(records.object_ids) + 1 if id_fault(object_id) else object_id
        crowd = int(crowd) if isinstance(crowd, bool) else crowd
        box = box.tolist() if hasattr(box, "tolist") else box  # of a stream without features
        mask, text = (None, NO_MASK) if mask == NO_MASK else (mask, None)
        records.add_object(index, object_id, category, box, area, crowd, mask, text)
        if thing is not None and not id_fault(category):
            records.things.setdefault(category, set()).add(thing_flag(thing))


def _is_there(picture: dict[str, Any]) -> bool:
    path, content = picture.get("path"), picture.get("bytes")
    return content is not None or (path is not None and ("://" in path or Path(path).is_file()))


def _compare_class_ids(records: SplitRecords, row: dict[str, Any], index: int) -> None:
    """Logs a row whose names have other ids than in a row before."""
    told = {name: value for name, value in (row.get(CLASS_IDS) or {}).items() if value is not None}
    known = {**told, **records.class_ids}
    different = [name for name in told if told[name] != known[name]]
    if different:
        name = different[0]
        message = f"{CLASS_IDS} says {told[name]} for {name!r}, and {known[name]} in a row before"
        records.fault("category-conflict", message, index)
    records.class_ids = known
