"""Whether a model learns, after a tenth of the training: one sentence, and what it is based on.

AP tells where it is measured by a fifth of the steps: of the trainings recorded in `benchmarks/results`
(convergence-*.json; a test reads them) each with `LEARNS` or more at the first evaluation after a tenth ended at AP50
`ENDED_WELL` or more, each with less than `HARDLY` below `ENDED_BADLY`, and those between anywhere. The loss tells
less: on digit scenes it falls in the first 200 steps as far when every picture has the objects of another. Only one
that does not fall is a sign.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEAST_STEPS = 50  # fewer losses tell nothing: means of ten go up and down by a tenth
LEARNS, HARDLY = 0.01, 0.001
LEAST_FALL = 0.05  # of the loss: on digit scenes it falls by 3 % in 200 steps at a learning rate of 1e-6, 30 % at 1e-3
ENDED_WELL, ENDED_BADLY = 0.15, 0.07
RECORDED = "so began the recorded trainings that came to"
HELPS = (
    "What helps most often: a trained detector to start from, recipe='fast' or the preset 'precise', larger pictures "
    "where objects are small; `detr-hf check DATA --preview FILE` draws what the model is given."
)


class Curve:
    """The losses of the first steps; they stay on the device until they are asked for, so adding costs no wait."""

    def __init__(self) -> None:
        self._losses: list[Tensor] | None = []

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a batch."""
        if self._losses is not None:
            self._losses.append(loss.detach().float().mean())

    def close(self) -> list[float]:
        """Returns the losses so far, forgets them, and keeps no more."""
        losses, self._losses = self._losses, None
        return torch.stack(losses).tolist() if losses else []


def verdict(losses: Sequence[float], ap: float | None, step: int, steps: int) -> str:
    """Returns one sentence whether it learns.

    Args:
        losses: of every batch so far.
        ap: of the boxes in the last evaluation; None where there was none.
        step, steps: where training is, and where it ends.
    """
    fifth = max(len(losses) // 5, 2)
    first, last = np.array(losses[:fifth]), np.array(losses[-fifth:])
    fell = first.mean() - last.mean()
    noise = 2 * math.sqrt(first.var(ddof=1) / fifth + last.var(ddof=1) / fifth)
    loss = f"the loss {'fell' if fell > 0 else 'rose'} from {first.mean():.3g} to {last.mean():.3g}"
    when = f"after {step} of {steps} steps"
    if ap is not None and ap >= LEARNS:
        return f"It learns: AP {ap:.3f} {when}, {loss} ({RECORDED}: AP50 {ENDED_WELL} or more at the end)."
    if fell <= max(noise, LEAST_FALL * first.mean()):
        return (
            f"It does not learn yet: {when} {loss}, hardly more than it goes up and down. A learning rate that is too "
            f"large or too small does that, and targets that are not those of the pictures. {HELPS}"
        )
    if ap is None:
        return f"{when.capitalize()} {loss}; no AP was measured yet, without which nobody can tell whether it learns."
    if ap < HARDLY:
        return (
            f"It hardly learns: AP {ap:.4f} {when} ({RECORDED}: AP50 under {ENDED_BADLY} at the end); {loss}. {HELPS}"
        )
    return f"Too early to tell whether it learns: AP {ap:.4f} {when}, {loss}."
