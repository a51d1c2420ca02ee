"""What a run of batch prediction keeps on disk, so that it can be killed at any moment and go on.

    RUN/run.json                                model, threshold, source, ...: it goes on with the same or not at all
    RUN/unfinished/part-00003-of-00020.jsonl    one line a picture, in order, written as soon as it is known
    RUN/part-00002-of-00020.jsonl               whole: moved here in one step when its last picture was written

So the number of lines is the number of pictures done. A line that was cut off is dropped, and the part goes on behind
it. A part belongs to one process while that holds a lock on it, which the system takes back from a dead process.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...whole_files import is_leftover, lock, named, whole_file

SETTINGS_FILE = "run.json"
UNFINISHED = "unfinished"

# Written down for people; a run goes on where these differ.
INFORMATIVE = ("model", "version")


class RunFolder:
    """A run's folder, made or taken up again.

    Args:
        folder: where it is or shall be.
        settings: plain values, written to run.json; those of a run that goes on must be equal, but for `INFORMATIVE`.
        parts: how many files the results have.
        suffix: of the finished parts, as `".jsonl"`.

    Raises:
        ValueError: the folder holds a run with other settings, or something else.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], parts: int, suffix: str = ".jsonl"):
        self.folder = Path(folder)
        self.parts = parts
        self.suffix = suffix
        given = json.loads(json.dumps({**settings, "parts": parts}))
        written = read_settings(self.folder) or self._found(given)
        _refuse_other_settings(self.folder, written, given)
        (self.folder / UNFINISHED).mkdir(exist_ok=True)

    def _found(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Writes run.json, unless another process did first; returns what it says."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; results need a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        others = [path for path in self.folder.iterdir() if path.name not in (SETTINGS_FILE, UNFINISHED)]
        foreign = [path.name for path in others if not is_leftover(path)]
        if foreign and read_settings(self.folder) is None:
            raise ValueError(
                f"{self.folder} holds no run, but other files ({foreign[0]}, ...). Choose a new or an empty folder."
            )
        with whole_file(self.folder / SETTINGS_FILE, replace=False) as own:
            own.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return read_settings(self.folder)

    def part_path(self, part: int) -> Path:
        """Returns the finished file of a part."""
        return self.folder / f"part-{part:05d}-of-{self.parts:05d}{self.suffix}"

    def journal_path(self, part: int) -> Path:
        """Returns the file in which the lines of a part gather."""
        return self.folder / UNFINISHED / f"part-{part:05d}-of-{self.parts:05d}.jsonl"

    def is_done(self, part: int) -> bool:
        """Whether the part is whole."""
        return self.part_path(part).exists()

    def is_complete(self) -> bool:
        """Whether all parts are."""
        return all(self.is_done(part) for part in range(self.parts))

    def lines_written(self, part: int) -> int:
        """Returns how many pictures of an unfinished part are done, by its lines."""
        path = self.journal_path(part)
        if not path.exists():
            return 0
        with path.open("rb") as file:
            return sum(1 for _ in whole_lines(file))


class PartWriter:
    """Takes up an unfinished part, appends to it, and moves it to its place when it is whole.

    `count` is the number of pictures it holds, and `last` the record of the last one.

    Raises:
        RuntimeError: another process is writing it.
    """

    def __init__(self, run: RunFolder, part: int):
        self.run = run
        self.part = part
        self._journal = run.journal_path(part)
        self._file = self._journal.open("ab+")
        if lock(self._file.fileno()) is False:
            self._file.close()
            raise RuntimeError(
                f"Another process is writing {self._journal}. Let it end, or stop it, before this run goes on."
            )
        self._file.seek(0)
        self.count, end = 0, 0
        self.last: Any = None
        for line, end_of_line in whole_lines(self._file):
            self.count, self.last, end = self.count + 1, line, end_of_line
        self._file.truncate(end)  # what follows was cut off
        if self.last is not None:
            self.last = json.loads(self.last)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one picture; from here on it survives the death of this process."""
        with named(self._journal):
            self._file.write(json_line(record))
            self._file.flush()
        self.count += 1

    def finish(self, convert: Callable[[Iterable[dict[str, Any]], Path], None] | None = None) -> None:
        """Makes the part whole: moves the lines to their place, or what `convert(records, path)` makes of them."""
        os.fsync(self._file.fileno())
        target = self.run.part_path(self.part)
        if convert is None:
            os.replace(self._journal, target)
        else:
            with whole_file(target, folder=self._journal.parent, flushed=True) as unfinished:
                convert(read_records(self._journal), unfinished)
            self._journal.unlink()
        self.close()

    def close(self) -> None:
        """Leaves the part as it is, for a later run."""
        self._file.close()


def json_line(record: Mapping[str, Any]) -> bytes:
    """Returns the record as one line of UTF-8; a file name that is none is escaped."""
    try:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return line + b"\n"


def whole_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yields each line that is whole with the place behind it, up to the first that is not."""
    end = 0
    for line in file:
        end += len(line)
        if not line.endswith(b"}\n") or b"\0" in line:
            return
        yield line, end


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSONL file."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Returns what run.json says; None where there is none."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder / SETTINGS_FILE} is not JSON ({error}). Choose a new or an empty folder."
        ) from error
    if not isinstance(settings, dict) or "parts" not in settings:
        raise ValueError(f"{folder / SETTINGS_FILE} is not that of a run of detr-hf. Choose a new or an empty folder.")
    return settings


def _refuse_other_settings(folder: Path, written: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    names = [name for name in {**written, **given} if name not in INFORMATIVE]
    other = [name for name in names if written.get(name) != given.get(name)]
    if other:
        differences = "; ".join(f"{name} was {written.get(name)!r}, now {given.get(name)!r}" for name in other)
        raise ValueError(
            f"{folder} belongs to a run with other settings: {differences}. Results of both must not be mixed: use "
            "the same settings to go on, or another folder for a new run."
        )
