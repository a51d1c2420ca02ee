"""Panoptic quality (A. Kirillov et al., 2019, "Panoptic Segmentation"): PQ, SQ, RQ of things, stuff and each class.

A predicted and a true segment of one class match where their IoU is above one half, which gives each one partner at
most. What differs on purpose from panopticapi: areas are counted from the pixels, never taken from a file; all crowds
of a class in an image count, not the last alone; pictures come one at a time, and of each a few numbers are kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.mask_annotations_detr import read_panoptic_png

QUALITIES = ("PQ", "SQ", "RQ")
COUNTS = ("iou", "tp", "fp", "fn")
LARGEST_ID = 1 << 24  # of a PNG: R + 256 G + 65536 B


@dataclass(frozen=True)
class PanopticMetrics:
    """What an evaluation found; every quality is in [0, 1], or NaN where nothing is there to measure it on.

    Attributes:
        summary: PQ, SQ and RQ of all classes, with the suffix `_th` of things and `_st` of stuff.
        per_class: class name to `{"PQ", "SQ", "RQ", "iou", "tp", "fp", "fn"}`: the sum of IoUs of matched segments,
            their number, and those of false positives and false negatives.
        num_images: pictures that were compared.
    """

    summary: dict[str, float]
    per_class: dict[str, dict[str, float]]
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers for a JSON file, with None for NaN."""
        rows = (self.summary, *self.per_class.values())
        plain = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in rows]
        classes = dict(zip(self.per_class, plain[1:], strict=True))
        return {**plain[0], "per_class": classes, "num_images": self.num_images}


class PanopticEvaluator:
    """Takes predicted and true segments picture by picture, and gives the panoptic quality at the end.

    Args:
        categories: `{"id", "name", "isthing"}` of each class, as a COCO panoptic file lists them.
        repeats: whether a picture may come twice and is then counted once, as it does in a distributed run; otherwise
            that is an error.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]], repeats: bool = False):
        self.categories = [dict(category) for category in categories]
        self.repeats = repeats
        self._index = {category["id"]: number for number, category in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise ValueError("The categories have ids that occur more than once.")
        self._counts: dict[Any, np.ndarray] = {}  # image id -> rows of class, iou, tp, fp, fn
        self._places = np.zeros(LARGEST_ID, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, image_id: Any, prediction: Mapping[str, Any], truth: Mapping[str, Any]) -> None:
        """Compares the segments of one picture.

        Args:
            image_id: of the data set.
            prediction, truth: each `{"segmentation": (H, W) ids, "segments_info": [{"id", "category_id", ...}]}`; 0 is
                no segment. A true segment may have `iscrowd`.

        Raises:
            ValueError: a listed segment without a pixel, an unlisted id in a map, an unknown category, maps of two
                sizes, or a picture that was there before.
        """
        if image_id in self._counts:
            if self.repeats:
                return
            raise ValueError(f"image {image_id!r} comes twice; each picture is compared once.")
        seen, wanted = (np.asarray(side["segmentation"]) for side in (prediction, truth))
        if seen.shape != wanted.shape or seen.ndim != 2:
            raise ValueError(
                f"image {image_id!r}: the predicted map has shape {seen.shape}, the true one {wanted.shape}; expected "
                "(H, W) of the picture for both."
            )
        found, found_classes = self._segments(prediction["segments_info"], f"the prediction for image {image_id!r}")
        real, real_classes = self._segments(truth["segments_info"], f"the truth of image {image_id!r}")
        # neighbours mostly are of the same two segments: only where one of them changes is looked at
        seen, wanted = seen.reshape(-1), wanted.reshape(-1)
        starts = np.flatnonzero((seen[1:] != seen[:-1]) | (wanted[1:] != wanted[:-1])) + 1
        starts = np.concatenate([np.zeros(min(seen.size, 1), dtype=np.int64), starts])
        lengths = np.diff(starts, append=seen.size)
        rows = self._numbered(wanted[starts], real, f"the truth of image {image_id!r}")
        columns = self._numbered(seen[starts], found, f"the prediction for image {image_id!r}")
        shape = (len(real) + 1, len(found) + 1)
        shared = np.bincount(rows * shape[1] + columns, weights=lengths, minlength=shape[0] * shape[1]).reshape(shape)
        crowds = np.array([bool(segment.get("iscrowd", 0)) for segment in truth["segments_info"]], dtype=bool)
        self._counts[image_id] = _compare(shared, real_classes, found_classes, crowds)

    def _segments(self, listed: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and class numbers of the listed segments."""
        unknown = [segment["category_id"] for segment in listed if segment["category_id"] not in self._index]
        if unknown:
            known = ", ".join(map(str, list(self._index)[:20]))
            raise ValueError(f"{name} has a segment of category {unknown[0]!r}; the categories are {known}.")
        ids = np.array([segment["id"] for segment in listed], dtype=np.int64)
        if len(set(ids.tolist())) != len(ids) or (ids <= 0).any() or (ids >= LARGEST_ID).any():
            raise ValueError(
                f"{name} lists the ids {sorted(ids.tolist())[:20]}; expected different ones, above 0 (no segment) and "
                f"below {LARGEST_ID}."
            )
        return ids, np.array([self._index[segment["category_id"]] for segment in listed], dtype=np.int64)

    def _numbered(self, ids: np.ndarray, listed: np.ndarray, name: str) -> np.ndarray:
        """Returns the ids (n,) of a map with 1, 2, ... for the listed segments and 0 for none."""
        flat = ids.astype(np.int64, copy=False)
        if flat.size and (flat.min() < 0 or flat.max() >= LARGEST_ID):
            raise ValueError(f"{name} holds ids from {flat.min()} to {flat.max()}; expected 0 to {LARGEST_ID - 1}.")
        self._places[listed] = np.arange(1, len(listed) + 1)
        numbers = self._places[flat]
        self._places[listed] = 0
        strange = flat[(numbers == 0) & (flat != 0)]
        if strange.size:
            raise ValueError(f"{name} holds the id {strange[0]} in its map, which segments_info does not list.")
        empty = listed[np.bincount(numbers, minlength=len(listed) + 1)[1:] == 0]
        if empty.size:
            raise ValueError(f"{name} lists the segment {empty[0]}, which has no pixel in its map.")
        return numbers

    def gather(self) -> None:
        """Joins what all processes have, in each of them; call it in every process."""
        from accelerate.utils import gather_object

        joined: dict[Any, np.ndarray] = {}
        for share in gather_object([self._counts]):
            for image_id, rows in share.items():
                joined.setdefault(image_id, rows)
        self._counts = joined

    def compute(self) -> PanopticMetrics:
        """Returns the qualities of all pictures so far."""
        sums = np.zeros((len(self.categories), len(COUNTS)))
        # in an order that does not depend on that of arrival, so that sums are equal to the last bit
        for image_id in sorted(self._counts, key=str):
            rows = self._counts[image_id]
            np.add.at(sums, rows[:, 0].astype(np.int64), rows[:, 1:])
        iou, tp, fp, fn = sums.T
        weight = tp + fp / 2 + fn / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            table = np.stack([iou / weight, np.where(tp > 0, iou / np.maximum(tp, 1), 0), tp / weight], axis=1)
        table[weight == 0] = math.nan
        things = np.array([bool(category.get("isthing", 1)) for category in self.categories])
        summary: dict[str, float] = {}
        for suffix, which in (("", np.ones_like(things)), ("_th", things), ("_st", ~things)):
            rows = table[which & (weight > 0)]
            means = rows.mean(axis=0) if len(rows) else [math.nan] * len(QUALITIES)
            summary |= {f"{name}{suffix}": float(value) for name, value in zip(QUALITIES, means, strict=True)}
        per_class = {
            str(category["name"]): dict(
                zip((*QUALITIES, *COUNTS), map(float, (*table[number], *sums[number])), strict=True)
            )
            for number, category in enumerate(self.categories)
        }
        return PanopticMetrics(summary, per_class, len(self._counts))


