"""Measuring detectors: COCO's average precision, by class and streaming, and what kinds of mistakes are made.

The public names are imported when they are first used; numpy is enough for some, others load torch.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .analysis import Mistakes, count_mistakes, precision_recall
    from .coco import CocoMetrics, evaluate_boxes
    from .collecting import DetectionEvaluator
    from .report import metrics_table
    from .results import read_results, write_results
    from .running import evaluate_model


# Public name -> the module that defines it.
_MODULE_OF = {
    "CocoMetrics": "coco",
    "DetectionEvaluator": "collecting",
    "Mistakes": "analysis",
    "count_mistakes": "analysis",
    "evaluate_boxes": "coco",
    "evaluate_model": "running",
    "metrics_table": "report",
    "precision_recall": "analysis",
    "read_results": "results",
    "write_results": "results",
}

__all__ = [
    "CocoMetrics",
    "DetectionEvaluator",
    "Mistakes",
    "count_mistakes",
    "evaluate_boxes",
    "evaluate_model",
    "metrics_table",
    "precision_recall",
    "read_results",
    "write_results",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
