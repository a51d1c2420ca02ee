"""An evaluation as a table for people and a dictionary for machines."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_files import whole_file
from .analysis import ERRORS, NEEDS_HOTCOCO, Judged, Mistakes, Thresholds, can_judge, precision_recall
from .coco import CocoMetrics, evaluate_boxes
from .panoptic import QUALITIES, PanopticMetrics
from .results import coco_results

DESCRIPTIONS = {
    "AP": "average precision, IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small objects, below 32 x 32 pixels",
    "APm": "medium objects",
    "APl": "large objects, from 96 x 96 pixels",
    "AR1": "average recall with 1 detection a picture",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "small objects",
    "ARm": "medium objects",
    "ARl": "large objects",
}


@dataclass(frozen=True)
class Evaluation:
    """What a detector reached on a split.

    Attributes:
        coco: COCO's numbers of boxes, and AP by class.
        mistakes: what detections with a score of `threshold` or more got wrong; None where hotcoco is not installed.
        threshold: in [0, 1].
        ground_truth: a COCO dictionary, whose category ids are labels.
        detections: (N, 7) of every score: image id, x, y, width, height, score, label.
        image_ids: the source's image id by that of `detections`; None where they are the same.
        category_ids: the source's category id by label; None where they are the same.
        seconds: that finding took, with reading and without the numbers; None where results were read.
        masks: COCO's numbers of masks (of things, where the data knows them from stuff); None where model or data have
            no masks.
        panoptic: the panoptic quality; None where it was not measured.
        segmentations: the run lengths of each detection, None for one without a mask; None without any.
        thresholds: the scores at which F1 is best; None where hotcoco is not installed.
        queries: (N,) the learned query that gave each detection; None where nobody knows it, or queries are boxes.
    """

    coco: CocoMetrics
    mistakes: Mistakes | None
    threshold: float
    ground_truth: Mapping[str, Any]
    detections: np.ndarray
    image_ids: Mapping[int, Any] | None = None
    category_ids: Sequence[Any] | None = None
    seconds: float | None = None
    masks: CocoMetrics | None = None
    panoptic: PanopticMetrics | None = None
    segmentations: Sequence[Any] | None = None
    thresholds: Thresholds | None = None
    queries: np.ndarray | None = None

    @classmethod
    def of(
        cls, ground_truth: Mapping[str, Any], detections: np.ndarray, threshold: float = 0.5, **known: Any
    ) -> "Evaluation":
        """Returns the evaluation of detections; `known` are further attributes."""
        if not can_judge():
            return cls(evaluate_boxes(ground_truth, detections), None, threshold, ground_truth, detections, **known)
        judged = Judged(ground_truth, detections)
        known["thresholds"] = judged.thresholds()
        return cls(judged.metrics(), judged.mistakes(threshold), threshold, ground_truth, detections, **known)

    @property
    def metrics(self) -> dict[str, float]:
        """Returns COCO's twelve numbers by name: `metrics["AP"]`; NaN where there is nothing to measure it on."""
        return self.coco.summary

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns by class name its `"AP"`, `"AP50"` and number of `"objects"`."""
        return self.coco.per_class

    def results(self) -> list[dict[str, Any]]:
        """Returns every detection as a COCO result, with the ids of the data's source, and its mask if it has one."""
        return coco_results(self.detections, self.image_ids, self.category_ids, self.segmentations)

    def table(self, max_classes: int = 100) -> str:
        """Returns the twelve numbers, AP and best threshold by class (the best first) and the mistakes, in columns.

        With masks their numbers follow, and the panoptic quality.
        """
        tables = [metrics_table(self.coco, self.mistakes, max_classes, self.thresholds)]
        tables += [] if self.mistakes is not None else ["", NEEDS_HOTCOCO]
        if self.masks is not None:
            tables += ["", "masks", metrics_table(self.masks, max_classes=max_classes)]
        if self.panoptic is not None:
            tables += ["", panoptic_table(self.panoptic, max_classes)]
        return "\n".join(tables)

    def to_dict(self, curves: bool = False) -> dict[str, Any]:
        """Returns the numbers for a JSON file; with `curves` also precision by recall."""
        content = self.coco.to_dict()
        for name, found in (("mistakes", self.mistakes), ("thresholds", self.thresholds)):
            content[name] = None if found is None else found.to_dict()
        for name, metrics in (("masks", self.masks), ("panoptic", self.panoptic)):
            if metrics is not None:
                content[name] = metrics.to_dict()
        if curves:
            content["precision_recall"] = precision_recall(self.ground_truth, self.detections)
        return content

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None, curves: bool = False) -> None:
        """Writes `about`, for example the model's name, and the numbers as JSON: the file is whole or not there."""
        write_json(path, {**(about or {}), **self.to_dict(curves)})

    def __repr__(self) -> str:
        numbers = {name: self.metrics[name] for name in ("AP", "AP50", "AP75")}
        numbers |= {} if self.masks is None else {"mask_AP": self.masks.summary["AP"]}
        numbers |= {} if self.panoptic is None else {"PQ": self.panoptic.summary["PQ"]}
        shown = ", ".join(f"{name}={value:.3f}" for name, value in numbers.items())
        return f"Evaluation({shown}, images={self.coco.num_images})"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes numbers as JSON: the file is whole or not there."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def metrics_table(
    metrics: CocoMetrics,
    mistakes: Mistakes | None = None,
    max_classes: int = 100,
    thresholds: Thresholds | None = None,
) -> str:
    """Returns the twelve numbers, AP and best threshold by class (the best first) and the mistakes, in columns."""
    lines = [f"{name:6} {_number(metrics.summary[name])}  {text}" for name, text in DESCRIPTIONS.items()]
    if thresholds is not None:
        lines.append(best_threshold_line(thresholds))
    width = max([5, *(len(name) for name in metrics.per_class)])
    more = "" if thresholds is None else f"  {'F1':>6}  threshold"
    lines += ["", f"{'class':{width}}  {'AP':>6}  {'AP50':>6}  objects{more}"]
    known = sorted(
        metrics.per_class.items(), key=lambda item: -1 if math.isnan(item[1]["AP"]) else item[1]["AP"], reverse=True
    )
    for name, row in known[:max_classes]:
        cut = None if thresholds is None else thresholds.per_class.get(name)
        more = (
            "" if thresholds is None else f"  {_number(cut.f1):>6}  {cut.score:9g}" if cut else f"  {'-':>6}  {'-':>9}"
        )
        lines.append(f"{name:{width}}  {_number(row['AP'])}  {_number(row['AP50'])}  {row['objects']:7d}{more}")
    if len(known) > max_classes:
        lines.append(f"... and {len(known) - max_classes} classes more")
    if mistakes is not None:
        head = f"from {mistakes.threshold:g} on"
        lines += ["", f"{head}  AP50 lost (at any score)"]
        for kind in ERRORS:
            lost = _number(mistakes.ap50_lost.get(kind, math.nan))
            lines.append(f"{mistakes.errors[kind]:{len(head)}d}  {lost:>9}  {kind}")
    return "\n".join(lines)


