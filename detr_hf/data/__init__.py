"""Data: reading every common layout into one schema, checking it, augmenting it and batching it.

The public names are imported when they are first used: `datasets`, torch and torchvision are not loaded before.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .checking.check import check as check
    from .checking.report import CheckReport as CheckReport
    from .detection_data import DetectionData as DetectionData
    from .digits import DigitScenes as DigitScenes
    from .loading import load_detection_dataset as load_detection_dataset
    from .pictures import load_pixels as load_pixels
    from .preparing.augment import Augmentation as Augmentation, augmentation as augmentation
    from .preparing.collate import DetectionCollator as DetectionCollator
    from .preparing.transform import DetectionTransform as DetectionTransform, prepare as prepare

__getattr__, __dir__ = lazy_names(__name__)
