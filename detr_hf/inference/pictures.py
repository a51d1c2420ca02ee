"""What a source is: one picture or several, and the file that shows it again. Nothing is decoded here."""

import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_opening_detr import PICTURE_SUFFIXES
from ..processing.image_sources_detr import is_single_picture as is_single_picture


def path_of(source: Any) -> Path | None:
    """Returns the file that a source names or was opened from; None for pictures that live in memory alone."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return None
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source))
    filename = getattr(source, "filename", "") if isinstance(source, Image.Image) else ""
    return Path(os.fsdecode(filename)) if filename else None


def refuse_many(source: Any, name: str) -> None:
    """Raises an OSError for a folder, pattern, archive or film in the place of a picture; says what reads it."""
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(os.fsdecode(source))
    if path.suffix.lower() in PICTURE_SUFFIXES and not set(path.name) & set("*?["):
        return
    from .sources.opening import holds_many
    from .sources.searching import GLOB_SIGNS

    if path.is_dir():
        what = "a folder"
    elif not os.path.lexists(path) and GLOB_SIGNS.search(str(path)):
        what = "a pattern"
    elif path.is_file() and holds_many(path):
        what = "a film, an archive or a table"
    else:
        return
    raise IsADirectoryError(
        f"{name} is {what} and not one picture. `detr_hf.predict_to_shards(detector, {str(path)!r}, 'results')` and "
        f"`detr-hf predict MODEL {path} --out results` read the pictures in it; of a few, give their paths as a list."
    )


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
