"""Measuring detectors: COCO's average precision of boxes."""

from .coco import CocoMetrics, evaluate_boxes

__all__ = ["CocoMetrics", "evaluate_boxes"]
