"""COCO JSON, read element by element: detection (boxes, masks, crowds) and panoptic with its PNGs.

Where the files lie is the matter of `coco_layout` and `coco_pictures`. What is odd and has one meaning all the same
(3.0 or "3" for an id, a box of texts) is read as that and said; a picture that was found under another name than the
file's is refused when its size is not the one that the file records.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import LayoutError, PictureError
from ..pictures import read_header
from .coco_layout import CocoSource, panoptic_folder
from .coco_pictures import PictureFolders
from .faults import IdsByNumber, id_fault, number_fault, plain_box, plain_flag, plain_id, plain_number
from .json_lists import iterate_lists
from .other_tools import json_of_a_tool, looks_like_coco
from .paths import PictureFinder
from .records import SplitRecords

LISTS = ("images", "annotations", "categories")
POLYGONS = re.compile(r'"segmentation"\s*:\s*(\[[\[\]0-9\s.,eE+-]*\])\s*[,}]')
NUMBERS = {int, float}


def read_coco(source: CocoSource, keep_masks: bool = True, search: PictureFolders | None = None) -> "CocoFile":
    """Returns one annotation file as records; faults are in `records.log`.

    Raises:
        LayoutError: the file is no COCO JSON, or the folder of its pictures cannot be told.
    """
    tool = None if looks_like_coco(source.json_path) else json_of_a_tool(source.json_path)
    if tool:
        raise LayoutError(f"{source.json_path} is no COCO file; it is {tool}.")
    records = SplitRecords(source.split, keep_masks=keep_masks, labels_from=str(source.json_path))
    file = CocoFile(source, records, search or PictureFolders())
    images: list[Any] = []
    waiting: list[tuple[Any, str]] = []
    seen = set()
    for key, element, text in iterate_lists(source.json_path):
        seen.add(key)
        if key not in LISTS:
            continue
        if text is None:
            if element is not None:
                kind = type(element).__name__
                raise LayoutError(f"{source.json_path} is no COCO file: {key!r} is a {kind}, expected a list.")
            file.say("value-repaired", "info", f"{key!r} is null: read as an empty list")
        elif key == "images":
            if file.finder is not None:
                raise LayoutError(f"{source.json_path} has two lists of images with annotations between them.")
            images.append(element)
        elif key == "categories":
            file.categories.append(element)
        elif not images:
            waiting.append((element, text))
        else:
            if file.finder is None:
                file.add_images(images)
            file.add_annotation(element, text)
    missing = {"images", "annotations"} - seen
    if not images or (missing and missing != {"annotations"}):
        raise LayoutError(
            f"{source.json_path} is no COCO file: the lists {', '.join(sorted(missing)) or 'images'} are missing or "
            f"empty; found {sorted(seen)[:10]}."
        )
    if file.finder is None:
        file.add_images(images)
    for element, text in waiting:
        file.add_annotation(element, text)
    for row, path in enumerate(file.records.panoptic_paths or []):
        if not path:
            file.records.fault("panoptic-missing", "the image has no panoptic annotation", row)
    return file


class ListedImage(NamedTuple):
    """An image entry whose picture was looked for."""

    image_id: int | str
    size: tuple[int, int]
    found: str
    repaired: bool


@dataclass
class CocoFile:
    """What one file says: categories as listed, and the records."""

    source: CocoSource
    records: SplitRecords
    search: PictureFolders
    categories: list[Any] = field(default_factory=list)
    row_of: dict[int | str, int] = field(default_factory=dict)
    finder: PictureFinder | None = None
    segment_finder: PictureFinder | None = None
    ids_by_number: IdsByNumber | None = None

    def say(self, code: str, severity: str, message: str, **place: Any) -> None:
        """Logs a finding that belongs to no image that is read."""
        self.records.log.add(code, severity, message, split=self.source.split, **place)

    def add_images(self, images: list[Any]) -> None:
        """Adds the images, once all are known: their names tell the folder of the pictures."""
        names = [
            image["file_name"] for image in images if isinstance(image, dict) and _is_name(image.get("file_name"))
        ]
        self.finder = self.search.finder(self.source, names)
        if self.source.kind == "panoptic":
            self.records.panoptic_paths = []
            self.segment_finder = PictureFinder(panoptic_folder(self.source), self.search.index)
        entries: dict[int | str, Any] = {}
        listed = []
        for position, image in enumerate(images):
            if not isinstance(image, dict):
                message = f"images[{position}] is a {type(image).__name__}, expected an object"
                self.say("image-malformed", "error", message)
                continue
            image_id, name = plain_id(image.get("id")), image.get("file_name")
            if fault := id_fault(image_id):
                self.say("image-malformed", "error", f"images[{position}]: id: {fault}")
            elif image_id in entries:
                place = {"file_name": str(name)[:200], "image_id": image_id}
                if entries[image_id] == image:
                    self.say("image-entry-repeated", "warning", "the same entry stands in the file before", **place)
                else:
                    self.say("image-id-duplicate", "error", "the image id occurs more than once", **place)
            else:
                entries[image_id] = image
                found = self._find(image_id, image)
                listed += [found] if found else []
        for image in listed:
            self._add_image(image)

    def _find(self, image_id: int | str, image: dict[str, Any]) -> ListedImage | None:
        said: list[tuple[str, str, str]] = []
        found = self.finder.find(image.get("file_name"), lambda *finding: said.append(finding))
        for finding in said:
            self.say(*finding, image_id=image_id)
        if found is None:
            return None
        size = self._size(image_id, found, image)
        repaired = any(code == "file-name-repaired" for code, _, _ in said)
        if repaired and size != (0, 0):
            try:
                header = read_header(os.path.join(self.finder.folder, found), found)
            except PictureError:
                return ListedImage(image_id, size, found, repaired)  # told of later, as of any that cannot be read
            if not header.has_size(size):
                message = (
                    f"{image['file_name']!r} is not there, and {found!r}, which it could mean, is another picture: it "
                    f"is {header.upright_wh[0]}x{header.upright_wh[1]} and {size[0]}x{size[1]} is recorded"
                )
                self.say("file-name-other-picture", "error", message, image_id=image_id)
                return None
        return ListedImage(image_id, size, found, repaired)

    def _add_image(self, image: ListedImage) -> None:
        path = os.path.join(self.finder.folder, image.found)
        if image.repaired and path in self.finder.contested:
            message = f"another name of this file means {image.found!r} too: which one is right cannot be told"
            self.say("file-name-ambiguous", "error", message, image_id=image.image_id)
            return
        row = self.records.add_image(image.image_id, image.found, path, *image.size)
        self.row_of[image.image_id] = row
        if self.records.panoptic_paths is not None:
            self.records.panoptic_paths.append("")

    def _size(self, image_id: int | str, name: str, image: dict[str, Any]) -> tuple[int, int]:
        """Returns width and height that the entry records; 0 x 0 when it has none or they are no sizes."""
        sides = [image.get("width"), image.get("height")]
        if sides == [None, None]:
            return 0, 0
        place = {"file_name": name, "image_id": image_id}
        shown = " x ".join(str(side)[:40] for side in sides)
        whole = [plain_id(plain_number(side)) for side in sides]
        if any(type(side) is str for side in sides) and all(type(side) is int for side in whole):
            self.say("value-repaired", "warning", f"width x height is text, read as {whole[0]} x {whole[1]}", **place)
        if all(type(side) is int and 0 < side < 1_000_000 for side in whole):
            return whole[0], whole[1]
        if all(side is None or side == 0 for side in whole) and not any(type(side) is bool for side in whole):
            self.say("image-size-unknown", "info", f"width x height is {shown}: read from the picture", **place)
        else:
            message = f"width x height is {shown}, expected two integers above 0"
            self.say("image-size-malformed", "error", message, **place)
        return 0, 0

    def add_annotation(self, annotation: Any, text: str) -> None:
        """Adds an annotation; `text` is its JSON."""
        if not isinstance(annotation, dict):
            message = f"an annotation is a {type(annotation).__name__}, expected an object"
            self.say("annotation-malformed", "error", message)
            return
        image_id = annotation.get("image_id")
        row = self.row_of.get(image_id) if type(image_id) is int else None
        if row is None:
            row = self._row_of_odd(image_id, annotation)
        if row is None:
            return
        if self.records.panoptic_paths is not None:
            self._add_panoptic(row, annotation)
        else:
            self._add_detection(row, annotation, text)

    def _row_of_odd(self, image_id: Any, annotation: dict[str, Any]) -> int | None:
        """Returns the row for an image id that is no integer, or an unknown one; logs what is read and refused."""
        object_id = annotation.get("id")
        shown = None if id_fault(object_id) else object_id
        meant = plain_id(image_id)
        if fault := id_fault(meant):
            self.say("annotation-malformed", "error", f"image_id: {fault}", annotation_id=shown)
            return None
        if meant not in self.row_of:
            self.ids_by_number = self.ids_by_number or IdsByNumber(self.row_of)
            meant = self.ids_by_number.find(meant)
        if meant is None:
            message = "the annotation is for an image that is not listed (or was refused)"
            self.say("image-unknown", "error", message, image_id=image_id, annotation_id=shown)
            return None
        row = self.row_of[meant]
        self._say_repaired(row, shown, "image_id", image_id, meant)
        return row

    def _say_repaired(self, row: int, object_id: int | str | None, key: str, value: Any, meant: Any) -> None:
        if type(value) is not type(meant) or value != meant:
            message = f"{key} {str(value)[:60]!r} is read as {meant!r}"
            self.records.fault("value-repaired", message, row, object_id, "warning")

    def _plain(
        self, row: int, object_id: int | str, annotation: dict[str, Any], key: str, plain: Callable[[Any], Any]
    ) -> Any:
        """Returns a value of an annotation as `plain` reads it; what is said of it says what it was."""
        value = annotation.get(key)
        meant = plain(value)
        if value is not None and type(value) is not bool:
            self._say_repaired(row, object_id, key, value, meant)
        return meant

    def _add_detection(self, row: int, annotation: dict[str, Any], text: str = "") -> None:
        """Adds an object; its polygons are cut from `text`, the annotation's JSON, instead of being written anew."""
        records = self.records
        object_id = annotation.get("id")
        if type(object_id) is not int:
            object_id = self._object_id(row, object_id)
        category_id, bbox = annotation.get("category_id"), annotation.get("bbox")
        iscrowd, area, segmentation = (
            annotation.get("iscrowd", 0),
            annotation.get("area"),
            annotation.get("segmentation"),
        )
        for key, value, code in (("bbox", bbox, "box-missing"), ("category_id", category_id, "category-missing")):
            if value is None:
                lacks = f"has no {key!r}; it has {', '.join(sorted(map(str, annotation))[:8])}"
                words = f"has {key!r}: null, no value" if key in annotation else lacks
                records.fault(code, f"the annotation {words}", row, object_id)
                return
        if type(category_id) is not int:
            category_id = self._plain(row, object_id, annotation, "category_id", plain_id)
        if type(bbox) is not list or not NUMBERS.issuperset(map(type, bbox)):
            bbox = self._plain(row, object_id, annotation, "bbox", plain_box)
        if type(iscrowd) is not int:
            iscrowd = self._plain(row, object_id, annotation, "iscrowd", plain_flag)
        if type(area) not in NUMBERS:
            area = self._plain(row, object_id, annotation, "area", plain_number)
        if number_fault(area) or not 0 <= area < math.inf:
            message = f"the area is {'missing' if area is None else str(area)[:60]}: the box's is taken"
            records.fault("area-from-box", message, row, object_id, "info")
        if segmentation == {}:
            segmentation = None
        polygons = _polygon_text(text) if records.keep_masks else None
        records.add_object(row, object_id, category_id, bbox, area, iscrowd, segmentation, polygons)

    def _object_id(self, row: int, value: Any) -> int | str:
        """Returns an annotation's id where it is no integer, a name where it cannot be one."""
        meant = plain_id(value)
        if id_fault(meant) is None:
            self._say_repaired(row, meant, "id", value, meant)
            return meant
        named = f"unnamed {len(self.records.object_ids) + 1}"
        message = "the annotation has no id" if value is None else f"id: {id_fault(meant)}; it is called {named!r}"
        self.records.fault("annotation-id-missing", message, row, None, "warning")
        return named

    def _add_panoptic(self, row: int, annotation: dict[str, Any]) -> None:
        records = self.records
        segments = annotation.get("segments_info")
        if not isinstance(segments, list):
            message = (
                f"segments_info is {'missing' if segments is None else type(segments).__name__}, expected a list: is "
                "it a panoptic file?"
            )
            records.fault("annotation-malformed", message, row)
            return
        if records.panoptic_paths[row]:
            records.fault("image-annotated-twice", "the image has more than one panoptic annotation", row)
            return

        def say(code: str, severity: str, message: str) -> None:
            records.fault(code, f"segment picture: {message}", row, None, severity)

        found = self.segment_finder.find(annotation.get("file_name"), say)
        if found is None:
            return
        records.panoptic_paths[row] = os.path.join(self.segment_finder.folder, found)
        for segment in segments:
            if not isinstance(segment, dict) or type(segment.get("id")) is not int:
                records.fault("annotation-malformed", "a segment is no object with an integer id", row)
            else:
                self._add_detection(row, segment | {"segmentation": None})


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _polygon_text(text: str) -> str | None:
    """Returns the value of `segmentation` in an annotation's JSON, if it is numbers and the key occurs once."""
    if text.count('"segmentation"') != 1:
        return None
    found = POLYGONS.search(text)
    return found.group(1) if found else None
