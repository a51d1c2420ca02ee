"""DETR for Hugging Face: load any DETR checkpoint, detect, and train on your own pictures.

`import detr_hf` makes transformers' auto classes and pipelines know `model_type="detr_hf"`, and imports neither torch
nor transformers to do so: the registration runs as soon as both this package and the auto classes are loaded, in
either order (`registration.py`). The public names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from .lazy_names import lazy_names
from .registration import register_with_transformers
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .checkpoints.conversion import convert as convert
    from .checkpoints.embedded import embedded_model_path as embedded_model_path
    from .data.checking.check import check as check
    from .data.detection_data import DetectionData as DetectionData
    from .data.loading import load_detection_dataset as load_detection_dataset
    from .evaluation.report import Evaluation as Evaluation
    from .evaluation.running import evaluate as evaluate
    from .export.exporting import export_model as export_model
    from .hub.datasets import push_dataset as push_dataset
    from .inference.detector import Detector as Detector
    from .inference.films import DrawnFilm as DrawnFilm, draw_film as draw_film
    from .inference.inspecting import inspect_model as inspect_model
    from .inference.inspection import Inspection as Inspection
    from .inference.results import Detection as Detection, Detections as Detections
    from .inference.runs.prediction import predict_to_shards as predict_to_shards, read_predictions as read_predictions
    from .inference.sources.base import SourceOptions as SourceOptions
    from .model.configuration_detr import DETRConfig as DETRConfig
    from .model.modeling_detr import (
        DETRForObjectDetection as DETRForObjectDetection,
        DETRForSegmentation as DETRForSegmentation,
        DETRModel as DETRModel,
    )
    from .processing.image_processing_detr import (
        DETRImageProcessor as DETRImageProcessor,
        DETRImageProcessorPil as DETRImageProcessorPil,
    )
    from .training.arguments import DETRTrainingArguments as DETRTrainingArguments
    from .training.trainer import DETRTrainer as DETRTrainer

__getattr__, __dir__ = lazy_names(__name__)

register_with_transformers()
