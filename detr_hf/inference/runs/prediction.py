"""Batch prediction: a source of any size, a detector, and a folder of results that survives being killed.

Every process of a run takes the parts whose number leaves its rank when divided by the number of processes, and skips
those that are whole. Nothing is agreed on between processes: a run can be taken up again by fewer or more of them.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...version import __version__
from ..batching import Failure, read_ahead
from ..results import Detections
from ..sources.base import Picture, Source, SourceOptions
from ..sources.opening import open_source
from .coco_instances import COCO_INSTANCES, write_coco_instances
from .map_formats import write_maps
from .result_formats import COCO_RESULTS, FORMATS, read_part, record_of, suffix_of, write_coco, write_parquet
from .run_folder import UNFINISHED, PartWriter, RunFolder, read_settings

if TYPE_CHECKING:
    from ..detector import Detector

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Progress:
    """How far this process is. `before` were done when it started, `done` since, and `failed` of these are errors.

    `total` is all that it has to do, None where the source does not tell; `seconds` since the first picture.
    """

    before: int
    done: int
    failed: int
    total: int | None
    seconds: float

    @property
    def per_second(self) -> float:
        """Pictures a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None where that is not known."""
        if self.total is None or not self.done:
            return None
        return (self.total - self.before - self.done) / self.per_second


@dataclass(frozen=True)
class PredictionRun:
    """A run as this process leaves it: its folder, its own `progress`, and whether all parts of all are whole."""

    folder: Path
    progress: Progress
    complete: bool


def predict_to_shards(
    detector: "Detector",
    source: Any,
    folder: str | Path,
    *,
    threshold: float = 0.7,
    batch_size: int = 8,
    format: str = "jsonl",
    options: SourceOptions | None = None,
    model: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> PredictionRun:
    """Writes what is found in all pictures of a source to a folder, from where it was stopped if it was.

    >>> predict_to_shards(Detector.from_pretrained("facebook/detr-resnet-50"), "photos/", "results/")

    Args:
        detector: a `Detector`, whose task says what is looked for.
        source: files, folders, patterns (one or a list); tar files, Parquet files and videos among them; or a
            `Dataset` or `IterableDataset`.
        folder: a new folder, or that of the run to go on with. `read_predictions(folder)` reads it.
        threshold: objects with a higher score are kept.
        batch_size: how many pictures of equal size go through the model together, at most.
        format: `"jsonl"`, `"parquet"`, or `"coco"` for JSONL and, in the end, COCO's results and a data set of them
            (`coco_instances.py`). For the task panoptic also `"coco-panoptic"`, for semantic `"png"`: JSONL and, in
            the end, what `map_formats.py` tells.
        options: how the source is read, see `SourceOptions`.
        model: the model's name, for people who read run.json.
        rank: which process this is, from 0; by default as torchrun and accelerate say.
        world_size: of how many.
        on_progress: is called about twice a second, and in the end.

    Raises:
        ValueError: the folder belongs to a run with other settings, the source has changed, or the format is none of
            the detector's task.
        RuntimeError: another process is writing one of the parts of this one.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a score between 0 and 1, got {threshold}.")
    task = detector.task
    suffix = suffix_of(format, task)
    rank, world_size = _share(rank, world_size)
    options = options or SourceOptions()
    folder = Path(folder)
    opened = open_source(source, options, results=folder)
    settings = {
        "model": model,
        "version": __version__,
        "weights": detector.fingerprint(),
        "threshold": threshold,
        "format": format,
        "shard_size": options.shard_size,
        "image_column": options.image_column,
        "every": options.every,
        "source": opened.identity,
    }
    if task != "detection":  # which runs that are older than tasks did
        settings["task"] = task
    run = RunFolder(folder, settings, len(opened.pieces), suffix)
    mine = [part for part in range(rank, run.parts, world_size)]
    work = _Work(opened, run, mine, partial(write_parquet, task=task) if format == "parquet" else None)
    progress = work.run(detector, threshold, batch_size, on_progress)
    complete = run.is_complete()
    if complete:
        _complete(run, format, detector, model)
    return PredictionRun(folder, progress, complete)


def read_predictions(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Returns the records of a run, in the order of its source; see `result_formats.py` for what they hold.

    Raises:
        ValueError: the folder holds no run, or one that is not complete.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if settings is None:
        raise ValueError(f"{folder} holds no results of a run: there is no run.json in it.")
    suffix = suffix_of(settings["format"])
    paths = [folder / f"part-{part:05d}-of-{settings['parts']:05d}{suffix}" for part in range(settings["parts"])]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"The run in {folder} is not complete: {len(missing)} of its {len(paths)} parts are missing, the first is "
            f"{missing[0].name}. Start it again to go on."
        )
    return (record for path in paths for record in read_part(path))


