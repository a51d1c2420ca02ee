"""Masks of queries -> instances, panoptic segments and class maps, in pixels of the picture: NumPy alone, so that
exported models read theirs by the same rules.

Masks go by one at a time, and of each only the part of the picture where it can be: memory does not grow with their
number. What differs from transformers on purpose is said in `mask_post_processing_detr.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .run_lengths_detr import run_lengths

# What is taken where a caller says nothing: the score of panoptic segments, the probability of a pixel of a mask, and
# the part of a segment that must stay visible.
PANOPTIC_THRESHOLD, MASK_THRESHOLD, OVERLAP_THRESHOLD = 0.85, 0.5, 0.8
SMALLEST_SEGMENT = 4  # of the original's rule: this many pixels are too few
EVERYWHERE = (slice(None), slice(None))

Region = tuple[slice, slice]


@dataclass
class ImageMasks:
    """The answers of one image's queries, and where its pixels lie in their masks.

    Attributes:
        logits: (Q, h4, w4) float32, in the frame of the padded input.
        probabilities: (Q, K + 1) float32, of classes and no-object.
        image_hw: the image inside the padded input.
        padded_hw: the padded input.
        target_hw: the picture, or the image, that results are for.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    image_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    target_hw: tuple[int, int]
    _lines: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._lines = [self._places(axis) for axis in (0, 1)]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns score and class (Q,) of the best class but no-object."""
        classes = self.probabilities[:, :-1]
        return classes.max(axis=-1), classes.argmax(axis=-1)

    def confident(self, threshold: float) -> list[int]:
        """Returns the queries whose best class, no-object included, is a class with a score above `threshold`."""
        scores, labels = self.probabilities.max(axis=-1), self.probabilities.argmax(axis=-1)
        return np.flatnonzero((labels < self.probabilities.shape[1] - 1) & (scores > threshold)).tolist()

    def sample(self, map_: np.ndarray, region: Region = EVERYWHERE) -> np.ndarray:
        """Returns a map (h4, w4) at the target's pixels (H, W), or at those of `region`: bilinear, of the image alone.

        Positions are those of pixel centres, and the map's last cells reach to its edge.
        """
        (top, bottom, down), (left, right, along) = self._lines
        rows, columns = region
        low, values = map_.take(left[columns], axis=1), map_.take(right[columns], axis=1)  # few rows yet
        values = low + (values - low) * along[columns]
        found, other = values[top[rows]], values[bottom[rows]]
        other -= found
        other *= down[rows, None]
        other += found
        return other

    def region(self, map_: np.ndarray, least: float) -> Region:
        """Returns the part of the target outside of which a map (h4, w4) is below `least` at every pixel."""
        if least == -math.inf:
            return EVERYWHERE
        there = map_ >= least
        slices = []
        for axis, (low, high, _) in enumerate(self._lines):
            lines = np.flatnonzero(there.any(axis=1 - axis))
            if not len(lines):
                return slice(0), slice(0)
            slices.append(
                slice(*(int(np.searchsorted(*args)) for args in ((high, lines[0]), (low, lines[-1], "right"))))
            )
        return slices[0], slices[1]

    def claimed(self, query: int, probability: float) -> tuple[Region, np.ndarray, np.ndarray]:
        """Returns where in the target a query's mask can be, its logits there, and where it has that probability."""
        least = as_logit(probability)
        region = self.region(self.logits[query], least)
        values = self.sample(self.logits[query], region)
        return region, values, values >= least

    def mask(self, query: int, mask_threshold: float = 0.5) -> np.ndarray:
        """Returns the pixels (H, W) bool of the target whose probability in a query's mask is above the threshold."""
        whole = np.zeros(self.target_hw, dtype=bool)
        least = as_logit(mask_threshold)
        region = self.region(self.logits[query], least)
        np.greater(self.sample(self.logits[query], region), least, out=whole[region])
        return whole

    def at_image_size(self) -> "ImageMasks":
        """Returns the same, with the image inside the network as the target."""
        return replace(self, target_hw=self.image_hw)

    def _places(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns for each line of the target the two lines of the map that it lies between, and how far."""
        count, cells = self.target_hw[axis], self.logits.shape[1 + axis]
        place = (np.arange(count) + 0.5) * (self.image_hw[axis] / count)
        place = (place * (cells / self.padded_hw[axis]) - 0.5).clip(0, cells - 1)
        low = np.floor(place).astype(np.int64)
        return low, np.minimum(low + 1, cells - 1), (place - low).astype(np.float32)


def as_logit(probability: float) -> float:
    """Returns the logit of a probability; -inf and inf for 0 and 1."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns a probability for each logit."""
    values = np.negative(logits)
    np.minimum(values, 80, out=values)  # no exponential that overflows
    np.exp(values, out=values)
    values += 1
    return np.reciprocal(values, out=values)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last dimension."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def instances(
    masks: ImageMasks, threshold: float, mask_threshold: float, overlap_threshold: float, form: str
) -> dict[str, Any]:
    """Returns the instances of an image, best score first: `segmentation` and `segments_info`.

    `form` is `"maps"` (N, H, W) bool, `"coco"` (N run lengths) or `"ids"`: an (H, W) int32 map, better scores on top,
    without instances of which at most `overlap_threshold` stays visible.
    """
    scores, labels = masks.best()
    order = [query for query in np.argsort(-scores, kind="stable").tolist() if scores[query] > threshold]
    ids = np.zeros(masks.target_hw, dtype=np.int32)
    segments, found = [], []
    for query in order:
        own = masks.mask(query, mask_threshold)
        area = int(np.count_nonzero(own))
        if not area:
            continue
        if form == "ids":
            own &= ids == 0
            visible = int(np.count_nonzero(own))
            if visible <= overlap_threshold * area:
                continue
            ids[own] = len(segments) + 1
            area = visible
        else:
            found.append(run_lengths(own) if form == "coco" else own)
        segments.append(_segment(len(segments) + 1, int(labels[query]), float(scores[query]), area))
    if form == "maps":
        found = np.stack(found) if found else np.zeros((0, *masks.target_hw), dtype=bool)
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
    best = np.zeros(masks.target_hw, dtype=np.float32)
    owner = np.full(masks.target_hw, -1, dtype=np.int32)
    own_areas = []
    for number, queries in enumerate(ordered):
        union = np.zeros(masks.target_hw, dtype=bool)
        for query in queries:
            region, values, claimed = masks.claimed(query, mask_threshold)
            union[region] |= claimed
            values = sigmoid(values)
            values *= scores[query]
            wins = claimed & (values > best[region])
            np.copyto(best[region], values, where=wins)
            np.copyto(owner[region], number, where=wins)
        own_areas.append(int(np.count_nonzero(union)))
    won = np.bincount((owner + 1).ravel(), minlength=len(ordered) + 1)[1:].tolist()
    ids = np.zeros(len(ordered) + 1, dtype=np.int32)  # by owner, the last of no owner
    segments = []
    for number, (queries, area, own) in enumerate(zip(ordered, won, own_areas, strict=True)):
        if area and area > overlap_threshold * own:
            label = int(labels[queries[0]])
            fused = len(queries) > 1
            segments.append(_segment(len(segments) + 1, label, float(scores[queries].max()), area, fused))
            ids[number] = len(segments)
    return {"segmentation": ids[owner], "segments_info": segments}


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
        areas = np.bincount(owner.ravel() + 1, minlength=len(kept) + 1)[1:].tolist()
        large = [query for query, area in zip(kept, areas, strict=True) if area > SMALLEST_SEGMENT]
        if len(large) == len(kept):
            break
        kept = large
        owner = _largest_logit(masks, kept)
    segments = [
        _segment(number, int(labels[query]), float(scores[query]), area, query in fused)
        for number, (query, area) in enumerate(zip(kept, areas, strict=True), start=1)
    ]
    return {"segmentation": (owner + 1).astype(np.int32), "segments_info": segments}


