"""Inference speed: this model beside transformers' DETR with the same weights, sdpa attention, no gradients.

The record also says how far from the machine's limit both are: the floating-point operations that a forward pass takes
a second, beside those of one large matrix product or convolution, whichever is faster.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .measuring import check_device, compare, differences, environment, require_agreement, seconds, synchronize
from .models import dtype_named, random_pair, random_pixels

# With random weights the logits of a bfloat16 model move this much by rounding alone, in transformers' model too.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.1}
SIDE = 2048  # of the matrices that measure the machine
CHANNELS = 256  # of the convolution that does


@torch.no_grad()  # a model made or converted in inference mode is not folded
def compare_forward(
    device: str,
    dtype: str,
    batch: int,
    size_hw: tuple[int, int],
    padded: bool,
    compile_ours: bool,
    compile_peer: bool,
    runs: int,
    peer_dtype: str | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Returns the record of one comparison; `dtype` is that of both sides unless `peer_dtype` is given.

    Raises:
        ValueError: for a device that is not there, or outputs that do not agree.
    """
    check_device(device)
    ours, peer = random_pair(device, **config)
    pixel_values, pixel_mask = random_pixels(batch, size_hw, device, padded)
    inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
    exact = require_agreement(differences(ours(**inputs), peer(**inputs)), tolerance_in_float32(device))
    peer_dtype = peer_dtype or dtype
    ours, peer = ours.to(dtype_named(dtype)), peer.to(dtype_named(peer_dtype))
    peer_inputs = inputs | {"pixel_values": pixel_values.to(dtype_named(peer_dtype))}
    inputs["pixel_values"] = pixel_values.to(dtype_named(dtype))
    operations = floating_point_operations(ours, inputs)
    compilation = {}
    if compile_ours:
        ours.optimize_for_inference(compile=True)
        compilation["ours_s"] = _first_call(partial(ours, **inputs), device)
    if compile_peer:
        peer = compiled_peer(peer)
        compilation["peer_s"] = _first_call(partial(peer, **peer_inputs), device)
    tolerance = max(TOLERANCE[dtype], TOLERANCE[peer_dtype])
    moved = require_agreement(differences(ours(**inputs), peer(**peer_inputs)), tolerance)
    settings = {"device": device, "dtype": dtype, "peer_dtype": peer_dtype}
    settings |= {"batch": batch, "size_hw": list(size_hw), "padded": padded}
    settings |= {"compile": compile_ours, "compile_peer": compile_peer, **config}
    record = {"environment": environment(device), "settings": settings, "difference_float32": exact}
    record |= {"difference": moved} if {dtype, peer_dtype} != {"float32"} else {}
    record |= {"first_call": compilation} if compilation else {}
    machine = fastest_rate(device, dtype)
    record["forward"] = compare(partial(ours, **inputs), partial(peer, **peer_inputs), runs, device)
    record["gflop_a_second"] = {
        "ours": operations / record["forward"]["ours_s"] / 1e9,
        "peer": operations / record["forward"]["peer_s"] / 1e9,
        "machine": max(machine, fastest_rate(device, dtype)) / 1e9,
        "gflop_of_a_forward": operations / 1e9,
    }
    return record


def floating_point_operations(model: nn.Module, inputs: dict[str, Tensor | None]) -> int:
    """Returns what a forward pass of `model` multiplies and adds, a product with its addition being two operations."""
    model = copy.deepcopy(model).to("meta")  # nothing is computed, and no fused kernel hides a convolution
    inputs = {name: value if value is None else value.to("meta") for name, value in inputs.items()}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return counter.get_total_flops()


def fastest_rate(device: str, dtype: str) -> float:
    """Returns the operations a second of the product of two matrices of `SIDE`, or of a convolution if that has more.

    Each is the fastest of ten. torch multiplies and convolves by different libraries.
    """
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype_named(dtype))
    product = 2 * SIDE**3 / min(seconds(partial(torch.mm, a, b), device) for _ in range(10))
    pixels = a.view(1, CHANNELS, -1, SIDE // 16).contiguous(memory_format=torch.channels_last)
    weight = b.flatten()[: 9 * CHANNELS**2].view(CHANNELS, CHANNELS, 3, 3)
    convolve = partial(F.conv2d, pixels, weight.contiguous(memory_format=torch.channels_last), padding=1)
    operations = 2 * 9 * CHANNELS**2 * pixels[0, 0].numel()
    return max(product, operations / min(seconds(convolve, device) for _ in range(10)))


def tolerance_in_float32(device: str) -> float:
    """Returns what two float32 models may differ by; on a GPU convolutions are in TF32 unless told otherwise."""
    return 1e-4 if device == "cpu" else 5e-2


def compiled_peer(peer: nn.Module) -> Callable[..., Any]:
    """Returns transformers' model at its best: compiled, on the CPU with frozen weights as well."""
    compiled = torch.compile(peer)
    if next(peer.parameters()).is_cuda:
        return compiled

    from torch._inductor import config

    def frozen(**inputs: Any) -> Any:
        with config.patch(freezing=True):
            return compiled(**inputs)

    return frozen


def _first_call(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


__all__ = [
    "compare_forward",
    "compiled_peer",
    "fastest_rate",
    "floating_point_operations",
    "tolerance_in_float32",
]
