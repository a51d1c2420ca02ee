"""Outputs of the mask head -> instances, panoptic segments and class maps, in pixels of the picture.

What differs from transformers on purpose: a mask is cropped to its image before it is resized, so that padding does
not squeeze it; a pixel needs the mask's own probability, so that segments do not flood; scores are compared with the
threshold, and probabilities with the mask threshold, never their product; stuff is fused before anything is dropped;
ids are 1..n, each with pixels, and 0 is nothing; and masks go by one at a time, so that memory does not grow with
queries. `rule="original"` gives the rule of the DETR paper's published panoptic numbers.

This is the side of tensors; the rules are in `segments_detr.py`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .post_processing_detr import is_part, output_field, target_sizes_hw
from .segments_detr import (
    MASK_THRESHOLD,
    OVERLAP_THRESHOLD,
    PANOPTIC_THRESHOLD,
    ImageMasks,
    checked_labels,
    instances,
    panoptic,
    panoptic_as_published,
    semantic,
)

RULES = ("confident", "original")


def images_of(outputs: Any, target_sizes: Any) -> Iterator[ImageMasks]:
    """Yields what the outputs say of each image.

    Raises:
        ValueError: there are no masks, not as many as scores, other sizes than images, or values that are not
            finite.
    """
    logits, masks = (output_field(outputs, name) for name in ("logits", "pred_masks"))
    if logits is None or masks is None:
        raise ValueError(
            "The outputs have no pred_masks: masks come from a DETRForSegmentation, this is the output of a detector."
        )
    logits, masks = torch.as_tensor(logits), torch.as_tensor(masks)
    if logits.shape[:2] != masks.shape[:2]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and pred_masks {tuple(masks.shape)}: expected those of "
            "one batch, with as many images and queries."
        )
    sizes_hw = target_sizes_hw(target_sizes, len(logits), torch.device("cpu"))
    if sizes_hw is not None and not (sizes_hw >= 1).all():
        raise ValueError(f"target_sizes holds {sizes_hw.tolist()}: expected (height, width) in pixels, both above 0.")
    images_hw, padded_hw = (output_field(outputs, name) for name in ("image_sizes_hw", "padded_sizes_hw"))
    for image, (scores, maps) in enumerate(zip(logits, masks, strict=True)):
        ends = maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))  # NaN if there is one; no map of flags is made
        if not all(torch.isfinite(values).all() for values in (scores, *ends)):
            raise ValueError(
                f"The model's outputs for image {image} of the batch hold NaN or infinity. Check its weights and "
                "inputs; float16 overflows where bfloat16 does not."
            )
        whole = tuple(maps.shape[1:])
        padded = whole if padded_hw is None else _pair(padded_hw[image])
        inside = padded if images_hw is None else _pair(images_hw[image])
        target = _pair(sizes_hw[image]) if sizes_hw is not None else inside
        probabilities = scores.float().softmax(dim=-1).numpy(force=True)
        yield ImageMasks(maps.float().numpy(force=True), probabilities, inside, padded, target)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    return height, width


def check_thresholds(**thresholds: float) -> None:
    """Raises ValueError for a threshold that is no number from 0 to 1, by its name."""
    for name, value in thresholds.items():
        if not is_part(value):
            raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}.")


def on_device_of(outputs: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Returns what was found with its arrays as tensors, on the device of the outputs."""
    device = torch.as_tensor(output_field(outputs, "pred_masks")).device
    return {
        name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
        for name, value in found.items()
    }


