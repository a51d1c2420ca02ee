"""Linear layers and attention of a transformer on processors where torch's own are the slower ones.

The tensors, their names and `print(model)` stay those of the plain layers. Wherever somebody could tell the
difference (traced, compiled, transformed or hooked code, weights that are no plain tensors) the plain form runs.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.utils import logging

from .attention_detr import MultiheadAttention, eager_attention
from .fast_kernels_detr import agree, allowed_on

logger = logging.get_logger(__name__)

SCORES = 2**20  # attention scores of all heads that `attention_by_rows` computes at a time
KEPT_SCORES = 2**24  # of one attention, that a backward pass may keep for the sake of speed


def use_fast_layers(module: nn.Module) -> None:
    """Gives every linear layer and attention inside `module` the forward that suits the processor."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear
        elif isinstance(child, MultiheadAttention):
            child.attention_functions = ATTENTION_FUNCTIONS


class Linear(nn.Linear):
    """`nn.Linear` by oneDNN's kernel, where that is faster and nothing can tell the difference.

    torch multiplies matrices on the CPU by MKL, which on AMD's processors takes twice as long. In training MKL goes
    on, unless it is the slower one there too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_faster_for(x):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _TrainedLinear.apply(x, self.weight, self.bias)
        return _multiply(x, self.weight, self.bias)

    def _is_faster_for(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            x.is_cpu
            and type(x) is Tensor
            and type(weight) is nn.Parameter
            and weight.dtype == x.dtype
            and weight.is_contiguous()  # else oneDNN falls back on a loop that takes a thousand times as long
            and allowed_on(x)
            and (not torch.is_grad_enabled() or _trains_faster(x))
            and _fused_linear_works(x.dtype)
        )


class _TrainedLinear(torch.autograd.Function):
    """`F.linear` whose gradients are oneDNN's products as well: a weight's in 0.6 to 0.9 of MKL's time on AMD."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        multiply = F.linear if torch.is_grad_enabled() else _multiply  # gradients of gradients are autograd's
        grad = grad.contiguous()
        rows, grad_rows = x.flatten(0, -2), grad.flatten(0, -2)  # (N, in), (N, out)
        wanted = ctx.needs_input_grad
        return (
            multiply(grad, weight.t().contiguous()) if wanted[0] else None,
            multiply(grad_rows.t().contiguous(), rows.t().contiguous()) if wanted[1] else None,
            grad_rows.sum(0) if wanted[2] else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _trains_faster(x: Tensor) -> bool:
    """Whether oneDNN's products are faster than torch's in training: in bfloat16 both are oneDNN's."""
    return x.dtype == torch.float32 and x.dim() > 1 and forward_ad._current_level < 0 and _mkl_is_slow()


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether MKL leaves half of the vector width unused, as it does on AMD's processors with AVX-512."""
    if not torch.backends.mkl.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        processor = platform.processor()
    return "AuthenticAMD" in processor


@functools.cache
def _fused_linear_works(dtype: torch.dtype) -> bool:
    """Whether the operator gave the right numbers for a small example."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    x = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8).to(dtype)
    weight, bias = torch.linspace(-1, 2, 5 * 8).view(5, 8).to(dtype), torch.linspace(-1, 1, 5).to(dtype)
    try:
        found = _multiply(x, weight, bias)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.debug("No fused linear layers in %s: %s", dtype, error)
        return False
    return agree([found], [F.linear(x, weight, bias)], x.device, dtype)


def sdpa_attention(module: nn.Module, query: Tensor, key: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
    """Returns what transformers' "sdpa" returns, computed as is fastest; takes the same arguments."""
    attend = _faster_than_sdpa(query, key) or ALL_ATTENTION_FUNCTIONS["sdpa"]
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


# transformers' table of attention implementations, with ours in the place of "sdpa" for this model alone.
ATTENTION_FUNCTIONS = AttentionInterface()
ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention
