"""Operations that one kernel does where torch runs two or three.

They are private operators of torch (oneDNN's on the CPU, cuDNN's on a GPU), and run only where they gave the right
numbers for a small example; whoever asks has a plain form to fall back on.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .fast_rules_detr import only_runs

logger = logging.get_logger(__name__)


class FusedKernels:
    """Convolution with ReLU, and convolution with addition and ReLU, as one kernel each."""

    def __init__(self, device_type: str):
        self.on_cuda = device_type == "cuda"

    def conv_relu(self, conv: nn.Conv2d, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Returns relu(conv(x)); on a CPU in the memory of `into` if given, which is all zeros."""
        if into is not None:
            return self.conv_add_relu(conv, x, into, in_place=True)
        if self.on_cuda:
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *_geometry(conv))
        operator = torch.ops.mkldnn._convolution_pointwise
        return operator(x, conv.weight, conv.bias, *_mkldnn_geometry(conv), "relu", [], "")

    def conv_add_relu(self, conv: nn.Conv2d, x: Tensor, other: Tensor, in_place: bool = False) -> Tensor:
        """Returns relu(conv(x) + other); on a CPU in the memory of `other` where that is allowed.

        New memory of this size is mapped page by page, which takes longer than a convolution of stage 1.
        """
        if self.on_cuda:
            return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1.0, conv.bias, *_geometry(conv))
        if in_place:
            return self._conv_add_(conv, x, other, "relu")
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        return operator(x, other, conv.weight, conv.bias, *_mkldnn_geometry(conv), "add", 1.0, "relu", [], "")

    def conv_into(self, conv: nn.Conv2d, x: Tensor, zeros: Tensor) -> Tensor:
        """Returns conv(x) in the memory of `zeros`; on a CPU only."""
        return self._conv_add_(conv, x, zeros, None)

    def _conv_add_(self, conv: nn.Conv2d, x: Tensor, other: Tensor, activation: str | None) -> Tensor:
        operator = torch.ops.mkldnn._convolution_pointwise_.binary
        return operator(other, x, conv.weight, conv.bias, *_mkldnn_geometry(conv), "add", 1.0, activation, [], "")


def _geometry(conv: nn.Conv2d) -> tuple:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _mkldnn_geometry(conv: nn.Conv2d) -> tuple:
    return conv.padding, conv.stride, conv.dilation, conv.groups


@functools.lru_cache(maxsize=16)
def fused_kernels(device: torch.device, dtype: torch.dtype) -> FusedKernels | None:
    """Returns kernels that gave the right numbers for a small example on this device, or None."""
    if device.type == "cpu" and not torch.backends.mkldnn.is_available():
        return None
    kernels = FusedKernels(device.type)
    conv = nn.Conv2d(8, 8, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    conv = conv.to(memory_format=torch.channels_last)
    values = torch.linspace(-2, 2, 2 * 8 * 6 * 6, device=device).view(2, 8, 6, 6).to(dtype)
    x = values.contiguous(memory_format=torch.channels_last)
    plain = conv(x)
    added = F.relu(plain + x)
    expected = [F.relu(plain), added]
    try:
        got = [kernels.conv_relu(conv, x), kernels.conv_add_relu(conv, x, x)]
        if device.type == "cpu":
            expected += [added, F.relu(plain), plain]
            got.append(kernels.conv_add_relu(conv, x, x.clone(), in_place=True))
            got.append(kernels.conv_relu(conv, x, into=torch.zeros_like(x)))
            got.append(kernels.conv_into(conv, x, torch.zeros_like(x)))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.debug("No fused convolutions on %s in %s: %s", device, dtype, error)
        return None
    return kernels if agree(got, expected, device, dtype) else None


def agree(got: list[Tensor], expected: list[Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an operator's results are those of the plain form, within what `dtype` rounds."""
    tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) or device.type == "cuda" else 1e-5
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(got, expected, strict=True))


def kernels_for(x: Tensor, weight: Tensor) -> FusedKernels | None:
    """Returns kernels that may run on `x` and `weight` as torch is set now, or None."""
    return fused_kernels(x.device, x.dtype) if x.dtype == weight.dtype and allowed_on(x) else None


def allowed_on(x: Tensor) -> bool:
    """Whether private operators may run on `x` as torch is set now."""
    if x.is_cpu:
        allowed = torch.backends.mkldnn.enabled
    else:
        allowed = torch.backends.cudnn.enabled and not torch.are_deterministic_algorithms_enabled()
    return allowed and not torch.is_autocast_enabled(x.device.type) and only_runs()
