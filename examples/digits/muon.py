"""Muon, which learns this detector in fewer steps than AdamW; in float32.

torch's own, and timm's, work in bfloat16: on a CPU without instructions for it a step takes seconds.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Of the quintic iteration that Muon's authors give: singular values come near 1 in few steps, not to 1.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
ADAM_RMS = 0.2  # root mean square of Adam's usual step, over its learning rate


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are made equal before the step (K. Jordan et al., "Muon", 2024).

    A step is scaled to the size of Adam's at the same learning rate (J. Liu et al., "Muon is Scalable for LLM
    Training", 2025, eq. 4).

    Args:
        params: matrices, or groups of them.
        lr: learning rate, as for Adam.
        momentum: how much of the mean of past gradients stays at every step.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Moves all matrices that have a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for shape, weights in alike.items():
                directions = orthogonalise(torch.stack([self._direction(weight, group) for weight in weights]))
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * ADAM_RMS * math.sqrt(max(shape))
                torch._foreach_add_(weights, list(directions.unbind()), alpha=-size)

    def _direction(self, weight: Tensor, group: dict) -> Tensor:
        """Nesterov's momentum."""
        if not self.state[weight]:
            self.state[weight]["momentum"] = torch.zeros_like(weight)
        momentum = self.state[weight]["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(momentum, group["momentum"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices `(N, r, c)` with the same singular vectors, whose singular values are near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
