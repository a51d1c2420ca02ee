"""Attention in bfloat16 on processors where torch's own is the slower one.

Wherever somebody could tell the difference (traced, compiled or transformed code, an attention that the user has put
in the place of transformers' own) transformers' form runs.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from .attention_detr import MultiheadAttention, call_layer, eager_attention
from .fast_linear_detr import apply_linear
from .fast_rules_detr import only_runs

SCORES = 2**20  # attention scores of all heads that `attention_by_rows` computes at a time
KEPT_SCORES = 2**24  # of one attention, that a backward pass may keep for the sake of speed
SDPA = ALL_ATTENTION_FUNCTIONS["sdpa"]


def use_fast_layers(module: nn.Module) -> None:
    """Gives every attention and every linear layer inside `module` the functions that suit the processor."""
    for child in module.modules():
        if type(child) is MultiheadAttention:  # one of another kind chooses for itself
            child.attention_functions = ATTENTION_FUNCTIONS
        if getattr(type(child), "linear", None) is call_layer:
            child.linear = apply_linear


def sdpa_attention(module: nn.Module, query: Tensor, key: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
    """Returns what transformers' "sdpa" returns, computed as is fastest; takes the same arguments."""
    attend = _faster_than_sdpa(query, key) or SDPA
    return attend(module, query, key, *args, **kwargs)


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
    if query.dtype != torch.bfloat16 or not query.is_cpu or not only_runs():
        return None
    if not torch.is_grad_enabled():
        return None if _has_amx() else attention_by_rows
    return eager_attention if query[..., 0].numel() * key.shape[2] <= KEPT_SCORES else None


@functools.cache
def _has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles, which torch's fused attention makes use of."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


class _AttentionFunctions(AttentionInterface):
    """transformers' table of attention implementations, with `sdpa_attention` where it has its own "sdpa"."""

    def get_interface(self, attn_implementation: str, default: Callable) -> Callable:
        found = ALL_ATTENTION_FUNCTIONS.get_interface(attn_implementation, default)
        return sdpa_attention if found is SDPA else found


ATTENTION_FUNCTIONS = _AttentionFunctions()
