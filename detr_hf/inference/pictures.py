"""What a source is: one picture or several, and the file that shows it again. Nothing is decoded here."""

import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_sources_detr import is_single_picture as is_single_picture


def path_of(source: Any) -> Path | None:
    """Returns the file that a source names or was opened from; None for pictures that live in memory alone."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return None
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source))
    filename = getattr(source, "filename", "") if isinstance(source, Image.Image) else ""
    return Path(os.fsdecode(filename)) if filename else None


# How a file stood: its time of modification in nanoseconds, and its size in bytes.
Stamp = tuple[int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Returns how a file stands now; None where it is not there."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def stamp_of_source(source: Any) -> Stamp | None:
    """Returns how the file stands that will show this very picture when it is opened again; None if there is none.

    Ask before the picture is read. An opened PIL image is its file's picture only while nothing of it was decoded,
    and where neither its page, its size nor anything that its header says was changed since.
    """
    path = path_of(source)
    if path is None or not isinstance(source, Image.Image):
        return None if path is None else stamp_of(path)
    if not getattr(source, "tile", None) or source.tell() != 0:
        return None
    try:
        opened = _stamp(os.fstat(source.fp.fileno()))
        with Image.open(path) as anew:
            same = all(getattr(anew, name) == getattr(source, name) for name in ("format", "size", "mode", "info"))
            same = same and dict(anew.getexif()) == dict(source.getexif())
    except Exception:  # no file behind it, or another than the one that was opened
        return None
    return opened if same and opened == stamp_of(path) else None


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_mtime_ns, stat.st_size
