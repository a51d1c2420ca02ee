"""Tar files of pictures, as WebDataset writes them: read in order, one member in memory at a time.

A file that is damaged gives what can be read of it, and then one entry that says so. Members that are no pictures are
counted and logged when its end is reached.
"""

import logging
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...processing.image_opening_detr import PICTURE_SUFFIXES
from .base import Picture, Piece, SourceOptions
from .searching import HIDDEN, LeftOut, is_harmless, kind_of

logger = logging.getLogger(__name__)

LARGEST_PICTURE = 1 << 30  # bytes of a member, which a few of a compressed file can stand for
LINKED = "linked inside the archive"


def tar_piece(path: Path, options: SourceOptions) -> Piece:
    """Returns the pictures in a tar file, plain or compressed, in its order.

    With `image_column` only the members with this ending, in WebDataset's sense: all after the first dot of the name.
    """
    return Piece(str(path), None, lambda start: _tar_pictures(path, options.image_column, start))


def _tar_pictures(path: Path, ending: str | None, start: int) -> Iterator[Picture]:
    count, left_out = 0, LeftOut()
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or the list of a large file grows without end
                reason = _left_out_for(member, ending)
                if reason is not None:
                    if reason:
                        left_out.add(reason, member.name)
                    continue
                if count >= start and member.size > LARGEST_PICTURE:
                    yield Picture(f"{path}/{member.name}", ValueError(f"{member.size} bytes are more than are read"))
                elif count >= start:
                    content = tar.extractfile(member).read()
                    yield Picture(f"{path}/{member.name}", content or ValueError("an empty file (0 bytes)"))
                count += 1
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if count >= start:
            yield Picture(f"{path}#{count}", ValueError(f"{path} could be read no further: {error}"))
    if left_out:
        logger.warning("Left out of %s: %s.", path, left_out)


def _left_out_for(member: tarfile.TarInfo, ending: str | None) -> str | None:
    """Returns why a member is left out, empty where nothing need be said of it; None for a picture."""
    file_name = Path(member.name).name
    if member.isdir() or any(map(is_harmless, Path(member.name).parts)):
        return ""
    if member.islnk() or member.issym():
        return LINKED
    if not member.isfile():
        return "that are neither file nor folder"
    if file_name.startswith("."):
        return HIDDEN
    if ending is not None:  # what stands beside the pictures was known when it was chosen
        chosen = file_name.partition(".")[2].lower() == ending.lower().removeprefix(".")
        return None if chosen else ""
    return None if Path(file_name).suffix.lower() in PICTURE_SUFFIXES else kind_of(file_name)