def best_threshold_line(thresholds: Thresholds) -> str:
    """Returns the line of a table, or the sentence of a log, that names the threshold with the best F1."""
    cut = thresholds.of_all
    if cut is None:
        return f"{'F1':6} {_number(math.nan)}  no detection is right, at any threshold"
    return (
        f"{'F1':6} {_number(cut.f1)}  the best there is, at threshold {cut.score:g}: precision {cut.precision:.3f}, "
        f"recall {cut.recall:.3f}"
    )


def panoptic_table(metrics: PanopticMetrics, max_classes: int = 100) -> str:
    """Returns PQ, SQ and RQ of all classes, things and stuff, and by class (the best first), as text in columns."""
    width = max([6, *(len(name) for name in metrics.per_class)])
    lines = [f"{'panoptic':{width}}  {'PQ':>6}  {'SQ':>6}  {'RQ':>6}"]
    for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st")):
        values = "  ".join(_number(metrics.summary[f"{quality}{suffix}"]) for quality in QUALITIES)
        lines.append(f"{name:{width}}  {values}")
    lines += ["", f"{'class':{width}}  {'PQ':>6}  {'SQ':>6}  {'RQ':>6}  segments"]
    known = sorted(metrics.per_class.items(), key=lambda one: 1 if math.isnan(one[1]["PQ"]) else -one[1]["PQ"])
    for name, row in known[:max_classes]:
        values = "  ".join(_number(row[quality]) for quality in QUALITIES)
        lines.append(f"{name:{width}}  {values}  {int(row['tp'] + row['fn']):8d}")
    if len(known) > max_classes:
        lines.append(f"... and {len(known) - max_classes} classes more")
    return "\n".join(lines)


def _number(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:6.3f}"
