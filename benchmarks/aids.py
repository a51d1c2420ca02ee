"""What training aids cost: a training step with each in turn with one without, and that nothing of them is left at
inference."""

import copy
from typing import Any

import torch

from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection

from .convergence_arms import ABLATION
from .measuring import check_device, compare, differences, environment, peak_memory, require_agreement
from .models import random_pixels, random_targets
from .train_step import OBJECTS, Step


def compare_aids(
    device: str, batch: int, size_hw: tuple[int, int], runs: int, backbone: str = "resnet50", **config: Any
) -> dict[str, Any]:
    """Returns the record: for each option the time of a step, its peak memory, and what stripping changes (nothing).

    Raises:
        ValueError: when a stripped model's outputs differ from those before, by any bit.
    """
    check_device(device)
    pixel_values, _ = random_pixels(batch, size_hw, device)
    settings = {"device": device, "batch": batch, "size_hw": list(size_hw), "objects": OBJECTS, "backbone": backbone}
    record: dict[str, Any] = {"environment": environment(device), "settings": settings | config}
    for name, options in {"plain": {}, **ABLATION}.items():
        torch.manual_seed(0)
        model = DETRForObjectDetection(DETRConfig(backbone=backbone, **config, **options)).to(device)
        targets = random_targets(batch, OBJECTS, model.config.num_labels, device)
        step = Step(model, {"pixel_values": pixel_values, "labels": targets}, torch.float32)
        if name == "plain":
            plain = step
            plain()  # the optimiser's state is made now
            record["plain"] = {"peak_memory": peak_memory(plain, device)}
            continue
        found = compare(plain, step, runs, device)  # its ratio is the second's time over the first's
        record[name] = {
            "stripped": _difference_by_stripping(model, pixel_values),
            "step_s": found["peer_s"],
            "plain_s": found["ours_s"],
            "time_over_plain": found["ratio"],
            **({"cpu_time_over_plain": found["cpu_ratio"]} if "cpu_ratio" in found else {}),
            "peak_memory": peak_memory(step, device),
        }
    return record


@torch.no_grad()
def _difference_by_stripping(model: DETRForObjectDetection, pixel_values: torch.Tensor) -> dict[str, float]:
    before = model.eval()(pixel_values)
    after = copy.deepcopy(model).strip_training_aids()(pixel_values)
    model.train()
    return require_agreement(differences(after, before), 0.0)


__all__ = ["compare_aids"]
