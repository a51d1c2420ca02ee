"""What keeps a model busy: pictures prepared by threads ahead of it, and put together by size within a bounded window.

Nothing here knows the model: `prepare` turns a picture into `Prepared`, `detect` turns a batch of equal sizes into
results. Outcomes come in the order of the pictures; an error of one picture is its outcome and stops no other.

Decoding, resizing and waiting for a disk all let go of Python's lock, so threads overlap them with the model;
processes would have to hand every tensor over. Torch is not imported, but kept from starting threads of its own for
each of these.
"""

import math
import os
import queue
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")

MOST_THREADS = 8

# Of the pictures that are held, one part is being prepared and the other waits for company of its size.
BATCHES_PREPARED = 4
BATCHES_WAITING = 4
# A picture of a rare size is run alone at the latest when this many batches of later pictures have been read.
BATCHES_OF_PATIENCE = 8

# What a picture that cannot be read or detected in raises.
PICTURE_ERRORS = (OSError, TypeError, ValueError)


class Prepared(NamedTuple):
    """A picture on its way: place in the order, source, upright (height, width), and `pixel_values (1, C, H, W)`.

    `pixel_mask (1, H, W)` is there where its image processor pads. What was looked at is in the file of the source as
    long as that stands as `stamp` says; otherwise it is `shown`.
    """

    index: int
    source: Any
    size_hw: tuple[int, int]
    pixel_values: Any
    pixel_mask: Any = None
    stamp: tuple[int, int] | None = None
    shown: Any = None


class Failure(NamedTuple):
    """A picture in which nothing could be looked for: place in the order, source, and why."""

    index: int
    source: Any
    error: Exception


@contextmanager
def preparing_threads() -> Iterator[ThreadPoolExecutor]:
    """Gives a pool of one thread a core, at most `MOST_THREADS`, in each of which torch itself keeps to one.

    Torch would otherwise start a thread a core for each of them. Its setting holds for the thread that makes it and
    for threads to come, so the caller's is put back once all have started. Where torch is not loaded, it is left so.
    """
    torch = sys.modules.get("torch")
    count = min(available_cores(), MOST_THREADS)
    pool = ThreadPoolExecutor(count, "detr-hf-prepare", torch and torch.set_num_threads, (1,) if torch else ())
    try:
        if torch is not None:
            threads_of_torch = torch.get_num_threads()
            started = threading.Barrier(count + 1)
            for _ in range(count):
                pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(threads_of_torch)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Returns the cores that this process may use, shared with the processes that torchrun started beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def read_ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """Yields `items`, of which a thread of its own fetches up to `count` ahead; its error is raised here."""
    fetched: queue.Queue = queue.Queue(count)
    left = threading.Event()

    def hand_over(kind: str, value: object) -> None:
        while not left.is_set():
            try:
                return fetched.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                hand_over("item", item)
                if left.is_set():
                    return
            hand_over("end", None)
        except BaseException as error:
            hand_over("error", error)

    thread = threading.Thread(target=fetch, name="detr-hf-fetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = fetched.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        left.set()
        thread.join()


def prepare_ahead(
    sources: Iterable[Any],
    prepare: Callable[[int, Any], Prepared],
    pool: Executor | None,
    ahead: int,
    unchanging: bool = False,
) -> Iterator[Prepared | Failure]:
    """Yields what became of each source, in order, while `pool` prepares up to `ahead` of the next ones.

    A picture object that its owner could change or hand over again (an array, an opened file of several frames) is
    prepared at once, in the caller's thread. `unchanging` promises that each is an object of its own that stays as it
    is. Paths and bytes always are. Without a pool everything is prepared in the caller's thread, when it is asked for.
    """
    pending: deque[Future] = deque()
    for index, source in enumerate(sources):
        if pool is not None and (unchanging or isinstance(source, str | os.PathLike | bytes)):
            pending.append(pool.submit(_attempt, prepare, index, source))
        else:
            pending.append(Future())
            pending[-1].set_result(_attempt(prepare, index, source))
        if pool is None or len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _attempt(prepare: Callable[[int, Any], Prepared], index: int, source: Any) -> Prepared | Failure:
    try:
        return prepare(index, source)
    except PICTURE_ERRORS as error:
        return Failure(index, source, error)


class SizeBuckets:
    """Prepared pictures that wait for others of their size; holds few, and lets none wait for ever."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._of_size: dict[tuple[int, ...], deque[Prepared]] = defaultdict(deque)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Prepared) -> None:
        """Takes a picture in; they come in the order of their index."""
        self._of_size[tuple(item.pixel_values.shape[-2:])].append(item)
        self._count += 1

    def must_run(self, index: int) -> bool:
        """Whether a batch has to go now that picture `index` was read: the room is full, or one waited too long."""
        return bool(self) and (
            self._count >= self.batch_size * BATCHES_WAITING or self._out_of_patience(self._oldest(), index)
        )

    def take(self, index: int, last: bool = False) -> list[Prepared]:
        """Returns the next batch: of the size that most pictures have, unless the oldest one waited too long.

        `last` says that no picture comes any more: 9 at a batch size of 8 are then better run as 5 and 4 than as 8
        and 1.
        """
        oldest = self._oldest()
        size = oldest if self._out_of_patience(oldest, index) else max(self._of_size, key=lambda s: self._waiting(s))
        waiting = self._of_size[size]
        count = min(len(waiting), self.batch_size)
        if last:
            count = math.ceil(len(waiting) / math.ceil(len(waiting) / self.batch_size))
        batch = [waiting.popleft() for _ in range(count)]
        self._count -= count
        if not waiting:
            del self._of_size[size]
        return batch

    def _waiting(self, size: tuple[int, ...]) -> int:
        return min(len(self._of_size[size]), self.batch_size)

    def _oldest(self) -> tuple[int, ...]:
        return min(self._of_size, key=lambda size: self._of_size[size][0].index)

    def _out_of_patience(self, size: tuple[int, ...], index: int) -> bool:
        return index - self._of_size[size][0].index >= self.batch_size * BATCHES_OF_PATIENCE


def ordered_outcomes(
    prepared: Iterable[Prepared | Failure], detect: Callable[[list[Prepared]], list[Any]], batch_size: int
) -> Iterator[Any]:
    """Yields for each picture, in order, what `detect` found or the `Failure` of its preparation.

    `detect` gets batches of one processed size, of at most `batch_size`, and returns one outcome a picture.
    """
    buckets = SizeBuckets(batch_size)
    done: dict[int, Any] = {}
    upcoming, index = 0, -1

    def run(last: bool = False) -> None:
        batch = buckets.take(index, last)
        done.update(zip((item.index for item in batch), detect(batch), strict=True))

    for index, item in enumerate(prepared):
        if isinstance(item, Failure):
            done[index] = item
        else:
            buckets.add(item)
        while buckets.must_run(index):
            run()
        while upcoming in done:
            yield done.pop(upcoming)
            upcoming += 1
    while buckets:
        run(last=True)
    for place in range(upcoming, index + 1):
        yield done.pop(place)
