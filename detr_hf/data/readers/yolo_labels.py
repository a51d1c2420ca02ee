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
from typing import NamedTuple

from ...errors import LayoutError
from .paths import is_picture, is_unread_picture, walk_files
from .text import name_key, read_text
from .yolo_layout import YoloLayout, label_folder, split_at_images
from .yolo_lines import is_label_file

# Label Studio writes these eight characters before the name of an uploaded picture.
UPLOAD_MARK = re.compile(r"[0-9a-f]{8}-(.+)")


class Candidate(NamedTuple):
    """A label file that could be a picture's; `exact` when it is called like it (but for the Unicode form)."""

    path: str
    exact: bool


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
        self.claimed: set[str] = set()
        self.splits: dict[str, str] = {}  # the split to which the pictures or labels of a folder belong
        candidates: dict[str, tuple[str, str, list[Candidate]]] = {}
        # Whose label file it is, by its name and by a guess: what is a picture's by its name is no other's by a guess.
        self.owners: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
        for split, pictures in layout.pictures.items():
            for folder, name in pictures:
                path = os.path.join(folder, name)
                if path not in candidates:
                    candidates[path] = (split, name, self._candidates(split, path))
                    for candidate in candidates[path][2]:
                        self.owners[candidate.exact].setdefault(candidate.path, []).append(path)
        self.found = {path: self._choose(path, *rest) for path, rest in candidates.items()}

    def label_folder_of(self, folder: str) -> str | None:
        """Returns the folder, there or not, of the labels for pictures of a folder with an `images` in its path."""
        if folder not in self.homes:
            halves = split_at_images(Path(folder), self.layout.root)
            self.homes[folder] = None
            if halves:
                top = label_folder(halves[0]) or halves[0] / "labels"
                below = str(halves[1])
                found = below if below == "." else self.index.match(str(top), halves[1].as_posix(), is_folder=True)
                self.homes[folder] = os.path.normpath(top / (found or below))
        return self.homes[folder]

    def _candidates(self, split: str, path: str) -> list[Candidate]:
        folder, file_name = os.path.split(path)
        stem = os.path.splitext(file_name)[0]
        found = []
        for place in filter(None, (self.label_folder_of(folder), folder)):
            self.splits.setdefault(place, split)
            label = self.index.match(place, f"{stem}.txt")
            names = [label] if label else self._marked(place).get(name_key(stem), [])
            exact = label is not None and name_key(os.path.splitext(label)[0]) == name_key(stem)
            found += [Candidate(os.path.join(place, name), exact) for name in names]
        return found

    def _marked(self, folder: str) -> dict[str, list[str]]:
        """Returns the label files of a folder that have Label Studio's mark, by their name without it."""
        if folder not in self.marked:
            self.marked[folder] = {}
            for label in sorted(self.index.names(folder)):
                mark = UPLOAD_MARK.fullmatch(os.path.splitext(label)[0])
                if mark and label.lower().endswith(".txt"):
                    self.marked[folder].setdefault(name_key(mark[1]), []).append(label)
        return self.marked[folder]

    def _choose(self, path: str, split: str, name: str, candidates: list[Candidate]) -> FoundLabels:
        """Returns the label file of a picture, or why it cannot be told; what is odd about it is noted."""
        own = [candidate for candidate in candidates if candidate.exact]
        free = [candidate for candidate in candidates if candidate.path not in self.owners[True]]
        chosen = [candidate.path for candidate in own or free]
        self.claimed.update(chosen)
        if not chosen:
            return FoundLabels()
        owners = self.owners[bool(own)][chosen[0]]
        if not own and len(chosen) > 1:
            return FoundLabels(fault=f"it could have any of the label files {', '.join(chosen)}")
        if not own and len(owners) > 1:
            return FoundLabels(fault=f"{chosen[0]} could be the label file of {', '.join(owners)}")
        if len(chosen) > 1 and not _same_text(*chosen):
            return FoundLabels(fault=f"it has two label files that differ: {' and '.join(chosen)}")
        label = os.path.basename(chosen[0])
        if not own:
            self.layout.remark(split, "label-name-repaired", "warning", f"{label!r} is read as its label file", name)
        if owners[0] != path:
            message = f"{label} is also the label file of {os.path.basename(owners[0])}"
            self.layout.remark(split, "label-shared", "warning", message, name)
        folder = os.path.dirname(path)
        apart = self.label_folder_of(folder)
        if apart and os.path.dirname(chosen[0]) == folder and os.path.isdir(apart):
            message = f"the label file lies beside the picture and not in {apart}; it is read from there"
            self.layout.remark(split, "labels-beside-pictures", "warning", message, name)
        return FoundLabels(chosen[0])

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
        folders = {os.path.dirname(path) for path in self.found} | set(map(str, self.layout.folders))
        tops = set()
        for folder in folders:
            halves = split_at_images(Path(folder), self.layout.root)
            tops |= {str(label_folder(halves[0]) or ""), str(_existing(halves[0], folder))} if halves else set()
        files = {path for folder in folders for path in self._files_in(folder)}
        files |= {os.path.join(top, name) for top in tops - {""} for name in walk_files(Path(top))}
        pictures = {path for path in files if is_picture(path)}
        stems = {name_key(os.path.splitext(self._mirrored(path))[0]) for path in pictures}
        for path in sorted(pictures - set(self.found)):
            self._remark(path, "image-unlisted", "info", "no split has this picture")
        for path in sorted(files - pictures - self.claimed):
            if is_unread_picture(path):
                message = "pictures of this kind are not read: save it as PNG or JPEG"
                self._remark(path, "image-kind-unread", "warning", message)
            # The labels of a picture that no split has are told with it.
            elif name_key(os.path.splitext(self._mirrored(path))[0]) not in stems and _is_label_file(path):
                message = "no picture of a split has this label file: its objects are not read"
                self._remark(path, "label-unclaimed", "warning", message)

    def _remark(self, path: str, code: str, severity: str, message: str) -> None:
        split = self.splits.get(os.path.dirname(path))
        self.layout.remark(split, code, severity, message, os.path.relpath(path, self.layout.root))

    def _files_in(self, folder: str) -> Iterator[str]:
        yield from (os.path.join(folder, name) for name in self.index.names(folder) if not name.startswith("."))

    def _mirrored(self, path: str) -> str:
        """Returns a picture's path as that of its label file."""
        folder, name = os.path.split(path)
        return os.path.join(self.label_folder_of(folder) or folder, name)


def _existing(home: Path, folder: str) -> Path:
    """Returns the `images` folder in `home` in which a folder of pictures lies."""
    return home / Path(folder).parts[len(home.parts)]


def _is_label_file(path: str) -> bool:
    return path.lower().endswith(".txt") and is_label_file(Path(path))


def _same_text(first: str, second: str) -> bool:
    """Whether two label files say the same."""
    try:
        return read_text(Path(first)).split() == read_text(Path(second)).split()
    except LayoutError:
        return False