def _compare(shared: np.ndarray, real: np.ndarray, found: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Returns rows of class, iou, tp, fp, fn for one picture.

    Args:
        shared: (T + 1, P + 1) pixels that true and predicted segments have in common; row and column 0 are no segment.
        real, found: (T,) and (P,) classes.
        crowds: (T,) bool.
    """
    real_areas, found_areas = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    void, inside = shared[0, 1:], shared[1:, 1:]
    union = real_areas[:, None] + found_areas[None] - inside - void[None]
    same = (real[:, None] == found[None]) & ~crowds[:, None]
    iou = np.where(same, inside / np.maximum(union, 1), 0.0)
    matched = iou > 0.5
    of_own_crowds = np.where((real[:, None] == found[None]) & crowds[:, None], inside, 0).sum(axis=0)
    excused = void + of_own_crowds > 0.5 * found_areas
    missed = ~matched.any(axis=1) & ~crowds
    wrong = ~matched.any(axis=0) & ~excused
    rows = [(real[t], iou[t, p], 1, 0, 0) for t, p in zip(*matched.nonzero(), strict=True)]
    rows += [(label, 0, 0, 1, 0) for label in found[wrong]]
    rows += [(label, 0, 0, 0, 1) for label in real[missed]]
    return np.array(rows, dtype=np.float64).reshape(-1, 1 + len(COUNTS))


def evaluate_panoptic(
    ground_truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    *,
    truth_folder: str | Path,
    predictions_folder: str | Path,
) -> PanopticMetrics:
    """Returns the panoptic quality of predicted PNGs against a COCO panoptic data set.

    Args:
        ground_truth: a COCO panoptic dictionary: `images`, `categories` and `annotations`.
        predictions: an annotation for each image: `image_id`, `file_name` and `segments_info`, with the same ids.
        truth_folder, predictions_folder: where the PNGs of each are.

    Raises:
        ValueError: an image has no prediction or two, a prediction is for no image, a file is missing, of another size
            or leaves its folder, and all that `PanopticEvaluator.add` refuses.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    by_image: dict[Any, Mapping[str, Any]] = {}
    for annotation in predictions:
        if annotation["image_id"] not in sizes:
            raise ValueError(f"A prediction is for image {annotation['image_id']!r}, which the truth does not have.")
        if annotation["image_id"] in by_image:
            raise ValueError(f"image {annotation['image_id']!r} has two predictions; expected one.")
        by_image[annotation["image_id"]] = annotation
    missing = [
        annotation["image_id"] for annotation in ground_truth["annotations"] if annotation["image_id"] not in by_image
    ]
    if missing:
        raise ValueError(f"{len(missing)} images have no prediction, for example {missing[0]!r}.")
    evaluator = PanopticEvaluator(ground_truth["categories"])
    for annotation in ground_truth["annotations"]:
        image_id = annotation["image_id"]
        sides = ((by_image[image_id], predictions_folder), (annotation, truth_folder))
        prediction, truth = (_read(side, folder, sizes[image_id]) for side, folder in sides)
        evaluator.add(image_id, prediction, truth)
    return evaluator.compute()


def _read(annotation: Mapping[str, Any], folder: str | Path, size_hw: tuple[int, int]) -> dict[str, Any]:
    ids = read_panoptic_png(folder, annotation["file_name"], size_hw, f"image {annotation['image_id']!r}")
    return {"segmentation": ids, "segments_info": annotation["segments_info"]}
