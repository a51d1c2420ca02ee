"""Opens what a user names as a source: files, folders and patterns, tar and Parquet files, videos, and `datasets`."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ..pictures import path_of
from .archives import tar_piece
from .base import Picture, Piece, Source, SourceOptions
from .searching import GLOB_SIGNS, PictureSearch
from .tables import from_dataset, parquet_piece
from .video import FILM_SUFFIXES, video_piece

# Ending of a file that holds many pictures -> what makes a piece of it.
OPENERS = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz"), tar_piece),
    ".parquet": parquet_piece,
    **dict.fromkeys(FILM_SUFFIXES, video_piece),
}


def open_source(source: Any, options: SourceOptions, results: Path | None = None) -> Source:
    """Returns the pictures behind paths (one or several files, folders, patterns) or a `datasets` object.

    A folder inside which `results` lies is searched without it.

    Raises:
        ValueError: there is no picture.
        TypeError: it is nothing that holds pictures.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str | Path):
        source = [source]
    if type(source).__module__.partition(".")[0] == "datasets":
        return from_dataset(source, options)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        paths = list(source)
        if all(isinstance(path, str | Path) for path in paths):
            return from_paths(paths, options, results)
    raise TypeError(
        f"Expected paths or a data set of `datasets`, got {type(source).__name__}. "
        "Pictures in memory go to Detector directly."
    )


def from_paths(paths: list[str | Path], options: SourceOptions, results: Path | None = None) -> Source:
    """Returns the pictures behind files, folders and patterns; an error of type ValueError for a URL.

    Tar files, Parquet files and videos among them each make a piece of their own.
    """
    for path in paths:
        if path_of(path) is None:
            raise ValueError(
                f"{path} is a web address, which a run over many pictures does not read: download the picture, or "
                "detect in it without a folder for results (--out)."
            )
    pictures: list[str] = []
    whole: list[Piece] = []
    seen = hashlib.blake2b(digest_size=16)
    search = PictureSearch(paths, results, (*PICTURE_SUFFIXES, *OPENERS))
    for path, _ in search:
        opener = _opener(path)
        if opener is None:
            pictures.append(str(path))
            seen.update(os.fsencode(path) + b"\n")
        else:
            whole.append(opener(path, options))
            bytes_of = path.stat().st_size if path.exists() else -1
            seen.update(os.fsencode(path) + f" {bytes_of} {whole[-1].size}\n".encode())
    if not pictures and not whole:
        raise ValueError(f"Nothing to predict: {search.nothing()}.")
    size = options.piece_of(len(pictures))
    pieces = [_file_piece(pictures, at, size) for at in range(0, len(pictures), size)]
    return Source(
        pieces + whole,
        {"paths": [str(path) for path in paths], "files": len(pictures) + len(whole), "list": seen.hexdigest()},
    )


def holds_many(path: Path) -> bool:
    """Whether a file is one of those that hold many pictures, by its ending."""
    return _opener(path) is not None


def is_film(path: str | Path) -> bool:
    """Whether a file is a film, by its ending; a web address is a picture."""
    return isinstance(path, Path) and path.suffix.lower() in FILM_SUFFIXES


def refuse_many(source: Any, name: str) -> None:
    """Raises an OSError for a folder, pattern, archive or film in the place of a picture; says what reads it."""
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(os.fsdecode(source))
    if path.suffix.lower() in PICTURE_SUFFIXES and not set(path.name) & set("*?["):
        return
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


def _opener(path: Path) -> Callable[[Path, SourceOptions], Piece] | None:
    """Returns what makes a piece of a file that holds many pictures; None for a picture."""
    return next((opener for ending, opener in OPENERS.items() if path.name.lower().endswith(ending)), None)


def _file_piece(paths: list[str], first: int, shard_size: int) -> Piece:
    chosen = paths[first : first + shard_size]
    return Piece(chosen[0], len(chosen), lambda start: (Picture(path, path) for path in chosen[start:]))
