"""What AP does not tell: which classes are confused, which mistakes are made, where to cut, precision by recall.

Counts are hotcoco's, those that its plots draw, so that table, JSON and plots say the same; pycocotools has none of
them. What COCO calls neither right nor wrong counts nowhere: detections in a crowd of their class, and those beyond
the hundred best of a picture.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .coco import CocoMetrics, arrays_of, checked_array, complete, evaluated, evaluation_arrays, metrics_of

# hotcoco's (and TIDE's, arXiv:2008.08115) names of mistakes, and what they are called here.
KINDS = {
    "Cls": "class",
    "Loc": "localisation",
    "Both": "class and localisation",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
ERRORS = ("right", *KINDS.values())
FITS = 0.5  # the IoU from which a detection fits an object
NEEDS_HOTCOCO = (
    "Mistakes, the best thresholds and plots need hotcoco, which is not installed: pip install 'detr-hf[eval]'."
)


@dataclass(frozen=True)
class Mistakes:
    """What detections with a score of `threshold` or more get right and wrong, over all pictures.

    Attributes:
        threshold: in [0, 1].
        confusion: (K + 1, K + 1) int: rows are true classes, columns predicted ones; the last row is background
            (nothing was there), the last column is missed. Here a detection takes the object that it covers best,
            whatever its class.
        names: the K classes, in the order of the rows.
        errors: how many detections are `"right"` (IoU 0.5 with a free object of their class), or wrong by their
            `"class"` (a box of another class fits), `"localisation"` (IoU 0.1 to 0.5 with one of its class), both,
            `"duplicate"`, or `"background"`; and objects `"missed"`, which no detection touches.
        ap50_lost: what AP50 would gain without a kind of mistake, over detections of every score.
    """

    threshold: float
    confusion: np.ndarray
    names: list[str]
    errors: dict[str, int]
    ap50_lost: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything for a JSON file."""
        return {**asdict(self), "confusion": self.confusion.tolist()}


