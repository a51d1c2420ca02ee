"""Whose image processor: the one answer for checkpoints that are named and for models that were loaded from one.

COCO's panoptic checkpoints, the original's and those that transformers holds, say nowhere which of their classes are
stuff. It is known, and the processor gets it here, so that a panoptic result has one sky and not three. A model that
is built on a backbone's weights gets the mean and deviation that those were trained with.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.timm_body_detr import pixel_statistics
from .coco_names import coco_stuff
from .finding import Hub, find_file, local_path, read_json, where_reached

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
    hub = hub or Hub()
    processor = _own_or_default(checkpoint, hub)
    if not processor.label_ids_to_fuse and not _says_what_is_fused(checkpoint, hub):
        processor.label_ids_to_fuse = coco_stuff(_classes_with_masks(checkpoint, hub))
        if processor.label_ids_to_fuse:
            logger.warning(
                "These are COCO's panoptic classes, and no file says which are stuff: 92 to 200 are taken for it, and "
                "have one segment at most. (label_ids_to_fuse; things are up to 90.)"
            )
    return processor


def _own_or_default(checkpoint: Any, hub: Hub) -> "DETRImageProcessor":
    from ..processing.image_processing_detr import DETRImageProcessor

    is_named = isinstance(checkpoint, str | Path)
    source = _source_of(checkpoint)
    reason = "the model was loaded from no checkpoint"
    if source:
        try:
            path = local_path(source)
            if path is None or path.is_dir():
                return DETRImageProcessor.from_pretrained(path or source, **asdict(where_reached(source, hub)))
            reason = f"{source} holds weights alone"
        except (OSError, ValueError) as error:
            if is_named and _has_processor(source, hub):
                raise
            reason = f"{source} has none that can be read ({error})"
    processor = new_processor(None if is_named else getattr(checkpoint, "config", None))
    size = dict(processor.size)
    logger.warning(
        "The image processor is DETR's own, %s, mean %s, deviation %s: %s. Give another one where image sizes differ.",
        *(size, processor.image_mean, processor.image_std, reason),
    )
    return processor


def new_processor(config: Any = None) -> "DETRImageProcessor":
    """Returns DETR's own image processor, with mean and deviation of the backbone's first weights where the
    configuration says which those are."""
    from ..processing.image_processing_detr import DETRImageProcessor

    statistics = pixel_statistics(config) if getattr(config, "backbone_weights", None) else None
    return DETRImageProcessor(**dict(zip(("image_mean", "image_std"), statistics or (), strict=False)))


def _source_of(checkpoint: Any) -> str | Path:
    """Returns what the checkpoint is called, or where a model was loaded from; nothing of one that was made."""
    is_named = isinstance(checkpoint, str | Path)
    return checkpoint if is_named else getattr(getattr(checkpoint, "config", None), "name_or_path", "")


def _says_what_is_fused(checkpoint: Any, hub: Hub) -> bool:
    """Whether the file of the image processor has the classes to fuse, if only to say that there are none."""
    source = _source_of(checkpoint)
    try:
        files = [find_file(source, name, hub) for name in PROCESSOR_FILES] if source else []
        return any(file is not None and "label_ids_to_fuse" in read_json(file) for file in files)
    except (OSError, ValueError):  # the model has outlived it
        return False


def _classes_with_masks(checkpoint: Any, hub: Hub) -> Mapping[int, str]:
    from .model_classes import classes_with_masks

    try:
        return classes_with_masks(checkpoint, hub)
    except (OSError, ValueError):  # whoever loads the weights says what is wrong
        return {}


def _has_processor(source: str | Path, hub: Hub) -> bool:
    """Whether a checkpoint has a file of an image processor, readable or not; an error where it is out of reach."""
    return any(find_file(source, name, hub) is not None for name in PROCESSOR_FILES)
