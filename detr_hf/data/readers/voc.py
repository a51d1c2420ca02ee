"""Pascal VOC: one XML file for each picture.

Layouts: `Annotations/`, `JPEGImages/` and `ImageSets/Main/{split}.txt` (also inside `VOCdevkit/VOC2012`), or pictures
and XML files side by side in a folder for each split. VOC's corners count pixels from 1 and include the last one, so
`xmin, xmax = 1, 1` is a box one pixel wide at 0. Classes are the names found, in alphabetical order. Objects marked
`difficult` are kept as ordinary ones.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ...errors import AnnotationError, LayoutError
from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ..detection_data import Categories
from .paths import join_inside, looked_in, unsafe_reason
from .records import SplitRecords


@dataclass
class VocSplit:
    """The XML files of a split and the folder of their pictures."""

    name: str
    xml_paths: list[Path]
    image_root: Path


def find_voc(root: Path, image_root: Path | None = None) -> list[VocSplit]:
    """Returns the splits of a VOC folder; an empty list when it is none.

    Raises:
        LayoutError: several VOC folders lie inside, or the picture folder cannot be told.
    """
    inside = [*root.glob("*/Annotations"), *root.glob("VOCdevkit/*/Annotations")]
    homes = [root] if (root / "Annotations").is_dir() else sorted(path.parent for path in inside)
    homes = [home for home in homes if next((home / "Annotations").glob("*.xml"), None)]
    split_homes = {home.name for home in homes} <= {"train", "val", "valid", "validation", "test"}
    if len(homes) > 1 and not split_homes:
        raise LayoutError(f"{root} is ambiguous: VOC data lies in {', '.join(map(str, homes))}. Pass the path of one.")
    if homes and homes[0] != root and split_homes:
        return [
            VocSplit(home.name, sorted((home / "Annotations").glob("*.xml")), image_root or _image_folder(home))
            for home in homes
        ]
    if homes:
        return _splits_of_home(homes[0], image_root)
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and next(folder.glob("*.xml"), None)]
    if next(root.glob("*.xml"), None):
        if folders:
            raise LayoutError(
                f"{root} is ambiguous: XML files lie in it and in {', '.join(folder.name for folder in folders)}."
            )
        return [VocSplit("train", sorted(root.glob("*.xml")), image_root or root)]
    return [VocSplit(folder.name, sorted(folder.glob("*.xml")), image_root or folder) for folder in folders]


def _image_folder(home: Path) -> Path:
    for name in ("JPEGImages", "images", "Images"):
        if (home / name).is_dir():
            return home / name
    raise LayoutError(
        f"The pictures of {home} were not found; looked for JPEGImages, images, Images. Pass image_root=."
    )


def _splits_of_home(home: Path, image_root: Path | None) -> list[VocSplit]:
    folder = image_root or _image_folder(home)
    lists = sorted((home / "ImageSets" / "Main").glob("*.txt"))
    # `aeroplane_train.txt` and the like list one class; `trainval.txt` repeats train and val.
    lists = [path for path in lists if "_" not in path.stem]
    stems = {path.stem for path in lists}
    if {"train", "val"} <= stems:
        lists = [path for path in lists if path.stem != "trainval"]
    if not lists:
        return [VocSplit("train", sorted((home / "Annotations").glob("*.xml")), folder)]
    splits = []
    for path in lists:
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.split()[0] for line in lines if line.strip()]
        for name in names:
            reason = unsafe_reason(name)
            if reason:
                raise LayoutError(f"{path} lists an image that is refused: {reason}.")
        xml_paths = [home / "Annotations" / f"{name}.xml" for name in names]
        splits.append(VocSplit(path.stem, xml_paths, folder))
    # VOC's test list comes without annotations.
    return [split for split in splits if any(path.is_file() for path in split.xml_paths)]


def read_voc(split: VocSplit) -> SplitRecords:
    """Returns the pictures and objects of a split; category ids are the class names."""
    records = SplitRecords(split.name, labels_from=looked_in(path.parent for path in split.xml_paths))
    for number, path in enumerate(split.xml_paths, start=1):
        try:
            _read_xml(records, number, path, split.image_root)
        except AnnotationError as error:
            records.log.add("xml-malformed", "error", str(error), split=split.name, file_name=path.name)
    return records


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error}") from error
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise AnnotationError(f"{path} defines entities, which VOC never needs and which can exhaust memory: refused")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path} is not XML that can be read: {error}") from error


def _read_xml(records: SplitRecords, number: int, path: Path, image_root: Path) -> None:
    root = _parse(path)
    name = _picture_name(root.findtext("filename"), path, image_root)
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not (width > 0 and height > 0 and math.isfinite(width + height)):
        width = height = 0  # not known: read from the picture later
    row = records.add_image(number, name, join_inside(image_root, name), int(width), int(height))
    for position, element in enumerate(root.iter("object"), start=1):
        corners = [_number(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        place = f"object {position}"
        category = (element.findtext("name") or "").strip()
        if not category:
            records.fault("category-missing", "the object has no name", row, place)
        elif element.find("bndbox") is None:
            records.fault("box-missing", "the object has no bndbox", row, place)
        else:
            x0, y0, x1, y1 = corners
            # From inclusive corners that count from 1; tools that count from 0 write 0 here, which stays at the edge.
            x0, y0 = (value - 1 if value >= 1 else value for value in (x0, y0))
            records.add_object(row, len(records.object_ids) + 1, category, [x0, y0, x1 - x0, y1 - y0])


def _picture_name(listed: str | None, xml_path: Path, image_root: Path) -> str:
    """Returns the picture's name: as listed when that file exists, else the XML's own with a picture's suffix."""
    listed = (listed or "").strip()
    if listed:
        reason = unsafe_reason(listed)
        if reason:
            raise AnnotationError(f"{xml_path.name}: {reason}")
        if (image_root / listed).is_file():
            return listed
    for suffix in sorted(PICTURE_SUFFIXES):
        for candidate in (xml_path.stem + suffix, xml_path.stem + suffix.upper()):
            if (image_root / candidate).is_file():
                return candidate
    return listed or f"{xml_path.stem}.jpg"


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def voc_categories(splits: list[SplitRecords]) -> Categories:
    """Returns the class names found, in alphabetical order."""
    names = sorted({str(name) for records in splits for name in records.category_ids})
    return Categories(names, list(names))
