"""The transformer of DETR (paper, appendix A and figure 10), batch first.

What differs on purpose:

- from the original: query, key and value projections are separate `nn.Linear` layers and attention runs through
  transformers' attention interface (sdpa, eager, flash, flex), so that weights are only materialised when asked for;
  everything is (B, S, D);
- from transformers: `pre_norm` exists, dropout sits where the original trains with it, the un-normed state of a
  decoder layer goes on to the next whether or not the intermediate outputs are wanted, and there is no host sync.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_detr import DETRConfig
from .fast_kernels_detr import linear

SCORES = 2**20  # attention scores of all heads that `attention_by_rows` computes at a time
KEPT_SCORES = 2**24  # of one attention, that a backward pass may keep for the sake of speed


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
        reference: (B or 1, Q', 2), logits of x and y, added to the logits of the boxes' centres; None for zeros.
    """

    query_pos: Tensor
    tgt: Tensor | None = None
    query_sets: list[QuerySet] | None = None
    reference: Tensor | None = None

    def joined(self, others: "DecoderQueries") -> "DecoderQueries":
        """Returns these queries (zero targets) and, behind them, `others` (B, M, D), which have targets."""
        batch_size = len(others.query_pos)
        query_pos = self.query_pos.expand(batch_size, -1, -1)
        reference = None
        if self.reference is not None:
            reference = torch.cat([self.reference.expand(batch_size, -1, -1), others.reference], dim=1)
        return DecoderQueries(
            query_pos=torch.cat([query_pos, others.query_pos], dim=1),
            tgt=torch.cat([torch.zeros_like(query_pos, dtype=others.tgt.dtype), others.tgt], dim=1),
            query_sets=[*self.query_sets, *others.query_sets],
            reference=reference,
        )


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Returns attention written out: the result (B, Q, M, D/M) and the weights (B, M, Q, S).

    `query`, `key` and `value` are (B, M, Q or S, D/M); `attention_mask` broadcasts to (B, M, Q, S) and is True where
    attending is allowed, or is additive.
    """
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))  # not the scores, which are larger
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def attention_by_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """Returns what `eager_attention` returns, without the weights, computed for some queries at a time.

    Their scores stay in the processor's cache. `attention_mask` must be the same for all queries, (B, 1, 1, S), as the
    one of padding is.
    """
    batch_size, heads = query.shape[:2]
    key, value = (states.contiguous() for states in (key, value))
    rows = max(32, SCORES // (batch_size * heads * key.shape[2]))
    parts = [
        eager_attention(module, part, key, value, attention_mask, scaling, dropout)[0]
        for part in query.split(rows, dim=2)
    ]
    return torch.cat(parts, dim=1), None


def _faster_than_sdpa(query: Tensor, key: Tensor) -> Callable | None:
    """Returns what beats torch's fused attention in bfloat16 on a CPU, which is slow there, or None.

    Without gradients it is slow only where the processor lacks AMX. With gradients the weights are kept for the
    backward pass, so only up to `KEPT_SCORES` of them.
    """
    if query.dtype != torch.bfloat16 or not query.is_cpu:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if not torch.is_grad_enabled():
        return None if _has_amx() else attention_by_rows
    return eager_attention if query[..., 0].numel() * key.shape[2] <= KEPT_SCORES else None


@functools.cache
def _has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles, which torch's fused attention makes use of."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


class MultiheadAttention(nn.Module):
    """Multi-head attention without a causal mask; the original's `in_proj` is unpacked into q, k and v."""

    is_causal = False  # transformers' sdpa wrapper assumes a decoder otherwise

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.config = config  # read at every call, so that set_attn_implementation takes effect
        self.head_dim = config.hidden_dim // config.nheads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.dropout
        self.q_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.k_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.v_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask=None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the attended values (B, Q, D), and the weights (B, M, Q, S) with `output_attentions`, else None.

        Args:
            query: (B, Q, D).
            key, value: (B, S, D).
            attention_mask: what the attention implementation takes, or None without padding.
            output_attentions: run the eager implementation, the only one that has weights to show.
        """
        queries = self._split_heads(linear(self.q_proj, query))
        keys = self._split_heads(linear(self.k_proj, key))
        attend: Callable = eager_attention
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
            if self.config._attn_implementation == "sdpa":
                attend = _faster_than_sdpa(queries, keys) or attend
        attended, weights = attend(
            self,
            queries,
            keys,
            self._split_heads(linear(self.v_proj, value)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        attended = linear(self.out_proj, attended.reshape(*query.shape[:-1], -1))
        return attended, weights if output_attentions else None

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, M, S, D/M)


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


class _Layer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: the feed-forward network and the place of the norms."""

    def __init__(self, config: DETRConfig, num_blocks: int):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = MultiheadAttention(config)
        if num_blocks == 3:
            self.multihead_attn = MultiheadAttention(config)
        self.linear1 = nn.Linear(config.hidden_dim, config.dim_feedforward)
        self.dropout = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(config.dim_feedforward, config.hidden_dim)
        for block in range(1, num_blocks + 1):
            setattr(self, f"norm{block}", nn.LayerNorm(config.hidden_dim))
            setattr(self, f"dropout{block}", nn.Dropout(config.dropout))
        self.activation = ACT2FN[config.activation]

    def _residual(
        self, states: Tensor, block: Callable[[Tensor], Tensor], norm: nn.Module, dropout: nn.Module
    ) -> Tensor:
        if self.pre_norm:
            return states + dropout(block(norm(states)))
        return norm(states + dropout(block(states)))

    def _feed_forward(self, states: Tensor) -> Tensor:
        if type(self.activation) is nn.ReLU:
            hidden = linear(self.linear1, states, relu=True)
        else:
            hidden = self.activation(linear(self.linear1, states))
        return linear(self.linear2, self.dropout(hidden))


