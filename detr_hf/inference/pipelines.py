"""transformers' pipelines for boxes and masks, which read and batch pictures for our models as `Detector` does.

The stock pipelines take paths, URLs and PIL images, read them by rules of their own, and concatenate the tensors of a
batch, which fails as soon as two sizes meet. For this package's models these subclasses read whatever a `Detector`
reads, by its rules, and run those of a batch together that have one size: padding them to each other would move the
outputs, and what is found would depend on the pictures beside it. For every other model they are the stock pipelines.

Boxes of a segmentation model cost no masks. Masks are made of the queries that a result can hold, by its threshold,
and a model whose mask head was never trained is refused.
"""

import base64
import binascii
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline
from transformers.pipelines.object_detection import ObjectDetectionPipeline

from ..export.processing import read_pixels
from ..model.configuration_detr import DETRConfig
from ..model.segmentation_detr import refuse_without_masks
from ..processing.image_sources_detr import is_single_picture, pictures_in, plain_source
from ..processing.mask_post_processing_detr import check_thresholds
from .backends import expects_0_255, processed
from .pictures import path_of

SIZED = ("pixel_values", "pixel_mask")
OF_MASKS = ("logits", "pred_boxes", "pred_masks", "image_sizes_hw", "padded_sizes_hw")
SUBTASKS = (None, "panoptic", "instance", "semantic")


class _PicturesOfAnySize:
    """What both pipelines do with pictures; `_answers` says what the model is asked."""

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

    def preprocess(self, image: Any, timeout: float | None = None, **of_stock: Any) -> dict[str, Any]:
        """Returns the inputs of one picture; `timeout` is in seconds, for a URL.

        The tensors that differ in size stand in lists, which the loader does not concatenate.
        """
        if not self._is_ours:
            return super().preprocess(image, timeout=timeout, **of_stock)
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

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> Any:
        if not self._is_ours:
            return super()._forward(model_inputs)
        images, masks = (_flatten(model_inputs[name]) for name in SIZED)
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            of_size[tuple(image.shape)].append(place)
        found: dict[str, list[Any]] = defaultdict(lambda: [None] * len(images))
        for places in of_size.values():
            batch = (torch.stack([tensors[place] for place in places]) for tensors in (images, masks))
            for name, answers in self._answers(*batch, **options).items():
                for place, answer in zip(places, answers, strict=True):
                    found[name][place] = answer
        answers = {name: torch.stack(of_each) if _of_one_size(of_each) else of_each for name, of_each in found.items()}
        return {"target_size": model_inputs["target_size"], **answers}


class DETRObjectDetectionPipeline(_PicturesOfAnySize, ObjectDetectionPipeline):
    """`pipeline("object-detection")` with `batch_size` > 1 for pictures of any size, and for all that are pictures."""

    def check_model_type(self, supported_models: list[str] | dict[str, Any]) -> None:
        """Logs an error for a model without boxes; transformers' table has one class a configuration."""
        if not (self._is_ours and self.model.has_mask_head):
            super().check_model_type(supported_models)

    def _answers(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
        if self.model.has_mask_head:
            _, predictions, *_ = self.model.detect(pixel_values, pixel_mask, None, None, None)
            return {"logits": predictions.logits[-1], "pred_boxes": predictions.boxes_cxcywh_norm[-1]}
        outputs = self.model(pixel_values, pixel_mask)
        return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}


class DETRImageSegmentationPipeline(_PicturesOfAnySize, ImageSegmentationPipeline):
    """`pipeline("image-segmentation")` likewise; its subtasks are panoptic (or None), instance and semantic."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self._is_ours:
            refuse_without_masks(self.model)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocessing, forwarding, postprocessing = super()._sanitize_parameters(**given)
        if self._is_ours:
            if given.get("subtask") not in SUBTASKS:
                shown = ", ".join(map(repr, SUBTASKS))
                raise ValueError(f"subtask is {given['subtask']!r}; there are {shown} (None is 'panoptic').")
            check_thresholds(**{name: value for name, value in given.items() if name.endswith("threshold")})
            forwarding = {name: given[name] for name in ("subtask", "threshold") if name in given}
        return preprocessing, forwarding, postprocessing

    def _answers(
        self, pixel_values: Tensor, pixel_mask: Tensor, subtask: str | None = None, threshold: float = 0.9
    ) -> dict[str, Tensor]:
        """Returns what the result is made of: for a map of classes all masks, else those of scores that it can hold.

        `threshold` is by default that of the stock pipeline.
        """
        least = self.model.config.mask_score_threshold
        if subtask != "semantic":
            least = max(threshold, least or 0.0)
        outputs = self.model(pixel_values, pixel_mask, mask_score_threshold=least)
        return {name: outputs[name] for name in OF_MASKS}


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


def _of_one_size(tensors: list[Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1
