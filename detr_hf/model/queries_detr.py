"""What goes into the decoder: object queries, groups of them that do not see each other (in training only), boxes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_detr import MultiheadAttention


@dataclass
class QuerySet:
    """Groups of object queries that see only their own group; several sets can go through the decoder at once.

    Attributes:
        groups: how many groups stand one after the other.
        size: queries of a group.
        mask: (B, 1, size, size), True where a query of a group may attend to another; None for everywhere.
    """

    groups: int
    size: int
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        return self.groups * self.size


@dataclass
class DecoderQueries:
    """What goes into the decoder. DETR has `query_pos` alone: zero targets, and queries that all see each other.

    Attributes:
        query_pos: (B or 1, Q', D), added to queries and keys.
        tgt: (B, Q', D), where the states begin; None for zeros.
        query_sets: which queries see each other; None for all.
        reference: (B or 1, Q', 2), logits of x and y, added to the logits of the boxes' centres; None for zeros. For
            box queries (L or 1, B, Q, 4), logits of what the box head's moves are added to, once that is known.
    """

    query_pos: Tensor
    tgt: Tensor | None = None
    query_sets: list[QuerySet] | None = None
    reference: Tensor | None = None

    def joined(self, others: "DecoderQueries") -> "DecoderQueries":
        """Returns these queries (zero targets) and, behind them, `others` (B, M, D), which have targets."""
        batch_size = len(others.query_pos)
        query_pos = self.query_pos.expand(batch_size, -1, -1)
        reference = others.reference
        if self.reference is not None:
            reference = torch.cat([self.reference.expand(batch_size, -1, -1), others.reference], dim=1)
        return DecoderQueries(
            query_pos=torch.cat([query_pos, others.query_pos], dim=1),
            tgt=torch.cat([torch.zeros_like(query_pos, dtype=others.tgt.dtype), others.tgt], dim=1),
            query_sets=[*self.query_sets, *others.query_sets],
            reference=reference,
        )


@dataclass
class Memory:
    """What a decoder reads whose queries are boxes: the tokens of all levels, finest first, and where they lie.

    Attributes:
        tokens: (B, S, D), the cells of every level, row by row.
        keys: (B, S, D), the same with their position encodings.
        valid: (B, S) bool, False on padding; None without padding.
        centres: (B or 1, S, 2), x and y in parts of the unpadded image; beyond 1 on padding.
        cells: (B or 1, S, 2), width and height of a token's cell, in parts of the unpadded image.
        finest: (B, h, w, E), a few channels of the finest level as a map, for the borders of boxes.
    """

    tokens: Tensor
    keys: Tensor
    valid: Tensor | None
    centres: Tensor
    cells: Tensor
    finest: Tensor


@dataclass
class FoundQueries:
    """The box queries that the encoder's tokens gave.

    Attributes:
        memory: the tokens.
        tokens: (B, S, D), what the heads that choose read; None without gradients, which nothing but time needs.
        logits: (B, S, K + 1), what every token says.
        boxes_cxcywh_norm: (B, Q, 4), where the queries begin; no gradient flows back through them.
        valid: (B, Q) bool, False for queries that a picture with too few cells has none for; None for all.
    """

    memory: Memory
    tokens: Tensor | None
    logits: Tensor
    boxes_cxcywh_norm: Tensor
    valid: Tensor | None


def attend_within_groups(
    attention: MultiheadAttention, query: Tensor, value: Tensor, query_sets: list[QuerySet]
) -> Tensor:
    """Returns self-attention (B, Q', D) in which a query sees its own group alone.

    A group is treated as a picture of its own, which costs less than a mask over all pairs.

    Args:
        attention: the layer's self-attention.
        query, value: (B, Q', D), the sets one after the other.
        query_sets: their lengths add up to Q'.
    """
    lengths = [query_set.length for query_set in query_sets]
    attended = []
    for query_set, queries, values in zip(query_sets, query.split(lengths, 1), value.split(lengths, 1), strict=True):
        shape = (query_set.groups, query_set.size)
        queries, values = queries.unflatten(1, shape).flatten(0, 1), values.unflatten(1, shape).flatten(0, 1)
        masked = query_set.mask is not None
        mask = query_set.mask.repeat_interleave(query_set.groups, dim=0) if masked else None
        # a masked set is small, and the written-out attention is the one that takes every mask
        result, _ = attention(queries, queries, values, mask, output_attentions=masked)
        attended.append(result.unflatten(0, (-1, query_set.groups)).flatten(1, 2))
    return torch.cat(attended, dim=1)
