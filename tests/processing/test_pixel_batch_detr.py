"""A buffer is used again only when nothing shares its memory any more, and the pixels are those of a fresh one."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from transformers.image_utils import SizeDict

from detr_hf import DETRImageProcessor
from detr_hf.processing.pixel_batch_detr import LEAST_BYTES, BatchMemory, padded_hw

SHAPE = (2, 300, 400, 3)


@pytest.fixture
def memory() -> BatchMemory:
    return BatchMemory()


def address_of_a_dropped_batch(memory: BatchMemory) -> int:
    return memory.empty(*SHAPE).data_ptr()


def test_a_dropped_batch_gives_its_memory_to_the_next(memory):
    assert address_of_a_dropped_batch(memory) == address_of_a_dropped_batch(memory)


@pytest.mark.parametrize(
    "hold",
    [
        lambda batch: batch,
        lambda batch: batch[1, 10:20],
        lambda batch: batch.permute(0, 3, 1, 2),
        lambda batch: batch.numpy(),
        lambda batch: batch.detach(),
        lambda batch: batch.untyped_storage(),
        lambda batch: np.from_dlpack(batch),
        lambda batch: memoryview(batch.numpy()),
    ],
    ids=["tensor", "slice", "permuted", "array", "alias", "storage", "dlpack", "memoryview"],
)
def test_memory_that_something_shares_is_left_alone(memory, hold):
    batch = memory.empty(*SHAPE).fill_(7)
    held, address = hold(batch), batch.data_ptr()
    del batch
    others = [memory.empty(*SHAPE).fill_(1) for _ in range(3)]
    assert address not in {other.data_ptr() for other in others}
    del held
    assert address in {memory.empty(*SHAPE).data_ptr() for _ in range(4)} | {memory.empty(*SHAPE).data_ptr()}


def test_a_batch_that_autograd_has_saved_is_left_alone(memory):
    weight = torch.ones(3, requires_grad=True)
    batch = memory.empty(*SHAPE).fill_(7)
    product = batch * weight
    del batch
    memory.empty(*SHAPE).fill_(1)
    product.sum().backward()
    assert weight.grad.tolist() == [7 * 2 * 300 * 400] * 3


def test_no_more_is_kept_than_allowed():
    memory = BatchMemory(max_bytes=3 * 2 * 300 * 400 * 3 * 4)
    held = [memory.empty(*SHAPE) for _ in range(8)]
    assert sum(buffer.nbytes for buffer in memory._buffers) <= memory.max_bytes
    assert len({batch.data_ptr() for batch in held}) == 8
    assert memory.empty(9, 300, 400, 3).shape[0] == 9 and len(memory._buffers) <= 3  # too large to be kept


@pytest.mark.parametrize(
    ("bytes_", "is_kept"), [(-4, False), (0, True), (LEAST_BYTES, True), (LEAST_BYTES + 4, False)]
)
def test_neither_small_nor_too_large_memory_is_kept(bytes_, is_kept):
    """Of bytes above the least, where the most is twice the least."""
    memory = BatchMemory(max_bytes=2 * LEAST_BYTES)
    assert memory.empty((LEAST_BYTES + bytes_) // 4).nbytes == LEAST_BYTES + bytes_
    assert len(memory._buffers) == is_kept


def test_threads_never_get_the_same_memory(memory):
    clashes = []

    def work(value: int) -> None:
        for _ in range(50):
            batch = memory.empty(1, 300, 400, 3).fill_(value)
            if not bool((batch == value).all()):
                clashes.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_earlier_batches_of_a_processor_are_not_overwritten():
    processor = DETRImageProcessor(size={"shortest_edge": 300, "longest_edge": 500})
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (200, 260, 3), dtype=np.uint8) for _ in range(6)]
    kept = [processor(image, return_tensors="pt")["pixel_values"] for image in images]
    copies = [batch.clone() for batch in kept]
    again = [processor(image, return_tensors="pt")["pixel_values"] for image in images]
    for first, second, third in zip(kept, copies, again, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


def test_a_processor_is_copied_and_pickled_without_buffers():
    processor = DETRImageProcessor()
    before = len(pickle.dumps(processor))
    processor(np.zeros((480, 640, 3), dtype=np.uint8), return_tensors="pt")
    assert len(pickle.dumps(processor)) == before
    assert copy.deepcopy(processor).size == processor.size


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_pixel(threads):
    processor = DETRImageProcessor(size={"shortest_edge": 120, "longest_edge": 200})
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8) for h, w in rng.integers(60, 200, (5, 2))]
    expected = processor(images, return_tensors="pt")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = processor(images, return_tensors="pt")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert found["pixel_values"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (41, 60), (40, 61)])
def test_a_batch_may_be_as_small_as_its_largest_sides(height, width):
    """Whose heights and widths are of different images, and other numbers."""
    sizes_hw = [(40, 50), (30, 60)]
    assert padded_hw(sizes_hw, None) == (40, 60)
    assert padded_hw(sizes_hw, SizeDict(height=height, width=width)) == (height, width)
    for one in ({"height": 39, "width": 60}, {"height": 40, "width": 59}):
        with pytest.raises(ValueError, match="smaller than an image"):
            padded_hw(sizes_hw, SizeDict(**one))
