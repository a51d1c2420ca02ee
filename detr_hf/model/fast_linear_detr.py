"""Linear layers of a transformer on processors where torch's own are the slower ones.

The layers stay `nn.Linear`, for whoever looks for these by their type. Wherever somebody could tell the difference
(traced, compiled, transformed, patched or hooked code, weights that are no plain tensors) the layer itself is called.
"""

import functools
import math
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .fast_kernels_detr import agree, allowed_on
from .fast_rules_detr import is_untouched

logger = logging.get_logger(__name__)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns `layer(x)`, by oneDNN's kernel where that is faster and nothing can tell the difference.

    torch multiplies matrices on the CPU by MKL, which on AMD's processors takes twice as long. In training MKL goes
    on, unless it is the slower one there too.
    """
    if type(layer) is not nn.Linear or not is_untouched(layer) or not _is_faster(layer.weight, x):
        return layer(x)
    if torch.is_grad_enabled():
        return _TrainedLinear.apply(x, layer.weight, layer.bias)
    return _multiply(x, layer.weight, layer.bias)


def _is_faster(weight: Tensor, x: Tensor) -> bool:
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
    return x.dtype == torch.float32 and x.dim() > 1 and _mkl_is_slow()


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
    sizes = ((2, 3, 8), (5, 8), (5,))
    x, weight, bias = (torch.linspace(-1, 2, math.prod(size), device="cpu").view(size).to(dtype) for size in sizes)
    try:
        found = _multiply(x, weight, bias)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.debug("No fused linear layers in %s: %s", dtype, error)
        return False
    return agree([found], [F.linear(x, weight, bias)], x.device, dtype)
