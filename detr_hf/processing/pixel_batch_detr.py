"""The float batch of the image processors: written once, rescaled and normalised, in memory that is used again.

A fresh batch of 16 photographs is 160 MB whose every page the system must map and clear; that takes longer than
resizing and normalising them. So the last buffers are kept, and one is handed out again when the tensor made of it,
all views of it and all arrays that share its memory are gone. The count of references to the buffer says so: torch's
storage holds one for as long as it lives.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import SizeDict

PIECE = 2**17  # values of a piece that is normalised at once: half a megabyte of float32
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


BATCH_MEMORY = BatchMemory()


@dataclass(frozen=True)
class BatchWriter:
    """Writes resized images into a float batch, on `device`.

    Attributes:
        resize: gives (h, w, C) pixels of an image (H', W', C) and a size (h, w).
        scale, shift: (C,) factors and offsets, see `scale_and_shift`.
        device: of the batch.
    """

    resize: Callable[[Tensor, tuple[int, int]], Tensor]
    scale: Tensor
    shift: Tensor
    device: torch.device

    @torch.inference_mode(False)  # where the caller is in it, the threads are not, and the memory outlives it
    def batch(self, images: list[Tensor], sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int]) -> Tensor:
        """Returns (B, C, H, W) float32 pixels of (H', W', C) images, zero where there is no image.

        The batch is channels-last in memory, as the resized pixels are and as convolutions want it.
        """
        channels = len(self.scale)
        shape = (len(images), *canvas_hw, channels)
        on_cpu = self.device.type == "cpu"
        batch = BATCH_MEMORY.empty(*shape) if on_cpu else torch.empty(shape, device=self.device)
        scale, shift = self.scale.to(self.device), self.shift.to(self.device)

        def fill(index: int) -> None:
            (h, w), columns = sizes_hw[index], sizes_hw[index][1] * channels
            pixels = self.resize(images[index], (h, w)).reshape(h, columns)
            canvas = batch[index].view(canvas_hw[0], -1)  # (H, W * C): one long inner loop, not one over the channels
            _normalise(pixels, canvas[:h, :columns], scale.repeat(w), shift.repeat(w))
            canvas[h:].zero_()
            canvas[:h, columns:].zero_()

        workers = min(len(images), torch.get_num_threads()) if on_cpu else 1
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, range(len(images))))
        else:
            for index in range(len(images)):
                fill(index)
        return batch.permute(0, 3, 1, 2)


def _normalise(pixels: Tensor, canvas: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Writes scale * pixels + shift into `canvas` (h, w * C); piece by piece, so that a piece stays in the cache."""
    rows = len(pixels) if canvas.is_cuda else max(1, PIECE // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        piece = pixels[top : top + rows].to(torch.float32)
        torch.addcmul(shift, piece, scale, out=canvas[top : top + rows])


def scale_and_shift(
    channels: int, rescale_factor: float, mean_and_std: tuple[Any, Any] | None
) -> tuple[Tensor, Tensor]:
    """Returns (C,) factors and offsets that rescale and normalise in one step; no normalising if None."""
    scale = torch.full((channels,), float(rescale_factor), dtype=torch.float64)
    shift = torch.zeros(channels, dtype=torch.float64)
    if mean_and_std is not None:
        mean = _per_channel(mean_and_std[0], channels, "image_mean")
        std = _per_channel(mean_and_std[1], channels, "image_std")
        if not (std > 0).all():
            raise ValueError(f"image_std must be above 0, got {mean_and_std[1]}.")
        scale, shift = scale / std, -mean / std
    return scale.to(torch.float32), shift.to(torch.float32)


def _per_channel(values: float | Sequence[float] | None, channels: int, name: str) -> Tensor:
    per_channel = torch.tensor(values, dtype=torch.float64).flatten()
    if len(per_channel) not in (1, channels):
        raise ValueError(f"{name} has {len(per_channel)} numbers and the images have {channels} channels: {values}.")
    return per_channel.expand(channels)


def padded_hw(sizes_hw: list[tuple[int, int]], pad_size: SizeDict | None) -> tuple[int, int]:
    """Returns the (height, width) of the batch: `pad_size`, or the largest height and width in it."""
    largest_hw = max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)
    if pad_size is None:
        return largest_hw
    if not (pad_size.height and pad_size.width):
        raise ValueError(f"pad_size must have 'height' and 'width', got {dict(pad_size)}.")
    if pad_size.height < largest_hw[0] or pad_size.width < largest_hw[1]:
        raise ValueError(
            f"pad_size (height {pad_size.height}, width {pad_size.width}) is smaller than an image of "
            f"(height, width) {largest_hw}. Enlarge it, or make size smaller."
        )
    return pad_size.height, pad_size.width


def pixel_mask(sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Returns (B, H, W) bool, True on the image and False on the padding."""
    heights, widths = torch.tensor(sizes_hw, device=device).unbind(1)
    rows, columns = torch.arange(canvas_hw[0], device=device), torch.arange(canvas_hw[1], device=device)
    return (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None, :]
