"""Which pictures a YOLO data set has in which split, told by lists of pictures or by the folders alone.

Without a data.yaml a split is a folder: `images/train` (with labels in `labels/train`), `train/images` (with
`train/labels`), or `train` with pictures and text files side by side, as Darknet and labelImg want it. Lists of
pictures (`train.txt`) come before folders.
"""

import os
import re
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...errors import LayoutError
from ..detection_data import split_kind
from .paths import FileIndex, PictureFinder, is_picture, list_pictures, walk_files
from .text import read_lines
from .yolo_lines import LineKind, is_label_file
from .yolo_names import find_names

PICTURE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = ("labels", "label")
LIST_FILES = ("train.txt", "val.txt", "valid.txt", "validation.txt", "test.txt", "images.txt")
# How many label files are opened to see whether text files beside pictures are labels.
PROBED_FILES = 64


class Remark(NamedTuple):
    """A finding before it is known what the user calls the split."""

    code: str
    severity: str
    message: str
    file_name: str | None = None


@dataclass
class YoloLayout:
    """Pictures by split as (folder, name below it), the class names by id, and what was noticed by split.

    `described` says whether a data.yaml or obj.data does. `missing` are the splits that are named and not there,
    `folders` others that were looked into for pictures; `remarks[None]` are about the whole.
    """

    root: Path
    described: bool = False
    pictures: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    kind: LineKind | None = None
    missing: dict[str, LayoutError] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    remarks: dict[str | None, list[Remark]] = field(default_factory=dict)
    index: FileIndex = field(default_factory=FileIndex)

    def remark(self, split: str | None, code: str, severity: str, message: str, file_name: str | None = None) -> None:
        """Notes a finding of a split, or of the whole, once."""
        remark = Remark(code, severity, message, file_name)
        remarks = self.remarks.setdefault(split, [])
        if file_name is not None or remark not in remarks:
            remarks.append(remark)


def label_folder(home: Path) -> Path | None:
    """Returns the folder in `home` that is called `labels`, in any case, or None."""
    if not home.is_dir():
        return None
    found = [child for child in sorted(home.iterdir()) if child.name.lower() in LABEL_FOLDERS and child.is_dir()]
    return min(found, key=lambda child: child.name not in LABEL_FOLDERS, default=None)


def split_at_images(folder: Path, root: Path | None = None) -> tuple[Path, Path] | None:
    """Returns what stands before and after the last `images` (in any case) of a path, or None.

    Folders above `root` do not count; `root` itself does.
    """
    parts = folder.parts
    above = len(root.parts) - 2 if root and folder.is_relative_to(root) else 0
    for place in range(len(parts) - 1, above, -1):
        if parts[place].lower() in PICTURE_FOLDERS:
            return Path(*parts[:place]), Path(*parts[place + 1 :])
    return None


def label_home(folder: Path, root: Path | None = None) -> Path | None:
    """Returns the folder that holds both `images`, in which a folder of pictures lies, and `labels`; or None."""
    halves = split_at_images(folder, root)
    return halves[0] if halves and label_folder(halves[0]) else None


def has_label_files(images: Path) -> bool:
    """Whether the `labels` folder beside an `images` folder has text files."""
    labels = label_folder(images.parent)
    return labels is not None and any(name.lower().endswith(".txt") for name in walk_files(labels))


def names_of_list(layout: YoloLayout, split: str, path: Path, finder: PictureFinder) -> list[str]:
    """Returns the names, below the finder's folder, of the pictures that the lines of a list mean.

    Leading folders of the labeller's machine that all lines have are left out with one remark, others with a remark
    for each line.
    """
    found: list[str] = []
    repaired: list[tuple[str, Remark]] = []
    for line in read_lines(path):
        listed = _from_list(line, path, finder, layout.index)
        if line.startswith("#") and listed == line and finder.look(line) is None:
            continue  # a comment
        remarks: list[Remark] = []
        name = finder.find(listed, partial(_collect, remarks, line))
        found += [name] if name is not None else []
        forwards = listed.replace("\\", "/")
        for remark in remarks:
            prefix = forwards.removesuffix(name or "")
            if remark.code == "file-name-repaired" and prefix != forwards:
                repaired.append((prefix, remark))
            else:
                layout.remark(split, *remark)
    prefixes = {prefix for prefix, _ in repaired}
    if len(prefixes) == 1 and len(repaired) == len(found):
        message = f"the {len(found)} lines of {path.name} start with {prefixes.pop()!r}, no folder here: left out"
        layout.remark(split, "list-prefix", "info", message)
    else:
        for _, remark in repaired:
            layout.remark(split, *remark)
    return found


def _from_list(line: str, path: Path, finder: PictureFinder, index: FileIndex) -> str:
    """Returns a line of a list as it starts from the finder's folder, where it exists from the list's own."""
    beside = os.path.normpath(os.path.join(path.parent, line.replace("\\", "/")))
    below = os.path.relpath(beside, finder.folder).replace(os.sep, "/")
    return below if beside in index and not below.startswith("..") else line