class _Work:
    """The parts of one process, on their way from the source through the detector to their files.

    The source is read by a thread of its own. `_waiting` holds what was handed to the detector, in order; its outcomes
    come in the same order. What needs no detector (a picture that the source could not read, the end of a part) waits
    there for its turn.
    """

    def __init__(self, source: Source, run: RunFolder, mine: list[int], convert: Callable | None):
        self.source = source
        self.run_folder = run
        self.convert = convert
        self.mine = mine
        self.todo = [part for part in mine if not run.is_done(part)]
        self.progress = self._at_start()
        self._waiting: deque[tuple[PartWriter, Picture | None]] = deque()
        self._writers: list[PartWriter] = []

    def run(
        self,
        detector: "Detector",
        threshold: float,
        batch_size: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> Progress:
        """Returns the progress after doing all that is to be done; what was written stays if it is stopped."""
        self._on_progress = on_progress
        self._started = self._reported = time.perf_counter()
        try:
            with closing(read_ahead(self._entries(), 2 * batch_size)) as entries:
                outcomes = detector.outcomes(self._images(entries), threshold, batch_size, unchanging=True)
                for outcome in outcomes:
                    self._settle()
                    writer, picture = self._waiting.popleft()
                    assert picture is not None  # the ends of parts are settled
                    self._write(writer, picture, outcome.error if isinstance(outcome, Failure) else outcome)
            self._settle()
        finally:
            for writer in self._writers:
                writer.close()
        self._report(at_once=True)
        return self.progress

    def _at_start(self) -> Progress:
        todo = set(self.todo)
        sizes = [self.source.pieces[part].size for part in self.mine]
        done = [
            self.run_folder.lines_written(part) if part in todo else self.source.pieces[part].size or 0
            for part in self.mine
        ]
        known = [size for size in sizes if size is not None]
        return Progress(sum(done), 0, 0, sum(known) if len(known) == len(sizes) else None, 0.0)

    def _entries(self) -> Iterator[tuple[PartWriter, Picture | None]]:
        """Yields every picture to do with the part it belongs to; None behind the last one of a part."""
        for part in self.todo:
            writer = PartWriter(self.run_folder, part)
            self._writers.append(writer)
            start = writer.count
            pictures = self.source.pieces[part].pictures(max(start - 1, 0))
            if start:
                _refuse_another_source(writer, next(pictures, None))
            picture = None
            for picture in pictures:
                yield writer, picture
            if picture is None and not start:
                logger.warning("%s holds no picture.", self.source.pieces[part].name)
            yield writer, None

    def _images(self, entries: Iterator[tuple[PartWriter, Picture | None]]) -> Iterator[Any]:
        for writer, picture in entries:
            self._waiting.append((writer, picture))
            if picture is not None and not isinstance(picture.image, Exception):
                yield picture.image

    def _settle(self) -> None:
        """Deals with what is next in turn and needs no detector."""
        while self._waiting:
            writer, picture = self._waiting[0]
            if picture is None:
                writer.finish(self.convert)
                self._writers.remove(writer)
            elif isinstance(picture.image, Exception):
                self._write(writer, picture, picture.image)
            else:
                return
            self._waiting.popleft()

    def _write(self, writer: PartWriter, picture: Picture, outcome: Detections | Exception) -> None:
        writer.write(record_of(picture, outcome))
        failed = self.progress.failed + isinstance(outcome, Exception)
        self.progress = replace(self.progress, done=self.progress.done + 1, failed=failed)
        self._report()

    def _report(self, at_once: bool = False) -> None:
        now = time.perf_counter()
        self.progress = replace(self.progress, seconds=now - self._started)
        if self._on_progress is not None and (at_once or now - self._reported >= SECONDS_BETWEEN_REPORTS):
            self._reported = now
            self._on_progress(self.progress)


def _share(rank: int | None, world_size: int | None) -> tuple[int, int]:
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got rank {rank} of {world_size}.")
    return rank, world_size


def _refuse_another_source(writer: PartWriter, picture: Picture | None) -> None:
    name = None if picture is None else picture.name
    if name != writer.last["picture"]:
        raise ValueError(
            f"The source has changed: picture {writer.count} of part {writer.part} was {writer.last['picture']!r} and "
            f"is now {name!r}. Start a new run in another folder."
        )


def _complete(run: RunFolder, format: str, detector: "Detector", model: str | None) -> None:
    """Does what is left to do when all parts are whole, in whichever process sees it."""
    if format == "coco" and not (run.folder / COCO_RESULTS).exists():
        write_coco(run)
    if format == "coco" and not (run.folder / COCO_INSTANCES).exists():
        write_coco_instances(run, detector.id2label, model)
    kind = FORMATS[format]
    if kind is not None and not (run.folder / f"{kind}.json").exists():
        write_maps(run, kind, detector.id2label, detector.stuff_labels)
    with suppress(OSError):  # another process may be doing the same
        for left in (run.folder / UNFINISHED).iterdir():
            left.unlink()
        (run.folder / UNFINISHED).rmdir()
