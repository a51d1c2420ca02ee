"""Whose image processor: the one answer for checkpoints that are named and for models that were loaded from one."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .weight_files import Hub, find_file, local_path

if TYPE_CHECKING:
    from ..processing.image_processing_detr import DETRImageProcessor

logger = logging.getLogger(__name__)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def processor_of(checkpoint: Any, hub: Hub | None = None) -> "DETRImageProcessor":
    """Returns a checkpoint's own image processor; where it has none, the original's, with a warning that says why.

    Args:
        checkpoint: a folder, a file or a Hub id; or the model that was loaded from one, which may have outlived it.
        hub: how a Hub id is looked for.

    Raises:
        OSError, ValueError: a named checkpoint cannot be reached, or its image processor cannot be read. Of a model
            these are reasons in the warning.
    """
    from ..processing.image_processing_detr import DETRImageProcessor

    hub = hub or Hub()
    is_named = isinstance(checkpoint, str | Path)
    source = checkpoint if is_named else getattr(getattr(checkpoint, "config", None), "name_or_path", "")
    reason = "the model was loaded from no checkpoint"
    if source:
        try:
            path = local_path(source)
            if path is None or path.is_dir():
                return DETRImageProcessor.from_pretrained(path or source, **asdict(hub))
            reason = f"{source} holds weights alone"
        except (OSError, ValueError) as error:
            if is_named and _has_processor(source, hub):
                raise
            reason = f"{source} has none that can be read ({error})"
    processor = DETRImageProcessor()
    size = dict(processor.size)
    logger.warning(
        "The image processor is DETR's own, %s: %s. Give another one where image sizes differ.", size, reason
    )
    return processor


def _has_processor(source: str | Path, hub: Hub) -> bool:
    """Whether a checkpoint has a file of an image processor, readable or not; an error where it is out of reach."""
    return any(find_file(source, name, hub) is not None for name in PROCESSOR_FILES)
