"""The transformer of DETR (paper, appendix A and figure 10), batch first.

What differs on purpose:

- from the original: everything is (B, S, D), and one path serves layers that normalise after a block (the paper) and
  before it (`pre_norm`);
- from transformers: `pre_norm` exists, dropout sits where the original trains with it, the un-normed state of a
  decoder layer goes on to the next whether or not the intermediate outputs are wanted, and there is no host sync.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_detr import MultiheadAttention, call_layer
from .configuration_detr import DETRConfig
from .fast_attention_detr import use_fast_layers
from .queries_detr import DecoderQueries, QuerySet, attend_within_groups


class _Layer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: the feed-forward network and the place of the norms."""

    linear = staticmethod(call_layer)
    self_attention: ClassVar[type[nn.Module]] = MultiheadAttention
    cross_attention: ClassVar[type[nn.Module]] = MultiheadAttention

    def __init__(self, config: DETRConfig, num_blocks: int):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = self.self_attention(config)
        if num_blocks == 3:
            self.multihead_attn = self.cross_attention(config)
        self.linear1 = nn.Linear(config.hidden_dim, config.dim_feedforward)
        self.dropout = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(config.dim_feedforward, config.hidden_dim)
        for block in range(1, num_blocks + 1):
            setattr(self, f"norm{block}", nn.LayerNorm(config.hidden_dim))
            setattr(self, f"dropout{block}", nn.Dropout(config.dropout))
        self.activation = ACT2FN[config.activation]

    def before(self, norm: nn.Module, states: Tensor) -> Tensor:
        """Returns what a block reads: the normed states under `pre_norm`, else the states."""
        return norm(states) if self.pre_norm else states

    def after(self, norm: nn.Module, states: Tensor) -> Tensor:
        """Returns what a block and its residual branch leave: the normed sum, or under `pre_norm` the sum."""
        return states if self.pre_norm else norm(states)

    def feed_forward(self, states: Tensor) -> Tensor:
        """Returns two linear layers with the activation between them, (B, S, D)."""
        states = self.activation(self.linear(self.linear1, states))
        return self.linear(self.linear2, self.dropout(states))


class TransformerEncoderLayer(_Layer):
    """Self-attention over the feature map, then a feed-forward network.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, TransformerEncoderLayer
    >>> layer = TransformerEncoderLayer(DETRConfig(hidden_dim=256))
    >>> states, weights = layer(torch.randn(2, 850, 256), pos=torch.randn(1, 850, 256))
    >>> states.shape
    torch.Size([2, 850, 256])
    """

    def __init__(self, config: DETRConfig):
        super().__init__(config, num_blocks=2)

    def forward(
        self, src: Tensor, pos: Tensor, attention_mask: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the new states (B, S, D) and the attention weights or None.

        `src` is (B, S, D); `pos` (B or 1, S, D) is added to queries and keys, never to values.
        """
        states = self.before(self.norm1, src)
        query = states + pos
        attended, weights = self.self_attn(query, query, states, attention_mask, output_attentions)
        src = self.after(self.norm1, src + self.dropout1(attended))
        states = self.before(self.norm2, src)
        return self.after(self.norm2, src + self.dropout2(self.feed_forward(states))), weights


class TransformerDecoderLayer(_Layer):
    """Self-attention among the queries, cross-attention to the memory, then a feed-forward network.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, TransformerDecoderLayer
    >>> layer = TransformerDecoderLayer(DETRConfig(hidden_dim=256))
    >>> memory, pos, query_pos = torch.randn(2, 850, 256), torch.randn(1, 850, 256), torch.randn(1, 100, 256)
    >>> tgt, *_ = layer(torch.zeros(2, 100, 256), memory, key=memory + pos, query_pos=query_pos)
    >>> tgt.shape
    torch.Size([2, 100, 256])
    """

    def __init__(self, config: DETRConfig):
        super().__init__(config, num_blocks=3)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        key: Tensor,
        query_pos: Tensor,
        attention_mask: Any = None,
        output_attentions: bool = False,
        query_sets: list[QuerySet] | None = None,
        self_mask: Any = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns the new states (B, Q, D), the self-attention weights and the cross-attention weights (or None).

        `tgt` is (B, Q, D), `memory` (B, S, D), `key` is `memory` plus its position encodings, `query_pos` (B or 1, Q,
        D). With `query_sets`, self-attention stays within their groups, and has no weights to show; `self_mask` keeps
        it off some queries.
        """
        states = self.before(self.norm1, tgt)
        query = states + query_pos
        if query_sets is None:
            attended, self_weights = self.self_attn(query, query, states, self_mask, output_attentions)
        else:
            attended, self_weights = attend_within_groups(self.self_attn, query, states, query_sets), None
        tgt = self.after(self.norm1, tgt + self.dropout1(attended))

        query = self.before(self.norm2, tgt) + query_pos
        attended, cross_weights = self.multihead_attn(query, key, memory, attention_mask, output_attentions)
        tgt = self.after(self.norm2, tgt + self.dropout2(attended))

        states = self.before(self.norm3, tgt)
        tgt = self.after(self.norm3, tgt + self.dropout3(self.feed_forward(states)))
        return tgt, self_weights, cross_weights


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, with a final norm under `pre_norm`."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.layers = nn.ModuleList([TransformerEncoderLayer(config) for _ in range(config.enc_layers)])
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None

    def forward(
        self, src: Tensor, pos: Tensor, attention_mask: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
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

    layer_class: ClassVar[type[nn.Module]] = TransformerDecoderLayer

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.layers = nn.ModuleList([self.layer_class(config) for _ in range(config.dec_layers)])
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor,
        query_pos: Tensor,
        attention_mask: Any = None,
        output_attentions: bool = False,
        query_sets: list[QuerySet] | None = None,
    ) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
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
    """Encoder and decoder. Attention has no causal mask, and the targets start as zeros.

    >>> import torch
    >>> from detr_hf.model import DecoderQueries, DETRConfig, Transformer
    >>> transformer = Transformer(DETRConfig(hidden_dim=256, enc_layers=6, dec_layers=6))
    >>> queries = DecoderQueries(query_pos=torch.randn(1, 100, 256))
    >>> (memory, *_), (states, *_) = transformer(torch.randn(2, 850, 256), torch.randn(1, 850, 256), queries)
    >>> memory.shape, len(states), states[-1].shape  # the zero targets, then every layer
    (torch.Size([2, 850, 256]), 7, torch.Size([2, 100, 256]))
    """

    def __init__(self, config: DETRConfig, decoder: nn.Module | None = None):
        super().__init__()
        self.encoder = TransformerEncoder(config)
        self.decoder = TransformerDecoder(config) if decoder is None else decoder
        use_fast_layers(self)

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        queries: DecoderQueries,
        src_mask: Any = None,
        memory_mask: Any = None,
        output_attentions: bool = False,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
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


def build_transformer(config: DETRConfig) -> Transformer:
    """Returns the transformer that `config` describes, 6 + 6 layers in the paper.

    >>> from detr_hf.model import DETRConfig, build_transformer
    >>> transformer = build_transformer(DETRConfig())
    >>> len(transformer.encoder.layers), len(transformer.decoder.layers)
    (6, 6)
    """
    return Transformer(config)
