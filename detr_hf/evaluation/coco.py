"""COCO's average precision of boxes or masks: the twelve numbers, and AP per class.

The numbers are computed by hotcoco where it is installed, else by pycocotools; both give the same (a test compares
them). What differs on purpose from calling either: a detection of an unknown picture or class, and a box that is not
finite, are errors with a message; nothing is printed; a number that does not exist (no large object in the data, say)
is NaN, not -1; and no detections at all are a result, zero.
"""

import contextlib
import importlib.util
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BACKENDS = ("hotcoco", "pycocotools")
# The kind of IoU that decides what a detection covers -> what a detection has for it.
SHAPES = {"bbox": "bbox", "segm": "segmentation"}


@dataclass(frozen=True)
class CocoMetrics:
    """What an evaluation found; every number is in [0, 1], or NaN where the ground truth has nothing to measure it on.

    Attributes:
        summary: COCO's twelve numbers by name (`METRIC_NAMES`).
        per_class: class name to `{"AP", "AP50", "objects"}`, in the order of the categories.
        num_images: pictures in the ground truth.
        backend: the library that computed the numbers.
    """

    summary: dict[str, float]
    per_class: dict[str, dict[str, float]]
    num_images: int
    backend: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers for a JSON file, with None for NaN."""
        classes = {
            name: {key: _none_for_nan(value) for key, value in row.items()} for name, row in self.per_class.items()
        }
        summary = {name: _none_for_nan(value) for name, value in self.summary.items()}
        return {**summary, "per_class": classes, "num_images": self.num_images, "backend": self.backend}


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate_boxes(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]] | np.ndarray, backend: str | None = None
) -> CocoMetrics:
    """Returns COCO's metrics of `detections` against `ground_truth`, compared by their boxes.

    Args:
        ground_truth: a COCO dictionary, `images`, `categories` and `annotations`; boxes are `[x, y, width, height]` in
            pixels. `area` and `iscrowd` of an annotation may be missing (the box's area, and 0).
        detections: COCO results, each `{"image_id", "category_id", "bbox", "score"}`, of any number; or an array (N,
            7) of image id, x, y, width, height, score and category id, which takes a twentieth of the memory.
        backend: `"hotcoco"` or `"pycocotools"`; by default the first of them that is installed.

    Raises:
        ValueError: a detection names an unknown image or category or has a bad box, or `backend` is unknown.
        ImportError: the backend, or every backend, is missing.
    """
    return coco_metrics(ground_truth, detections, "bbox", backend)


def coco_metrics(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]] | np.ndarray,
    iou_type: str,
    backend: str | None = None,
) -> CocoMetrics:
    """Returns COCO's metrics by a kind of IoU: `"bbox"`, or `"segm"`, for which both sides have `segmentation`.

    A detection's mask is a run-length encoding; otherwise arguments and errors are those of `evaluate_boxes`.
    """
    backend = choose_backend(backend)
    truth = complete(ground_truth)
    return metrics_of(truth, _arrays(truth, detections, backend, iou_type), backend)


def metrics_of(truth: Mapping[str, Any], arrays: "EvaluationArrays | None", backend: str) -> CocoMetrics:
    """Returns COCO's metrics from what a library computed against a truth that is `complete`."""
    if arrays is None:
        return _metrics_of_nothing(truth, backend)
    stats = [math.nan if value < 0 else value for value in arrays.stats.tolist()]
    summary = dict(zip(METRIC_NAMES, stats, strict=True))
    # precision is (thresholds, recalls, classes, areas, max detections), classes by ascending id
    by_id = sorted(truth["categories"], key=lambda category: category["id"])
    curves = {category["id"]: arrays.precision[:, :, index, 0, -1] for index, category in enumerate(by_id)}
    return CocoMetrics(summary, _per_class(truth, curves), len(truth["images"]), backend)


@dataclass(frozen=True)
class EvaluationArrays:
    """What the libraries compute: -1 where there is nothing to measure.

    Attributes:
        precision, scores: (10 IoUs, 101 recalls, K classes by ascending id, 4 areas, 3 numbers of detections);
            precision, and the score from which it is reached.
        stats: the twelve numbers.
    """

    precision: np.ndarray
    scores: np.ndarray
    stats: np.ndarray


def evaluation_arrays(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]] | np.ndarray,
    backend: str | None = None,
    iou_type: str = "bbox",
) -> EvaluationArrays | None:
    """Returns the arrays behind `coco_metrics`, with its arguments and errors.

    None where there are no objects or no detections.
    """
    return _arrays(complete(ground_truth), detections, backend, iou_type)


