"""Which label file is a picture's, and which label files are no picture's.

A picture's label file is called like it and lies in `labels` in place of the last `images` of its path, or beside it.
One that is found by another spelling is said; where both places have one and they differ, neither is taken. Label
files that are left over are told, and so are pictures that no split has.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import LayoutError
from .paths import is_picture, is_unread_picture, walk_files
from .text import name_key, read_text
from .yolo_layout import YoloLayout, label_folder, split_at_images
from .yolo_lines import is_label_file

# Label Studio writes these eight characters before the name of an uploaded picture.
UPLOAD_MARK = re.compile(r"[0-9a-f]{8}-(.+)")


@dataclass
class FoundLabels:
    """What was found for a picture: its label file, or why there is none that can be used."""

    path: str | None = None
    fault: str | None = None


class LabelFinder:
    """Finds the label files of all pictures of a layout, so that what is left over is known."""

    def __init__(self, layout: YoloLayout) -> None:
        self.layout = layout
        self.index = layout.index
        self.homes: dict[str, str | None] = {}
        self.marked: dict[str, dict[str, list[str]]] = {}
        self.claimed: dict[str, str] = {}
        self.found: dict[str, FoundLabels] = {}
        for split, pictures in layout.pictures.items():
            for folder, name in pictures:
                path = os.path.join(folder, name)
                if path not in self.found:
                    self.found[path] = self._find(split, path, name)

    def label_folder_of(self, folder: str) -> str | None:
        """Returns the folder of the label files for the pictures of a folder, where it has an `images` in its path.

        It is there or not; which is what a message says.
        """
        if folder not in self.homes:
            halves = split_at_images(Path(folder), self.layout.root)
            self.homes[folder] = None
            if halves:
                top = label_folder(halves[0]) or halves[0] / "labels"
                below = str(halves[1])
                found = below if below == "." else self.index.match(str(top), halves[1].as_posix(), is_folder=True)
                self.homes[folder] = os.path.normpath(top / (found or below))
        return self.homes[folder]

    def _find(self, split: str, path: str, name: str) -> FoundLabels:
        folder, file_name = os.path.split(path)
        stem = os.path.splitext(file_name)[0]
        apart = self.label_folder_of(folder)
        in_labels = self._look(apart, stem) if apart else None
        beside = self._look(folder, stem)
        chosen = in_labels or beside
        if chosen is None:
            return FoundLabels()
        for label in filter(None, (in_labels, beside)):
            fault = self._claim(split, label, path, name)
            if fault:
                return FoundLabels(fault=fault)
        if in_labels and beside and not _same_text(in_labels, beside):
            return FoundLabels(fault=f"it has two label files that differ: {in_labels} and {beside}")
        if apart and chosen == beside and os.path.isdir(apart):
            message = f"the label file lies beside the picture and not in {apart}; it is read from there"
            self.layout.remark(split, "labels-beside-pictures", "warning", message, name)
        return FoundLabels(chosen)

    def _look(self, folder: str, stem: str) -> str | None:
        """Returns the label file of a picture in a folder: by its name, else behind Label Studio's mark."""
        found = self.index.match(folder, f"{stem}.txt")
        if found is None:
            if folder not in self.marked:
                self.marked[folder] = {}
                for label in sorted(self.index.names(folder)):
                    mark = UPLOAD_MARK.fullmatch(os.path.splitext(label)[0])
                    if mark and label.lower().endswith(".txt"):
                        self.marked[folder].setdefault(name_key(mark[1]), []).append(label)
            found = next(iter(self.marked[folder].get(name_key(stem), [])), None)
        return os.path.join(folder, found) if found else None

    def _claim(self, split: str, label: str, path: str, name: str) -> str | None:
        """Notes that a label file is a picture's; returns why it cannot be, or None."""
        stem, wanted = (name_key(Path(text).stem) for text in (label, path))
        marked = self.marked.get(os.path.dirname(label), {}).get(wanted, []) if stem != wanted else []
        if len(marked) > 1:
            return f"it could have any of the label files {', '.join(marked)}"
        if stem != wanted:
            message = f"{os.path.basename(label)!r} is read as its label file"
            self.layout.remark(split, "label-name-repaired", "warning", message, name)
        first = self.claimed.setdefault(label, path)
        if first == path:
            return None
        if stem != wanted or stem != name_key(Path(first).stem):
            return f"its label file would be {label}, which is that of {first}"
        message = f"{os.path.basename(label)} is also the label file of {os.path.basename(first)}"
        self.layout.remark(split, "label-shared", "warning", message, name)
        return None

    def where(self, split: str) -> str:
        """Returns the folders in which the labels of a split are looked for, as text."""
        folders = dict.fromkeys(
            os.path.join(folder, os.path.dirname(name)) for folder, name in self.layout.pictures[split]
        )
        folders = dict.fromkeys(os.path.normpath(folder) for folder in folders)
        looked = [self.label_folder_of(folder) or folder for folder in folders]
        return ", ".join(looked[:4]) + (", ..." if len(looked) > 4 else "")

    def remark_leftovers(self) -> None:
        """Notes label files that no picture claims, and pictures beside those of the splits that no split has."""
        folders = {os.path.dirname(path) for path in self.found}
        tops = set()
        for folder in folders:
            halves = split_at_images(Path(folder), self.layout.root)
            tops |= {str(label_folder(halves[0]) or ""), str(_existing(halves[0], folder))} if halves else set()
        files = {path for folder in folders for path in self._files_in(folder)}
        files |= {os.path.join(top, name) for top in tops - {""} for name in walk_files(Path(top))}
        pictures = {path for path in files if is_picture(path)}
        for path in sorted(pictures - set(self.found)):
            self.layout.remark(None, "image-unlisted", "info", "no split has this picture", self._relative(path))
        for path in sorted(filter(is_unread_picture, files)):
            message = "pictures of this kind are not read: save it as PNG or JPEG"
            self.layout.remark(None, "image-kind-unread", "warning", message, self._relative(path))
        stems = {name_key(os.path.splitext(self._mirrored(path))[0]) for path in pictures}
        for path in sorted(files - pictures - set(self.claimed)):
            if not path.lower().endswith(".txt") or name_key(os.path.splitext(self._mirrored(path))[0]) in stems:
                continue
            if is_label_file(Path(path)):
                message = "no picture of a split has this label file: its objects are not read"
                self.layout.remark(None, "label-unclaimed", "warning", message, self._relative(path))

    def _files_in(self, folder: str) -> Iterator[str]:
        yield from (os.path.join(folder, name) for name in self.index.names(folder) if not name.startswith("."))

    def _mirrored(self, path: str) -> str:
        """Returns a picture's path as that of its label file."""
        folder, name = os.path.split(path)
        return os.path.join(self.label_folder_of(folder) or folder, name)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.layout.root)


def _existing(home: Path, folder: str) -> Path:
    """Returns the `images` folder in `home` in which a folder of pictures lies."""
    return home / Path(folder).parts[len(home.parts)]


def _same_text(first: str, second: str) -> bool:
    """Whether two label files say the same."""
    try:
        return read_text(Path(first)).split() == read_text(Path(second)).split()
    except LayoutError:
        return False
