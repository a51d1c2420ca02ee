"""Where pictures come from when there are many: files, tar and Parquet files, videos, and `datasets`.

A source is cut into pieces, each of which becomes one file of results. The pieces depend on the source alone, never on
how many processes share them or on what was done before. A piece gives its pictures in a fixed order and can start at
any of them, so a run that was stopped goes on where it was.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .pictures import PICTURE_SUFFIXES, find_pictures

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet",)
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class Picture(NamedTuple):
    """One picture: its name in the source, the image (path, bytes, array; or the error that it is), and what else the
    results should say of it."""

    name: str
    image: Any
    about: dict[str, Any] = {}  # noqa: RUF012 - never changed


@dataclass(frozen=True)
class Piece:
    """Pictures whose results share a file: `pictures(start)` gives them from the start-th on.

    `size` is how many, where that is known without reading them.
    """

    name: str
    size: int | None
    pictures: Callable[[int], Iterator[Picture]]


@dataclass(frozen=True)
class Source:
    """All pieces, and `identity`: plain values that are equal only for the same pieces."""

    pieces: list[Piece]
    identity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("There is nothing to predict: the source has no pictures.")


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read; what does not concern its kind is not used.

    `shard_size` pictures make a piece where the source has no files of its own (tar, Parquet, video, the shards of a
    stream); None makes pieces that several processes can share evenly, see `piece_of`. `image_column` names the column
    of a table or the ending of a WebDataset's pictures (`"jpg"`); of a video every `every`-th frame is taken;
    `config`, `split` and `revision` choose a data set of the Hub.
    """

    shard_size: int | None = None
    image_column: str | None = None
    every: int = 1
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("shard_size", "every"):
            value = getattr(self, name)
            if name == "shard_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")

    def piece_of(self, total: int) -> int:
        """How many of `total` pictures make a piece: `shard_size`, or a 64th of them, but 16 to 1,000."""
        return self.shard_size or min(max(math.ceil(total / 64), 16), 1000)


def open_source(source: Any, options: SourceOptions, results: Path | None = None) -> Source:
    """The pictures behind paths (one or several files, folders, patterns) or a `datasets` object.

    A folder inside which `results` lies is searched without it.

    Raises:
        ValueError: there is no picture.
        TypeError: it is nothing that holds pictures.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str | Path):
        return from_paths([source], options, results)
    if type(source).__module__.partition(".")[0] == "datasets":
        from .dataset_source import from_dataset

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
    """Files, folders and patterns; tar files, Parquet files and videos among them each make a piece of their own."""
    suffixes = (*PICTURE_SUFFIXES, *TAR_SUFFIXES, *PARQUET_SUFFIXES, *VIDEO_SUFFIXES)
    pictures: list[str] = []
    whole: list[Piece] = []
    seen = hashlib.blake2b(digest_size=16)
    for path, _ in find_pictures(paths, results, suffixes):
        opener = _opener(path)
        if opener is None:
            pictures.append(str(path))
            seen.update(os.fsencode(path) + b"\n")
        else:
            whole.append(opener(path, options))
            bytes_of = path.stat().st_size if path.exists() else -1
            seen.update(os.fsencode(path) + f" {bytes_of} {whole[-1].size}\n".encode())
    if not pictures and not whole:
        raise ValueError(f"There is no picture in {', '.join(map(str, paths))}.")
    size = options.piece_of(len(pictures))
    pieces = [_file_piece(pictures, at, size) for at in range(0, len(pictures), size)]
    return Source(
        pieces + whole,
        {"paths": [str(path) for path in paths], "files": len(pictures) + len(whole), "list": seen.hexdigest()},
    )


def holds_many(path: Path) -> bool:
    """Whether a file is one of those that hold many pictures, by its ending."""
    return path.name.lower().endswith((*TAR_SUFFIXES, *PARQUET_SUFFIXES, *VIDEO_SUFFIXES))


def _opener(path: Path) -> Callable[[Path, SourceOptions], Piece] | None:
    """What makes a piece of a file that holds many pictures; None for a picture."""
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        from .container_sources import tar_piece

        return tar_piece
    if name.endswith(PARQUET_SUFFIXES):
        from .container_sources import parquet_piece

        return parquet_piece
    if name.endswith(VIDEO_SUFFIXES):
        from .video_source import video_piece

        return video_piece
    return None


def _file_piece(paths: list[str], first: int, shard_size: int) -> Piece:
    chosen = paths[first : first + shard_size]
    return Piece(chosen[0], len(chosen), lambda start: (Picture(path, path) for path in chosen[start:]))