def _arrays(
    truth: dict[str, Any],
    detections: Iterable[Mapping[str, Any]] | np.ndarray,
    backend: str | None,
    iou_type: str,
) -> EvaluationArrays | None:
    """Returns the same of a truth that is complete."""
    if iou_type not in SHAPES:
        raise ValueError(f"iou_type is {iou_type!r}; choose from {', '.join(map(repr, SHAPES))}.")
    results: Any
    if not isinstance(detections, np.ndarray):
        results = _checked(detections, truth, SHAPES[iou_type])
    elif iou_type == "bbox":
        results = checked_array(detections, truth)
    else:
        raise ValueError(
            f"An array of detections has boxes alone; for iou_type={iou_type!r} give results, each with its "
            f"{SHAPES[iou_type]!r}."
        )
    if not len(results) or not truth["annotations"]:
        return None
    return arrays_of(evaluated(choose_backend(backend), truth, results, iou_type))


def choose_backend(backend: str | None = None) -> str:
    """Returns the library to evaluate with: the one asked for, else the first of `BACKENDS` that is installed."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose from {', '.join(map(repr, BACKENDS))}.")
    for candidate in BACKENDS if backend is None else (backend,):
        if importlib.util.find_spec(candidate) is not None:
            return candidate
    raise ImportError(f"COCO metrics need {backend or 'hotcoco (or pycocotools)'}: pip install 'detr-hf[eval]'.")


def complete(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a COCO dictionary whose annotations have all that the libraries look at, numbered from 1."""
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        defaults = {"area": float(annotation["bbox"][2] * annotation["bbox"][3]), "iscrowd": 0}
        # pycocotools takes an id of 0 for "not matched", so ids are made anew
        annotations.append({**defaults, **annotation, "id": number})
    return {**ground_truth, "annotations": annotations}


def _checked(detections: Iterable[Mapping[str, Any]], truth: dict[str, Any], shape: str) -> list[dict[str, Any]]:
    """Returns the detections with their box or mask (`shape`) and nothing else that could be taken for one."""
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    results = []
    for number, detection in enumerate(detections):
        if detection["image_id"] not in images:
            raise ValueError(
                f"Detection {number} is of image {detection['image_id']!r}, which is not among the {len(images)} "
                "images of the ground truth."
            )
        if detection["category_id"] not in categories:
            raise ValueError(
                f"Detection {number} has category {detection['category_id']!r}; the ground truth has "
                f"{sorted(categories)[:20]}. Map the model's labels to the data set's category ids first."
            )
        same = {name: value for name, value in detection.items() if name not in SHAPES.values()}
        results.append({**same, **(_box_and_score if shape == "bbox" else _mask_and_score)(number, detection)})
    return results


def _box_and_score(number: int, detection: Mapping[str, Any]) -> dict[str, Any]:
    values = [*map(float, detection["bbox"]), float(detection["score"])]
    if len(values) != 5 or not all(map(math.isfinite, values)):
        raise ValueError(
            f"Detection {number} has box {detection['bbox']} and score {detection['score']}; expected four finite "
            "numbers [x, y, width, height] and a finite score."
        )
    return {"bbox": values[:4], "score": values[4]}


