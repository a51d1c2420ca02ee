"""DETR for Hugging Face: load any DETR checkpoint, detect, and train on your own pictures.

`import detr_hf` makes transformers' auto classes and pipelines know `model_type="detr_hf"`, and imports neither torch
nor transformers to do so: the registration runs as soon as both this package and the auto classes are loaded, in
either order (`registration.py`). The public names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from .lazy_names import lazy_names
from .registration import register_with_transformers

if TYPE_CHECKING:
    from .configuration_detr import DETRConfig
    from .data.loading import load_detection_dataset
    from .image_processing_detr import DETRImageProcessor
    from .image_processing_pil_detr import DETRImageProcessorPil
    from .inference.detections import Detection, Detections
    from .inference.detector import Detector
    from .inference.prediction import predict_to_shards, read_predictions
    from .inference.sources import SourceOptions
    from .modeling_detr import DETRForObjectDetection, DETRModel
    from .training.arguments import DETRTrainingArguments
    from .training.trainer import DETRTrainer

__version__ = "0.1.0"

# Public name -> the module of this package that defines it.
_MODULE_OF = {
    "DETRConfig": "configuration_detr",
    "DETRForObjectDetection": "modeling_detr",
    "DETRImageProcessor": "image_processing_detr",
    "DETRImageProcessorPil": "image_processing_pil_detr",
    "DETRModel": "modeling_detr",
    "DETRTrainer": "training.trainer",
    "DETRTrainingArguments": "training.arguments",
    "Detection": "inference.detections",
    "Detections": "inference.detections",
    "Detector": "inference.detector",
    "SourceOptions": "inference.sources",
    "load_detection_dataset": "data.loading",
    "predict_to_shards": "inference.prediction",
    "read_predictions": "inference.prediction",
}

__all__ = [
    "DETRConfig",
    "DETRForObjectDetection",
    "DETRImageProcessor",
    "DETRImageProcessorPil",
    "DETRModel",
    "DETRTrainer",
    "DETRTrainingArguments",
    "Detection",
    "Detections",
    "Detector",
    "SourceOptions",
    "load_detection_dataset",
    "predict_to_shards",
    "read_predictions",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)


register_with_transformers()
