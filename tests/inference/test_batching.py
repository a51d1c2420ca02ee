"""Pictures prepared ahead and put together by size: every picture once, in order, within bounds."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from detr_hf.inference.batching import (
    BATCHES_OF_PATIENCE,
    BATCHES_WAITING,
    Failure,
    Prepared,
    SizeBuckets,
    ordered_outcomes,
    prepare_ahead,
    preparing_threads,
    read_ahead,
)


def item(index: int, width: int = 4) -> Prepared:
    return Prepared(index, f"picture {index}", (4, width), np.zeros((1, 3, 4, width)))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_picture_comes_out_once_and_in_order_and_no_batch_mixes_sizes(batch_size):
    widths = np.random.default_rng(0).choice([4, 5, 6, 7], 500, p=[0.7, 0.2, 0.09, 0.01])
    batches = []

    def detect(batch):
        assert len({one.pixel_values.shape for one in batch}) == 1 and len(batch) <= batch_size
        batches.append(len(batch))
        return [one.index for one in batch]

    found = list(ordered_outcomes([item(i, width) for i, width in enumerate(widths)], detect, batch_size))
    assert found == list(range(500))
    if batch_size == 8:  # in the order of the pictures, batches of equal neighbours would hold 2.2 on average
        assert sum(batches) / len(batches) > 5


def test_the_window_is_bounded_and_the_rare_size_does_not_wait_for_ever():
    taken = 0

    def pictures():
        nonlocal taken
        yield item(0, width=99)
        for index in range(1, 1000):
            taken = index
            yield item(index, width=4 + index % 2)

    batch_size, most_held = 4, 0
    for place, _ in enumerate(ordered_outcomes(pictures(), lambda batch: batch, batch_size)):
        most_held = max(most_held, taken - place)
    assert most_held <= batch_size * (BATCHES_OF_PATIENCE + BATCHES_WAITING)


def test_errors_stand_in_their_places():
    prepared = [Failure(i, i, ValueError(str(i))) if i % 3 == 0 else item(i) for i in range(20)]
    found = list(ordered_outcomes(prepared, lambda batch: [one.index for one in batch], 4))
    assert [one.index if isinstance(one, Failure) else one for one in found] == list(range(20))
    assert list(ordered_outcomes([prepared[0]], lambda batch: batch, 4)) == [prepared[0]]
    assert list(ordered_outcomes([], lambda batch: batch, 4)) == []


def test_a_long_row_of_errors_does_not_pile_up_behind_a_waiting_picture():
    prepared = [item(0), *(Failure(i, i, ValueError()) for i in range(1, 400))]
    read = 0

    def pictures():
        nonlocal read
        for one in prepared:
            read += 1
            yield one

    next(ordered_outcomes(pictures(), lambda batch: batch, 4))
    assert read <= 4 * BATCHES_OF_PATIENCE + 1


def test_the_rest_is_split_evenly():
    buckets = SizeBuckets(8)
    for index in range(9):
        buckets.add(item(index))
    buckets.add(item(9, width=5))
    sizes = []
    while buckets:
        sizes.append(len(buckets.take(9, last=True)))
    assert sorted(sizes) == [1, 4, 5]


@pytest.mark.parametrize("threads", [0, 3])
def test_prepared_in_order_by_threads_or_without(threads):
    def prepare(index, source):
        if isinstance(source, str) and source == "bad":
            raise ValueError("bad")
        return item(index)

    sources = ["a", "bad", b"c", np.zeros(3), "d"] * 20
    with ThreadPoolExecutor(threads or 1) as pool:
        found = list(prepare_ahead(sources, prepare, pool if threads else None, 8))
    assert [one.index for one in found] == list(range(100))
    assert {type(one) for one in found} == {Failure, Prepared}
    assert sum(isinstance(one, Failure) for one in found) == 20


def test_what_its_owner_may_change_is_prepared_before_the_next_is_asked_for():
    """`ImageSequence.Iterator` hands out one and the same image, at another frame each time."""
    frame = np.zeros(1)

    def frames():
        for number in range(50):
            frame[0] = number
            yield frame

    def prepare(index, source):
        return Prepared(index, float(source[0]), (1, 1), np.zeros((1, 3, 4, 4)))

    with ThreadPoolExecutor(2) as pool:
        found = list(prepare_ahead(frames(), prepare, pool, 8))
    assert [one.source for one in found] == list(range(50))


def test_threads_prepare_while_the_model_runs():
    prepared = threading.Semaphore(0)

    def prepare(index, source):
        prepared.release()
        return item(index)

    with ThreadPoolExecutor(2) as pool:
        ahead = prepare_ahead(map(str, range(20)), prepare, pool, 6)
        next(ahead)
        for _ in range(6):  # without anybody asking for the next one
            assert prepared.acquire(timeout=10)


def test_torch_keeps_its_threads_outside_the_pool():
    import torch

    before = torch.get_num_threads()
    with preparing_threads() as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == before
        # A thread that somebody else starts later is none of the pool's.
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [before]


def test_reading_ahead_keeps_order_hands_errors_over_and_stops_when_left():
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))

    def failing():
        yield 1
        raise OSError("the disk is gone")

    ahead = read_ahead(failing(), 3)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)

    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = endless()
    ahead = read_ahead(items, 3)
    next(ahead)
    ahead.close()
    items.close()
    assert closed.is_set() and not [one for one in threading.enumerate() if one.name == "detr-hf-fetch"]
