"""COCO JSON, read element by element: detection (boxes, masks, crowds) and panoptic with its PNGs.

The 448 MB of COCO's training annotations never stand in memory as Python objects. Where the files lie is
`coco_layout`'s matter.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from ..detection_data import Categories
from ..findings import FindingLog
from .coco_layout import CocoSource, find_image_folder, panoptic_folder
from .faults import id_fault
from .paths import join_inside, unsafe_reason
from .records import SplitRecords

SPACE = re.compile(r"[ \t\r\n]*")
POLYGONS = re.compile(r'"segmentation"\s*:\s*(\[[\[\]0-9\s.,eE+-]*\])\s*[,}]')


@dataclass
class CocoFile:
    """What one file says: categories as listed, and the records."""

    categories: list[dict[str, Any]]
    records: SplitRecords
    row_of: dict[int | str, int] = field(default_factory=dict)


def read_coco(source: CocoSource, keep_masks: bool = True) -> CocoFile:
    """Returns one annotation file as records; faults are in `records.log`.

    Raises:
        LayoutError: the file is no COCO JSON, or the folder of its pictures cannot be told.
    """
    records = SplitRecords(source.split, keep_masks=keep_masks, labels_from=str(source.json_path))
    file = CocoFile([], records)
    if source.kind == "panoptic":
        records.panoptic_paths = []
    images: list[Any] = []
    waiting: list[tuple[Any, str]] = []
    seen = set()
    started = False
    for key, element, text in iterate_lists(source.json_path):
        seen.add(key)
        if key == "images":
            if started:
                raise LayoutError(f"{source.json_path} has two lists of images with annotations between them.")
            images.append(element)
        elif key == "categories":
            file.categories.append(element)
        elif key == "annotations" and "images" not in seen:
            waiting.append((element, text))
        elif key == "annotations":
            if not started:
                _begin(source, file, images)
                started = True
            _add_annotation(source, file, element, text)
    missing = {"images", "annotations"} - seen
    if missing and not (missing == {"annotations"} and images):
        raise LayoutError(
            f"{source.json_path} is no COCO file: the lists {', '.join(sorted(missing))} are missing or empty; found "
            f"{sorted(seen)[:10]}."
        )
    if not started:
        _begin(source, file, images)
    for element, text in waiting:
        _add_annotation(source, file, element, text)
    for row, path in enumerate(records.panoptic_paths or []):
        if not path:
            records.fault("panoptic-missing", "the image has no panoptic annotation", row)
    return file


def iterate_lists(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Yields key, element and its JSON text for the elements of an object's lists; any other value comes whole.

    Raises:
        LayoutError: the file is not JSON, or no object at its top level.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        yield from _iterate_text(text)
    except (ValueError, RecursionError, StopIteration) as error:
        raise LayoutError(
            f"{path} is not JSON that can be read: {type(error).__name__}: {str(error)[:200]}."
        ) from error
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error}.") from error


def _iterate_text(text: str) -> Iterator[tuple[str, Any, str]]:
    decode = json.JSONDecoder().raw_decode

    def skip(position: int, expected: str) -> tuple[str, int]:
        position = SPACE.match(text, position).end()
        character = text[position : position + 1]
        if character not in expected or not character:
            raise ValueError(
                f"expected one of {expected!r} at character {position}, found {character or 'the end of the file'!r}"
            )
        return character, position + 1

    _, position = skip(0, "{")
    position = SPACE.match(text, position).end()
    if text[position : position + 1] == "}":
        return
    while True:
        position = SPACE.match(text, position).end()
        key, position = decode(text, position)
        _, position = skip(position, ":")
        position = SPACE.match(text, position).end()
        if text[position : position + 1] == "[":
            position = SPACE.match(text, position + 1).end()
            closed = text[position : position + 1] == "]"
            position += closed
            while not closed:
                start = SPACE.match(text, position).end()
                element, position = decode(text, start)
                yield key, element, text[start:position]
                character, position = skip(position, ",]")
                closed = character == "]"
        else:
            value, position = decode(text, position)
            yield key, value, ""
        character, position = skip(position, ",}")
        if character == "}":
            return


def _begin(source: CocoSource, file: CocoFile, images: list[Any]) -> None:
    """Adds the images, once the folder of the pictures is known."""
    records = file.records
    names = [
        image["file_name"]
        for image in images
        if isinstance(image, dict) and unsafe_reason(image.get("file_name")) is None
    ]
    folder = source.image_root or find_image_folder(source, names)

    def refuse(code: str, message: str, **place: Any) -> None:
        records.log.add(code, "error", message, split=source.split, **place)

    for position, image in enumerate(images):
        if not isinstance(image, dict):
            refuse("image-malformed", f"images[{position}] is a {type(image).__name__}, expected an object")
            continue
        image_id, name = image.get("id"), image.get("file_name")
        fault, reason = id_fault(image_id), unsafe_reason(name)
        if fault:
            refuse("image-malformed", f"images[{position}]: id: {fault}")
        elif reason:
            refuse("file-name-unsafe", f"refused: {reason}", image_id=image_id)
        elif image_id in file.row_of:
            refuse("image-id-duplicate", "the image id occurs more than once", file_name=name, image_id=image_id)
        else:
            row = file.row_of[image_id] = records.add_image(image_id, name, join_inside(folder, name))
            _set_size(records, row, image)
            if records.panoptic_paths is not None:
                records.panoptic_paths.append("")


def _set_size(records: SplitRecords, row: int, image: dict[str, Any]) -> None:
    """Notes width and height that the entry records; it stays 0 x 0 when it has none or they are no sizes."""
    sides = [image.get("width"), image.get("height")]
    if sides == [None, None]:
        return
    whole = [int(side) if type(side) is float and side.is_integer() else side for side in sides]
    if all(type(side) is int and 0 < side < 1_000_000 for side in whole):
        records.widths[row], records.heights[row] = whole
        return
    shown = " x ".join(str(side)[:40] for side in sides)
    records.fault("image-size-malformed", f"width x height is {shown}, expected two integers above 0", row)


def _add_annotation(source: CocoSource, file: CocoFile, annotation: Any, text: str) -> None:
    records = file.records
    if not isinstance(annotation, dict):
        message = f"an annotation is a {type(annotation).__name__}, expected an object"
        records.log.add("annotation-malformed", "error", message, split=source.split)
        return
    shown = annotation.get("id") if id_fault(annotation.get("id")) is None else None
    image_id = annotation.get("image_id")
    if id_fault(image_id) is not None:
        message = f"image_id: {id_fault(image_id)}"
        records.log.add("annotation-malformed", "error", message, split=source.split, annotation_id=shown)
        return
    row = file.row_of.get(image_id)
    if row is None:
        message = "the annotation is for an image that is not listed (or was refused)"
        place = {"split": source.split, "image_id": image_id, "annotation_id": shown}
        records.log.add("image-unknown", "error", message, **place)
        return
    if source.kind == "panoptic":
        _add_panoptic(source, records, row, annotation)
    else:
        _add_detection(records, row, annotation, text)


def _add_detection(records: SplitRecords, row: int, annotation: dict[str, Any], text: str = "") -> None:
    """Adds an object; its polygons are cut from `text`, the annotation's JSON, instead of being written anew."""
    object_id = annotation.get("id")
    if id_fault(object_id) is not None:
        if object_id is not None:
            records.fault("annotation-malformed", f"id: {id_fault(object_id)}", row)
            return
        object_id = f"unnamed {len(records.object_ids) + 1}"
        records.fault("annotation-id-missing", "the annotation has no id", row, None, "warning")
    for key, code in (("bbox", "box-missing"), ("category_id", "category-missing")):
        if annotation.get(key) is None:
            records.fault(
                code,
                f"the annotation has no {key!r}; it has {', '.join(sorted(map(str, annotation))[:8])}",
                row,
                object_id,
            )
            return
    records.add_object(
        row,
        object_id,
        annotation["category_id"],
        annotation["bbox"],
        annotation.get("area"),
        annotation.get("iscrowd", 0),
        annotation.get("segmentation"),
        _polygon_text(text) if records.keep_masks else None,
    )