def _mask_and_score(number: int, detection: Mapping[str, Any]) -> dict[str, Any]:
    mask, score = detection.get("segmentation"), float(detection["score"])
    if not isinstance(mask, Mapping) or not {"size", "counts"} <= set(mask) or not math.isfinite(score):
        raise ValueError(
            f"Detection {number} has segmentation {str(mask)[:60]} and score {score}; expected a run-length encoding, "
            "{'size': [height, width], 'counts': ...}, and a finite score."
        )
    return {"segmentation": dict(mask), "score": score}


def checked_array(detections: np.ndarray, truth: Mapping[str, Any]) -> np.ndarray:
    """Returns detections (N, 7) as float64.

    Raises:
        ValueError: one is of an unknown picture or class, or not finite.
    """
    if detections.ndim != 2 or detections.shape[1] != 7:
        raise ValueError(
            f"The detections have shape {detections.shape}; expected (N, 7): image id, x, y, w, h, score, category id."
        )
    for column, name, known in ((0, "image", truth["images"]), (6, "category", truth["categories"])):
        ids = np.array([one["id"] for one in known], dtype=np.float64)
        unknown = ~np.isin(detections[:, column], ids)
        if unknown.any():
            number = int(unknown.argmax())
            raise ValueError(
                f"Detection {number} is of {name} {detections[number, column]:g}, which the ground truth does not "
                "know."
            )
    broken = ~np.isfinite(detections).all(axis=1)
    if broken.any():
        raise ValueError(f"Detection {int(broken.argmax())} has a box or score that is not finite.")
    return np.ascontiguousarray(detections, dtype=np.float64)


def evaluated(backend: str, truth: Mapping[str, Any], results: Any, iou_type: str = "bbox") -> Any:
    """Returns the library's `COCOeval` of results against a truth that is `complete`, evaluated and summed up."""
    if backend == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO  # type: ignore[no-redef]
        from pycocotools.cocoeval import COCOeval  # type: ignore[no-redef]
    with contextlib.redirect_stdout(io.StringIO()):
        if backend == "hotcoco":
            coco = COCO(dict(truth))
        else:
            coco = COCO()
            # pycocotools keeps what it is given, and writes into it
            coco.dataset = {
                "info": {},
                **truth,
                "annotations": [dict(annotation) for annotation in truth["annotations"]],
            }
            coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def arrays_of(evaluation: Any) -> EvaluationArrays:
    """Returns what a `COCOeval` has computed."""
    arrays = evaluation.eval
    return EvaluationArrays(
        np.asarray(arrays["precision"]), np.asarray(arrays["scores"]), np.asarray(evaluation.stats)
    )


def _mean_precision(curve: np.ndarray) -> float:
    known = curve[curve > -1]
    return float(known.mean()) if known.size else math.nan


def _per_class(truth: Mapping[str, Any], curves: Mapping[Any, np.ndarray]) -> dict[str, dict[str, float]]:
    """Returns AP by class; `curves` are precision (IoUs, recalls) by category id, none where nothing was detected."""
    counts = Counter(one["category_id"] for one in truth["annotations"] if not one["iscrowd"])
    table = {}
    for category in truth["categories"]:
        count = counts[category["id"]]
        curve = curves.get(category["id"], np.full((1, 1), 0.0 if count else -1.0))
        row = {"AP": _mean_precision(curve), "AP50": _mean_precision(curve[:1]), "objects": count}
        table[str(category["name"])] = row
    return table


def _metrics_of_nothing(truth: Mapping[str, Any], backend: str) -> CocoMetrics:
    """Returns zero where there was something to find, NaN where there was not."""
    areas = [annotation["area"] for annotation in truth["annotations"] if not annotation["iscrowd"]]
    present = {
        "s": any(area <= 32**2 for area in areas),
        "m": any(32**2 <= area <= 96**2 for area in areas),
        "l": any(area >= 96**2 for area in areas),
    }
    summary = {name: 0.0 if present.get(name[-1], bool(areas)) else math.nan for name in METRIC_NAMES}
    return CocoMetrics(summary, _per_class(truth, {}), len(truth["images"]), backend)
