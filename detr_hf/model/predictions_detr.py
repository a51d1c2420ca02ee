"""What DETR says of a batch: the one noun that loss, evaluation, parity and runtimes pass on."""

from typing import Any, NamedTuple

NO_MASK = -100.0  # the logit of a mask that was not asked for


class Predictions(NamedTuple):
    """Answers of the heads, of torch or NumPy, for one decoder layer or for all of them stacked in front.

    Attributes:
        logits: (..., B, Q, K + 1), unnormalised; the last class is no-object.
        boxes_cxcywh_norm: (..., B, Q, 4), in [0, 1] of the unpadded image.
        masks: (..., B, Q, h, w) logits of a mask head, or None; (..., B, K, h, w) where only K queries have one.
        mask_queries: (..., B, K) int, the queries that `masks` are of; None where they are of all.
    """

    logits: Any
    boxes_cxcywh_norm: Any
    masks: Any = None
    mask_queries: Any = None
