"""Measuring detectors: COCO's average precision of boxes and masks and panoptic quality, by class and
streaming, and what kinds of mistakes are made.

The public names are imported when they are first used; numpy is enough for some, others load torch.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .analysis import (
        Mistakes as Mistakes,
        Thresholds as Thresholds,
        best_thresholds as best_thresholds,
        count_mistakes as count_mistakes,
        precision_recall as precision_recall,
    )
    from .coco import CocoMetrics as CocoMetrics, evaluate_boxes as evaluate_boxes
    from .collecting import DetectionEvaluator as DetectionEvaluator
    from .from_files import (
        evaluate_panoptic_results as evaluate_panoptic_results,
        evaluate_results as evaluate_results,
    )
    from .masks import evaluate_masks as evaluate_masks
    from .panoptic import (
        PanopticEvaluator as PanopticEvaluator,
        PanopticMetrics as PanopticMetrics,
        evaluate_panoptic as evaluate_panoptic,
    )
    from .plotting import SavedPlots as SavedPlots, save_plots as save_plots
    from .report import Evaluation as Evaluation, metrics_table as metrics_table, panoptic_table as panoptic_table
    from .results import read_results as read_results, write_results as write_results
    from .running import evaluate as evaluate

__getattr__, __dir__ = lazy_names(__name__)
