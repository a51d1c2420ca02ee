"""What a preset of DETRConfig costs in inference: time, peak memory and operations, in turn with the paper's DETR."""

from typing import Any

import torch

from detr_hf.model.presets_detr import PRESETS

from .forward import floating_point_operations
from .measuring import check_device, compare, environment, peak_memory
from .models import random_model, random_pixels


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
        record[name] = {
            "parameters": sum(value.numel() for value in model.parameters()),
            "operations": floating_point_operations(model, {"pixel_values": pixel_values}),
            "weights_bytes": weights,
            "peak_memory": peak_memory(calls[name], device),
        }
        if name != "detr":
            found = compare(
                calls["detr"], calls[name], runs, device
            )  # its ratio is the second's time over the first's
            record[name]["time_over_detr"] = found["ratio"]
            record[name]["cpu_time_over_detr"] = found.get("cpu_ratio")
    return record


__all__ = ["compare_presets"]
