"""The average of weights: its arithmetic, and that borrowing it changes nothing."""

import pytest
import torch
from torch import nn

from detr_hf.training.ema import ExponentialMovingAverage

from .scenes import digest


def test_the_average_is_the_recurrence():
    model, decay = nn.Linear(3, 2), 0.9
    average = ExponentialMovingAverage(model, decay)
    expected = model.weight.detach().double().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.normal_()
        average.update(model, step)
        now = min(decay, (1 + step) / (10 + step))
        expected = now * expected + (1 - now) * model.weight.detach().double()
    assert torch.allclose(average.average["weight"].double(), expected, atol=1e-6)


def test_borrowing_the_average_gives_the_weights_back():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = ExponentialMovingAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    before = digest(model)
    with pytest.raises(RuntimeError, match="inside"), average.swapped_in(model):
        assert digest(model) != before
        raise RuntimeError("inside")
    assert digest(model) == before
    assert set(average.average) == {"weight"}  # the frozen bias needs none


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_the_decay_is_checked(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"have no \['bias'"):
        ExponentialMovingAverage(nn.Linear(1, 1), 0.5).load({"other": torch.zeros(1)})
