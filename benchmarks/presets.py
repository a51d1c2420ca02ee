"""What a preset of DETRConfig costs in inference: time, peak memory and operations, in turn with the paper's DETR."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from detr_hf.inference.timing import status_bytes
from detr_hf.model.presets_detr import PRESETS

from .forward import floating_point_operations
from .measuring import check_device, compare, environment, peak_memory
from .models import random_model, random_pixels
from .worker_processes import end_with_parent


def compare_presets(
    device: str, batch: int, size_hw: tuple[int, int], runs: int, backbone: str = "resnet50"
) -> dict[str, Any]:
    """Returns the record: for each preset its parameters, operations, peak memory, and time over that of "detr"."""
    check_device(device)
    pixel_values, _ = random_pixels(batch, size_hw, device)
    settings = {"device": device, "batch": batch, "size_hw": list(size_hw), "backbone": backbone}
    record: dict[str, Any] = {"environment": environment(device), "settings": settings}
    calls = {}
    for name, fields in PRESETS.items():
        model = random_model(backbone=backbone, **fields).to(device)
        calls[name] = torch.no_grad()(lambda model=model: model(pixel_values))
        calls[name]()  # folds the norms
        weights = sum(value.nbytes for value in model.state_dict().values())
        if device == "cpu":
            held = _in_a_process(_held_by, name, backbone, batch, size_hw)
        else:
            held = weights + peak_memory(calls[name], device)
        record[name] = {
            "parameters": sum(value.numel() for value in model.parameters()),
            "operations": floating_point_operations(model, {"pixel_values": pixel_values}),
            "weights_bytes": weights,
            "weights_and_peak_memory": held,
        }
        if name != "detr":
            found = compare(
                calls["detr"], calls[name], runs, device
            )  # its ratio is the second's time over the first's
            record[name]["time_over_detr"] = found["ratio"]
            record[name]["cpu_time_over_detr"] = found.get("cpu_ratio")
    return record


def _in_a_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what the function does, from a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        return pool.submit(function, *args).result()


def _held_by(name: str, backbone: str, batch: int, size_hw: tuple[int, int]) -> int | None:
    """Returns the bytes that this process takes at its peak for a model and three forward passes of it.

    A first pass of a small model loads the code that any model needs. Three, because the first lays out weights anew;
    a process of its own, because memory that earlier calls have freed would serve this one uncounted.
    """
    torch.set_num_threads(1)
    pixel_values, _ = random_pixels(batch, size_hw)
    with torch.no_grad():
        random_model(backbone="resnet18", **PRESETS[name])(pixel_values[..., :64, :64])
        try:
            ctypes.CDLL(None).malloc_trim(0)
            before = status_bytes("VmRSS")
            model = random_model(backbone=backbone, **PRESETS[name])
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak back
            for _ in range(3):
                model(pixel_values)
            return status_bytes("VmHWM") - before
        except (OSError, AttributeError):
            return None


__all__ = ["compare_presets"]
