"""Paths that annotation files name: kept inside their folder, and found in the layouts that people use.

A file name in an annotation file is input from a stranger. One that is absolute, climbs out with `..` or is a URL is
refused, so that a downloaded data set cannot make a program read other files.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import AnnotationError
from ...processing.image_opening_detr import PICTURE_SUFFIXES

SHOWN_PLACES = 4
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


def join_inside(folder: Path, file_name: str) -> str:
    """Returns `folder / file_name` as text.

    Raises:
        AnnotationError: the name is absolute, a URL, or leaves the folder.
    """
    reason = unsafe_reason(file_name)
    if reason:
        raise AnnotationError(f"Refused: {reason}.")
    return os.path.join(folder, file_name)


def looked_in(places: Iterable[Path]) -> str:
    """Returns the places of labels as a message names them: each once, the first few."""
    different = [str(place) for place in dict.fromkeys(places)]
    more = len(different) - SHOWN_PLACES
    return ", ".join(different[:SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")


def list_pictures(folder: Path) -> list[str]:
    """Returns the names of all pictures below `folder`, relative to it with `/`, sorted; no hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(parent, folder)
        for name in files:
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith("."):
                found.append(name if relative == "." else os.path.join(relative, name).replace(os.sep, "/"))
    return sorted(found)


class FileIndex:
    """Answers whether files exist, listing each folder once: 118,000 pictures cost one listing, not as many calls."""

    def __init__(self) -> None:
        self.folders: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            try:
                self.folders[folder] = {entry.name for entry in os.scandir(folder) if not entry.is_dir()}
            except OSError:
                self.folders[folder] = set()
        return name in self.folders[folder]
