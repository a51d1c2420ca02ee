"""Object queries that are boxes: chosen from the picture, moved by every decoder layer, and looked at where they lie.

DETR's queries are learned and know nothing of the picture; each decoder layer has to find the place of its object
anew, from attention over the whole picture. Here

- a small head asks every encoder token for an object; the best tokens' boxes are where the queries begin (two-stage
  Deformable DETR, Zhu et al., 2021);
- a query's position is the sine code of its box, and every layer moves that box a little (DAB-DETR, Liu et al., 2022);
- cross-attention prefers what is near the box, and self-attention knows how the boxes of two queries lie to each other
  (`box_attention_detr.py`); the borders of a box are seen between the cells (`box_borders_detr.py`).

What differs on purpose from these: attention is the plain one over all cells, with what it prefers as an additive
mask, so that no operator of its own is needed; scores stay a softmax with no-object, as everywhere in this package.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention_detr import call_layer
from .backbone_detr import Backbone, drop_full_mask
from .box_attention_detr import BoxAttention, RelatedAttention, Sight
from .box_borders_detr import BoxBorders
from .box_ops_detr import logit_of_boxes
from .configuration_detr import DETRConfig
from .fast_attention_detr import use_fast_layers
from .feature_levels_detr import FeatureLevels
from .mlp_detr import MLP
from .position_encoding_detr import sine_of_boxes
from .predictions_detr import Predictions
from .queries_detr import DecoderQueries, FoundQueries, Memory
from .transformer_detr import TransformerDecoder, TransformerDecoderLayer

ANCHOR = 0.05  # side of the box that a token of the finest level starts from, in parts of the image
INVALID = -1e4  # score of a cell of padding
NOTHING = -50.0  # logit of a class that is not there; its negative is no-object's
OBJECT_PRIOR = 0.01  # probability of an object that a new class head begins with (focal loss, Lin et al., 2017)


class BoxQueries(nn.Module):
    """Lays out what the decoder reads, asks every token for a class and a box, and takes the best as queries."""

    linear = staticmethod(call_layer)

    def __init__(self, config: DETRConfig, backbone: Backbone):
        super().__init__()
        width, count = config.hidden_dim, config.num_feature_levels
        self.strides = backbone.body.feature_info.reduction()[-count:]
        self.levels = FeatureLevels(config, backbone.num_channels[-count:-1])
        self.num_queries = config.num_queries
        self.token_proj = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.class_embed = nn.Linear(width, config.num_labels + 1)
        self.bbox_embed = MLP(width, width, 4, 3)
        use_fast_layers(self)

    def find(
        self,
        encode_position: nn.Module,
        memory: Tensor,
        features: list[tuple[Tensor, Tensor | None]],
        sizes_hw: Tensor,
    ) -> FoundQueries:
        """Returns the queries of a batch.

        Args:
            encode_position: the position encoding, of a map and its mask.
            memory: (B, h w, D), the encoder's, of the last feature map.
            features: (feature map (B, C', ., .), mask (B, ., .) or None) of the backbone's stages, finest first.
            sizes_hw: (B, 2), of the unpadded images in pixels.
        """
        features = features[-len(self.strides) :]
        coarsest = memory.transpose(1, 2).unflatten(2, features[-1][0].shape[-2:])
        masks = [mask for _, mask in features]
        if masks[0] is None or drop_full_mask(masks[0]) is None:
            masks = [None] * len(masks)
        elif masks[-1] is None:  # the padding is narrower than a cell of the last map
            masks[-1] = torch.ones_like(features[-1][0][:, 0], dtype=torch.bool)
        levels = self.levels(coarsest, [feature_map for feature_map, _ in features[:-1]], masks)
        return self(self.levels.memory(levels, encode_position, masks, self.strides, sizes_hw))

    def forward(self, memory: Memory) -> FoundQueries:
        """Returns what all tokens say, and the boxes of the best."""
        tokens = self.read(memory)
        logits = self.class_embed(tokens)
        raw = logits.detach().float()
        scores = raw[..., :-1].logsumexp(dim=-1) - raw[..., -1]  # the logit of any class: two never are 1.0 alike
        if memory.valid is not None:
            scores = scores.masked_fill(~memory.valid, INVALID)
        missing = self.num_queries - scores.shape[1]
        is_short = not torch.jit.is_tracing() and not torch.compiler.is_compiling() and missing > 0
        best = scores.topk(scores.shape[1] if is_short else self.num_queries, dim=1)
        chosen, valid = best.indices, None if memory.valid is None and not is_short else best.values > INVALID
        if is_short:  # a picture with fewer cells than queries: the last are repeated, and count for nothing
            chosen = torch.cat([chosen, chosen[:, -1:].expand(-1, missing)], dim=1)
            valid = torch.cat([valid, valid.new_zeros(valid.shape[0], missing)], dim=1)
        boxes = self.boxes_of(tokens, memory, chosen).detach()
        return FoundQueries(memory, tokens if torch.is_grad_enabled() else None, logits, boxes, valid)

    def read(self, memory: Memory) -> Tensor:
        """Returns what the heads that choose read of the tokens, (B, S, D)."""
        projection, norm = self.token_proj
        return norm(self.linear(projection, memory.tokens))

    def boxes_of(self, tokens: Tensor, memory: Memory, chosen: Tensor | None = None) -> Tensor:
        """Returns the boxes (B, n, 4) float32 of the `chosen` tokens (B, n), or of all."""
        # the anchor grows with the cells: the finest has ANCHOR, and one of twice the stride twice as much
        sides = ANCHOR * memory.cells / memory.cells[:, :1]
        anchors = torch.cat([memory.centres, sides], dim=-1)
        if chosen is not None:
            tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
            anchors = anchors.expand(tokens.shape[0], -1, -1).gather(1, chosen[..., None].expand(-1, -1, 4))
        return moved_boxes(self.bbox_embed(tokens), anchors)


class BoxDecoderLayer(TransformerDecoderLayer):
    """A decoder layer that knows the queries' boxes; its `attention_mask` is a `Sight`."""

    self_attention = RelatedAttention
    cross_attention = BoxAttention


class BoxDecoder(TransformerDecoder):
    """A decoder whose queries are boxes that every layer moves."""

    layer_class = BoxDecoderLayer

    def __init__(self, config: DETRConfig):
        super().__init__(config)
        width = config.hidden_dim
        self.borders = BoxBorders(config)
        self.box_embed = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(  # type: ignore[override]
        self,
        queries: DecoderQueries,
        found: FoundQueries,
        bbox_embed: nn.Module,
        output_attentions: bool = False,
    ) -> tuple[tuple[list[Tensor], list[Tensor | None], list[Tensor | None]], Tensor]:
        """Returns every layer's un-normed input and output, the attention weights of both kinds, and (L, B, Q, 4), the
        logits of boxes that the moves of each layer's box head are added to.

        Args:
            queries: `query_pos` is where the states begin: (1, Q, D), learned. Behind them may stand others (B, M, D),
                whose boxes begin at `reference`, in sets that do not see each other.
            found: what there is to read, and where the boxes of the Q begin.
            bbox_embed: the box head, which says how a layer moves them.
            output_attentions: also return the weights.
        """
        boxes, memory = found.boxes_cxcywh_norm, found.memory
        tgt, query_sets = queries.query_pos.expand(boxes.shape[0], -1, -1), queries.query_sets
        if queries.reference is not None:
            boxes = torch.cat([boxes, queries.reference.sigmoid()], dim=1)
        hidden_states, self_attentions, cross_attentions, references = [tgt], [], [], []
        for layer in self.layers:
            seen = layer.self_attn.related(boxes[:, : found.boxes_cxcywh_norm.shape[1]], found.valid)
            if query_sets:
                query_sets[0].mask, seen = seen, None
            query_pos = self.box_embed(sine_of_boxes(boxes, tgt.shape[-1]).to(tgt.dtype))
            tgt, self_weights, cross_weights = layer(
                tgt, memory.tokens, memory.keys, query_pos, Sight(memory, boxes), output_attentions, query_sets, seen
            )
            state = self.norm(tgt)
            start = logit_of_boxes(boxes) + self.borders(state, boxes, memory).float()
            references.append(start)
            boxes = (bbox_embed(state).float() + start).sigmoid().detach()
            hidden_states.append(tgt)
            self_attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        return (hidden_states, self_attentions, cross_attentions), torch.stack(references)


def moved_boxes(moves: Tensor, boxes_cxcywh_norm: Tensor) -> Tensor:
    """Returns the boxes (..., 4) that `moves` (..., 4), in logits, make of others."""
    return (moves.float() + logit_of_boxes(boxes_cxcywh_norm)).sigmoid()


def without_invalid(predictions: Predictions, valid: Tensor | None) -> Predictions:
    """Returns the predictions with nothing found by queries that are not `valid` (B, Q); None for all valid."""
    if valid is None:
        return predictions
    is_class = torch.arange(predictions.logits.shape[-1], device=valid.device) < predictions.logits.shape[-1] - 1
    nothing = torch.where(is_class, NOTHING, -NOTHING).to(predictions.logits.dtype)
    return predictions._replace(logits=torch.where(valid[..., None], predictions.logits, nothing))


def start_box_heads(heads: nn.Module) -> None:
    """Makes `bbox_embed` leave boxes where they are, and `class_embed`, where there is one, expect next to nothing."""
    init.zeros_(heads.bbox_embed.layers[-1].weight)
    init.zeros_(heads.bbox_embed.layers[-1].bias)
    if hasattr(heads, "class_embed"):
        num_classes = heads.class_embed.out_features - 1
        bias = torch.zeros(num_classes + 1)
        bias[-1] = math.log(num_classes * (1 - OBJECT_PRIOR) / OBJECT_PRIOR)
        init.copy_(heads.class_embed.bias, bias)
