"""What a source of many pictures is: pieces of pictures, in a fixed order.

A source is cut into pieces, each of which becomes one file of results. The pieces depend on the source alone, never on
how many processes share them or on what was done before. A piece gives its pictures in a fixed order and can start at
any of them, so a run that was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

PARQUET_HINT = "Parquet files need pyarrow: pip install 'detr-hf[predict]'."


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

    def first(self, limit: int) -> "Piece":
        """Returns the first so many of its pictures."""
        size = None if self.size is None else min(self.size, limit)
        return replace(self, size=size, pictures=lambda start: islice(self.pictures(start), max(limit - start, 0)))


@dataclass(frozen=True)
class Source:
    """All pieces, and `identity`: plain values that are equal only for the same pieces."""

    pieces: list[Piece]
    identity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("There is nothing to predict: the source has no pictures.")

    def first(self, limit: int) -> "Source":
        """Returns the first so many pictures. A piece that does not say how many it has is the last one."""
        pieces: list[Piece] = []
        left = limit
        for piece in self.pieces:
            if left <= 0:
                break
            pieces.append(piece if piece.size is not None and piece.size <= left else piece.first(left))
            left -= left if piece.size is None else piece.size
        return Source(pieces, {**self.identity, "limit": limit})


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
        for name, value in (("shard_size", self.shard_size), ("every", self.every)):
            if value is None and name == "shard_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")

    def piece_of(self, total: int) -> int:
        """Returns how many of `total` pictures make a piece: `shard_size`, or a 64th of them, but 16 to 1,000."""
        return self.shard_size or min(max(math.ceil(total / 64), 16), 1000)
