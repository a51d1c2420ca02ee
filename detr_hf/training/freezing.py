"""What of a model does not learn: the backbone, or all but the mask head."""

import logging

from torch import nn

from ..model.backbone_detr import Backbone
from .arguments import MODEL_OPTIONS
from .starting import transformer_is_trained

logger = logging.getLogger(__name__)


def freeze_backbone(model: nn.Module) -> None:
    """Freezes the backbone, now and where the model is loaded again."""
    model.config.train_backbone = False
    for module in model.modules():
        if isinstance(module, Backbone):
            module.train_backbone = False
            module.freeze()


def has_frozen_detector(model: nn.Module) -> bool:
    """Whether a mask head learns alone; a detector may have the field from a checkpoint with masks, to no effect."""
    return getattr(model, "has_mask_head", False) and model.config.freeze_detector


def freeze_detector(model: nn.Module, wanted: bool | None, recipe: str) -> None:
    """Freezes the detector under a mask head, or not, as it is `wanted`, or else as its configuration says.

    Raises:
        ValueError: there is no mask head, its classes are new, or the recipe would help a detector that is frozen.
    """
    if not getattr(model, "has_mask_head", False):
        if wanted:
            raise ValueError(
                f"freeze_detector trains a mask head alone, and this {type(model).__name__} has none. Load the "
                "checkpoint with DETRForSegmentation (detr-hf train --task instance), or leave freeze_detector out; "
                "freeze_backbone=True trains the transformer and heads."
            )
        return
    if wanted is not None and wanted != model.config.freeze_detector:
        model.freeze_detector(wanted)
    frozen = has_frozen_detector(model)
    if frozen and MODEL_OPTIONS.get(recipe):
        raise ValueError(
            f"recipe={recipe!r} helps a detector to learn, and this one is frozen (freeze_detector): leave the recipe "
            "out."
        )
    if frozen and not transformer_is_trained(model):
        logger.warning("The detector is frozen, and its transformer has first values: it was never trained.")
    logger.info("The detector is frozen: the mask head learns alone." if frozen else "Detector and mask head learn.")