class TransformerEncoderLayer(_Layer):
    """Self-attention over the feature map, then a feed-forward network."""

    def __init__(self, config: DETRConfig):
        super().__init__(config, num_blocks=2)

    def forward(self, src: Tensor, pos: Tensor, attention_mask=None, output_attentions: bool = False):
        """Returns the new states (B, S, D) and the attention weights or None.

        `src` is (B, S, D); `pos` (B or 1, S, D) is added to queries and keys, never to values.
        """
        weights = None

        def attend(states: Tensor) -> Tensor:
            nonlocal weights
            query = states + pos
            attended, weights = self.self_attn(query, query, states, attention_mask, output_attentions)
            return attended

        src = self._residual(src, attend, self.norm1, self.dropout1)
        src = self._residual(src, self._feed_forward, self.norm2, self.dropout2)
        return src, weights


class TransformerDecoderLayer(_Layer):
    """Self-attention among the queries, cross-attention to the memory, then a feed-forward network."""

    def __init__(self, config: DETRConfig):
        super().__init__(config, num_blocks=3)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        key: Tensor,
        query_pos: Tensor,
        attention_mask=None,
        output_attentions: bool = False,
        query_sets: list[QuerySet] | None = None,
    ):
        """Returns the new states (B, Q, D), the self-attention weights and the cross-attention weights (or None).

        `tgt` is (B, Q, D), `memory` (B, S, D), `key` is `memory` plus its position encodings, `query_pos` (B or 1, Q,
        D). With `query_sets`, self-attention stays within their groups, and has no weights to show.
        """
        self_weights = cross_weights = None

        def attend_to_queries(states: Tensor) -> Tensor:
            nonlocal self_weights
            query = states + query_pos
            if query_sets is not None:
                return attend_within_groups(self.self_attn, query, states, query_sets)
            attended, self_weights = self.self_attn(query, query, states, None, output_attentions)
            return attended

        def attend_to_memory(states: Tensor) -> Tensor:
            nonlocal cross_weights
            attended, cross_weights = self.multihead_attn(
                states + query_pos, key, memory, attention_mask, output_attentions
            )
            return attended

        tgt = self._residual(tgt, attend_to_queries, self.norm1, self.dropout1)
        tgt = self._residual(tgt, attend_to_memory, self.norm2, self.dropout2)
        tgt = self._residual(tgt, self._feed_forward, self.norm3, self.dropout3)
        return tgt, self_weights, cross_weights


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, with a final norm under `pre_norm`."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.layers = nn.ModuleList([TransformerEncoderLayer(config) for _ in range(config.enc_layers)])
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None

    def forward(self, src: Tensor, pos: Tensor, attention_mask=None, output_attentions: bool = False):
        """Returns the memory (B, S, D), the input and output of every layer, and every layer's attention weights."""
        hidden_states, attentions = [src], []
        for layer in self.layers:
            src, weights = layer(src, pos, attention_mask, output_attentions)
            hidden_states.append(src)
            attentions.append(weights)
        if self.norm is not None:
            src = self.norm(src)
            hidden_states[-1] = src
        return src, hidden_states, attentions


class TransformerDecoder(nn.Module):
    """A stack of decoder layers with a final norm, which also norms the intermediate states it returns."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.layers = nn.ModuleList([TransformerDecoderLayer(config) for _ in range(config.dec_layers)])
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor,
        query_pos: Tensor,
        attention_mask=None,
        output_attentions: bool = False,
        query_sets: list[QuerySet] | None = None,
    ):
        """Returns every layer's un-normed input and output, its self-attention and its cross-attention weights."""
        hidden_states, self_attentions, cross_attentions = [tgt], [], []
        key = memory + pos
        for layer in self.layers:
            tgt, self_weights, cross_weights = layer(
                tgt, memory, key, query_pos, attention_mask, output_attentions, query_sets
            )
            hidden_states.append(tgt)
            self_attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        return hidden_states, self_attentions, cross_attentions


class Transformer(nn.Module):
    """Encoder and decoder. Attention has no causal mask, and the targets start as zeros."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.encoder = TransformerEncoder(config)
        self.decoder = TransformerDecoder(config)

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        queries: DecoderQueries,
        src_mask=None,
        memory_mask=None,
        output_attentions: bool = False,
    ):
        """Returns what encoder and decoder return, as two tuples.

        `src` is (B, S, D), `pos` (B or 1, S, D); `src_mask` keeps the encoder and `memory_mask` the cross-attention
        off the padding, in the form that the attention implementation takes.
        """
        encoded = self.encoder(src, pos, src_mask, output_attentions)
        memory, query_pos, tgt = encoded[0], queries.query_pos, queries.tgt
        if tgt is None:
            tgt = torch.zeros(1, 1, 1, dtype=memory.dtype, device=memory.device).expand(
                memory.shape[0], query_pos.shape[1], memory.shape[2]
            )
        decoded = self.decoder(tgt, memory, pos, query_pos, memory_mask, output_attentions, queries.query_sets)
        return encoded, decoded


__all__ = [
    "DecoderQueries",
    "MultiheadAttention",
    "QuerySet",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "attend_within_groups",
    "attention_by_rows",
    "eager_attention",
]
