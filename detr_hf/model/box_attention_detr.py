"""Attention of queries that are boxes: to what lies about a query's box, and to queries whose boxes are near.

Plain attention knows of places by position encodings alone, which are no part of the values: it tells what it saw and
not where. Here the boxes say where to look, and where each head looked is told.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .attention_detr import MultiheadAttention, eager_attention
from .box_ops_detr import box_cxcywh_to_xyxy, box_iou
from .configuration_detr import DETRConfig
from .queries_detr import Memory

PRIOR_RADIUS = 0.5  # how far from the centre of a box the heads look at first, in half sides
PAIR_FEATURES, PAIR_WIDTH = 6, 16
LEAST_SIDE = 1e-3
UNSEEN = torch.finfo(torch.float16).min  # added to the score of what must not be seen


@dataclass
class Sight:
    """What cross-attention knows of places: the memory's, and those of the queries' boxes (B, Q, 4), cxcywh."""

    memory: Memory
    boxes_cxcywh_norm: Tensor


class BoxAttention(MultiheadAttention):
    """Cross-attention that prefers the surroundings of a query's box, and tells where in it each head looked.

    Each head has a centre and a width in units of the box, which depend on the query: a cell's score loses half the
    square of its distance from there, in widths (the Gaussian of SMCA, Gao et al., 2021, as an additive mask). Where
    the head looked, on average and relative to the box, goes into the result beside the values.
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
            bias = bias.masked_fill(~memory.valid[:, None, None], UNSEEN)
        dropout = self.dropout if self.training else 0.0
        attended, weights = eager_attention(self, query, key, value, bias.to(query.dtype), self.scaling, dropout)
        return attended, (weights.float() @ memory.centres[:, None]).transpose(1, 2), weights


class RelatedAttention(MultiheadAttention):
    """Self-attention among queries that knows how their boxes lie to each other (Relation-DETR, Hou et al., 2024).

    Each head adds to a score what a small network makes of the pair: overlap, distance and size relative to the own
    box, and whether the other was chosen before. What two queries found of one object can so be told from the start.
    """

    def __init__(self, config: DETRConfig):
        super().__init__(config)
        self.relation = nn.Sequential(  # of all pairs, which stand last: half the time of linear layers
            nn.Conv1d(PAIR_FEATURES, PAIR_WIDTH, 1), nn.ReLU(), nn.Conv1d(PAIR_WIDTH, config.nheads, 1)
        )

    def related(self, boxes_cxcywh_norm: Tensor, valid: Tensor | None = None) -> Tensor:
        """Returns (B, M, Q, Q), what is added to the scores of queries with these boxes (B, Q, 4).

        Queries that are not `valid` (B, Q) are not seen.
        """
        here, there = boxes_cxcywh_norm[:, :, None], boxes_cxcywh_norm[:, None]
        iou, _ = box_iou(box_cxcywh_to_xyxy(here), box_cxcywh_to_xyxy(there))
        centres, sides = boxes_cxcywh_norm.transpose(1, 2).split(2, dim=1)  # (B, 2, Q): x and y
        sides = sides.clamp(min=LEAST_SIDE)
        apart = ((centres[:, :, None] - centres[..., None]) / sides[..., None]).abs().log1p()
        larger = (sides[:, :, None] / sides[..., None]).log()
        order = torch.arange(iou.shape[-1], device=iou.device)
        before = (order < order[:, None]).to(iou.dtype).expand_as(iou)
        pairs = torch.cat([iou[:, None], apart, larger, before[:, None]], dim=1)  # (B, ., Q, Q)
        added = self.relation(pairs.flatten(2).to(self.relation[0].weight.dtype)).unflatten(2, iou.shape[1:])
        return added if valid is None else added.masked_fill(~valid[:, None, None], UNSEEN)

    def _implementation(self) -> str:
        """Returns the attention implementation: flash and flex attention take nothing that is added."""
        return "eager" if self.config._attn_implementation in (None, "eager") else "sdpa"


def start_cross_attention(attention: BoxAttention) -> None:
    """Makes the heads look at places on a circle in the box, each as wide as the box, whatever the query is."""
    prior = attention.prior
    angles = torch.arange(prior.out_features // 3) * (6 * math.pi / prior.out_features)
    places = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=-1) * PRIOR_RADIUS
    init.zeros_(prior.weight)
    init.copy_(prior.bias, places.flatten())
