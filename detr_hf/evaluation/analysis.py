"""What AP does not tell: which classes are confused, which mistakes are made, and precision by recall.

Different on purpose from a library's: counts at one score threshold, as the detector will be used, and independent of
the AP backend. Crowds are left out: a detection that lies in one is neither right nor wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco import evaluation_arrays

ERRORS = ("right", "class", "localisation", "class and localisation", "duplicate", "background", "missed")


def box_iou_xywh(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union (N, M) of boxes (N, 4) and (M, 4), x, y, width, height."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    total = boxes[:, None, 2:].prod(-1) + others[None, :, 2:].prod(-1) - common
    return np.divide(common, total, out=np.zeros_like(common), where=total > 0)


@dataclass(frozen=True)
class Mistakes:
    """Counts over all pictures at one score threshold.

    Attributes:
        confusion: (K + 1, K + 1) int: rows are true classes, columns predicted ones; the last row is background
            (nothing was there), the last column is missed.
        names: the K classes, in the order of the rows.
        errors: how many detections are `"right"`, or wrong by their `"class"` (a box of another class fits),
            `"localisation"` (IoU 0.1 to 0.5 with one of its class), both, `"duplicate"`, or `"background"`; and
            objects `"missed"`, which no detection touches.
    """

    confusion: np.ndarray
    names: list[str]
    errors: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything for a JSON file."""
        return {"names": self.names, "confusion": self.confusion.tolist(), "errors": self.errors}


def count_mistakes(
    ground_truth: Mapping[str, Any],
    detections: np.ndarray,
    threshold: float = 0.5,
    iou: float = 0.5,
    loose_iou: float = 0.1,
) -> Mistakes:
    """Returns confusions and errors of the detections with a score of at least `threshold`.

    Detections take the object with the highest IoU of at least `iou` that is still free, those with high scores first;
    of equal ones that of their own class.

    Args:
        ground_truth: a COCO dictionary.
        detections: (N, 7): image id, x, y, width, height, score, category id.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    confusion = np.zeros((len(categories) + 1, len(categories) + 1), dtype=np.int64)
    errors = dict.fromkeys(ERRORS, 0)
    kept = detections[detections[:, 5] >= threshold]
    order = np.lexsort((-kept[:, 5], kept[:, 0]))
    kept = kept[order]
    ids, starts = np.unique(kept[:, 0], return_index=True)
    found = dict(zip(ids.tolist(), np.split(kept, starts[1:]), strict=True)) if len(kept) else {}
    objects: dict[float, list[Mapping[str, Any]]] = {}
    for annotation in ground_truth["annotations"]:
        objects.setdefault(float(annotation["image_id"]), []).append(annotation)
    for image in ground_truth["images"]:
        rows = found.get(float(image["id"]), np.empty((0, 7)))
        _count_image(rows, objects.get(float(image["id"]), []), index_of, (iou, loose_iou), confusion, errors)
    return Mistakes(confusion, [str(category["name"]) for category in categories], errors)


def _count_image(
    found: np.ndarray,
    objects: list[Mapping[str, Any]],
    index_of: Mapping[Any, int],
    ious: tuple[float, float],
    confusion: np.ndarray,
    errors: dict[str, int],
) -> None:
    """Adds one picture's counts; `found` is sorted by falling score."""
    tight, loose = ious
    crowds = np.array([one["bbox"] for one in objects if one.get("iscrowd")], dtype=float).reshape(-1, 4)
    real = [one for one in objects if not one.get("iscrowd")]
    classes = np.array([index_of[one["category_id"]] for one in real], dtype=int)
    overlap = box_iou_xywh(found[:, 1:5], np.array([one["bbox"] for one in real], dtype=float).reshape(-1, 4))
    free = np.ones(len(real), dtype=bool)
    touched = np.zeros(len(real), dtype=bool)
    background = confusion.shape[0] - 1
    for row, detection in enumerate(found):
        label = index_of[int(detection[6])]
        fits = np.where(free & (overlap[row] >= tight), overlap[row] + 1e-9 * (classes == label), -1.0)
        if len(fits) and fits.max() > 0:
            best = int(fits.argmax())
            free[best], touched[best] = False, True
            confusion[classes[best], label] += 1
            errors["right" if classes[best] == label else "class"] += 1
        elif not _in_crowd(detection[1:5], crowds):
            confusion[background, label] += 1
            kind, nearest = _kind_of_error(overlap[row], classes == label, tight, loose)
            errors[kind] += 1
            touched[nearest] = True
    for label in classes[free]:
        confusion[label, background] += 1
    errors["missed"] += int((~touched).sum())


def _kind_of_error(overlap: np.ndarray, own_class: np.ndarray, tight: float, loose: float) -> tuple[str, list[int]]:
    """Returns why a detection that got no object is wrong, and the object that it touches, if any."""
    near = np.flatnonzero(overlap >= loose)
    if not len(near):
        return "background", []
    own = near[own_class[near]]
    kind, candidates = ("localisation", own) if len(own) else ("class and localisation", near)
    best = int(candidates[overlap[candidates].argmax()])
    return ("duplicate" if overlap[best] >= tight else kind), [best]


def _in_crowd(box: np.ndarray, crowds: np.ndarray) -> bool:
    """Whether half of a detection lies in a crowd's box."""
    low = np.maximum(box[:2], crowds[:, :2])
    high = np.minimum(box[:2] + box[2:], crowds[:, :2] + crowds[:, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    return bool((common >= 0.5 * box[2:].prod()).any()) if len(crowds) else False


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
        curve = arrays.precision[place, :, index, 0, -1] if arrays is not None else np.full(101, -1.0)
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
