"""Tar files of pictures, as WebDataset writes them: read in order, one member in memory at a time.

A file that is damaged gives what can be read of it, and then one entry that says so.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...processing.image_opening_detr import PICTURE_SUFFIXES
from .base import Picture, Piece, SourceOptions


def tar_piece(path: Path, options: SourceOptions) -> Piece:
    """Returns the pictures in a tar file, plain or compressed, in its order.

    With `image_column` only the members with this ending, in WebDataset's sense: all after the first dot of the name.
    """
    return Piece(str(path), None, lambda start: _tar_pictures(path, options.image_column, start))


def _tar_pictures(path: Path, ending: str | None, start: int) -> Iterator[Picture]:
    count = 0
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or the list of a large file grows without end
                if not member.isfile() or not _is_wanted(member.name, ending):
                    continue
                if count >= start:
                    content = tar.extractfile(member).read()
                    yield Picture(f"{path}/{member.name}", content or ValueError("an empty file (0 bytes)"))
                count += 1
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if count >= start:
            yield Picture(f"{path}#{count}", ValueError(f"{path} could be read no further: {error}"))


def _is_wanted(name: str, ending: str | None) -> bool:
    file_name = Path(name).name
    if file_name.startswith("."):
        return False
    if ending is not None:
        return file_name.partition(".")[2].lower() == ending.lower().removeprefix(".")
    return Path(file_name).suffix.lower() in PICTURE_SUFFIXES
