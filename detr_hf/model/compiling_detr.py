"""What makes a model faster and needs its user's consent: half precision, compilation, CUDA graphs.

Folded norms and channels-last features need none and are on by default (see `InferenceBody`).
"""

import functools
import logging
import os
import platform
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

# Limits that ONEDNN_MAX_CPU_ISA sets on a processor with AVX-512, below which bfloat16 is converted instead.
LIMITS_WITHOUT_BFLOAT16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
SLOW_FLOAT16 = (
    "This processor has no instructions for float16 (such as AVX-512 FP16) that torch can use, and takes many times "
    "as long in it as in float32: use float32 here, or a GPU."
)
SLOW_BFLOAT16 = (
    "This processor has no instructions for bfloat16 (such as AVX-512 BF16 or AMX) that torch can use, and takes many "
    "times as long in it as in float32: use float32 here, or a GPU."
)


def optimize_for_inference(
    model: nn.Module, dtype: torch.dtype | str | None = None, compile: bool | str = False
) -> nn.Module:
    """Puts the model into eval mode and, if told so, into another dtype, and compiles it; returns the same model.

    Args:
        model: a DETR.
        dtype: of weights and computation, as torch.bfloat16 or "bfloat16"; give it pixels of this dtype. bfloat16
            moves logits by some hundredths, and a processor without instructions for it is slow, which is said;
            float16 can overflow. None keeps the dtype.
        compile: run the forward pass through `torch.compile`, once for all sizes of pictures (a batch of one, and
            padded batches, are compiled apart), without a graph break. A string is torch's mode: "reduce-overhead"
            uses CUDA graphs, which are recorded for each size. The compiled model runs without gradients, and calls no
            hooks that come after its first call; on the CPU its weights are frozen then. `compile=False` undoes it.

    Raises:
        ValueError: for a dtype or a mode that there is not.
    """
    dtype = _checked_dtype(dtype)
    if isinstance(compile, str) and compile not in MODES:
        raise ValueError(f"compile is {compile!r}; expected True, False or one of {', '.join(map(repr, MODES))}.")
    model.eval()
    if dtype is not None:
        model.to(dtype)
    parameter = next(model.parameters())
    warn_of_slow_dtype(parameter.dtype, parameter.device)
    model._compiled_call_impl = None
    if compile:
        mode = compile if isinstance(compile, str) else None
        compiled = torch.compile(model._call_impl, dynamic=True, fullgraph=True, mode=mode)
        model._compiled_call_impl = _CompiledCall(compiled, frozen=not parameter.is_cuda)
    return model


class _CompiledCall:
    """Calls a compiled function without gradients, with the weights frozen into the code where that pays."""

    def __init__(self, compiled: Any, frozen: bool):
        self.compiled = compiled
        self.frozen = frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._inductor import config  # slow to import, and here only for who compiles

        # Freezing is an option of the compiler as a whole: given to torch.compile it has no effect.
        with torch.no_grad(), config.patch(freezing=self.frozen):
            return self.compiled(*args, **kwargs)


def bfloat16_hardware() -> bool:
    """Whether this processor has instructions that multiply bfloat16, and oneDNN is there and allowed to use them.

    oneDNN's own answer follows ONEDNN_MAX_CPU_ISA; on x86 it is also true of AVX-512 alone, where values are
    converted to float32 and back.
    """
    try:
        if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            return False
    except (AttributeError, RuntimeError):  # a torch that does not tell
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in LIMITS_WITHOUT_BFLOAT16:
        return False
    told = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in told)


def float16_hardware() -> bool:
    """Whether this processor has instructions for float16, and oneDNN is there and allowed to use them."""
    try:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    except (AttributeError, RuntimeError):  # a torch that does not tell
        return False


def warn_of_slow_dtype(dtype: torch.dtype | str, device: torch.device | str) -> None:
    """Logs a sentence, once in a process, where a half precision is about to be computed by a processor slow in it."""
    if torch.device(device).type == "cpu":
        name = str(dtype).removeprefix("torch.")
        if name == "bfloat16" and not bfloat16_hardware():
            _say_once(SLOW_BFLOAT16)
        elif name == "float16" and not float16_hardware():
            _say_once(SLOW_FLOAT16)


@functools.cache
def _say_once(sentence: str) -> None:
    logger.warning(sentence)


def _checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = DTYPES.get(dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is not None and found not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; expected None or one of {', '.join(DTYPES)}.")
    return found
