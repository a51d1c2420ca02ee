"""What this machine can do, asked of the machine itself and not of the code under test.

A test whose expectation depends on it takes the fixture `machine_has`; the last lines of a run say what was absent and
which checks took the plain form because of it.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable

import pytest
import torch

from detr_hf.model.compiling_detr import bfloat16_hardware

# Names of modules that a run may lack; the tests that need them are skipped, and pytest lists those by itself.
OPTIONAL_PACKAGES = (
    *("accelerate", "av", "datasets", "executorch", "hotcoco", "matplotlib", "nncf", "onnx", "onnxruntime"),
    *("onnxscript", "openvino", "optuna", "pycocotools", "sklearn", "supervision"),
)
TOOK_PLAIN_FORM = "took the plain form without"


def runs_fused_linear(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear operator runs at all in this dtype."""
    try:
        torch.ops.mkldnn._linear_pointwise(
            torch.ones(3, 8, dtype=dtype), torch.ones(5, 8, dtype=dtype), None, "relu", [], ""
        )
    except (AttributeError, RuntimeError):
        return False
    return True


def runs_in_tiles() -> bool:
    """Whether the processor has AMX."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


CAPABILITIES: dict[str, Callable[[], bool]] = {
    "AVX2": lambda: torch.backends.cpu.get_cpu_capability() != "DEFAULT",
    "AVX-512": lambda: torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    "AMX": runs_in_tiles,
    "instructions for bfloat16": bfloat16_hardware,
    "oneDNN's linear layer in float32": functools.partial(runs_fused_linear, torch.float32),
    "oneDNN's linear layer in bfloat16": functools.partial(runs_fused_linear, torch.bfloat16),
    "CUDA": torch.cuda.is_available,
    **{
        name: functools.partial(lambda name: importlib.util.find_spec(name) is not None, name)
        for name in OPTIONAL_PACKAGES
    },
}


@functools.cache
def has(capability: str) -> bool:
    """Returns whether this machine has one of `CAPABILITIES`."""
    return CAPABILITIES[capability]()


def closing_lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Returns what a run says last: the capabilities that are absent, and the checks that took the plain form."""
    lines = [f"capabilities absent here: {', '.join(name for name in CAPABILITIES if not has(name)) or 'none'}"]
    checks: dict[str, dict[str, int]] = {}
    for report in reports:
        for name, capability in getattr(report, "user_properties", ()):
            if name == TOOK_PLAIN_FORM and report.when == "call":
                test = report.nodeid.partition("[")[0]
                counts = checks.setdefault(capability, {})
                counts[test] = counts.get(test, 0) + 1
    for capability, counts in checks.items():
        tests = ", ".join(f"{test} ({count})" for test, count in sorted(counts.items()))
        lines.append(f"{TOOK_PLAIN_FORM} {capability}: {tests}")
    return lines