class Cut(NamedTuple):
    """A score to cut at, and the F1, precision and recall of the detections with that score or more."""

    score: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Thresholds:
    """The scores at which F1 is best: `of_all` objects together, and `per_class`; None where nothing is right."""

    of_all: Cut | None
    per_class: dict[str, Cut | None]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything for a JSON file."""
        of_class = {name: cut and cut._asdict() for name, cut in self.per_class.items()}
        return {"of_all": self.of_all and self.of_all._asdict(), "per_class": of_class}


def can_judge() -> bool:
    """Whether hotcoco is there, without which nothing but `precision_recall` is."""
    return importlib.util.find_spec("hotcoco") is not None


class Judged:
    """Detections (N, 7) as hotcoco judges their boxes, at an IoU of `FITS` where it says no other.

    Attributes:
        truth: the COCO dictionary, complete.
        detections: image id, x, y, width, height, score, category id.
        evaluation: hotcoco's `COCOeval`, evaluated and summed up.
        right, counted: (N,) whether a detection is right; and whether it is right or wrong at all.

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: as `evaluate_boxes`.
    """

    def __init__(self, ground_truth: Mapping[str, Any], detections: np.ndarray):
        if not can_judge():
            raise ImportError(NEEDS_HOTCOCO)
        self.truth = complete(ground_truth)
        self.detections = checked_array(detections, self.truth)
        self.evaluation = evaluated("hotcoco", self.truth, self.detections)
        # no score is 2: nobody asks for the errors in the labels, which take long
        status = self.evaluation.image_diagnostics(iou_thr=FITS, score_thr=2.0)["dt_status"]
        found = [status.get(number) for number in range(1, len(self.detections) + 1)]
        self.right = np.array([one == "tp" for one in found], dtype=bool)
        self.counted = np.array([one in ("tp", "fp") for one in found], dtype=bool)

    @property
    def categories(self) -> list[Mapping[str, Any]]:
        """Returns the classes by ascending id, as hotcoco has them."""
        return sorted(self.truth["categories"], key=lambda category: category["id"])

    def objects(self, key: str = "category_id") -> np.ndarray:
        """Returns the class id (or another key) of every object that is no crowd."""
        return np.array([one[key] for one in self.truth["annotations"] if not one["iscrowd"]], dtype=np.int64)

    def metrics(self) -> CocoMetrics:
        """Returns what `evaluate_boxes` does."""
        is_empty = not len(self.detections) or not self.truth["annotations"]
        return metrics_of(self.truth, None if is_empty else arrays_of(self.evaluation), "hotcoco")

    def mistakes(self, threshold: float = 0.5) -> Mistakes:
        """Returns confusions and mistakes of the detections with a score of at least `threshold`."""
        kept = self.counted & (self.detections[:, 5] >= threshold)
        shown = evaluated("hotcoco", self.truth, self.detections[kept])
        tables = shown.tide_errors(pos_thr=FITS), self.evaluation.tide_errors(pos_thr=FITS)
        counts, lost = tables[0]["counts"], tables[1]["delta_ap"]
        return Mistakes(
            threshold,
            np.asarray(shown.confusion_matrix(iou_thr=FITS)["matrix"]).astype(np.int64),
            [str(category["name"]) for category in self.categories],
            {"right": int(self.right[kept].sum()), **{name: int(counts[kind]) for kind, name in KINDS.items()}},
            {name: float(lost[kind]) for kind, name in KINDS.items()},
        )

    def thresholds(self) -> Thresholds:
        """Returns the scores at which F1 is best, exact for these detections: those of every score are looked at."""
        scores, labels, objects = self.detections[:, 5], self.detections[:, 6], self.objects()
        per_class = {}
        for category in self.categories:
            own = self.counted & (labels == category["id"])
            count = int((objects == category["id"]).sum())
            per_class[str(category["name"])] = best_cut(scores[own], self.right[own], count)
        return Thresholds(best_cut(scores[self.counted], self.right[self.counted], len(objects)), per_class)

    def of_pictures(self, threshold: float) -> dict[int, tuple[int, int, int]]:
        """Returns for each picture how many detections from `threshold` on are right, how many wrong, and how many
        objects it has."""
        shown = self.counted & (self.detections[:, 5] >= threshold)
        ids = [image["id"] for image in self.truth["images"]]
        found = (self.detections[shown & self.right, 0], self.detections[shown & ~self.right, 0])
        right, wrong, there = (Counter(one.astype(np.int64).tolist()) for one in (*found, self.objects("image_id")))
        return {image_id: (right[image_id], wrong[image_id], there[image_id]) for image_id in ids}


def count_mistakes(ground_truth: Mapping[str, Any], detections: np.ndarray, threshold: float = 0.5) -> Mistakes:
    """Returns confusions and mistakes of the detections with a score of at least `threshold`.

    Args:
        ground_truth: a COCO dictionary.
        detections: (N, 7): image id, x, y, width, height, score, category id.
        threshold: in [0, 1].

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: as `evaluate_boxes`.
    """
    return Judged(ground_truth, detections).mistakes(threshold)


def best_thresholds(ground_truth: Mapping[str, Any], detections: np.ndarray) -> Thresholds:
    """Returns the scores at which F1 is best, of all objects and by class; arguments and errors as above."""
    return Judged(ground_truth, detections).thresholds()


def best_cut(scores: np.ndarray, right: np.ndarray, objects: int) -> Cut | None:
    """Returns where to cut detections with these scores (N,), so that F1 is best; None where none is `right` (N,).

    The score is the shortest decimal number that cuts there, so that what is printed is what was measured.
    """
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], right[order].cumsum()
    count = np.arange(1, len(scores) + 1)
    f1 = 2 * found / (count + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores are cut together
    best = int(f1.argmax())
    below = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    score = _shortest_between(below, float(scores[best]))
    return Cut(score, float(f1[best]), float(found[best] / count[best]), float(found[best] / objects))


def _shortest_between(low: float, high: float) -> float:
    """Returns the number in (low, high] with the fewest decimals, and of those one near the middle."""
    middle = (low + high) / 2
    for decimals in range(1, 9):
        for value in (round(middle, decimals), math.floor(high * 10**decimals) / 10**decimals):
            if low < value <= high:
                return value
    return high


def precision_recall(
    ground_truth: Mapping[str, Any],
    detections: Any,
    iou: float = 0.5,
    backend: str | None = None,
    iou_type: str = "bbox",
) -> dict[str, Any]:
    """Returns precision at COCO's 101 recalls, by class and in the mean, for plotting.

    Classes without objects are left out; `iou` is the least that counts, `iou_type` its kind as in `coco_metrics`.

    Returns:
        `recall` (101 numbers), `classes`: name to `precision` and the `score` threshold that reaches each recall (0
        beyond the highest recall reached), and `mean` precision.
    """
    thresholds = np.linspace(0.5, 0.95, 10)
    place = int(np.abs(thresholds - iou).argmin())
    if abs(thresholds[place] - iou) > 1e-6:
        raise ValueError(f"iou is {iou}; precision is computed at 0.5, 0.55, ... 0.95.")
    arrays = evaluation_arrays(ground_truth, detections, backend, iou_type)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    classes = {}
    for index, category in enumerate(categories):
        if arrays is None:
            continue
        curve = arrays.precision[place, :, index, 0, -1]
        if (curve > -1).any():
            score = arrays.scores[place, :, index, 0, -1]
            classes[str(category["name"])] = {"precision": curve.tolist(), "score": np.clip(score, 0, None).tolist()}
    mean = np.mean([row["precision"] for row in classes.values()], axis=0).tolist() if classes else []
    return {
        "iou": float(thresholds[place]),
        "recall": np.linspace(0, 1, 101).tolist(),
        "classes": classes,
        "mean": mean,
    }
