"""The image processors of DETR: `DETRImageProcessor` on torch, the default; `DETRImageProcessorPil` on Pillow.

Pillow gives the pixels of the original code, on the CPU. On torch, on any device, images stay uint8 and channels last
through the resize, where torch's kernel is several times faster than on planes and equals Pillow within one grey
level, but for isolated pixels that are two apart at some ratios of sizes.
"""

import torch
import torchvision
from torch import Tensor
from torchvision.transforms.v2 import functional as tv_functional
from torchvision.transforms.v2.functional import InterpolationMode
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import PILImageResampling

from .image_processing_base_detr import (
    DETRImageProcessingMixin,
    DETRImageProcessorKwargs as DETRImageProcessorKwargs,  # looked for beside them
)
from .image_sizes_detr import resized_by_pillow

_INTERPOLATION_OF = {
    PILImageResampling.NEAREST: InterpolationMode.NEAREST_EXACT,  # Pillow's: the pixel under the centre
    PILImageResampling.BILINEAR: InterpolationMode.BILINEAR,
    PILImageResampling.BICUBIC: InterpolationMode.BICUBIC,
    PILImageResampling.LANCZOS: InterpolationMode.LANCZOS,
}
if tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 27):  # which has it for images of Pillow alone
    del _INTERPOLATION_OF[PILImageResampling.LANCZOS]


class DETRImageProcessor(DETRImageProcessingMixin, TorchvisionBackend):
    """Prepares images and annotations for DETR and turns its outputs into detections; see `preprocess`."""

    def _resize_pixels(self, pixels: Tensor, hw: tuple[int, int], resample: PILImageResampling | int) -> Tensor:
        """Returns (h, w, C) pixels of the same dtype, from (H, W, C)."""
        if tuple(pixels.shape[:2]) == tuple(hw):
            return pixels
        if resample not in _INTERPOLATION_OF:
            raise ValueError(
                f"resample {PILImageResampling(resample).name} is not in torchvision: use "
                f'{", ".join(choice.name for choice in _INTERPOLATION_OF)}, or the Pillow backend (backend="pil").'
            )
        planes = pixels.permute(2, 0, 1)[None]
        planes = planes.contiguous(memory_format=torch.channels_last)
        interpolation = _INTERPOLATION_OF[PILImageResampling(resample)]
        return tv_functional.resize(planes, list(hw), interpolation=interpolation, antialias=True)[0].permute(1, 2, 0)


class DETRImageProcessorPil(DETRImageProcessingMixin, PilBackend):
    """Prepares images and annotations for DETR and turns its outputs into detections; see `preprocess`."""

    def _resize_pixels(self, pixels: Tensor, hw: tuple[int, int], resample: PILImageResampling | int) -> Tensor:
        """Returns (h, w, C) pixels of the same dtype, from (H, W, C)."""
        if tuple(pixels.shape[:2]) == tuple(hw):
            return pixels
        return torch.from_numpy(resized_by_pillow(pixels.cpu().numpy(), hw, resample))
