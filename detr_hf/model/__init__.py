"""DETR, part by part, as the paper builds it.

Read in this order: `backbone_detr`, `position_encoding_detr`, `attention_detr`, `transformer_detr`, `modeling_detr`,
then `matcher_detr` and `loss_detr`. What is only about speed lies in `fast_*_detr`, `kept_memory_detr` and
`compiling_detr`, behind ordinary module calls: everything can be read without them.

These files travel to the Hub with every checkpoint, flat: they import each other as `from .x_detr import y`, and
nothing else of this package.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .attention_detr import MultiheadAttention as MultiheadAttention
    from .backbone_detr import (
        Backbone as Backbone,
        FrozenBatchNorm2d as FrozenBatchNorm2d,
        Joiner as Joiner,
        build_backbone as build_backbone,
    )
    from .box_ops_detr import (
        box_cxcywh_to_xyxy as box_cxcywh_to_xyxy,
        box_iou as box_iou,
        box_xyxy_to_cxcywh as box_xyxy_to_cxcywh,
        generalized_box_iou as generalized_box_iou,
    )
    from .box_queries_detr import BoxDecoder as BoxDecoder, BoxQueries as BoxQueries
    from .configuration_detr import DETRConfig as DETRConfig
    from .feature_levels_detr import FeatureLevels as FeatureLevels
    from .loss_detr import SetCriterion as SetCriterion
    from .matcher_detr import HungarianMatcher as HungarianMatcher, Matches as Matches, PackedTargets as PackedTargets
    from .mlp_detr import MLP as MLP
    from .modeling_detr import (
        DETRForObjectDetection as DETRForObjectDetection,
        DETRForSegmentation as DETRForSegmentation,
        DETRModel as DETRModel,
    )
    from .outputs_detr import (
        DETRModelOutput as DETRModelOutput,
        DETRObjectDetectionOutput as DETRObjectDetectionOutput,
        DETRSegmentationOutput as DETRSegmentationOutput,
    )
    from .position_encoding_detr import (
        PositionEmbeddingLearned as PositionEmbeddingLearned,
        PositionEmbeddingSine as PositionEmbeddingSine,
        build_position_encoding as build_position_encoding,
    )
    from .predictions_detr import Predictions as Predictions
    from .presets_detr import PRESETS as PRESETS
    from .pretrained_detr import DETRPreTrainedModel as DETRPreTrainedModel
    from .queries_detr import DecoderQueries as DecoderQueries
    from .transformer_detr import (
        Transformer as Transformer,
        TransformerDecoder as TransformerDecoder,
        TransformerDecoderLayer as TransformerDecoderLayer,
        TransformerEncoder as TransformerEncoder,
        TransformerEncoderLayer as TransformerEncoderLayer,
        build_transformer as build_transformer,
    )

__getattr__, __dir__ = lazy_names(__name__)
