"""Where the XML files and pictures of a Pascal VOC data set lie.

A home holds a folder of XML files (`Annotations`, `annots`, `labels`, ...) and one of pictures (`JPEGImages`,
`images`, `data`, ...), with `ImageSets/Main/{split}.txt` or a folder for each split below both; or pictures and XML
files lie side by side, in a folder for each split. Whether an XML file is VOC is told by its first element, not by its
ending: other tools write XML too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ...errors import LayoutError
from ..detection_data import split_kind
from ..findings import FindingLog
from .paths import is_picture, walk_files
from .text import name_key, read_lines

XML_FOLDERS = ("annotations", "annotation", "annots", "annot", "labels", "xmls", "xml")
PICTURE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "data", "pictures", "photos")
# What else people have as XML, by the first element, and what its tool can export instead.
OTHER_TOOLS = {
    "annotations": "CVAT's own XML: export the task as 'COCO 1.0', 'Pascal VOC 1.1' or 'Ultralytics YOLO' instead",
    "dataset": "dlib's imglab XML: convert it to COCO or VOC first",
    "document": "no annotation of boxes",
}
PROBED_FILES = 20
FLAGGED = re.compile(r"^(.*\S)\s+(-1|0|1)$")


@dataclass
class VocSplit:
    """The XML files of a split by their names below `xml_root`, and the folder of their pictures."""

    name: str
    xml_root: Path
    xml_names: list[str]
    image_root: Path
    log: FindingLog = field(default_factory=FindingLog)


def root_element(path: Path) -> str | None:
    """Returns the name of an XML file's first element, None where there is none in its first kilobytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(8192)
    except OSError:
        return None
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", errors="ignore")
    text = re.sub(r"<\?.*?\?>|<!--.*?-->|<![A-Z][^>\[]*(\[.*?\])?\s*>", "", text, flags=re.DOTALL)
    found = re.search(r"<([A-Za-z_][\w.:-]*)", text)
    return found.group(1) if found else None


def other_tool(element: str | None) -> str:
    """Returns what an XML file with this first element is, instead of VOC's `<annotation>`."""
    known = OTHER_TOOLS.get((element or "").lower())
    shown = f"its first element is <{element}>" if element else "it has no element"
    return f"{shown}, VOC's is <annotation>" + (f"; this is {known}" if known else "")


def other_xml(root: Path) -> str | None:
    """Returns a sentence on an XML file of another tool in a folder or its annotation folders, or None."""
    places = [root, *_folders_called(root, XML_FOLDERS)]
    for path in (path for place in places for path in sorted(place.glob("*.xml"))[:PROBED_FILES]):
        if root_element(path) != "annotation":
            return f"{path.relative_to(root)} is not VOC: {other_tool(root_element(path))}"
    return None


