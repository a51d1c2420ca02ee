"""An evaluation as a table for people and a dictionary for machines."""

import math
from collections.abc import Mapping
from typing import Any

from .analysis import ERRORS, Mistakes
from .coco import CocoMetrics

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


def metrics_table(metrics: CocoMetrics, mistakes: Mistakes | None = None, max_classes: int = 100) -> str:
    """The twelve numbers, AP by class (the best first) and the mistakes, as text in columns."""
    lines = [f"{name:6} {_number(metrics.summary[name])}  {text}" for name, text in DESCRIPTIONS.items()]
    width = max([5, *(len(name) for name in metrics.per_class)])
    lines += ["", f"{'class':{width}}  {'AP':>6}  {'AP50':>6}  objects"]
    known = sorted(
        metrics.per_class.items(), key=lambda item: -1 if math.isnan(item[1]["AP"]) else item[1]["AP"], reverse=True
    )
    lines += [
        f"{name:{width}}  {_number(row['AP'])}  {_number(row['AP50'])}  {row['objects']:7d}"
        for name, row in known[:max_classes]
    ]
    if len(known) > max_classes:
        lines.append(f"... and {len(known) - max_classes} classes more")
    if mistakes is not None:
        lines += ["", *(f"{mistakes.errors[kind]:7d}  {kind}" for kind in ERRORS)]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:6.3f}"


def metrics_dict(
    metrics: CocoMetrics, mistakes: Mistakes | None = None, curves: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything for a JSON file."""
    content = metrics.to_dict()
    if mistakes is not None:
        content["mistakes"] = mistakes.to_dict()
    if curves is not None:
        content["precision_recall"] = dict(curves)
    return content


__all__ = ["DESCRIPTIONS", "metrics_dict", "metrics_table"]
