"""What it takes to say how fast something ran: times, spread, memory, and what machine and versions it was.

This module does not import torch: a process that runs an exported model has none.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..version import version_of

VERSIONS = ("detr-hf", "torch", "torchvision", "transformers", "timm", "numpy", "scipy")
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")


def environment(device: str = "cpu", packages: Iterable[str] = VERSIONS) -> dict[str, Any]:
    """Returns what the figures depend on: processor or GPU, threads, load, versions, allocator, time."""
    import torch

    found = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ} or "default",
        "versions": {name: version_of(name) for name in packages},
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def processor_name() -> str:
    """Returns what the system calls its processor."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpuinfo() -> dict[str, str]:
    """Returns what Linux says of the first processor; {} elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def timed(run: Callable[[], Any], device: str = "cpu", repeats: int = 1) -> tuple[float, float]:
    """Returns wall time and this process's processor time of one call, in seconds."""
    synchronize(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats, (time.process_time() - start_cpu) / repeats


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high}


def status_bytes(name: str) -> int:
    """Returns an entry of Linux's status of this process, as VmRSS or VmHWM.

    Raises:
        OSError: there is none, as on other systems.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}.")


def peak_bytes(device: str = "cpu") -> int | None:
    """Returns the most memory that this process has held so far; None where nothing tells.

    On a GPU that is the GPU's memory, as torch counts it.
    """
    if device.startswith("cuda"):
        torch = sys.modules.get("torch")
        return torch.cuda.max_memory_allocated() if torch else None
    try:
        return status_bytes("VmHWM")
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
