"""Whether a model learns: what is said, and that the recorded trainings are as it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_hf.training.verdict import ENDED_BADLY, ENDED_WELL, HARDLY, LEARNS, Curve, verdict

RECORDS = sorted(Path(__file__).parents[2].glob("benchmarks/results/*/convergence-*.json"))


def recorded() -> list[tuple[float, float]]:
    """AP at the first evaluation after a tenth of the steps, if it is before a quarter, and AP50 at the end."""
    pairs = []
    for path in RECORDS:
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            curve = run["curve"]
            last = curve[-1]["step"]
            early = next(entry for entry in curve if entry["step"] >= 0.1 * last)
            if early["step"] <= 0.25 * last:
                pairs.append((early["AP"], curve[-1]["AP50"]))
    return pairs


def test_the_recorded_trainings_went_as_is_said():
    pairs = recorded()
    well = [end for early, end in pairs if early >= LEARNS]
    badly = [end for early, end in pairs if early < HARDLY]
    assert len(well) >= 10 and min(well) >= ENDED_WELL
    assert len(badly) >= 10 and max(badly) < ENDED_BADLY


FALLING = np.linspace(30, 15, 60) + np.random.default_rng(0).normal(0, 1, 60)
FLAT = 20 + np.random.default_rng(1).normal(0, 1, 60)


@pytest.mark.parametrize(
    ("losses", "ap", "words"),
    [
        (FALLING, 0.05, "It learns: AP 0.050 after 60 of 600 steps, the loss fell from"),
        (FALLING, 0.004, "Too early to tell"),
        (FALLING, 0.0002, "It hardly learns: AP 0.0002"),
        (FALLING, None, "nobody can tell"),
        (FLAT, None, "It does not learn yet: after 60 of 600 steps"),
        (FLAT, 0.004, "It does not learn"),
        (FALLING[::-1], 0.0, "the loss rose"),
        (FLAT, 0.2, "It learns"),  # from a trained detector the loss may stay where it is
    ],
)
def test_one_sentence_whether_it_learns(losses, ap, words):
    assert words in verdict(list(losses), ap, 60, 600)


def test_a_curve_is_kept_until_it_is_read():
    curve = Curve()
    for value in (3.0, 2.0):
        curve.add(torch.tensor(value, requires_grad=True))
    assert curve.close() == [3.0, 2.0]
    curve.add(torch.tensor(1.0))
    assert curve.close() == []
