"""Timing two sides in turn, and the record of it: ratios with their spread, the machine, the versions, the load.

A machine that is shared slows both sides of a pair alike, so the ratio of neighbours is what is reported, never the
ratio of two means.
"""

import ctypes
import gc
import json
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detr_hf.inference.timing import cpuinfo, environment, spread, status_bytes, synchronize, timed

Times = tuple[float, float]  # wall time and processor time of a call, in seconds


def machine_name(device: str = "cpu") -> str:
    """Returns the name of the folder of this machine's records: what most decides how fast DETR runs on it.

    A GPU is called by its model: "h100". A processor is "amx" where it multiplies bfloat16 in tiles, "zen5" or "zen4"
    if it is AMD's with AVX-512 (by its family), else "avx512", "avx2", or its architecture as in "aarch64". Where two
    machines would share a name, `--machine` tells them apart.
    """
    if device.startswith("cuda") and torch.cuda.is_available():
        words = torch.cuda.get_device_name().lower().split()  # "nvidia h100 80gb hbm3"
        return next((word for word in words if any(letter.isdigit() for letter in word)), words[-1])
    return processor_name(cpuinfo())


def processor_name(entries: dict[str, str]) -> str:
    """Returns the same of a processor with these entries in /proc/cpuinfo."""
    flags = entries.get("flags", "").split()
    if "amx_tile" in flags:
        return "amx"
    if "avx512f" in flags and entries.get("vendor_id") == "AuthenticAMD":
        return "zen5" if int(entries["cpu family"]) >= 26 else "zen4"
    known = {"avx512f": "avx512", "avx2": "avx2"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def check_device(device: str) -> None:
    """Raises ValueError for a device that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch can see; torch.cuda.is_available() is False here.")


def seconds(run: Callable[[], Any], device: str = "cpu", repeats: int = 1) -> float:
    """Returns how long one call takes, with the device's work included."""
    return timed(run, device, repeats)[0]


def compare(
    ours: Callable[[], Any], peer: Callable[[], Any], runs: int, device: str = "cpu", warmup: int = 1, repeats: int = 1
) -> dict[str, Any]:
    """Returns medians and the paired ratio of two calls that run in turn; either comes first in half of the pairs.

    On the CPU `cpu_ratio` is the ratio of processor times, which other processes of the machine disturb less.
    """
    for _ in range(warmup):
        ours(), peer()
    timings = (partial(timed, run, device, repeats) for run in (ours, peer))
    result = compare_timed(*timings, runs, warmup=0)
    if device != "cpu":
        del result["cpu_ratio"]
    return result


def compare_timed(ours: Callable[[], Times], peer: Callable[[], Times], runs: int, warmup: int = 1) -> dict[str, Any]:
    """Returns what `compare` does, of two calls that each return their own wall time and processor time."""
    for _ in range(warmup):
        ours(), peer()
    return of_pairs(in_turn((ours, peer), runs))


def in_turn(timings: Sequence[Callable[[], Times]], runs: int) -> list[list[Times]]:
    """Returns what the calls return, `runs` times in turn; every second time in the reverse order."""
    rounds = []
    for index in range(runs):
        step = 1 if index % 2 == 0 else -1
        rounds.append([timing() for timing in timings[::step]][::step])
    return rounds


def of_pairs(pairs: Sequence[Sequence[Times]]) -> dict[str, Any]:
    """Returns medians and the paired ratio of wall times and processor times, ours and theirs in each pair."""
    runs = len(pairs)
    return {
        "ours_s": statistics.median(our_times[0] for our_times, _ in pairs),
        "peer_s": statistics.median(their_times[0] for _, their_times in pairs),
        "ratio": spread([their_times[0] / our_times[0] for our_times, their_times in pairs]),
        "pairs": runs,
        "cpu_ratio": spread([their_times[1] / our_times[1] for our_times, their_times in pairs]),
    }


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """Returns the bytes that a call holds at its peak beyond what was held before; None where that is not known."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the other side has freed must not serve this one
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak back
        before = status_bytes("VmRSS")
        run()
        return status_bytes("VmHWM") - before
    except (OSError, AttributeError):
        return None


@contextmanager
def counted_syncs(counts: list[int]) -> Iterator[None]:
    """Appends to `counts` how often the host waits for the device inside, on CUDA as torch reports it."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counts.append(sum("synchronizing" in str(warning.message) for warning in caught))


def differences(ours: Any, peer: Any) -> dict[str, float]:
    """Returns the largest absolute differences of logits and boxes of two outputs."""
    return {
        "logits": (ours.logits.float() - peer.logits.float()).abs().max().item(),
        "boxes": (ours.pred_boxes.float() - peer.pred_boxes.float()).abs().max().item(),
    }


def require_agreement(found: dict[str, float], tolerance: float) -> dict[str, float]:
    """Returns the differences.

    Raises:
        ValueError: when one is above the tolerance, or not a number: then there is nothing to compare.
    """
    if not all(difference <= tolerance for difference in found.values()):
        raise ValueError(f"The outputs of the two sides differ by {found}; expected at most {tolerance}.")
    return found


def write_record(name: str, record: dict[str, Any], folder: Path) -> Path:
    """Writes the record as JSON into the folder, in the place of an older one of that name, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yields lines for a terminal: the machine, the settings, then every comparison of the record."""
    machine = record.get("environment")
    if machine:
        where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
        versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers"))
        yield f"{where}; {versions}; load {machine['load_1min']}; allocator {machine['allocator']}"
    settings = record.get("settings")
    if settings:
        yield ", ".join(f"{name} {value}" for name, value in settings.items())
    for name, value in record.items():
        if name not in ("environment", "settings"):
            yield from _lines(name, value)


def _lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict) and "ratio" in value:
        yield f"{name}: {_comparison(value)}"
    elif isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        for key, item in value.items():
            yield from _lines(f"{name} {key}", item)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from _lines(name, item)
    elif isinstance(value, dict):
        yield f"{name}: " + ", ".join(f"{key} {_number(item)}" for key, item in value.items())
    else:
        yield f"{name}: {_number(value)}"


def _comparison(value: dict[str, Any]) -> str:
    ratio, (ours, peer) = value["ratio"], value.get("sides", ("detr_hf", "transformers"))
    text = f"{ours} {value['ours_s'] * 1e3:.4g} ms, {peer} {value['peer_s'] * 1e3:.4g} ms, "
    text += (
        f"ratio {ratio['median']:.2f} (quartiles {ratio['low']:.2f} to {ratio['high']:.2f}, {value['pairs']} pairs)"
    )
    if "cpu_ratio" in value:
        text += f", of processor times {value['cpu_ratio']['median']:.2f}"
    known = ("ratio", "cpu_ratio", "ours_s", "peer_s", "pairs", "sides")
    rest = {key: item for key, item in value.items() if key not in known}
    return text + "".join(f"; {key} {_number(item)}" for key, item in rest.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = [
    "check_device",
    "compare",
    "compare_timed",
    "counted_syncs",
    "describe",
    "differences",
    "environment",
    "in_turn",
    "machine_name",
    "of_pairs",
    "peak_memory",
    "processor_name",
    "require_agreement",
    "seconds",
    "spread",
    "synchronize",
    "write_record",
]