def find_voc(root: Path, image_root: Path | None = None) -> list[VocSplit]:
    """Returns the splits of a VOC folder; an empty list when it is none.

    Raises:
        LayoutError: several VOC folders lie inside, or the picture folder cannot be told.
    """
    homes = [root] if _xml_folder(root) else []
    if not homes:
        below = [*_folders(root), *(path for name in ("VOCdevkit",) for path in _folders(root / name))]
        homes = [folder for folder in below if _xml_folder(folder)]
    if len(homes) > 1 and not all(split_kind(home.name) for home in homes):
        raise LayoutError(f"{root} is ambiguous: VOC data lies in {', '.join(map(str, homes))}. Pass the path of one.")
    if len(homes) == 1 and not (homes[0] != root and split_kind(homes[0].name)):
        return _splits_of_home(homes[0], image_root)
    if homes:
        splits = []
        for home in homes:
            xml_root = _xml_folder(home)
            splits.append(VocSplit(home.name, xml_root, _xml_names(xml_root), image_root or _image_folder(home)))
        return splits
    folders = [folder for folder in _folders(root) if _holds_voc(folder, deep=False)]
    if _holds_voc(root, deep=False):
        if folders:
            raise LayoutError(
                f"{root} is ambiguous: XML files lie in it and in {', '.join(folder.name for folder in folders)}."
            )
        return [VocSplit("train", root, _xml_names(root), image_root or root)]
    return [VocSplit(folder.name, folder, _xml_names(folder), image_root or folder) for folder in folders]


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def _folders_called(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Returns the folders in `root` whose name is one of `names` in any case, in the order of `names`."""
    found = [folder for folder in _folders(root) if folder.name.lower() in names]
    return sorted(found, key=lambda folder: names.index(folder.name.lower()))


def _xml_files(folder: Path) -> Iterator[str]:
    return (name for name in walk_files(folder) if name.lower().endswith(".xml"))


def _xml_names(folder: Path) -> list[str]:
    return sorted(_xml_files(folder))


def _holds_voc(folder: Path, deep: bool = True) -> bool:
    """Whether one of the first XML files of a folder is VOC's."""
    names = _xml_files(folder) if deep else sorted(path.name for path in folder.glob("*.[xX][mM][lL]"))
    probed = islice((name for name in names if not name.startswith(".")), PROBED_FILES)
    return any(root_element(folder / name) == "annotation" for name in probed)


def _xml_folder(home: Path) -> Path | None:
    return next((folder for folder in _folders_called(home, XML_FOLDERS) if _holds_voc(folder)), None)


def _image_folder(home: Path) -> Path:
    for folder in _folders_called(home, PICTURE_FOLDERS):
        if any(is_picture(name) for name in walk_files(folder)):
            return folder
    if any(is_picture(path.name) for path in home.iterdir()):
        return home
    raise LayoutError(
        f"The pictures of {home} were not found; looked for a folder {', '.join(PICTURE_FOLDERS)} with pictures in "
        "it, and for pictures beside it. Pass image_root=."
    )


def _splits_of_home(home: Path, image_root: Path | None) -> list[VocSplit]:
    xml_root = _xml_folder(home)
    folder = image_root or _image_folder(home)
    names = _xml_names(xml_root)
    lists = _lists_of(home)
    if lists:
        return _splits_of_lists(lists, xml_root, names, folder)
    subfolders = {name.partition("/")[0] for name in names if "/" in name}
    if subfolders and all(split_kind(name) for name in subfolders) and all("/" in name for name in names):
        splits = []
        for split in sorted(subfolders):
            own = [name.partition("/")[2] for name in names if name.startswith(f"{split}/")]
            pictures = folder / split if (folder / split).is_dir() else folder
            splits.append(VocSplit(split, xml_root / split, own, pictures))
        return splits
    return [VocSplit("train", xml_root, names, folder)]


def _lists_of(home: Path) -> dict[str, list[str]]:
    """Returns the lines of the lists of pictures by split: of `ImageSets/Main`, else of what ImageSets holds.

    `aeroplane_train.txt`, whose lines end in a flag, lists one class; such files count together where there are no
    others. `trainval` repeats `train` and `val` where both are there.
    """
    places = [home / "ImageSets" / "Main", home / "ImageSets", *_folders(home / "ImageSets")]
    found = next((lists for place in places if (lists := sorted(place.glob("*.txt")))), [])
    lists = {path.stem: read_lines(path) for path in found if not path.name.startswith(".")}
    of_class = {
        name: lines
        for name, lines in lists.items()
        if "_" in name and split_kind(name.rpartition("_")[2]) and all(map(FLAGGED.match, lines))
    }
    whole = {name: lines for name, lines in lists.items() if name not in of_class}
    for name, lines in of_class.items() if not whole else ():  # a picture stands in the list of each class
        names = whole.setdefault(name.rpartition("_")[2], [])
        names += [line for line in (FLAGGED.match(flagged).group(1) for flagged in lines) if line not in set(names)]
    if {"train", "val"} <= set(whole):
        whole.pop("trainval", None)
    return whole


def _splits_of_lists(lists: dict[str, list[str]], xml_root: Path, names: list[str], folder: Path) -> list[VocSplit]:
    """Returns a split for each list; what a list names without an XML file, and XML files in no list, is logged."""
    by_key = {name_key(name[: -len(".xml")]): name for name in names}
    unlisted = set(names)
    splits = []
    for name, lines in lists.items():
        split = VocSplit(name, xml_root, [], folder)
        missing, seen = [], set()
        for line in lines:
            xml = _xml_of_line(line, by_key)
            if xml is None:
                missing.append(line)
            elif xml in seen:
                message = f"the list {name}.txt names the picture before; it is read once"
                split.log.add("image-repeated", "warning", message, split=name, file_name=line)
            else:
                seen.add(xml)
                split.xml_names.append(xml)
        unlisted -= seen
        if split.xml_names:
            for line in missing:
                message = f"the list {name}.txt names {line!r}, for which {xml_root} has no XML file"
                split.log.add("annotation-missing", "error", message, split=name, file_name=line)
            splits.append(split)
        elif splits and lines:
            # VOC's test list comes without annotations.
            message = (
                f"the list {name}.txt names {len(lines)} pictures and none has an XML file: no split is made of it"
            )
            splits[0].log.add("split-left-out", "warning", message)
    for name in sorted(unlisted) if splits else ():
        message = "the XML file is in no list of ImageSets and is not read"
        splits[0].log.add("annotation-unlisted", "warning", message, file_name=name)
    return splits


def _xml_of_line(line: str, by_key: dict[str, str]) -> str | None:
    """Returns the XML file that a line of a list means: a name that may hold blanks, an ending, folders or a flag."""
    flagged = FLAGGED.match(line)
    for text in (line, flagged.group(1) if flagged else line):
        parts = text.replace("\\", "/").split("/")
        for skip in range(len(parts)):
            name = "/".join(parts[skip:])
            for stem in (name, name.rpartition(".")[0] if is_picture(name) or name.endswith(".xml") else name):
                if name_key(stem) in by_key:
                    return by_key[name_key(stem)]
    return None
