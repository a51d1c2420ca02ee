"""Pascal VOC: one XML file for each picture. Where the files lie is `voc_layout`'s matter.

VOC's corners count pixels from 1 and include the last one, so `xmin, xmax = 1, 1` is a box one pixel wide at 0.
Classes are the names found, in alphabetical order. Objects marked `difficult` are kept as ordinary ones. An XML file
belongs to the picture that has its name; `<filename>`, which tools leave as it was when files are renamed, decides
where there is none.
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from ...errors import AnnotationError, LayoutError, PictureError
from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ..detection_data import Categories
from ..pictures import read_header
from .paths import PictureFinder, list_pictures
from .records import SplitRecords
from .text import LARGEST_XML, name_key, read_bytes
from .voc_layout import VocSplit, other_tool


def read_voc(splits: list[VocSplit]) -> dict[str, SplitRecords]:
    """Returns the pictures and objects of each split; category ids are the class names."""
    finders: dict[Path, PictureFinder] = {}
    read = {}
    for split in splits:
        finder = finders.setdefault(split.image_root, PictureFinder(split.image_root))
        records = read[split.name] = SplitRecords(split.name, log=split.log, labels_from=str(split.xml_root))
        for number, name in enumerate(split.xml_names, start=1):
            try:
                _read_xml(records, number, split.xml_root / name, name, finder)
            except (AnnotationError, LayoutError) as error:
                records.log.add("xml-malformed", "error", str(error), split=split.name, file_name=name)
    claimed = {path for records in read.values() for path in records.paths}
    for folder in finders:
        for name in list_pictures(folder):
            if f"{folder}/{name}" not in claimed:
                message = f"no XML file of {', '.join(read)} belongs to this picture: it is not read"
                splits[0].log.add("image-unlisted", "info", message, file_name=name)
    return read


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = read_bytes(path, LARGEST_XML)
    except LayoutError as error:
        raise AnnotationError(str(error)) from error
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise AnnotationError(f"{path} defines entities, which VOC never needs and which can exhaust memory: refused")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise AnnotationError(f"{path} is not XML that can be read: {error}") from error
    if root.tag != "annotation":
        raise AnnotationError(f"{path.name} is not VOC: {other_tool(root.tag)}")
    return root


def _read_xml(records: SplitRecords, number: int, path: Path, xml_name: str, finder: PictureFinder) -> None:
    root = _parse(path)
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not (width > 0 and height > 0 and math.isfinite(width + height)):
        width = height = 0  # not known: read from the picture later
    listed = (root.findtext("filename") or "").strip()
    recorded_wh = (int(width), int(height))
    name, guessed = _picture_name(records, finder, xml_name, listed, recorded_wh)
    if name is None:
        return
    picture = f"{finder.folder}/{name}"
    row = records.add_image(number, name, picture, *recorded_wh)
    if guessed and picture in finder.index and not _fits(finder, name, recorded_wh):
        size = "x".join(map(str, recorded_wh))
        records.fault("image-size-mismatch", f"taken for the picture of {xml_name}, which is for one of {size}", row)
    for position, element in enumerate(root.findall("object"), start=1):
        corners = [_number(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        place = f"object {position}"
        category = name_key((element.findtext("name") or "").strip())
        if not category:
            records.fault("category-missing", "the object has no name", row, place)
        elif element.find("bndbox") is None:
            held = ", ".join(child.tag for child in element) or "nothing"
            records.fault("box-missing", f"the object has no bndbox; it has {held}", row, place)
        else:
            x0, y0, x1, y1 = corners
            # From inclusive corners that count from 1; tools that count from 0 write 0 here, which stays at the edge.
            x0, y0 = (value - 1 if value >= 1 else value for value in (x0, y0))
            records.add_object(row, len(records.object_ids) + 1, category, [x0, y0, x1 - x0, y1 - y0])


def _picture_name(
    records: SplitRecords, finder: PictureFinder, xml_name: str, listed: str, recorded_wh: tuple[int, int]
) -> tuple[str | None, bool]:
    """Returns the name of an XML file's picture (None: it is refused) and whether it was guessed, which is logged."""
    guesses = []

    def say(code: str, severity: str, message: str) -> None:
        guesses.append(code)
        records.log.add(code, severity, message, split=records.name, file_name=xml_name)

    own = _own_picture(finder, xml_name)
    named = finder.look(listed) if listed else None
    if own is None or (named and named != own and not _fits(finder, own, recorded_wh)):
        chosen = finder.find(listed or f"{xml_name[: -len('.xml')]}.jpg", say)
    else:
        chosen = finder.find(own, say)
    if own and listed and own != named:
        likely = named is None and Path(listed).stem == Path(own).stem  # only the ending is another
        also = f", and there is {own!r} too" if named else f"; there is {own!r} and no such file"
        say(
            "filename-stale", "info" if likely else "warning", f"<filename> says {listed!r}{also}: {chosen!r} is taken"
        )
    return chosen, bool(guesses)


def _own_picture(finder: PictureFinder, xml_name: str) -> str | None:
    """Returns the picture with an XML file's name: in the same sub folder, or in the folder of pictures itself."""
    stem = xml_name[: -len(".xml")]
    for name in dict.fromkeys((stem, stem.rpartition("/")[2])):
        for suffix in sorted(PICTURE_SUFFIXES):
            found = finder.index.match(finder.folder, name + suffix)
            if found is not None:
                return found
    return None


def _fits(finder: PictureFinder, name: str, recorded_wh: tuple[int, int]) -> bool:
    """Whether a picture has the size that its XML file records, upright or as stored; True where none is recorded."""
    try:
        header = read_header(f"{finder.folder}/{name}", name)
    except PictureError:
        return False
    return recorded_wh == (0, 0) or header.has_size(recorded_wh)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def voc_categories(splits: list[SplitRecords]) -> Categories:
    """Returns the class names found, in alphabetical order."""
    names = sorted({str(name) for records in splits for name in records.category_ids})
    return Categories(names, list(names))
