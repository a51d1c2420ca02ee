"""Memory for batches of pixels that is used again once nobody holds the batch any more.

A fresh batch of 16 photographs is 160 MB whose every page the system must map and clear; that takes longer than
resizing and normalising them. So the last buffers are kept, and one is handed out again when the tensor made of it,
all views of it and all arrays that share its memory are gone. The count of references to the buffer says so: torch's
storage holds one for as long as it lives.
"""

import sys
import threading

import numpy as np
import torch
from torch import Tensor

MAX_KEPT_BYTES = 2**28  # 256 MiB in all buffers together
LEAST_BYTES = 2**20  # smaller ones come from the allocator's own reserve
# References to a buffer that nobody else holds: the list's, the loop variable's, and getrefcount's argument.
UNUSED = 3


class BatchMemory:
    """Buffers that are lent to one batch after the other; safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES):
        self.max_bytes = max_bytes
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, *shape: int) -> Tensor:
        """Returns an uninitialised float32 tensor (shape) on the CPU."""
        count = int(np.prod(shape))
        if count * 4 < LEAST_BYTES or count * 4 > self.max_bytes or not _counts_references():
            return torch.empty(shape)
        with self._lock:
            for buffer in self._buffers:
                if count <= buffer.size <= 2 * count and sys.getrefcount(buffer) <= UNUSED:
                    return torch.from_numpy(buffer)[:count].view(shape)
            buffer = torch.empty(count).numpy()  # torch's aligned memory
            self._keep(buffer)
            return torch.from_numpy(buffer).view(shape)

    def _keep(self, new: np.ndarray) -> None:
        self._buffers.append(new)
        while sum(buffer.nbytes for buffer in self._buffers) > self.max_bytes:
            self._buffers.pop(0)  # the oldest; whoever holds it keeps it alive


def _counts_references() -> bool:
    """Whether this Python counts references exactly: builds without the global lock do not."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


__all__ = ["BatchMemory"]
