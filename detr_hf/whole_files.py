"""Files that are whole or not there, also where the process is killed and where two write at once; and that never
take the place of what a user gave or made.

What is not finished lies beside its place, under a random name that ends in `.unfinished`, and takes the place in one
step. A failure removes it; a killed process leaves it there, and the place as it was.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What the JSON files have in common that the verbs write: predict, eval, check and benchmark, and COCO's results.
RESULT_KEYS = (
    {"threshold", "pictures", "failed"},
    {"mistakes", "per_class"},
    {"findings", "splits"},
    {"environment", "settings", "rows"},
)
COCO_RESULT_KEYS = {"image_id", "category_id", "score"}


def refuse_overwriting(
    outputs: Mapping[str, str | Path | None],
    inputs: Iterable[Any],
    is_own: Callable[[Path], bool] | None = None,
) -> None:
    """Raises a ValueError where a file to write would take the place of one that shall stay; for before the work.

    Files are compared as the system does, so that links, other cases of a name and relative paths are seen through.

    Args:
        outputs: files to be, by the option that names each; None is not written.
        inputs: what was given: paths of files, and other things, which are no file.
        is_own: whether a file is one of those that this package writes: no other is replaced. By default any is.
    """
    given = [path for path in inputs if isinstance(path, str | Path)]
    taken: dict[tuple[int, int] | str, str] = {}
    for option, output in outputs.items():
        if output is None:
            continue
        path = Path(output)
        identity = file_identity(path) or os.path.normcase(os.path.realpath(path))
        if identity in taken:
            raise ValueError(f"{option} {path} is the file of {taken[identity]} too: give each one of its own.")
        taken[identity] = option
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder: name the file to write.")
        same = next((each for each in given if file_identity(each) == identity), None)
        if same is not None:
            also = "" if os.fspath(same) == os.fspath(path) else f" ({same})"
            raise ValueError(
                f"{option} {path} is one of the files looked at{also}: choose another name to keep it unharmed."
            )
        if is_own is not None and path.is_file() and path.stat().st_size and not is_own(path):
            raise ValueError(
                f"{option} {path} exists and is no result of detr-hf, so it is not written over: choose another "
                "name, or move it away."
            )


def file_identity(path: str | Path) -> tuple[int, int] | None:
    """Returns what is equal for two paths of one file; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def is_result(path: Path) -> bool:
    """Whether a file is one of the JSON files that this package writes as results."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if isinstance(content, list):
        return all(isinstance(each, dict) and each.keys() >= COCO_RESULT_KEYS for each in content[:1])
    return isinstance(content, dict) and any(content.keys() >= keys for keys in RESULT_KEYS)


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
