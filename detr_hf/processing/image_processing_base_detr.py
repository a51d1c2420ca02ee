"""What both image processors of DETR share, which is everything but the resize of one image.

The pixels of a batch go: read (upright, RGB, channels last) -> resize in uint8 -> written once, rescaled and
normalised, into the zero-padded float batch, which is channels-last in memory; several images on as many threads as
torch may use. Targets are made from sizes alone and never see the batch. What differs
from transformers' DETR processor on purpose, beside what the modules for reading, sizes, annotations and
post-processing say of themselves:

- `pixel_mask` is bool: 1 byte a pixel where int64 takes 8. It is cast where it is used, by this model and by
  transformers' DETR;
- `labels` are plain dicts, which pickle, collate and move between devices as any dict;
- masks of targets have the size of the resized image, not of the padded batch: pad them where they are batched;
- an unknown argument is an error in the constructor and is dropped, with a log line, from a file;
- saved custom code loads with either backend (`auto_map` names both classes, and both files travel).
"""

import difflib
import json
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    AnnotationFormat,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .annotations_detr import check_annotations, detection_target, panoptic_target
from .image_opening_detr import divides_by_255
from .image_reading_detr import read_images
from .image_sizes_detr import DEFAULT_LONGEST_EDGE, DEFAULT_SHORTEST_EDGE, check_resize_rule, resized_hw
from .mask_post_processing_detr import MaskPostProcessing
from .pixel_batch_detr import BatchWriter, padded_hw, pixel_mask, scale_and_shift
from .post_processing_detr import detections, logits_and_boxes

logger = logging.get_logger(__name__)

_FORMATS = (AnnotationFormat.COCO_DETECTION.value, AnnotationFormat.COCO_PANOPTIC.value)
_OWN_TYPES = ("DETRImageProcessor", "DETRImageProcessorPil")
CLASS_OF_BACKEND = {
    "torchvision": "image_processing_detr.DETRImageProcessor",
    "pil": "image_processing_detr.DETRImageProcessorPil",
}
# A field of every preprocessor_config.json for transformers' own processors. They would resize by another rule without
# a word; at a text where they expect a size they stop. Here it is dropped.
NOT_PLAIN_DETR = {
    "crop_size": "not of transformers' own image processors, but of detr_hf: pip install detr_hf and import it, or "
    "(where its code is beside it) use trust_remote_code=True; load it with AutoImageProcessor"
}
# Read in the constructor: what older configurations of transformers' DETR hold, and what naming the class costs.
_LEGACY_KEYS = {"max_size", "pad_and_return_pixel_mask", "image_processor_type", "feature_extractor_type"}
_IGNORED_KEYS = {"processor_class", "auto_map", "_valid_processor_keys", "_valid_kwargs_names", "backend", "use_fast"}


class DETRImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of the constructor and of a call, beside transformers' `ImagesKwargs`.

    format: "coco_detection" or "coco_panoptic", what `annotations` are. do_convert_annotations: give boxes as cxcywh
    in [0, 1]; otherwise as xyxy in pixels of the resized image. resize_rule: "original" (facebookresearch/detr) or
    "transformers", which round differently where `longest_edge` caps. label_ids_to_fuse: the stuff classes, of which a
    panoptic result has one segment at most.
    """

    format: str | AnnotationFormat
    do_convert_annotations: bool
    resize_rule: str
    label_ids_to_fuse: list[int]


class DETRImageProcessingMixin(MaskPostProcessing):
    """Reading, sizes, targets, batching, saving and post-processing; a backend adds `_resize_pixels`."""

    valid_kwargs = DETRImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    format = AnnotationFormat.COCO_DETECTION.value
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    do_convert_rgb = True
    do_convert_annotations = True
    size = {"shortest_edge": DEFAULT_SHORTEST_EDGE, "longest_edge": DEFAULT_LONGEST_EDGE}  # noqa: RUF012
    default_to_square = False
    resize_rule = "original"
    label_ids_to_fuse = []  # noqa: RUF012
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012

    def __init__(self, **kwargs: Unpack[DETRImageProcessorKwargs]) -> None:
        left_out = set(_IGNORED_KEYS) | {key for key in NOT_PLAIN_DETR if kwargs.get(key) == NOT_PLAIN_DETR[key]}
        kwargs = {key: value for key, value in kwargs.items() if key not in left_out}
        known = set(self.valid_kwargs.__annotations__) | _LEGACY_KEYS
        for key in set(kwargs) - known:
            near = difflib.get_close_matches(key, known, n=1)
            raise TypeError(
                f"{type(self).__name__} has no argument {key!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        written_by = kwargs.pop("image_processor_type", None) or kwargs.pop("feature_extractor_type", None)
        kwargs.pop("feature_extractor_type", None)
        if written_by is not None and written_by not in _OWN_TYPES:
            kwargs.setdefault("resize_rule", "transformers")  # the file promises that library's sizes
        if "pad_and_return_pixel_mask" in kwargs:
            kwargs.setdefault("do_pad", kwargs.pop("pad_and_return_pixel_mask"))
        if kwargs.get("do_convert_annotations") is None and kwargs.get("do_normalize") is not None:
            kwargs["do_convert_annotations"] = kwargs["do_normalize"]
        kwargs["size"] = _size_dict(kwargs.pop("size", None), kwargs.pop("max_size", None))
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        """Returns a processor from a dict as in `preprocessor_config.json`; keys it does not know are left out."""
        known = set(cls.valid_kwargs.__annotations__) | _LEGACY_KEYS | _IGNORED_KEYS
        unknown = set(image_processor_dict) - known
        for level, keys in (
            (logging.WARNING, sorted(key for key in unknown if image_processor_dict[key] is True)),  # a step left out
            (logging.INFO, sorted(key for key in unknown if image_processor_dict[key] is not True)),
        ):
            if keys:
                logger.log(level, "Keys of the image processor's file that DETR has no use for: %s", ", ".join(keys))
        return super().from_dict(
            {key: image_processor_dict[key] for key in image_processor_dict if key in known}, **kwargs
        )

    def preprocess(
        self,
        images: Any,
        annotations: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike | None = None,
        **kwargs: Unpack[DETRImageProcessorKwargs],
    ) -> BatchFeature:
        """Returns the batch that the model reads; calling the processor does the same.

        Args:
            images: one image or several: paths, URLs, bytes, opened files, PIL images, arrays, tensors. EXIF
                orientation is applied.
            annotations: for training, one COCO annotation per image, boxes in pixels of the upright image.
            return_segmentation_masks: also make masks; default no for "coco_detection", yes for "coco_panoptic".
            masks_path: the folder of the PNG files of "coco_panoptic".

        Returns:
            `pixel_values` (B, C, H, W) float32, padded with zeros at the bottom and the right; `pixel_mask` (B, H, W)
            bool, True on the image (not with do_pad=False); with annotations `labels`, a list of B targets.

        Raises:
            ValueError, TypeError, OSError: naming the image or the annotation.
        """
        return super().preprocess(images, annotations, return_segmentation_masks, masks_path, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        if isinstance(kwargs.get("size"), (int, np.integer)):
            kwargs["size"] = _size_dict(kwargs["size"], None)
        kwargs["format"] = kwargs.get("format") or self.format
        if kwargs["format"] not in _FORMATS:
            raise ValueError(f"format must be one of {', '.join(map(repr, _FORMATS))}, got {kwargs['format']!r}.")
        kwargs["format"] = AnnotationFormat(kwargs["format"]).value
        kwargs["resize_rule"] = check_resize_rule(kwargs.get("resize_rule") or self.resize_rule)
        if kwargs.get("do_center_crop"):
            raise ValueError(
                "do_center_crop would cut objects away from under their boxes. Crop images and annotations together."
            )
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(
                f"data_format must be 'channels_first', the model reads no other; got {kwargs['data_format']!r}."
            )
        return super()._standardize_kwargs(**kwargs)

    def _prepare_image_like_inputs(
        self,
        images: Any,
        *args: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Returns one (H, W, C) tensor per image."""
        return read_images(
            images,
            do_convert_rgb=bool(do_convert_rgb),
            expects_0_255=divides_by_255(do_rescale, rescale_factor),
            input_data_format=input_data_format,
        )

    def _preprocess(
        self,
        images: list[Tensor],
        annotations: Any,
        return_segmentation_masks: bool | None,
        masks_path: str | os.PathLike | None,
        *,
        do_resize: bool | None,
        size: SizeDict,
        resize_rule: str,
        resample: PILImageResampling | int,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        format: str,
        do_convert_annotations: bool | None,
        return_tensors: str | TensorType | None,
        do_rescale: bool | None,
        rescale_factor: float | None,
        do_normalize: bool | None,
        image_mean: float | Sequence[float] | None,
        image_std: float | Sequence[float] | None,
        device: str | torch.device | None = None,
        **unused: Any,
    ) -> BatchFeature:
        image_sizes_hw = [(image.shape[0], image.shape[1]) for image in images]
        sizes_hw = [resized_hw(hw, size, resize_rule) for hw in image_sizes_hw] if do_resize else image_sizes_hw
        labels = None
        if annotations is not None:  # before the pixels: a bad annotation should not cost a resize
            labels = self._targets(
                annotations,
                image_sizes_hw,
                sizes_hw,
                format,
                return_segmentation_masks,
                masks_path,
                do_convert_annotations,
            )
        mean_and_std = (image_mean, image_std) if do_normalize else None
        scale, shift = scale_and_shift(_num_channels(images), rescale_factor if do_rescale else 1.0, mean_and_std)
        target = torch.device(device) if device is not None else images[0].device
        writer = BatchWriter(
            lambda image, hw: self._resize_pixels(image.to(target), hw, resample), scale, shift, target
        )
        data = _pixels(writer, images, sizes_hw, do_pad, pad_size, as_list=return_tensors is None)
        if labels is not None:
            device = data["pixel_values"][0].device
            data["labels"] = [
                {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()} for target in labels
            ]
        return BatchFeature(self._converted(data, return_tensors))

    def _targets(
        self,
        annotations: Any,
        image_sizes_hw: list[tuple[int, int]],
        sizes_hw: list[tuple[int, int]],
        format: str,
        with_masks: bool | None,
        masks_path: str | os.PathLike | None,
        normalize_boxes: bool | None,
    ) -> list[dict[str, Tensor | str]]:
        """Returns one target per image; each depends on its own image and annotation only."""
        options = {"normalize_boxes": bool(normalize_boxes)}
        if format == AnnotationFormat.COCO_DETECTION.value:
            checked = check_annotations(annotations, len(sizes_hw))
            make, options["with_masks"] = detection_target, bool(with_masks)
        else:
            checked = check_annotations(annotations, len(sizes_hw), "segments_info", also_needed=("file_name",))
            make, options["with_masks"] = partial(panoptic_target, masks_path=masks_path), with_masks is not False
        return [
            make(annotation, image_hw, hw, **options)
            for annotation, image_hw, hw in zip(checked, image_sizes_hw, sizes_hw, strict=True)
        ]

    def _converted(self, data: dict[str, Any], return_tensors: str | TensorType | None) -> dict[str, Any]:
        """Returns the data as torch tensors or numpy arrays; without `return_tensors` as the backend's own kind."""
        kind = TensorType.PYTORCH if self.backend == "torchvision" else TensorType.NUMPY
        kind = kind if return_tensors is None else TensorType(return_tensors)
        if kind not in (TensorType.PYTORCH, TensorType.NUMPY):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}.")
        return data if kind == TensorType.PYTORCH else _as_numpy(data)

    def pad(
        self,
        pixel_values: Sequence[Tensor | np.ndarray],
        pad_size: dict[str, int] | SizeDict | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Returns `pixel_values` and `pixel_mask` of a batch made from processed images, for a collator.

        Args:
            pixel_values: (C, h, w) tensors or arrays as the processor gives them, of any sizes.
            pad_size: {"height", "width"} of the batch; default the largest height and width in it.
            return_tensors: "pt" or "np".
        """
        images = [torch.as_tensor(image) for image in pixel_values]
        if not images or any(image.ndim != 3 for image in images):
            raise ValueError(
                f"pad expects a list of (C, h, w) images, got shapes {[tuple(image.shape) for image in images]}."
            )
        sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
        canvas_hw = padded_hw(sizes_hw, pad_size if pad_size is None else SizeDict(**dict(pad_size)))
        batch = images[0].new_zeros(len(images), images[0].shape[0], *canvas_hw)
        for canvas, image, (h, w) in zip(batch, images, sizes_hw, strict=True):
            canvas[:, :h, :w] = image
        data = {"pixel_values": batch, "pixel_mask": pixel_mask(sizes_hw, canvas_hw, batch.device)}
        return BatchFeature(self._converted(data, return_tensors))

    def post_process_object_detection(
        self, outputs: Any, threshold: float | None = 0.5, target_sizes: Tensor | Sequence[Any] | None = None
    ) -> list[dict[str, Tensor]]:
        """Returns, per image, `scores` (N,), `labels` (N,) and `boxes` (N, 4).

        Args:
            outputs: the model's, with `logits` (B, Q, K + 1) and `pred_boxes` (B, Q, 4): its output, a dict, any
                object with these attributes, or the tuple that `return_dict=False` gives.
            threshold: keep scores above it; None keeps every query, as the COCO evaluation of the original does.
            target_sizes: (height, width) of each upright image, a (B, 2) tensor or a list. Boxes are then xyxy in
                those pixels, clipped to the image; without it xyxy in [0, 1].

        Raises:
            ValueError: a threshold outside [0, 1], a wrong number of sizes, outputs with NaN or infinity.
            TypeError: `outputs` without logits and boxes.
        """
        return detections(*logits_and_boxes(outputs), threshold, target_sizes)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoImageProcessor") -> None:
        """Makes `save_pretrained` save the code of both backends too: the folder loads where the package is absent."""
        super().register_for_auto_class(auto_class)
        for backend in DETRImageProcessingMixin.__subclasses__():
            backend._auto_class = cls._auto_class

    def to_dict(self) -> dict[str, Any]:
        """Returns what `preprocessor_config.json` holds; `auto_map` names the classes of both backends."""
        processor_dict = super().to_dict()
        if self._auto_class is not None:
            processor_dict["auto_map"] = {self._auto_class: dict(CLASS_OF_BACKEND)}
        return processor_dict

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `preprocessor_config.json`, with what stops transformers' own processors from misreading it."""
        with open(json_file_path, "w", encoding="utf-8") as file:
            fields = json.loads(self.to_json_string())
            file.write(json.dumps(NOT_PLAIN_DETR | fields, indent=2, sort_keys=True) + "\n")


def _size_dict(size: Any, max_size: int | None) -> Any:
    """Returns a size given the old way, an int with `max_size` beside it, as a dict; a dict without empty keys."""
    if size is None or isinstance(size, (int, np.integer)):
        shortest, longest = int(size or DEFAULT_SHORTEST_EDGE), max_size or DEFAULT_LONGEST_EDGE
        return {"shortest_edge": shortest, "longest_edge": longest}
    if isinstance(size, dict):
        size = {key: side for key, side in size.items() if side is not None}
        if max_size is not None and set(size) == {"shortest_edge"}:
            return {**size, "longest_edge": max_size}
    if max_size is not None:
        logger.warning("max_size %s does nothing beside size %s, which says all.", max_size, size)
    return size


def _pixels(
    writer: BatchWriter,
    images: list[Tensor],
    sizes_hw: list[tuple[int, int]],
    do_pad: bool | None,
    pad_size: SizeDict | None,
    as_list: bool,
) -> dict[str, Any]:
    """Returns `pixel_values` and, of a padded batch, `pixel_mask`; unpadded images of several sizes only `as_list`."""
    if do_pad:
        canvas_hw = padded_hw(sizes_hw, pad_size)
        pixel_values = writer.batch(images, sizes_hw, canvas_hw)
        return {"pixel_values": pixel_values, "pixel_mask": pixel_mask(sizes_hw, canvas_hw, pixel_values.device)}
    if len(set(sizes_hw)) == 1:
        return {"pixel_values": writer.batch(images, sizes_hw, sizes_hw[0])}
    if as_list:
        return {
            "pixel_values": [writer.batch([image], [hw], hw)[0] for image, hw in zip(images, sizes_hw, strict=True)]
        }
    raise ValueError(f"Images of sizes {sorted(set(sizes_hw))} make no tensor without padding. Use do_pad=True.")


def _num_channels(images: list[Tensor]) -> int:
    channels = images[0].shape[-1]
    for index, image in enumerate(images):
        if image.shape[-1] != channels:
            raise ValueError(
                f"image {index} has {image.shape[-1]} channels and image 0 has {channels}. "
                "Use do_convert_rgb=True to mix them."
            )
    return channels


def _as_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return np.ascontiguousarray(value.cpu().numpy())
    if isinstance(value, dict):
        return {key: _as_numpy(item) for key, item in value.items()}
    return [_as_numpy(item) for item in value] if isinstance(value, list) else value
