"""Files that are whole or not there, also where the process is killed and where two write at once.

What is not finished lies beside its place, under a random name that ends in `.unfinished`, and takes the place in one
step. A failure removes it; a killed process leaves it there, and the place as it was.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(
    path: str | Path, *, folder: Path | None = None, flushed: bool = False, replace: bool = True
) -> Iterator[Path]:
    """Gives a path to write to; the file there is moved to `path` at the end, and removed after an error.

    Args:
        path: the file to be; its folders are made as needed.
        folder: where it is written, on the same disk; by default beside `path`.
        flushed: whether it is on the disk before it is moved, and so survives a power cut.
        replace: whether it takes the place of a file that is there; if not, that one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = (folder or path.parent) / f"{path.name}.{secrets.token_hex(4)}.unfinished"
    try:
        yield unfinished
        if flushed:
            flush(unfinished)
        if replace or not _linked(unfinished, path):
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _linked(unfinished: Path, path: Path) -> bool:
    """Whether there is a file at `path` now, this one or (unlike after a move) the one that was there."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        return False
    return True


@contextmanager
def unfinished_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, out of which what is whole is moved; it is removed with what is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".unfinished", f".{path.name}.", path.parent) as folder:
        yield Path(folder)


def flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    try:  # Windows flushes only what is open for writing, and opens no folders
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
