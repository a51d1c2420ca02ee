"""Memory of large feature maps on a CPU, which is used again instead of being given back to the system."""

import functools
import threading

import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

LARGE = 12 * 2**20  # bytes from which on a result's memory is kept
KEPT_AT_MOST = 2**30  # bytes


class KeptMemory:
    """Memory of large feature maps, which is used again instead of being given back to the system.

    glibc gives back blocks of this size at once, and the system maps a new one page by page when it is written to:
    that takes longer than the convolution that writes. A block is used again when no tensor is left that lies in it,
    so a feature map that somebody keeps stays as it is.
    """

    def __init__(self):
        self._blocks: list[Tensor] = []
        self._lock = threading.Lock()

    def zeros(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor | None:
        """Returns zeros (B, C, h, w) in channels-last order, or None where keeping memory is of no use."""
        batch_size, channels, height, width = shape
        size = batch_size * channels * height * width
        needed = size * dtype.itemsize
        if not LARGE <= needed <= KEPT_AT_MOST or not _counts_uses():
            return None
        with self._lock, torch.inference_mode(False), torch.no_grad():
            values = self._block(needed)[:needed].view(dtype)
        return values.view(batch_size, height, width, channels).permute(0, 3, 1, 2).zero_()

    def release(self) -> None:
        """Gives the memory back to the system, as far as no tensor lies in it."""
        with self._lock:
            self._blocks = []

    def _block(self, needed: int) -> Tensor:
        """Returns the smallest free block of at least so many bytes; a new one takes the place of smaller ones."""
        free = sorted((block for block in self._blocks if _uses(block) == 1), key=len)
        for block in free:
            if len(block) >= needed:
                return block
        if free:
            self._remove(free.pop())
        while free and sum(map(len, self._blocks)) + needed > KEPT_AT_MOST:
            self._remove(free.pop())
        block = torch.empty(needed, dtype=torch.uint8, device="cpu")
        if sum(map(len, self._blocks)) + needed <= KEPT_AT_MOST:
            self._blocks.append(block)
        return block

    def _remove(self, block: Tensor) -> None:
        self._blocks = [other for other in self._blocks if other is not block]


def _uses(block: Tensor) -> int:
    """Returns how many tensors lie in the memory of `block`, itself included."""
    storage = block.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1  # the storage object of this call


@functools.cache
def _counts_uses() -> bool:
    """Whether this build of torch tells how many tensors share a memory."""
    block = torch.empty(8, device="cpu")  # whatever the default device is
    try:
        alone = _uses(block)
        view = block[2:].view(2, 3)
        shared = _uses(block)
        del view
        return (alone, shared, _uses(block)) == (1, 2, 1)
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.debug("Memory of feature maps is not kept: %s", error)
        return False
