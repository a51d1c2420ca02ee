"""Threads that read and process pictures ahead of the model.

Decoding, resizing and waiting for a disk all let go of Python's lock, so threads overlap them with the model;
processes would have to hand every tensor over.
"""

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

MOST_THREADS = 8


@contextmanager
def preparing_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread a core, at most `MOST_THREADS`, in each of which torch itself keeps to one.

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
    """The cores that this process may use, shared with the processes that torchrun started beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def read_ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
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
