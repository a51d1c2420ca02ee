"""transformers' object-detection pipeline, able to batch pictures of different sizes for this package's models.

The stock pipeline preprocesses every picture by itself and concatenates the tensors, which fails as soon as two sizes
meet. This subclass carries the tensors of this package's models through the loader unpadded, and pads them when the
batch is complete. For every other model it is the stock pipeline.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.pipelines.object_detection import ObjectDetectionPipeline

from ..model.configuration_detr import DETRConfig

PADDED = ("pixel_values", "pixel_mask")


class DETRObjectDetectionPipeline(ObjectDetectionPipeline):
    """`pipeline("object-detection")` with `batch_size` > 1 for pictures of any size."""

    def preprocess(self, image, timeout: float | None = None) -> dict[str, Any]:
        """Returns the inputs of one picture.

        The tensors to pad stand in lists, which the loader does not concatenate.
        """
        inputs = super().preprocess(image, timeout=timeout)
        if self.model.config.model_type == DETRConfig.model_type:
            for name in PADDED:
                inputs[name] = [inputs[name][0]]
        return inputs

    def _forward(self, model_inputs: dict[str, Any]):
        for name in PADDED:
            tensors = model_inputs.get(name)
            if isinstance(tensors, list):
                model_inputs[name] = _pad_and_stack(_flatten(tensors))
        return super()._forward(model_inputs)


def _flatten(tensors: list) -> list[Tensor]:
    """Returns the pictures' tensors: one list from a batch of one, a list of lists from the loader."""
    return [tensor for entry in tensors for tensor in (entry if isinstance(entry, list) else [entry])]


def _pad_and_stack(tensors: list[Tensor]) -> Tensor:
    """Returns tensors (..., H, W) of any sizes as one batch, zeros at the right and the bottom."""
    height, width = (max(tensor.shape[dim] for tensor in tensors) for dim in (-2, -1))
    return torch.stack([F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2])) for t in tensors])
