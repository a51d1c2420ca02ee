"""transformers' object-detection pipeline, which reads and batches pictures for our models as `Detector` does.

The stock pipeline takes paths, URLs and PIL images, reads them by rules of its own, and concatenates the tensors of a
batch, which fails as soon as two sizes meet. For this package's models this subclass reads whatever a `Detector`
reads, by its rules, and runs those of a batch together that have one size: padding them to each other would move the
outputs, and what is found would depend on the pictures beside it. For every other model it is the stock pipeline.
"""

import base64
import binascii
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.object_detection import ObjectDetectionPipeline

from ..export.processing import read_pixels
from ..model.configuration_detr import DETRConfig
from ..processing.image_sources_detr import is_single_picture, pictures_in, plain_source
from .backends import expects_0_255, processed
from .pictures import path_of

SIZED = ("pixel_values", "pixel_mask")


class DETRObjectDetectionPipeline(ObjectDetectionPipeline):
    """`pipeline("object-detection")` with `batch_size` > 1 for pictures of any size, and for all that are pictures."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a list of objects for one picture; for several a list of those, for an iterator an iterator."""
        if not (self._is_ours and (args or "inputs" in kwargs or "images" in kwargs)):
            return super().__call__(*args, **kwargs)
        given = args[0] if args else kwargs.pop("inputs" if "inputs" in kwargs else "images")
        images = _as_stock_takes_them(given)
        return [] if isinstance(images, list) and not images else super().__call__(images, *args[1:], **kwargs)

    @property
    def _is_ours(self) -> bool:
        return self.model.config.model_type == DETRConfig.model_type

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        """Returns the inputs of one picture; `timeout` is in seconds, for a URL.

        The tensors that differ in size stand in lists, which the loader does not concatenate.
        """
        if not self._is_ours:
            return super().preprocess(image, timeout=timeout)
        source, name = plain_source(_decoded(image), "image 0", timeout)
        pixels = read_pixels(source, name, expects_0_255=expects_0_255(self.image_processor), takes_options=False)
        pixel_values, pixel_mask = processed(self.image_processor, pixels)
        if pixel_mask is None:
            pixel_mask = torch.ones(1, *pixel_values.shape[-2:], dtype=torch.bool)
        return {
            "pixel_values": [pixel_values[0].to(self.dtype)],
            "pixel_mask": [pixel_mask[0]],
            "target_size": torch.IntTensor([pixels.shape[:2]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        if not self._is_ours:
            return super()._forward(model_inputs)
        images, masks = (_flatten(model_inputs[name]) for name in SIZED)
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            of_size[tuple(image.shape)].append(place)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for places in of_size.values():
            outputs = self.model(*(torch.stack([tensors[place] for place in places]) for tensors in (images, masks)))
            found.update(zip(places, zip(outputs.logits, outputs.pred_boxes, strict=True), strict=True))
        logits, boxes = (torch.stack([found[place][part] for place in range(len(images))]) for part in (0, 1))
        return type(outputs)({"target_size": model_inputs["target_size"], "logits": logits, "pred_boxes": boxes})


def _as_stock_takes_them(images: Any) -> Any:
    """Returns one picture, a list, a data set or an iterator of them: what the stock pipeline tells apart."""
    if isinstance(images, Dataset) or is_single_picture(images):
        return images
    several = pictures_in(images)
    return list(several) if hasattr(images, "__len__") else several


def _decoded(image: Any) -> Any:
    """Returns the bytes of a picture given as base64, which the stock pipeline takes; anything else as it is."""
    if not isinstance(image, str) or path_of(image) is None or len(image) < 64:
        return image
    try:
        if path_of(image).exists():
            return image
    except OSError:  # too long for a name
        pass
    try:
        return base64.b64decode("".join(image.split()), validate=True)
    except (binascii.Error, ValueError):
        return image


def _flatten(tensors: list) -> list[Tensor]:
    """Returns the pictures' tensors: one list from a batch of one, a list of lists from the loader."""
    return [tensor for entry in tensors for tensor in (entry if isinstance(entry, list) else [entry])]
