"""Outputs of the mask head -> instances, panoptic segments and class maps, in pixels of the picture.

What differs from transformers on purpose: a mask is cropped to its image before it is resized, so that padding does
not squeeze it; a pixel needs the mask's own probability, so that segments do not flood; scores are compared with the
threshold, and probabilities with the mask threshold, never their product; stuff is fused before anything is dropped;
ids are 1..n, each with pixels, and 0 is nothing; and masks go by one at a time, so that memory does not grow with
queries. `rule="original"` gives the rule of the DETR paper's published panoptic numbers.

A map is (h4, w4) of the padded input; positions in it are found for each pixel of the target, inside the image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .mask_annotations_detr import run_lengths
from .post_processing_detr import is_part, output_field, target_sizes_hw

RULES = ("confident", "original")
SMALLEST_SEGMENT = 4  # of the original's rule: this many pixels are too few


@dataclass
class ImageMasks:
    """The answers of one image's queries, and where its pixels lie in their masks.

    Attributes:
        logits: (Q, h4, w4), as the model gives them.
        probabilities: (Q, K + 1) float32, of classes and no-object.
        image_hw: the image inside the padded input.
        padded_hw: the padded input, whose frame the masks have.
        target_hw: the picture, or the image, that results are for.
    """

    logits: Tensor
    probabilities: Tensor
    image_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    target_hw: tuple[int, int]

    def best(self) -> tuple[Tensor, Tensor]:
        """Returns score and class (Q,) of the best class but no-object."""
        scores, labels = self.probabilities[:, :-1].max(dim=-1)
        return scores, labels

    def confident(self, threshold: float) -> list[int]:
        """Returns the queries whose best class, no-object included, is a class with a score above `threshold`."""
        scores, labels = self.probabilities.max(dim=-1)
        kept = (labels < self.probabilities.shape[1] - 1) & (scores > threshold)
        return kept.nonzero()[:, 0].tolist()

    def sample(self, map_: Tensor) -> Tensor:
        """Returns a map (h4, w4) at the target's pixels (H, W) float32: bilinear, of the image's part alone."""
        values = map_.float()
        for axis in (0, 1):
            low, high, share = self._places(axis, values.device)
            share = share[:, None] if axis == 0 else share
            values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
        return values

    def _places(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns for each line of the target the two lines of the map that it lies between, and how far."""
        count, cells = self.target_hw[axis], self.logits.shape[1 + axis]
        place = (torch.arange(count, device=device, dtype=torch.float64) + 0.5) * (self.image_hw[axis] / count)
        place = (place * (cells / self.padded_hw[axis]) - 0.5).clamp(0, cells - 1)
        low = place.floor()
        return low.long(), (low.long() + 1).clamp(max=cells - 1), (place - low).float()

    def at_image_size(self) -> "ImageMasks":
        """Returns the same, with the image inside the network as the target."""
        return ImageMasks(self.logits, self.probabilities, self.image_hw, self.padded_hw, self.image_hw)


def images_of(outputs: Any, target_sizes: Any) -> Iterator[ImageMasks]:
    """Yields what the outputs say of each image.

    Raises:
        ValueError: there are no masks, other sizes than images, or values that are not finite.
    """
    logits, masks = (output_field(outputs, name) for name in ("logits", "pred_masks"))
    if logits is None or masks is None:
        raise ValueError(
            "The outputs have no pred_masks: masks come from a DETRForSegmentation, this is the output of a detector."
        )
    logits, masks = torch.as_tensor(logits), torch.as_tensor(masks)
    sizes_hw = target_sizes_hw(target_sizes, len(logits), torch.device("cpu"))
    images_hw, padded_hw = (output_field(outputs, name) for name in ("image_sizes_hw", "padded_sizes_hw"))
    for image, (scores, maps) in enumerate(zip(logits, masks, strict=True)):
        if not (torch.isfinite(scores).all() and torch.isfinite(maps).all()):
            raise ValueError(
                f"The model's outputs for image {image} of the batch hold NaN or infinity. Check its weights and "
                "inputs; float16 overflows where bfloat16 does not."
            )
        whole = tuple(maps.shape[1:])
        padded = whole if padded_hw is None else _pair(padded_hw[image])
        inside = padded if images_hw is None else _pair(images_hw[image])
        target = _pair(sizes_hw[image]) if sizes_hw is not None else inside
        yield ImageMasks(maps, scores.float().softmax(dim=-1), inside, padded, target)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    return height, width


