"""Files that are whole or not there, also where the process is killed and where two write at once; and that never
take the place of what a user gave or made.

What is not finished lies beside its place, under a random name that ends in `.detr_hf.unfinished`, and takes the place
in one step. A failure removes it; a killed process leaves it there, and the place as it was. Whoever writes holds a
lock on it, which the system takes back from a dead process: so the next one to write in that folder knows what nobody
works on any more, and removes it.
"""

import ctypes
import functools
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so nothing that is left is removed
    fcntl = None

logger = logging.getLogger(__name__)

LONGEST_WAIT = 10.0  # seconds; moving the files of a folder takes a thousandth of one
UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.detr_hf\.unfinished$")

# What the JSON files have in common that the verbs write: predict, eval, check, benchmark, inspect and doctor; and
# COCO's results.
RESULT_KEYS = (
    {"threshold", "pictures", "failed"},
    {"mistakes", "per_class"},
    {"findings", "splits"},
    {"environment", "settings", "rows"},
    {"environment", "settings", "steps"},
    {"packages", "extras", "self_test"},
)
COCO_RESULT_KEYS = {"image_id", "category_id", "score"}


def refuse_overwriting(
    outputs: Mapping[str, str | Path | None],
    inputs: Iterable[Any],
    is_own: Callable[[Path], bool] | None = None,
) -> None:
    """Raises a ValueError where a file to write would take the place of one that shall stay; for before the work.

    And the OSError of one that cannot be written.

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
        if path.exists() and not path.is_file():
            raise ValueError(f"{option} {path} is a device or a pipe, which no file can take the place of.")
        refuse_unwritable(option, path)
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


def refuse_unwritable(option: str, path: Path) -> None:
    """Raises the OSError of a file, or of files in a folder, that cannot be written, by writing one there."""
    parents = path.absolute().parents
    folder = path if path.is_dir() else next(parent for parent in parents if parent.exists())
    try:
        _remove(_start(folder / path.name, os.mkdir))
    except OSError as error:
        raise type(error)(f"{option} {path} cannot be written: {folder}: {error.strerror}.") from error


def file_identity(path: str | Path | int) -> tuple[int, int] | None:
    """Returns what is equal for two paths or handles of one file; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def is_result(path: Path) -> bool:
    """Whether a file is one of the JSON files that this package writes as results."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(content, list):
        return all(isinstance(each, dict) and each.keys() >= COCO_RESULT_KEYS for each in content[:1])
    return isinstance(content, dict) and any(content.keys() >= keys for keys in RESULT_KEYS)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Names what is being written in an error that does not: of a full disk, and of safetensors."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # of a library that need not be there
            raise OSError(f"{path} cannot be written: {error}.") from error
        raise


@contextmanager
def whole_file(
    path: str | Path, *, folder: Path | None = None, flushed: bool = False, replace: bool = True
) -> Iterator[Path]:
    """Gives the path of an empty file to write to, which is moved to `path` at the end, and removed after an error.

    Args:
        path: the file to be; its folders are made as needed.
        folder: where it is written, on the same disk; by default beside `path`.
        flushed: whether it is on the disk before it is moved, and so survives a power cut.
        replace: whether it takes the place of a file that is there; if not, that one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = folder or path.parent
    _remove_leftovers_once(folder)
    unfinished = _start(folder / path.name, _make_file)
    try:
        with named(path):
            yield unfinished
            if flushed:
                flush(unfinished)
            if replace or not _linked(unfinished, path):
                os.replace(unfinished, path)
    finally:
        _remove(unfinished)


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
    folder = start_folder(path)
    try:
        with named(path):
            yield folder
    finally:
        drop_folder(folder)