def _polygon_text(text: str) -> str | None:
    """Returns the value of `segmentation` in an annotation's JSON, if it is numbers and the key occurs once."""
    if text.count('"segmentation"') != 1:
        return None
    found = POLYGONS.search(text)
    return found.group(1) if found else None


def _add_panoptic(source: CocoSource, records: SplitRecords, row: int, annotation: dict[str, Any]) -> None:
    name, segments = annotation.get("file_name"), annotation.get("segments_info")
    reason = unsafe_reason(name)
    if reason:
        records.fault("file-name-unsafe", f"segment picture refused: {reason}", row)
        return
    if not isinstance(segments, list):
        message = (
            f"segments_info is {'missing' if segments is None else type(segments).__name__}, expected a list: is it a "
            "panoptic file?"
        )
        records.fault("annotation-malformed", message, row)
        return
    if records.panoptic_paths[row]:
        records.fault("image-annotated-twice", "the image has more than one panoptic annotation", row)
        return
    records.panoptic_paths[row] = join_inside(panoptic_folder(source), name)
    for segment in segments:
        if not isinstance(segment, dict) or type(segment.get("id")) is not int:
            records.fault("annotation-malformed", "a segment is no object with an integer id", row)
        else:
            _add_detection(records, row, segment | {"segmentation": None})


def merge_categories(listed: dict[str, list[Any]], log: FindingLog) -> Categories:
    """Returns one class list from the categories of every split, ordered by id; contradictions go to the log."""
    entries: dict[int | str, tuple[str, bool]] = {}

    def refuse(code: str, message: str, split: str | None = None) -> None:
        log.add(code, "error", message, split=split)

    for split, categories in listed.items():
        here = set()
        for category in categories:
            if (
                not isinstance(category, dict)
                or id_fault(category.get("id"))
                or not str(category.get("name") or "").strip()
            ):
                message = f"a category is {str(category)[:80]}, expected an object with an id and a name"
                refuse("category-malformed", message, split)
                continue
            category_id, name = category["id"], str(category["name"])
            if category_id in here:
                refuse("category-id-duplicate", f"category id {category_id!r} is defined more than once", split)
                continue
            here.add(category_id)
            known, _ = entries.setdefault(category_id, (name, bool(category.get("isthing", 1))))
            if known != name:
                message = f"category {category_id!r} is {name!r} here and {known!r} in another split"
                refuse("category-conflict", message, split)
    if not entries:
        refuse("categories-missing", "the data set defines no categories; pass id2label={id in the data: name}")
    merged = Categories.of({category_id: name for category_id, (name, _) in entries.items()})
    ids, names = merged.source_ids, merged.names
    for name in sorted({name for name in names if names.count(name) > 1}):
        shared = [category_id for category_id in ids if entries[category_id][0] == name]
        message = f"the name {name!r} belongs to the categories {shared}: names must differ"
        refuse("category-name-duplicate", message)
    unique = [
        name if names.count(name) == 1 else f"{name} ({category_id})"
        for name, category_id in zip(names, ids, strict=True)
    ]
    return Categories(unique, ids, [entries[category_id][1] for category_id in ids])
