"""Object queries that are boxes: chosen from the picture, moved by every decoder layer, and looked at where they lie.

DETR's queries are learned and know nothing of the picture; each decoder layer has to find the place of its object
anew, from attention over the whole picture. Here

- a small head asks every encoder token for an object; the best tokens' boxes are where the queries begin (two-stage
  Deformable DETR, Zhu et al., 2021);
- a query's position is the sine code of its box, and every layer moves that box a little (DAB-DETR, Liu et al., 2022);
- cross-attention prefers what is near the box: each head has a place and a width in it (SMCA, Gao et al., 2021), and
  says where in the box it looked, which plain attention does not: position encodings are no part of the values.

What differs on purpose from these: attention is the plain one over all cells, with what it prefers as an additive
mask, so that no operator of its own is needed; scores stay a softmax with no-object, as everywhere in this package.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .attention_detr import MultiheadAttention, call_layer, eager_attention, padding_mask
from .backbone_detr import Backbone, drop_full_mask
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
PRIOR_RADIUS = 0.5  # how far from the centre of a box the heads look at first, in half sides


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


@dataclass
class Sight:
    """What cross-attention knows of places: the memory's, and those of the queries' boxes (B, Q, 4), cxcywh."""

    memory: Memory
    boxes_cxcywh_norm: Tensor


class BoxAttention(MultiheadAttention):
    """Cross-attention that prefers the surroundings of a query's box, and tells where in it each head looked.

    Each head has a centre and a width in units of the box, which depend on the query: a cell's score loses half the
    square of its distance from there, in widths (SMCA's Gaussian, as an additive mask). Where the head looked, on
    average and relative to the box, goes into the result beside the values.
    """

    def __init__(self, config: DETRConfig):
        super().__init__(config)
        self.prior = nn.Linear(config.hidden_dim, 3 * config.nheads)  # x, y and the logarithm of the width
        self.where = nn.Linear(2 * config.nheads, config.hidden_dim)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, sight: Sight, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the attended values (B, Q, D), and the weights (B, M, Q, S) with `output_attentions`, else None.

        Args:
            query: (B, Q, D).
            key, value: (B, S, D).
            sight: where cells and queries lie.
            output_attentions: also return the weights, which are written out then.
        """
        memory, boxes = sight.memory, sight.boxes_cxcywh_norm
        centre, half_side = boxes[..., :2], boxes[..., 2:] / 2
        of_query, of_cell = self._preference(query, centre, half_side, memory)
        query = self._split_heads(self.linear(self.q_proj, query))
        attend = self._attend_in_one if self._may_fuse(query, output_attentions) else self._attend_written_out
        attended, looked_at, weights = attend(  # (B, Q, M, .)
            query,
            self._split_heads(self.linear(self.k_proj, key)),  # not named here: freed as soon as it has been read
            self._split_heads(self.linear(self.v_proj, value)),
            of_query,
            of_cell,
            memory,
        )
        offset = (looked_at - centre[:, :, None]) / half_side[:, :, None].clamp(min=1e-4)
        where = self.where(offset.flatten(2).to(attended.dtype))
        return self.linear(self.out_proj, attended.flatten(2)) + where, weights if output_attentions else None

    def _preference(self, query: Tensor, centre: Tensor, half_side: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Returns two float32 tensors, (B, M, Q, 5) and (B or 1, 1, S, 5), whose product is added to the scores.

        It says how near each cell p is to where a head looks: -(p - c)^2 / (2 w^2), written out.
        """
        wanted = self.prior(query).float().unflatten(-1, (-1, 3))  # (B, Q, M, 3)
        width = half_side[:, :, None].clamp(min=memory.cells[:, :1, None]) * wanted[..., 2:].exp()
        centre = centre[:, :, None] + wanted[..., :2] * half_side[:, :, None]
        sharpness = 0.5 / width**2
        of_query = torch.cat([-sharpness, 2 * sharpness * centre, -(sharpness * centre**2).sum(-1, True)], dim=-1)
        places = memory.centres
        of_cell = torch.cat([places**2, places, torch.ones_like(places[..., :1])], dim=-1)
        return of_query.transpose(1, 2), of_cell[:, None]

    def _may_fuse(self, query: Tensor, output_attentions: bool) -> bool:
        """Whether scores and preference may be one product: in float32, which alone can hold it, and not in a graph.

        A graph may run elsewhere in half precision.
        """
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        is_eager = output_attentions or self.config._attn_implementation in (None, "eager")
        return query.dtype == torch.float32 and not is_eager and not traced

    def _attend_in_one(
        self, query: Tensor, key: Tensor, value: Tensor, of_query: Tensor, of_cell: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, None]:
        """Returns the attended values (B, Q, M, D/M) and places (B, Q, M, 2), by torch's fused attention."""
        of_cell = of_cell.expand(*key.shape[:2], -1, -1)
        x_y, nothing = of_cell[..., 2:4], torch.zeros_like(of_cell[..., :3])  # a multiple of 4 for kernels of GPUs
        key = torch.cat([key, of_cell, nothing], dim=-1)
        value = torch.cat([value, x_y, nothing, nothing], dim=-1)
        attended = F.scaled_dot_product_attention(
            torch.cat([query * self.scaling, of_query, torch.zeros_like(of_query[..., :3])], dim=-1),
            key,
            value,
            None if memory.valid is None else memory.valid[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,
        )
        attended, looked_at, _ = attended.transpose(1, 2).split([self.head_dim, 2, 6], dim=-1)
        return attended, looked_at, None

    def _attend_written_out(
        self, query: Tensor, key: Tensor, value: Tensor, of_query: Tensor, of_cell: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the attended values (B, Q, M, D/M), the places (B, Q, M, 2) in float32, and the weights."""
        bias = of_query @ of_cell.transpose(2, 3)
        if memory.valid is not None:
            bias = bias.masked_fill(~memory.valid[:, None, None], torch.finfo(torch.float16).min)
        dropout = self.dropout if self.training else 0.0
        attended, weights = eager_attention(self, query, key, value, bias.to(query.dtype), self.scaling, dropout)
        return attended, (weights.float() @ memory.centres[:, None]).transpose(1, 2), weights


class BoxDecoderLayer(TransformerDecoderLayer):
    """A decoder layer whose cross-attention knows the queries' boxes; its `attention_mask` is a `Sight`."""

    cross_attention = BoxAttention


class BoxDecoder(TransformerDecoder):
    """A decoder whose queries are boxes that every layer moves."""

    layer_class = BoxDecoderLayer

    def __init__(self, config: DETRConfig):
        super().__init__(config)
        width = config.hidden_dim
        self.config = config
        self.box_embed = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(  # type: ignore[override]
        self,
        queries: DecoderQueries,
        found: FoundQueries,
        bbox_embed: nn.Module,
        output_attentions: bool = False,
    ) -> tuple[tuple[list[Tensor], list[Tensor | None], list[Tensor | None]], Tensor]:
        """Returns every layer's un-normed input and output, the attention weights of both kinds, and (L, B, Q, 4), the
        boxes that each layer began with.

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
        if query_sets and found.valid is not None:
            query_sets[0].mask = found.valid[:, None, None].expand(-1, 1, query_sets[0].size, -1)
        hidden_states, self_attentions, cross_attentions, references = [tgt], [], [], []
        seen = padding_mask(self.config, tgt, found.valid, output_attentions)
        for layer in self.layers:
            query_pos = self.box_embed(sine_of_boxes(boxes, tgt.shape[-1]).to(tgt.dtype))
            tgt, self_weights, cross_weights = layer(
                tgt, memory.tokens, memory.keys, query_pos, Sight(memory, boxes), output_attentions, query_sets, seen
            )
            references.append(boxes)
            boxes = moved_boxes(bbox_embed(self.norm(tgt)), boxes).detach()
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


def start_preference(prior: nn.Linear) -> None:
    """Makes the heads look at places on a circle in the box, each as wide as the box, whatever the query is."""
    angles = torch.arange(prior.out_features // 3) * (6 * math.pi / prior.out_features)
    places = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=-1) * PRIOR_RADIUS
    init.zeros_(prior.weight)
    init.copy_(prior.bias, places.flatten())


def start_box_heads(heads: nn.Module) -> None:
    """Makes `bbox_embed` leave boxes where they are, and `class_embed`, where there is one, expect next to nothing."""
    init.zeros_(heads.bbox_embed.layers[-1].weight)
    init.zeros_(heads.bbox_embed.layers[-1].bias)
    if hasattr(heads, "class_embed"):
        num_classes = heads.class_embed.out_features - 1
        bias = torch.zeros(num_classes + 1)
        bias[-1] = math.log(num_classes * (1 - OBJECT_PRIOR) / OBJECT_PRIOR)
        init.copy_(heads.class_embed.bias, bias)
