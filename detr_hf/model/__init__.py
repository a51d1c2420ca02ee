"""DETR, part by part, as the paper builds it.

These files travel to the Hub with every checkpoint, flat: they import each other as `from .x_detr import y`, and
nothing else of this package. What is only about speed lies in `fast_*_detr.py`, `kept_memory_detr.py` and
`compiling_detr.py`, behind ordinary module calls: everything can be read without them.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .backbone_detr import (
        Backbone as Backbone,
        FrozenBatchNorm2d as FrozenBatchNorm2d,
        Joiner as Joiner,
        PositionEmbeddingLearned as PositionEmbeddingLearned,
        PositionEmbeddingSine as PositionEmbeddingSine,
        build_position_encoding as build_position_encoding,
    )
    from .box_ops_detr import (
        box_cxcywh_to_xyxy as box_cxcywh_to_xyxy,
        box_iou as box_iou,
        box_xyxy_to_cxcywh as box_xyxy_to_cxcywh,
        generalized_box_iou as generalized_box_iou,
    )
    from .configuration_detr import DETRConfig as DETRConfig
    from .loss_detr import (
        HungarianMatcher as HungarianMatcher,
        Matches as Matches,
        PackedTargets as PackedTargets,
        SetCriterion as SetCriterion,
    )
    from .modeling_detr import (
        MLP as MLP,
        DETRForObjectDetection as DETRForObjectDetection,
        DETRModel as DETRModel,
        DETRModelOutput as DETRModelOutput,
        DETRObjectDetectionOutput as DETRObjectDetectionOutput,
        DETRPreTrainedModel as DETRPreTrainedModel,
    )
    from .predictions_detr import Predictions as Predictions
    from .transformer_detr import (
        MultiheadAttention as MultiheadAttention,
        Transformer as Transformer,
        TransformerDecoder as TransformerDecoder,
        TransformerDecoderLayer as TransformerDecoderLayer,
        TransformerEncoder as TransformerEncoder,
        TransformerEncoderLayer as TransformerEncoderLayer,
    )

__getattr__, __dir__ = lazy_names(__name__)
