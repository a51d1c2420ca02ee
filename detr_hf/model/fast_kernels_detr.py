"""Operations that one kernel does where torch runs two or three, or slower ones, and memory kept for their results.

They are private operators of torch (oneDNN's on the CPU, cuDNN's on a GPU), and run only where they gave the right
numbers for a small example; whoever asks has a plain form to fall back on.
"""

import functools
import platform
import threading
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers.utils import logging

logger = logging.get_logger(__name__)

LARGE = 12 * 2**20  # bytes from which on a result's memory is kept
KEPT_AT_MOST = 2**30  # bytes


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
    return kernels if _agree(got, expected, device, dtype) else None


def _agree(got: list[Tensor], expected: list[Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) or device.type == "cuda" else 1e-5
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(got, expected, strict=True))


def kernels_for(x: Tensor, weight: Tensor) -> FusedKernels | None:
    """Returns kernels that may run on `x` and `weight` as torch is set now, or None."""
    return fused_kernels(x.device, x.dtype) if x.dtype == weight.dtype and _allowed_on(x) else None


def _allowed_on(x: Tensor) -> bool:
    if torch.is_autocast_enabled(x.device.type) or (x.is_cpu and not torch.backends.mkldnn.enabled):
        return False
    return only_runs()


def only_runs() -> bool:
    """Whether operations are run and nothing else: no compiler, mode (FLOP counters) or transform looks at each.

    Those know torch's public operations alone.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    )


# ------------------------------------------------------------------------------------------------------- linear layers


def linear(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    """Returns `layer(x)`, or relu(layer(x)), by oneDNN's kernel where nothing can tell the difference.

    torch multiplies matrices on the CPU by MKL, which on AMD's processors takes twice as long. Traced and hooked
    layers, and those that stand in for `nn.Linear`, are called; so are all in training, unless MKL is the slower one.
    """
    fused = _has_fused_linear(layer, x)
    if fused and not torch.is_grad_enabled():
        return _multiply(x, layer.weight, layer.bias, "relu" if relu else "none")
    y = _TrainedLinear.apply(x, layer.weight, layer.bias) if fused else layer(x)
    return F.relu(y) if relu else y


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


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def _has_fused_linear(layer: nn.Linear, x: Tensor) -> bool:
    return (
        x.is_cpu
        and type(layer) is nn.Linear
        and type(x) is Tensor
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == x.dtype
        and layer.weight.is_contiguous()  # else oneDNN falls back on a loop that takes a thousand times as long
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
        and _allowed_on(x)
        and (not torch.is_grad_enabled() or _trains_faster(x))
        and _fused_linear_works(x.dtype)
    )


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
    expected = F.linear(x, weight, bias)
    try:
        got = [_multiply(x, weight, bias, activation) for activation in ("none", "relu")]
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.debug("No fused linear layers in %s: %s", dtype, error)
        return False
    return _agree(got, [expected, F.relu(expected)], x.device, dtype)


# --------------------------------------------------------------------------------------------------------- kept memory


class KeptMemory:
    """Memory of large feature maps, which is used again instead of being given back to the system.

    glibc gives back blocks of this size at once, and the system maps a new one page by page when it is written to:
    that takes longer than the convolution that writes. A block is used again when no tensor is left that lies in it,
    so a feature map that somebody keeps stays as it is.
    """

    def __init__(self):
        self._blocks: list[Tensor] = []
        self._lock = threading.Lock()

    def zeros(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor | None:
        """Returns zeros (B, C, h, w) in channels-last order, or None where keeping memory is of no use."""
        batch_size, channels, height, width = shape
        size = batch_size * channels * height * width
        needed = size * dtype.itemsize
        if not LARGE <= needed <= KEPT_AT_MOST or not _counts_uses():
            return None
        with self._lock, torch.inference_mode(False), torch.no_grad():
            values = self._block(needed)[:needed].view(dtype)
        return values.view(batch_size, height, width, channels).permute(0, 3, 1, 2).zero_()

    def release(self) -> None:
        """Gives the memory back to the system, as far as no tensor lies in it."""
        with self._lock:
            self._blocks = []

    def _block(self, needed: int) -> Tensor:
        """Returns the smallest free block of at least so many bytes; a new one takes the place of smaller ones."""
        free = sorted((block for block in self._blocks if _uses(block) == 1), key=len)
        for block in free:
            if len(block) >= needed:
                return block
        if free:
            self._remove(free.pop())
        while free and sum(map(len, self._blocks)) + needed > KEPT_AT_MOST:
            self._remove(free.pop())
        block = torch.empty(needed, dtype=torch.uint8)
        if sum(map(len, self._blocks)) + needed <= KEPT_AT_MOST:
            self._blocks.append(block)
        return block

    def _remove(self, block: Tensor) -> None:
        self._blocks = [other for other in self._blocks if other is not block]


def _uses(block: Tensor) -> int:
    """Returns how many tensors lie in the memory of `block`, itself included."""
    storage = block.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1  # the storage object of this call


@functools.cache
def _counts_uses() -> bool:
    """Whether this build of torch tells how many tensors share a memory."""
    block = torch.empty(8)
    try:
        alone = _uses(block)
        view = block[2:].view(2, 3)
        shared = _uses(block)
        del view
        return (alone, shared, _uses(block)) == (1, 2, 1)
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.debug("Memory of feature maps is not kept: %s", error)
        return False


__all__ = ["FusedKernels", "KeptMemory", "fused_kernels", "kernels_for", "linear", "only_runs"]
