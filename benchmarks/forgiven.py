"""Which kind of mistake costs how much: AP50 as it would be with the mistakes of one kind forgiven.

As in TIDE (Bolya et al., 2020), with its thresholds: a detection is right where it takes a free object of its class
with an IoU of at least 0.5, the surest first. Of those that do not:

- `place`: it lies on an object of its class with an IoU of 0.1 to 0.5; forgiven, its box is the object's;
- `class`: it fits an object of another class; forgiven, it has the object's class;
- `duplicates`: it fits an object of its class that a surer one has taken; forgiven, it is left out;
- `background`: no object has an IoU over 0.1 with it; forgiven, it is left out;
- `missed`: objects that no detection above concerns; forgiven, they are left out.

A forgiven detection whose object is taken is left out. Crowds are no objects.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from detr_hf.evaluation.coco import evaluate_boxes

KINDS = ("place", "class", "background", "duplicates", "missed")
FITS, TOUCHES = 0.5, 0.1


def forgiven(truth: Mapping[str, Any], detections: np.ndarray) -> dict[str, float]:
    """Returns AP50 of detections (N, 7: image id, x, y, width, height, score, category id) for each of `KINDS`."""
    objects: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects.setdefault(annotation["image_id"], []).append(annotation)
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    concerned: set[int] = set()
    for image in truth["images"]:
        found = detections[detections[:, 0] == image["id"]]
        here = objects.get(image["id"], [])
        kinds, best, right = _kinds(found, here)
        concerned.update(id(here[index]) for index in best if index >= 0)
        for kind in KINDS:
            rows[kind].append(_forgive(kind, found, here, kinds, best, right))
    unmissed = [one for one in truth["annotations"] if one.get("iscrowd") or id(one) in concerned]
    truths = dict.fromkeys(KINDS, truth) | {"missed": {**truth, "annotations": unmissed}}
    return {kind: evaluate_boxes(truths[kind], np.concatenate(rows[kind])).summary["AP50"] for kind in KINDS}


def box_iou_xywh(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union (N, M) of boxes (N, 4) and (M, 4), x, y, width, height."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    total = boxes[:, None, 2:].prod(-1) + others[None, :, 2:].prod(-1) - common
    return np.divide(common, total, out=np.zeros_like(common), where=total > 0)


def _kinds(found: np.ndarray, here: list[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each detection of a picture its mistake ("" for none, "other"), the index of the object that it
    takes, fits or lies on (-1 for none), and which objects are taken rightly."""
    boxes = np.array([one["bbox"] for one in here], dtype=float).reshape(-1, 4)
    classes = np.array([one["category_id"] for one in here])
    overlap = box_iou_xywh(found[:, 1:5], boxes)
    taken = np.zeros(len(here), dtype=bool)
    kinds, best = np.full(len(found), "background", dtype=object), np.full(len(found), -1)
    for row in np.argsort(-found[:, 5], kind="stable") if len(here) else ():
        own = np.where(classes == found[row, 6], overlap[row], 0.0)
        free = np.where(taken, 0.0, own)
        if free.max() >= FITS:
            kinds[row], best[row] = "", free.argmax()
            taken[best[row]] = True
        elif own.max() >= FITS:
            kinds[row], best[row] = "duplicates", own.argmax()
        elif overlap[row].max() >= FITS:
            kinds[row], best[row] = "class", overlap[row].argmax()
        elif own.max() >= TOUCHES:
            kinds[row], best[row] = "place", own.argmax()
        elif overlap[row].max() >= TOUCHES:
            kinds[row] = "other"
    return kinds, best, taken


def _forgive(
    kind: str,
    found: np.ndarray,
    here: list[Mapping[str, Any]],
    kinds: np.ndarray,
    best: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:
    """Returns a picture's detections with the mistakes of one kind repaired or left out."""
    if kind in ("background", "duplicates", "missed"):
        return found[kinds != kind]
    repaired, taken, keep = found.copy(), right.copy(), kinds != kind
    for row in np.argsort(-found[:, 5], kind="stable"):
        if kinds[row] == kind and not taken[best[row]]:
            taken[best[row]], keep[row] = True, True
            if kind == "place":
                repaired[row, 1:5] = here[best[row]]["bbox"]
            else:
                repaired[row, 6] = here[best[row]]["category_id"]
    return repaired[keep]


__all__ = ["KINDS", "forgiven"]
