"""Multi-head attention (paper, appendix A.1), batch first, without a causal mask.

What differs on purpose from the original: query, key and value projections are separate `nn.Linear` layers, where it
packs them into one `in_proj`, and attention runs through transformers' attention interface (sdpa, eager, flash, flex),
so that weights are only materialised when asked for.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from .configuration_detr import DETRConfig


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
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


def padding_mask(
    config: DETRConfig,
    queries: Tensor,
    valid: Tensor | None,
    output_attentions: bool = False,
    memory: Tensor | None = None,
) -> Any:
    """Returns what the attention implementation needs to ignore keys that are not `valid`; None for all valid.

    Args:
        config: names the implementation.
        queries: (B, Q, D).
        valid: (B, S) bool.
        output_attentions: the implementation is eager then.
        memory: (B, S, D) in cross-attention; None in self-attention.
    """
    if valid is None:
        return None
    if output_attentions or config._attn_implementation in (None, "eager", "sdpa"):
        return valid[:, None, None, :]  # without the host syncs of transformers' helper
    return create_bidirectional_mask(
        config=config, inputs_embeds=queries, attention_mask=valid, encoder_hidden_states=memory
    )


def call_layer(layer: nn.Module, states: Tensor) -> Tensor:
    """Returns `layer(states)`."""
    return layer(states)


class MultiheadAttention(nn.Module):
    """Every query attends to all keys, in `nheads` subspaces at once.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, MultiheadAttention
    >>> attention = MultiheadAttention(DETRConfig(hidden_dim=256, nheads=8))
    >>> queries, memory = torch.randn(2, 100, 256), torch.randn(2, 850, 256)
    >>> attended, weights = attention(queries, memory, memory, output_attentions=True)
    >>> attended.shape, weights.shape
    (torch.Size([2, 100, 256]), torch.Size([2, 8, 100, 850]))
    """

    is_causal = False  # transformers' sdpa wrapper assumes a decoder otherwise
    attention_functions: ClassVar[AttentionInterface] = ALL_ATTENTION_FUNCTIONS
    linear = staticmethod(call_layer)  # how linear layers are called

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
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the attended values (B, Q, D), and the weights (B, M, Q, S) with `output_attentions`, else None.

        Args:
            query: (B, Q, D).
            key, value: (B, S, D).
            attention_mask: what the attention implementation takes, or None without padding.
            output_attentions: run the eager implementation, the only one that has weights to show.
        """
        attend = eager_attention
        if not output_attentions:
            attend = self.attention_functions.get_interface(self._implementation(), eager_attention)
        attended, weights = attend(
            self,
            self._split_heads(self.linear(self.q_proj, query)),
            self._split_heads(self.linear(self.k_proj, key)),
            self._split_heads(self.linear(self.v_proj, value)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        attended = self.linear(self.out_proj, attended.reshape(*query.shape[:-1], -1))
        return attended, weights if output_attentions else None

    def _implementation(self) -> str:
        """Returns the name of the attention implementation."""
        return self.config._attn_implementation or "eager"  # None outside of a model

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, M, S, D/M)