def start_folder(path: str | Path) -> Path:
    """Returns an empty folder beside `path`, to be dropped in the end; what killed processes left there goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    return _start(path, os.mkdir)


@contextmanager
def whole_folder(path: str | Path, together: Iterable[str] = (), last: str = "config.json") -> Iterator[Path]:
    """Gives an empty folder, whose files are moved into the folder `path` at the end; an error leaves that as it was.

    A folder without `last` is nothing that could be loaded. An older one is taken away first and the new one comes
    after all else, so a process that is killed in between leaves nothing that is taken for whole. Of two writers the
    second moves its files when the first has moved all of its.

    Args:
        path: the folder to be, which keeps other files that it has.
        together: patterns of files that are replaced together: where a new one is of them, no older one stays.
        last: what makes the folder what it is.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished_folder(path / path.name) as scratch:
            with named(path):
                yield scratch
            for weights in scratch.glob("*.safetensors"):
                open_to_umask(weights)
            _move_all(scratch, path, tuple(together), last)
    except BaseException:
        with suppress(OSError):  # another writer's files are in it
            for folder in made:
                folder.rmdir()
        raise


def _move_all(scratch: Path, path: Path, together: tuple[str, ...], last: str) -> None:
    new = {file.name: file for file in scratch.iterdir()}
    with _alone_in(path):
        replaced = any(file.match(pattern) for file in new.values() for pattern in together)
        stale = {old for pattern in together for old in path.glob(pattern)} if replaced else set()
        if last in new and (path / last).exists():
            os.replace(path / last, scratch / f"{last}.replaced")
        ending = new.pop(last, None)
        for name, file in new.items():
            os.replace(file, path / name)
        for old in stale:
            if old.name not in new:
                old.unlink(missing_ok=True)
        if ending is not None:
            os.replace(ending, path / last)


def exchange(one: Path, other: Path) -> bool:
    """Whether two paths, of files or folders, have changed places, in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def open_to_umask(path: Path) -> None:
    """Lets read a file whom the umask lets: safetensors makes its files for their owner alone."""
    probe = path.with_name(secrets.token_hex(4))
    _make_file(probe)
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a context with this folder, where the system has locks."""
    if fcntl is None or folder in _held:  # an unfinished folder has one writer
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + LONGEST_WAIT
        while lock(handle) is False and time.monotonic() < until:
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


# Path -> handle of what this process holds a lock on. A child process shares the lock, and must not keep it alive.
_held: dict[Path, int] = {}


def _let_go() -> None:
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def lock(handle: int) -> bool | None:
    """Whether this process now holds the lock on an open file, while that is open; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return None
    return True


def hold(path: Path) -> bool:
    """Holds the lock on what is at a path until `let_go`; False where another process does, or it is gone."""
    if fcntl is None:
        return True
    handle = os.open(path, os.O_RDONLY)
    found, same = lock(handle), file_identity(path) == file_identity(handle)
    if found and same:
        _held[path] = handle
    else:
        os.close(handle)
    return found is not False and same


def let_go(path: Path) -> None:
    """Gives the lock on a path back."""
    handle = _held.pop(path, None)
    if handle is not None:
        os.close(handle)


def _start(path: Path, make: Callable[[Path], Any]) -> Path:
    """Returns what `make` made beside `path`, and holds it."""
    while True:  # whoever looks for leftovers may come between the making and the holding, and remove it
        unfinished = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.detr_hf.unfinished")
        make(unfinished)
        with suppress(FileNotFoundError):
            if hold(unfinished):
                return unfinished


def _make_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    let_go(path)


def drop_folder(folder: Path) -> None:
    """Removes a folder of `start_folder` with all that is in it."""
    _remove(folder)


def is_leftover(path: Path) -> bool:
    """Whether a path is called as what is unfinished is."""
    return UNFINISHED.search(path.name) is not None


def is_left(path: Path) -> bool:
    """Whether a killed process left something unfinished; False where one works on it, or nobody can tell."""
    with suppress(OSError):
        if fcntl is not None and path not in _held and hold(path) and path in _held:
            let_go(path)
            return True
    return False


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder, and says so; what one works on stays."""
    with suppress(OSError):
        for path in [Path(entry) for entry in os.scandir(folder) if is_leftover(Path(entry))]:
            with suppress(OSError):  # of another user, or already gone
                if fcntl is not None and hold(path) and path in _held:
                    _remove(path)
                    logger.warning("%s was left by a process that was killed, and is removed.", path)


_remove_leftovers_once = functools.lru_cache(1024)(remove_leftovers)


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