def _largest_logit(masks: ImageMasks, queries: Sequence[int]) -> np.ndarray:
    """Returns which of `queries` has the largest logit (H, W) at each pixel of the target; -1 without any.

    Contested at the image's size and brought to the target's by the nearest pixel centre, as the original does.
    """
    inside = masks.at_image_size()
    best = np.full(masks.image_hw, -np.inf, dtype=np.float32)
    owner = np.full(masks.image_hw, -1, dtype=np.int32)
    for number, query in enumerate(queries):
        values = inside.sample(masks.logits[query])
        wins = values > best
        np.copyto(best, values, where=wins)
        np.copyto(owner, number, where=wins)
    for axis, (count, size) in enumerate(zip(masks.target_hw, masks.image_hw, strict=True)):
        nearest = np.floor((np.arange(count) + 0.5) * (size / count)).astype(np.int64)
        owner = owner.take(nearest.clip(max=size - 1), axis=axis)
    return owner


def semantic(masks: ImageMasks, with_scores: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the class (H, W) int64 of each pixel, and on demand the scores (K, H, W).

    A class's score is the sum over queries of its probability times that of the mask, made at the size of the masks.
    """
    size_hw = masks.logits.shape[1:]
    votes = masks.probabilities[:, :-1].T @ sigmoid(masks.logits.reshape(len(masks.logits), -1))
    best = np.full(masks.target_hw, -np.inf, dtype=np.float32)
    classes = np.zeros(masks.target_hw, dtype=np.int64)
    scores = []
    for label, map_ in enumerate(votes.reshape(-1, *size_hw)):
        values = masks.sample(map_)
        wins = values > best
        np.copyto(best, values, where=wins)
        np.copyto(classes, label, where=wins)
        if with_scores:
            scores.append(values)
    return classes, np.stack(scores) if with_scores else None


def checked_labels(labels: Sequence[int] | set[int], num_labels: int) -> set[int]:
    """Returns the classes to fuse.

    Raises:
        ValueError: one of them is no class of the outputs.
    """
    foreign = sorted(label for label in labels if not 0 <= label < num_labels)
    if foreign:
        raise ValueError(f"label_ids_to_fuse has {foreign}, and the outputs have the classes 0 to {num_labels - 1}.")
    return set(labels)