def check_thresholds(**thresholds: float) -> None:
    """Raises ValueError for a threshold that is no number from 0 to 1, by its name."""
    for name, value in thresholds.items():
        if not is_part(value):
            raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}.")


def as_logit(probability: float) -> float:
    """Returns the logit of a probability; -inf and inf for 0 and 1."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def instances(
    masks: ImageMasks, threshold: float, mask_threshold: float, overlap_threshold: float, form: str
) -> dict[str, Any]:
    """Returns the instances of an image, best score first: `segmentation` and `segments_info`.

    `form` is `"maps"` (N, H, W) bool, `"coco"` (N run lengths) or `"ids"`: an (H, W) int32 map, better scores on top,
    without instances of which at most `overlap_threshold` stays visible.
    """
    scores, labels = masks.best()
    order = [query for query in scores.argsort(descending=True, stable=True).tolist() if scores[query] > threshold]
    ids = torch.zeros(masks.target_hw, dtype=torch.int32, device=masks.logits.device)
    segments, found = [], []
    for query in order:
        own = masks.sample(masks.logits[query]) > as_logit(mask_threshold)
        area = int(own.sum())
        if not area:
            continue
        if form == "ids":
            own &= ids == 0
            visible = int(own.sum())
            if visible <= overlap_threshold * area:
                continue
            ids[own] = len(segments) + 1
            area = visible
        else:
            found.append(run_lengths(own) if form == "coco" else own)
        segments.append(_segment(len(segments) + 1, int(labels[query]), float(scores[query]), area))
    if form == "maps":
        found = torch.stack(found) if found else ids.new_zeros(0, *masks.target_hw, dtype=torch.bool)
    return {"segmentation": ids if form == "ids" else found, "segments_info": segments}


def _segment(number: int, label: int, score: float, area: int, fused: bool = False) -> dict[str, Any]:
    return {"id": number, "label_id": label, "score": score, "was_fused": fused, "area": area}


def panoptic(
    masks: ImageMasks, threshold: float, mask_threshold: float, overlap_threshold: float, fused_labels: set[int]
) -> dict[str, Any]:
    """Returns the panoptic segments of an image, best score first; see `post_process_panoptic_segmentation`."""
    scores, labels = masks.best()
    groups: dict[Any, list[int]] = {}  # the queries of a segment: one, or all of a class that is fused
    for query in masks.confident(threshold):
        label = int(labels[query])
        groups.setdefault(("class", label) if label in fused_labels else query, []).append(query)
    ordered = sorted(groups.values(), key=lambda queries: -float(scores[queries].max()))
    device = masks.logits.device
    best = torch.zeros(masks.target_hw, device=device)
    owner = torch.full(masks.target_hw, -1, dtype=torch.int32, device=device)
    own_areas = []
    for number, queries in enumerate(ordered):
        union = torch.zeros(masks.target_hw, dtype=torch.bool, device=device)
        for query in queries:
            probability = masks.sample(masks.logits[query]).sigmoid_()
            claimed = probability >= mask_threshold
            union |= claimed
            wins = claimed & (probability.mul_(scores[query]) > best)
            best = torch.where(wins, probability, best)
            owner[wins] = number
        own_areas.append(int(union.sum()))
    won = torch.bincount((owner + 1).flatten(), minlength=len(ordered) + 1)[1:].tolist()
    ids = torch.zeros(len(ordered) + 1, dtype=torch.int32, device=device)  # by owner, the last of no owner
    segments = []
    for number, (queries, area, own) in enumerate(zip(ordered, won, own_areas, strict=True)):
        if area and area > overlap_threshold * own:
            label = int(labels[queries[0]])
            fused = len(queries) > 1
            segments.append(_segment(len(segments) + 1, label, float(scores[queries].max()), area, fused))
            ids[number] = len(segments)
    return {"segmentation": ids[owner.long()], "segments_info": segments}


def panoptic_as_published(masks: ImageMasks, threshold: float, fused_labels: set[int]) -> dict[str, Any]:
    """Returns the panoptic segments by the original's rule, but with the image cropped out of the padded frame.

    Every pixel goes to the largest mask logit; masks of a class to fuse go to the first of them, once; segments of at
    most `SMALLEST_SEGMENT` pixels are dropped and the pixels contested anew, without fusing.
    """
    scores, labels = masks.best()
    kept = masks.confident(threshold)
    owner = _largest_logit(masks, kept)
    first_of: dict[int, int] = {}
    fused = set()
    for number, query in enumerate(kept):
        label = int(labels[query])
        if label in fused_labels and first_of.setdefault(label, number) != number:
            owner[owner == number] = first_of[label]
            fused.add(kept[first_of[label]])
    while True:
        areas = torch.bincount(owner.flatten() + 1, minlength=len(kept) + 1)[1:].tolist()
        large = [query for query, area in zip(kept, areas, strict=True) if area > SMALLEST_SEGMENT]
        if len(large) == len(kept):
            break
        kept = large
        owner = _largest_logit(masks, kept)
    segments = [
        _segment(number, int(labels[query]), float(scores[query]), area, query in fused)
        for number, (query, area) in enumerate(zip(kept, areas, strict=True), start=1)
    ]
    return {"segmentation": (owner + 1).to(torch.int32), "segments_info": segments}


def _largest_logit(masks: ImageMasks, queries: list[int]) -> Tensor:
    """Returns which of `queries` has the largest logit (H, W) int64 at each pixel of the target; -1 without any.

    Contested at the image's size and brought to the target's by the nearest pixel centre, as the original does.
    """
    inside = masks.at_image_size()
    device = masks.logits.device
    best = torch.full(masks.image_hw, -math.inf, device=device)
    owner = torch.full(masks.image_hw, -1, dtype=torch.int64, device=device)
    for number, query in enumerate(queries):
        values = inside.sample(masks.logits[query])
        wins = values > best
        best = torch.where(wins, values, best)
        owner[wins] = number
    for axis, (count, size) in enumerate(zip(masks.target_hw, masks.image_hw, strict=True)):
        nearest = ((torch.arange(count, device=device, dtype=torch.float64) + 0.5) * (size / count)).floor().long()
        owner = owner.index_select(axis, nearest.clamp(max=size - 1))
    return owner


def semantic(masks: ImageMasks, with_scores: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the class (H, W) int64 of each pixel, and on demand the scores (K, H, W).

    A class's score is the sum over queries of its probability times that of the mask, made at the size of the masks.
    """
    votes = torch.einsum("qc,qhw->chw", masks.probabilities[:, :-1], masks.logits.float().sigmoid())
    best = torch.full(masks.target_hw, -math.inf, device=votes.device)
    classes = torch.zeros(masks.target_hw, dtype=torch.int64, device=votes.device)
    scores = []
    for label, map_ in enumerate(votes):
        values = masks.sample(map_)
        wins = values > best
        best = torch.where(wins, values, best)
        classes[wins] = label
        if with_scores:
            scores.append(values)
    return classes, torch.stack(scores) if with_scores else None


def checked_labels(labels: Sequence[int] | set[int], num_labels: int) -> set[int]:
    """Returns the classes to fuse.

    Raises:
        ValueError: one of them is no class of the outputs.
    """
    foreign = sorted(label for label in labels if not 0 <= label < num_labels)
    if foreign:
        raise ValueError(f"label_ids_to_fuse has {foreign}, and the outputs have the classes 0 to {num_labels - 1}.")
    return set(labels)


class MaskPostProcessing:
    """The three ways of reading masks, for the image processors."""

    label_ids_to_fuse: Sequence[int] = ()

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
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
            instances(masks, threshold, mask_threshold, overlap_mask_area_threshold, form)
            for masks in images_of(outputs, target_sizes)
        ]

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.85,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
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
        return found

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
            if return_segmentation_scores:
                classes = SemanticSegmentationPostProcessorOutput(
                    {"segmentation": classes, "segmentation_scores": scores}
                )
            found.append(classes)
        return found