class MaskPostProcessing:
    """The three ways of reading masks, for the image processors."""

    label_ids_to_fuse: Sequence[int] = ()

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = MASK_THRESHOLD,
        overlap_mask_area_threshold: float = OVERLAP_THRESHOLD,
        target_sizes: Tensor | Sequence[Any] | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """Returns, per image, `segmentation` and `segments_info`: one object each, best score first.

        Args:
            outputs: of a `DETRForSegmentation` (or transformers' model): logits, pred_masks and, for padded batches,
                image_sizes_hw and padded_sizes_hw.
            threshold: keep scores (best class but no-object) above it.
            mask_threshold: a pixel belongs to a mask whose probability there is above it.
            overlap_mask_area_threshold: in an id map, leave out instances of which at most this part stays visible.
            target_sizes: (height, width) of each picture; without it the size of the image inside the network.
            return_coco_annotation: `segmentation` is a list of COCO run lengths, which may overlap.
            return_binary_maps: `segmentation` is (N, H, W) bool, which may overlap. Without either it is an (H, W)
                int32 map of ids, 0 for nothing, better scores on top.

        A segment has `id`, `label_id`, `score`, `was_fused` and `area` in pixels.

        Raises:
            ValueError: thresholds outside [0, 1], a wrong number of sizes, both forms at once, outputs without masks
                or with values that are not finite.
        """
        check_thresholds(
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
        )
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps are two forms of one result; ask for one.")
        form = "coco" if return_coco_annotation else "maps" if return_binary_maps else "ids"
        return [
            on_device_of(outputs, instances(masks, threshold, mask_threshold, overlap_mask_area_threshold, form))
            for masks in images_of(outputs, target_sizes)
        ]

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = PANOPTIC_THRESHOLD,
        mask_threshold: float = MASK_THRESHOLD,
        overlap_mask_area_threshold: float = OVERLAP_THRESHOLD,
        label_ids_to_fuse: Sequence[int] | None = None,
        target_sizes: Tensor | Sequence[Any] | None = None,
        rule: str = "confident",
    ) -> list[dict[str, Any]]:
        """Returns, per image, `segmentation`, an (H, W) int32 map of ids with 0 for nothing, and `segments_info`.

        Queries whose best class is a class with a score above `threshold` contest the pixels. With
        `rule="confident"` a pixel goes to the largest score times probability among those whose mask has at least
        `mask_threshold` there; segments that keep at most `overlap_mask_area_threshold` of their own pixels are left
        out. With `rule="original"`, that of the paper's figures, it goes to the largest mask logit, and only segments
        of four pixels or less are left out; the two other thresholds then say nothing.

        Args:
            outputs: as for instances.
            threshold, mask_threshold, overlap_mask_area_threshold: see above.
            label_ids_to_fuse: classes of which an image has one segment at most, stuff; None takes the processor's.
            target_sizes: (height, width) of each picture; without it the size of the image inside the network.
            rule: `"confident"` or `"original"`.

        Raises:
            ValueError: as for instances; an unknown rule, or a class to fuse that the outputs do not have.
        """
        check_thresholds(
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
        )
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; there are {' and '.join(map(repr, RULES))}.")
        found = []
        for masks in images_of(outputs, target_sizes):
            labels = self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
            fused = checked_labels(labels, masks.probabilities.shape[1] - 1)
            if rule == "original":
                found.append(panoptic_as_published(masks, threshold, fused))
            else:
                found.append(panoptic(masks, threshold, mask_threshold, overlap_mask_area_threshold, fused))
        return [on_device_of(outputs, one) for one in found]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Tensor | Sequence[Any] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Returns, per image, the class of each pixel, an (H, W) int64 map.

        A class's score at a pixel is the sum over queries of its probability times that of the mask.

        Args:
            outputs: as for instances.
            target_sizes: (height, width) of each picture; without it the size of the image inside the network.
            return_segmentation_scores: return transformers' `SemanticSegmentationPostProcessorOutput` instead, with
                `segmentation` and `segmentation_scores` (K, H, W).
        """
        found = []
        for masks in images_of(outputs, target_sizes):
            classes, scores = semantic(masks, return_segmentation_scores)
            one = on_device_of(outputs, {"segmentation": classes, "segmentation_scores": scores})
            found.append(SemanticSegmentationPostProcessorOutput(one) if scores is not None else one["segmentation"])
        return found
