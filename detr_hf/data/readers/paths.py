"""Paths that annotation files name: kept inside their folder, and found in the layouts that people use.

A file name in an annotation file is input from a stranger. One that is absolute, climbs out with `..` or is a URL is
never followed, so that a downloaded data set cannot make a program read other files; `PictureFinder` looks for its
last parts inside the data's own folder instead, says so, and refuses where two names would meet in one file.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from ...errors import LayoutError
from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ...visualize.saving import is_drawing
from .text import name_key

logger = logging.getLogger(__name__)

# What cameras and design programs write, and is no picture here.
OTHER_PICTURE_SUFFIXES = frozenset(
    [
        ".arw",
        ".avif",
        ".cr2",
        ".cr3",
        ".dng",
        ".exr",
        ".heic",
        ".heif",
        ".ico",
        ".jp2",
        ".jpe",
        ".jxl",
        ".mpo",
        ".nef",
        ".orf",
        ".psd",
        ".raw",
        ".svg",
        ".tga",
    ]
)
URL_OR_DRIVE = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+://|[A-Za-z]:[\\/])")


def unsafe_reason(file_name: object) -> str | None:
    """Returns why a file name must not be opened, or None when it stays inside its folder."""
    if not isinstance(file_name, str) or not file_name.strip():
        return f"the file name is {str(file_name)[:80]!r}, expected a text that is not empty"
    if "\0" in file_name or len(file_name) > 4096:
        return "the file name holds a NUL character or is longer than 4096 characters"
    if URL_OR_DRIVE.match(file_name):
        return f"the file name {file_name!r} is a URL or has a drive letter, expected a path below the image folder"
    parts = re.split(r"[\\/]", file_name)
    if parts[0] == "" or ".." in parts:
        return f"the file name {file_name!r} is absolute or leaves the image folder with '..'"
    return None


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the names of all files below `folder`, relative to it with `/`, none that is hidden.

    Folders that are links are followed, each once; one that leads back into `folder` is passed over, since its files
    are found by their own path.

    Raises:
        LayoutError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise LayoutError(f"{error.filename} cannot be searched: {error}.") from error

    top = os.path.realpath(folder)
    followed = {top}
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if name.startswith(".") or name == "__MACOSX":
                continue
            if os.path.islink(path):
                target = os.path.realpath(path)
                if target in followed or f"{target}{os.sep}".startswith(f"{top}{os.sep}"):
                    continue
                if f"{top}{os.sep}".startswith(f"{target}{os.sep}"):
                    continue  # an ancestor of the folder itself
                followed.add(target)
            kept.append(name)
        folders[:] = kept
        relative = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in sorted(files):
            if not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def is_unread_picture(name: str) -> bool:
    """Whether a file's name ends as that of a picture of a kind that is not read."""
    return os.path.splitext(name)[1].lower() in OTHER_PICTURE_SUFFIXES - PICTURE_SUFFIXES


def list_pictures(folder: Path) -> list[str]:
    """Returns the names of all pictures below `folder`, relative to it with `/`, sorted; see `walk_files`.

    What this package drew there, as `check --preview` does, is no picture of the data; that it is left out is said.
    """
    names = sorted(name for name in walk_files(folder) if is_picture(name))
    drawings = {name for name in names if is_drawing(folder / name)}
    for name in sorted(drawings):
        _say_left_out(folder / name)
    return [name for name in names if name not in drawings]


@functools.lru_cache(1024)
def _say_left_out(path: Path) -> None:
    logger.warning("%s is a drawing that detr_hf made, and no picture of the data: it is left out.", path)


