"""Which pictures are meant: files, folders and patterns; and which file shows again a picture that was looked at."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_opening_detr import PICTURE_SUFFIXES
from ..processing.image_sources_detr import is_single_picture as is_single_picture

GLOB_SIGNS = re.compile(r"[*?\[]")


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


def find_pictures(
    paths: Iterable[str | Path], results: Path | None = None, suffixes: Iterable[str] = PICTURE_SUFFIXES
) -> Iterator[tuple[Path, Path]]:
    """Yields the pictures behind files, folders and patterns, each with its path below the folder it was found in.

    A file is taken as it is, also where it does not exist: opening it will tell. A folder is searched with all folders
    below it for files that end in one of `suffixes`, hidden names left out, in the order of the names. A text with
    `*`, `?` or `[` that is no existing path is a pattern, in which `**` stands for any folders. A picture that several
    of them name comes once. The folder `results`, where it lies inside a folder that is searched, is left out.
    """
    given = [Path(path) for path in paths]
    endings = tuple(suffixes)
    apart = len(given) == 1 and given[0].is_dir()  # then none can come twice, and a million need not be remembered
    seen: set[str] = set()
    for path, relative in (found for one in given for found in _expand(one, results, endings)):
        if not apart:
            absolute = str(path.absolute())
            if absolute in seen:
                continue
            seen.add(absolute)
        yield path, relative


def _expand(given: Path, results: Path | None, endings: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    if given.is_dir():
        inside = results is not None and given.absolute() in results.absolute().parents
        left_out = results.absolute().relative_to(given.absolute()) if inside else None
        for relative in _files_below(given, Path(), endings, left_out):
            yield given / relative, relative
    elif not given.exists() and GLOB_SIGNS.search(str(given)):
        root, pattern = _split_pattern(given)
        for path in sorted(root.glob(pattern)):
            if path.is_dir():
                yield from _expand(path, results, endings)
            else:
                yield path, path.relative_to(root)
    else:
        yield given, Path(given.name)


def _files_below(root: Path, below: Path, endings: tuple[str, ...], left_out: Path | None) -> Iterator[Path]:
    """Yields the files of a folder and all folders in it, as paths from `root` on, one folder in memory at a time."""
    with os.scandir(root / below) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in found:
        relative = below / entry.name
        if entry.is_dir(follow_symlinks=False):
            if relative != left_out:
                yield from _files_below(root, relative, endings, left_out)
        elif entry.name.lower().endswith(endings) and entry.is_file():
            yield relative


def _split_pattern(given: Path) -> tuple[Path, str]:
    """Returns the folder before the first part that holds a glob sign, and the pattern from there on."""
    parts = given.parts
    first = next(i for i, part in enumerate(parts) if GLOB_SIGNS.search(part))
    return Path(*parts[:first]), str(Path(*parts[first:]))
