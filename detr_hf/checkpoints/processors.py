"""The image processor that belongs to a model's weights."""

import logging
from pathlib import Path
from typing import Any

from ..processing.image_processing_detr import DETRImageProcessor

logger = logging.getLogger(__name__)


def image_processor_for(model: Any) -> DETRImageProcessor:
    """The processor of the checkpoint that `model` was loaded from; where that has none, the original's, with a
    warning."""
    source = getattr(getattr(model, "config", None), "name_or_path", "")
    reason = f"{source} holds weights alone" if source else "the model was loaded from no checkpoint"
    if source and not Path(source).is_file():
        try:
            return DETRImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = f"{source} has none that can be read ({error})"
    processor = DETRImageProcessor()
    size = dict(processor.size)
    logger.warning("The image processor is DETR's own, %s: %s. Give another one where sizes differ.", size, reason)
    return processor


__all__ = ["image_processor_for"]