def _collect(remarks: list[Remark], file_name: str, code: str, severity: str, message: str) -> None:
    remarks.append(Remark(code, severity, message, file_name))


def without_repeats(layout: YoloLayout, split: str, pictures: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Returns the pictures of a split, each once; which were listed again is noted."""
    kept: dict[str, tuple[Path, str]] = {}
    for folder, name in pictures:
        path = os.path.normpath(folder / name)
        if path in kept:
            layout.remark(split, "image-repeated", "warning", "the picture is listed before; it is read once", name)
        kept.setdefault(path, (folder, name))
    return list(kept.values())


def find_split_folders(root: Path, index: FileIndex) -> dict[str, Path]:
    """Returns the folders of pictures by split, of a folder without a data.yaml; empty where it is no YOLO data set.

    Raises:
        LayoutError: it has pictures beside folders of pictures, or two folders for a split.
    """
    children = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[tuple[str, Path]] = []
    for child in children:
        if child.name.lower() in PICTURE_FOLDERS:
            if has_label_files(child) or holds_labels(child, index, below=True):
                found += _splits_of_images(child).items()
        elif child.name.lower() not in LABEL_FOLDERS:
            inner = [
                path for path in sorted(child.iterdir()) if path.name.lower() in PICTURE_FOLDERS and path.is_dir()
            ]
            images = [path for path in inner if has_label_files(path) or holds_labels(path, index)]
            own = [child] if not images and holds_labels(child, index) else []
            found += [(re.sub(r"^obj_(.+)_data$", r"\1", child.name), path) for path in images + own]  # as CVAT has it
    if holds_labels(root, index):
        found.append(("train", root))
    if len(found) == 1 and split_kind(found[0][0]) is None:
        found = [("train", found[0][1])]
    splits = dict(found)
    if len(splits) < len(found):
        twice = next(name for name, path in found if splits[name] != path)
        raise LayoutError(
            f"{root} is ambiguous: {' and '.join(str(path) for name, path in found if name == twice)} both are the "
            f"split {twice!r}. Write a data.yaml, or pass the path of one."
        )
    return splits


def _splits_of_images(images: Path) -> dict[str, Path]:
    folders = [folder for folder in sorted(images.iterdir()) if folder.is_dir() and list_pictures(folder)]
    if folders and any(is_picture(path.name) for path in images.iterdir()):
        raise LayoutError(
            f"{images} is ambiguous: it holds pictures and folders. Move the pictures into the folder of a split."
        )
    return {folder.name: folder for folder in folders} or {"train": images}


def holds_labels(folder: Path, index: FileIndex, below: bool = False) -> bool:
    """Whether pictures and their label files lie side by side in a folder (or in one below it)."""
    if below:
        parents = dict.fromkeys(os.path.dirname(name) for name in walk_files(folder) if is_picture(name))
        return any(holds_labels(folder / parent, index) for parent in parents)
    names = index.names(str(folder))
    pictures = {os.path.splitext(name)[0] for name in names if is_picture(name) and not name.startswith(".")}
    labels = [name for name in sorted(names) if name.lower().endswith(".txt") and name[:-4] in pictures]
    return any(is_label_file(folder / name) for name in islice(labels, PROBED_FILES))


def find_lists(root: Path) -> dict[str, Path]:
    """Returns the lists of pictures that lie in a folder, by split."""
    found = {}
    for path in (root / name for name in LIST_FILES):
        if path.is_file() and any(map(is_picture, read_lines(path)[:1])):
            found["train" if path.stem == "images" else path.stem] = path
    return found


def layout_from_folders(root: Path) -> YoloLayout | None:
    """Returns what a folder without a data.yaml holds, or None where it is no YOLO data set.

    Raises:
        LayoutError: it can be read in two ways.
    """
    layout = YoloLayout(root)
    folders = find_split_folders(root, layout.index)
    if not folders:
        return None
    layout.folders = list(folders.values())
    lists = find_lists(root)
    finder = PictureFinder(root, layout.index)
    for split, path in lists.items():
        names = names_of_list(layout, split, path, finder)
        layout.pictures[split] = without_repeats(layout, split, [(root, name) for name in names])
    for split, folder in folders.items() if not lists else ():
        inside = tuple(f"{os.path.relpath(other, folder)}/" for other in folders.values() if folder in other.parents)
        layout.pictures[split] = [(folder, name) for name in list_pictures(folder) if not name.startswith(inside)]
    homes = [home for folder in folders.values() for home in (folder, label_home(folder, root)) if home]
    places = [place for home in (root, *homes) for place in (home, label_folder(home)) if place]
    layout.names = find_names(dict.fromkeys(places))
    return layout
