"""The image processor of DETR on Pillow: the pixels of the original code, on the CPU."""

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from .image_processing_base_detr import DETRImageProcessingMixin, DETRImageProcessorKwargs


class DETRImageProcessorPil(DETRImageProcessingMixin, PilBackend):
    """Prepares images and annotations for DETR and turns its outputs into detections; see `preprocess`."""

    valid_kwargs = DETRImageProcessorKwargs

    def _resize_pixels(self, pixels: Tensor, hw: tuple[int, int], resample: PILImageResampling | int) -> Tensor:
        """Returns (h, w, C) pixels of the same dtype, from (H, W, C)."""
        if tuple(pixels.shape[:2]) == tuple(hw):
            return pixels
        array = pixels.cpu().numpy()
        width_height = (hw[1], hw[0])
        if array.dtype == np.uint8 and array.shape[-1] == 3:
            resized = np.array(PIL.Image.fromarray(np.ascontiguousarray(array)).resize(width_height, resample))
        else:  # channel by channel, in Pillow's modes L and F
            channels = (PIL.Image.fromarray(np.ascontiguousarray(array[..., c])) for c in range(array.shape[-1]))
            resized = np.stack([np.array(channel.resize(width_height, resample)) for channel in channels], axis=-1)
        return torch.from_numpy(resized)


__all__ = ["DETRImageProcessorPil"]
