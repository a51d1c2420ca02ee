"""Exponential moving average of the weights: steadier than the last step's, and often better where the learning rate
has not decayed.

In a checkpoint the average is `model.safetensors`, what was evaluated and what `from_pretrained` should give; the
weights that training goes on from are in `training_weights.safetensors` beside it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

TRAINING_WEIGHTS = "training_weights.safetensors"


class ExponentialMovingAverage:
    """The average of a model's trainable parameters; the others never change.

    Args:
        model: the average starts at its weights.
        decay: weight of the past in each step. Early on the smaller (1 + step) / (10 + step) is used instead, so that
            the random or loaded start is forgotten in a short run too.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; expected a number between 0 and 1, such as 0.999.")
        self.decay = decay
        self.average: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after optimiser step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(model.named_parameters())
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [parameters[name].detach() for name in self.average], 1 - decay)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes the average from weights by name.

        Raises:
            ValueError: a parameter is missing.
        """
        missing = self.average.keys() - weights.keys()
        if missing:
            raise ValueError(f"The averaged weights have no {sorted(missing)[:3]}; are they of another model?")
        for name, average in self.average.items():
            average.copy_(weights[name])

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averaged weights; afterwards exactly those it had."""
        own = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in self.average
        }
        overwrite(model, self.average)
        try:
            yield
        finally:
            overwrite(model, own)


@torch.no_grad()
def overwrite(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Replaces the model's parameters that have a weight of their name."""
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)


class EMACallback(TrainerCallback):
    """Averages the weights during training, and leaves the average in the model at its end.

    With `DETRTrainer(ema_decay=...)` the average is also evaluated, saved and resumed. With plain `Trainer`
    evaluations during training and checkpoints are of the unaveraged weights.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: ExponentialMovingAverage | None = None
        self.resumed: dict[str, Tensor] | None = None
        self.best_is_loaded = False

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        """Starts at the model's weights, or at the average that was read from a checkpoint."""
        self.average = ExponentialMovingAverage(model, self.decay)
        self.best_is_loaded = False
        if self.resumed is not None:
            self.average.load(self.resumed)
            self.resumed = None

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Follows an optimiser step."""
        self.average.update(model, state.global_step)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        """Leaves the average in the model, unless the best checkpoint was loaded into it."""
        if self.average is not None and not self.best_is_loaded:
            overwrite(model, self.average.average)
        self.average = None
