"""The transformer of DETR (paper, appendix A and figure 10), batch first.

What differs on purpose:

- from the original: query, key and value projections are separate `nn.Linear` layers and attention runs through
  transformers' attention interface (sdpa, eager, flash, flex), so that weights are only materialised when asked for;
  everything is (B, S, D);
- from transformers: `pre_norm` exists, dropout sits where the original trains with it, the un-normed state of a
  decoder layer goes on to the next whether or not the intermediate outputs are wanted, and there is no host sync.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_detr import DETRConfig


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
    scores = torch.matmul(query, key.transpose(-2, -1)) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


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
        attend: Callable = eager_attention
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, weights = attend(
            self,
            self._split_heads(self.q_proj(query)),
            self._split_heads(self.k_proj(key)),
            self._split_heads(self.v_proj(value)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        attended = self.out_proj(attended.reshape(*query.shape[:-1], -1))
        return attended, weights if output_attentions else None

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, M, S, D/M)


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
        return self.linear2(self.dropout(self.activation(self.linear1(states))))


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
    ):
        """Returns the new states (B, Q, D), the self-attention weights and the cross-attention weights (or None).

        `tgt` is (B, Q, D), `memory` (B, S, D), `key` is `memory` plus its position encodings, `query_pos` (1, Q, D).
        """
        self_weights = cross_weights = None

        def attend_to_queries(states: Tensor) -> Tensor:
            nonlocal self_weights
            query = states + query_pos
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
    ):
        """Returns every layer's un-normed input and output, its self-attention and its cross-attention weights."""
        hidden_states, self_attentions, cross_attentions = [tgt], [], []
        key = memory + pos
        for layer in self.layers:
            tgt, self_weights, cross_weights = layer(tgt, memory, key, query_pos, attention_mask, output_attentions)
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
        query_pos: Tensor,
        src_mask=None,
        memory_mask=None,
        output_attentions: bool = False,
    ):
        """Returns what encoder and decoder return, as two tuples.

        `src` is (B, S, D), `pos` (B or 1, S, D), `query_pos` (1, Q, D); `src_mask` keeps the encoder and `memory_mask`
        the cross-attention off the padding, in the form that the attention implementation takes.
        """
        encoded = self.encoder(src, pos, src_mask, output_attentions)
        memory = encoded[0]
        tgt = torch.zeros(1, 1, 1, dtype=memory.dtype, device=memory.device).expand(
            memory.shape[0], query_pos.shape[1], memory.shape[2]
        )
        return encoded, self.decoder(tgt, memory, pos, query_pos, memory_mask, output_attentions)


__all__ = [
    "MultiheadAttention",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "eager_attention",
]
