"""What makes a model faster and needs its user's consent: half precision, compilation, CUDA graphs.

Folded norms and channels-last features need none and are on by default (see `InferenceBody`).
"""

from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def optimize_for_inference(
    model: nn.Module, dtype: torch.dtype | str | None = None, compile: bool | str = False
) -> nn.Module:
    """Puts the model into eval mode and, if told so, into another dtype, and compiles it; returns the same model.

    Args:
        model: a DETR.
        dtype: of weights and computation, as torch.bfloat16 or "bfloat16"; give it pixels of this dtype. bfloat16
            moves logits by some hundredths; float16 can overflow. None keeps the dtype.
        compile: run the forward pass through `torch.compile`, once for all sizes of pictures (a batch of one, and
            padded batches, are compiled apart), without a graph break. A string is torch's mode: "reduce-overhead"
            uses CUDA graphs, which are recorded for each size. The compiled model runs without gradients; on the CPU
            its weights are frozen at the first call. `compile=False` undoes it.

    Raises:
        ValueError: for a dtype or a mode that there is not.
    """
    dtype = _checked_dtype(dtype)
    if isinstance(compile, str) and compile not in MODES:
        raise ValueError(f"compile is {compile!r}; expected True, False or one of {', '.join(map(repr, MODES))}.")
    model.eval()
    if dtype is not None:
        model.to(dtype)
    model._compiled_call_impl = None
    if compile:
        mode = compile if isinstance(compile, str) else None
        compiled = torch.compile(model._call_impl, dynamic=True, fullgraph=True, mode=mode)
        model._compiled_call_impl = _CompiledCall(compiled, frozen=not next(model.parameters()).is_cuda)
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


def _checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = DTYPES.get(dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is not None and found not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; expected None or one of {', '.join(DTYPES)}.")
    return found


__all__ = ["optimize_for_inference"]
