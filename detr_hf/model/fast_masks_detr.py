"""The mask head for many queries, in little memory: groups of queries that the cache holds, channels last."""

import torch
from torch import Tensor, nn

QUERIES_AT_ONCE = {"cpu": 4, "cuda": 32}


def run_in_groups(mask_head: nn.Module, projected: Tensor, attention: Tensor, adapted: list[Tensor]) -> Tensor:
    """Returns what `mask_head` gives, mask logits (n, h4, w4); the arguments are those of its `forward`.

    With gradients, or while the graph is recorded, it is called once: what a group computes would be kept anyway.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling() or not len(attention):
        return mask_head(projected, attention, adapted)
    size = QUERIES_AT_ONCE.get(attention.device.type, len(attention))
    last = torch.channels_last
    projected = projected.contiguous(memory_format=last)
    adapted = [feature_map.contiguous(memory_format=last) for feature_map in adapted]
    groups = [group.contiguous(memory_format=last) for group in attention.split(size)]
    return torch.cat([mask_head(projected, group, adapted) for group in groups])