class FileIndex:
    """Answers whether files exist, listing each folder once: 118,000 pictures cost one listing, not as many calls."""

    def __init__(self) -> None:
        self.folders: dict[str, set[str]] = {}
        self.files: dict[str, set[str]] = {}
        self.keys: dict[str, dict[str, list[str]]] = {}

    def _list(self, folder: str) -> None:
        self.files[folder], self.folders[folder] = set(), set()
        try:
            for entry in os.scandir(folder):
                if entry.is_dir():
                    self.folders[folder].add(entry.name)
                elif entry.is_file():  # not a link to nothing
                    self.files[folder].add(entry.name)
        except OSError:
            pass

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self.files:
            self._list(folder)
        return name in self.files[folder]

    def match(self, folder: str, name: str, is_folder: bool = False) -> str | None:
        """Returns the name of the file (or folder) below `folder` that `name` (with `/`) means, or None.

        It comes back as the disk has it. The name itself comes first, then one that differs in its Unicode normal
        form, then the only one that differs in case.
        """
        found = []
        parts = name.split("/")
        for position, part in enumerate(parts):
            if folder not in self.files:
                self._list(folder)
            wanted = (self.folders if is_folder or position < len(parts) - 1 else self.files)[folder]
            actual = part if part in wanted else self._alike(folder, part, wanted)
            if actual is None:
                return None
            found.append(actual)
            folder = os.path.join(folder, actual)
        return "/".join(found)

    def _alike(self, folder: str, part: str, wanted: set[str]) -> str | None:
        if folder not in self.keys:
            self.keys[folder] = {}
            for name in self.files[folder] | self.folders[folder]:
                self.keys[folder].setdefault(name_key(name).casefold(), []).append(name)
        key = name_key(part)
        alike = [name for name in self.keys[folder].get(key.casefold(), []) if name in wanted]
        same = [name for name in alike if name_key(name) == key]
        chosen = same or alike
        return chosen[0] if len(chosen) == 1 else None

    def names(self, folder: str) -> set[str]:
        """Returns the names of the files that lie in a folder; none where there is no such folder."""
        if folder not in self.files:
            self._list(folder)
        return self.files[folder]


class PictureFinder:
    """Finds below a folder the pictures that annotation files name; every name that is not taken as it stands is said.

    A name that does not exist as written is looked for in another Unicode form or case, without the folders of the
    labeller's machine before it, and without what Label Studio or a URL puts around it. Finders of several splits
    share `meant`, so that names of two splits do not meet in one file either; `contested` are the files in which
    names met.
    """

    def __init__(
        self, folder: Path, index: FileIndex | None = None, meant: dict[str, tuple[str, bool]] | None = None
    ) -> None:
        self.folder = str(folder)
        self.absolute = os.path.abspath(folder) + os.sep
        self.index = index or FileIndex()
        self.meant = {} if meant is None else meant  # path -> the first name that meant it, was it repaired
        self.contested: set[str] = set()

    def find(self, listed: object, say: Callable[[str, str, str], None]) -> str | None:
        """Returns the name below the folder, with `/`, or None where it is refused.

        `say(code, severity, message)` gets what is repaired and refused. A name that is safe and found nowhere comes
        back as it is: that its file is missing is told by `check_files`.
        """
        reason = unsafe_reason(listed)
        plain = self.exact(listed) if reason is None else None
        if plain is not None:
            return self._claim(plain, plain, say)
        found = self.look(listed) if isinstance(listed, str) else None
        if found is not None:
            return self._claim(found, listed, say)
        if reason is not None:
            say("file-name-unsafe", "error", f"refused: {reason}, and no file below {self.folder} has its last part")
            return None
        return listed.replace("\\", "/")

    def exact(self, listed: str) -> str | None:
        """Returns the name of the existing file that a safe name is as it stands, or None."""
        plain = os.path.normpath(listed).replace(os.sep, "/")
        return plain if os.path.join(self.folder, plain) in self.index else None

    def look(self, listed: str) -> str | None:
        """Returns the name of the existing file that `listed` means, or None."""
        for text in readings(listed):
            text = text.removeprefix(self.absolute)
            parts = [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..")]
            for skip in range(len(parts)):
                found = self.index.match(self.folder, "/".join(parts[skip:]))
                if found is not None:
                    return found
        return None

    def _claim(self, found: str, listed: str, say: Callable[[str, str, str], None]) -> str | None:
        path = os.path.join(self.folder, found)
        repaired = found != listed
        first, first_repaired = self.meant.setdefault(path, (listed, repaired))
        if first != listed and (repaired or first_repaired):
            self.contested.add(path)
            say(
                "file-name-ambiguous",
                "error",
                f"{first!r} and {listed!r} would both be the file {found!r} below {self.folder}: give the folder that "
                "the names start from, or correct them",
            )
            return None
        if repaired and name_key(found) != name_key(listed.replace("\\", "/")):
            inside = listed.startswith(self.absolute)
            severity = "info" if inside else "warning"
            say("file-name-repaired", severity, f"{listed!r} is read as {found!r} below {self.folder}")
        return found


def readings(listed: str) -> Iterator[str]:
    """Yields a listed name, then what remains of it without a query, `?d=` of Label Studio, and percent signs."""
    yield listed
    if "?d=" in listed:
        yield listed.partition("?d=")[2]
        yield unquote(listed.partition("?d=")[2])
    elif "?" in listed:
        yield listed.partition("?")[0]
        yield unquote(listed.partition("?")[0])
    if "%" in listed:
        yield unquote(listed)
