"""Data: reading every common layout into one schema, checking it, augmenting it and batching it.

The public names are imported when they are first used: `datasets`, torch and torchvision are not loaded before.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .augment import Augmentation, augmentation
    from .checking import check
    from .collate import DetectionCollator
    from .digits import DigitScenes
    from .loading import load_detection_dataset
    from .report import CheckReport
    from .schema import AnnotationError, DataError, DetectionData, LayoutError, PictureError
    from .transform import DetectionTransform, prepare


# Public name -> the module that defines it.
_MODULE_OF = {
    "AnnotationError": "schema",
    "Augmentation": "augment",
    "CheckReport": "report",
    "DataError": "schema",
    "DetectionCollator": "collate",
    "DetectionData": "schema",
    "DetectionTransform": "transform",
    "DigitScenes": "digits",
    "LayoutError": "schema",
    "PictureError": "schema",
    "augmentation": "augment",
    "check": "checking",
    "load_detection_dataset": "loading",
    "prepare": "transform",
}

__all__ = [
    "AnnotationError",
    "Augmentation",
    "CheckReport",
    "DataError",
    "DetectionCollator",
    "DetectionData",
    "DetectionTransform",
    "DigitScenes",
    "LayoutError",
    "PictureError",
    "augmentation",
    "check",
    "load_detection_dataset",
    "prepare",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
