"""Parameter groups with their own learning rates, and the schedule with one drop."""

from functools import partial

import torch
from torch import nn


def parameter_groups(model: nn.Module, rates: dict[str, float], weight_decay: float) -> list[dict]:
    """Returns the trainable parameters in groups with a `name`, `lr` and `weight_decay`; empty groups are left out.

    As in the original, a name that contains "backbone" is the backbone's, and weight decay is on all. The class head
    and what makes masks have their own groups.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name)].append(parameter)
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": weight_decay}
        for name, parameters in groups.items()
        if parameters
    ]


def _group_of(name: str) -> str:
    if "backbone" in name:
        return "backbone"
    if "mask_head" in name or "bbox_attention" in name:
        return "mask_head"
    return "class_head" if "class_embed" in name else "transformer"


def drop_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, drop_step: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns a schedule: linear warm-up, constant, and a tenth from `drop_step` on."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(_drop_factor, warmup_steps=warmup_steps, drop_step=drop_step)
    )


def _drop_factor(step: int, warmup_steps: int, drop_step: int) -> float:
    if step < warmup_steps:
        return step / warmup_steps
    return 1.0 if step < drop_step else 0.1
