"""Pictures of rare classes come more often: as the paper says, in epochs of one length, and the same everywhere."""

import logging

import numpy as np
import pytest
import torch

from detr_hf.data.preparing.transform import prepare
from detr_hf.training.sampling import RepeatFactorSampler, repeat_factors

from .scenes import Scenes, micro_model, split_of, trainer


def test_factors_are_the_papers():
    """Of eight pictures one shows an owl, two a dog, all a cat; crowds do not count."""
    rows = split_of([[0], [0], [0], [0], [0], [0, 1], [0, 1], [0, 2]], crowds={0: 2})
    of_pictures, of_classes, part = repeat_factors(rows, 4, 0.5)
    assert part.tolist() == [1, 0.25, 0.125, 0]
    assert of_classes == pytest.approx([1, 2**0.5, 2, 0])
    assert of_pictures == pytest.approx([1] * 5 + [2**0.5] * 2 + [2])
    assert repeat_factors(rows, 4, 0.1)[0].tolist() == [1] * 8


@pytest.mark.parametrize("factors", [[1, 1, 1], [1.5, 1.5], [1, 2.25, 3.75, 1.4], [1.1] * 7, [1, 4]])
def test_epochs_have_one_length_and_the_parts_are_drawn_anew(factors):
    factors = np.array(factors, dtype=float)
    sampler = RepeatFactorSampler(factors, seed=3)
    counts = np.zeros(len(factors))
    for epoch in range(400):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == round(factors.sum())
        times = np.bincount(drawn, minlength=len(factors))
        assert (times >= np.floor(factors)).all() and (times <= np.floor(factors) + 1).all()
        counts += times
    assert counts.sum() / 400 == len(sampler)
    assert counts / 400 == pytest.approx(factors * len(sampler) / factors.sum(), abs=0.1)
    sampler.set_epoch(7)
    again = RepeatFactorSampler(factors, seed=3)
    again.set_epoch(7)
    assert list(sampler) == list(again)


def rare_data():
    from detr_hf import DETRImageProcessor

    rows = split_of([[0]] * 7 + [[2]])
    return prepare(rows, DETRImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}))


def seen_by(run) -> list[list[int]]:
    """The pictures of every step."""
    seen, loss = [], run.compute_loss

    def noting(model, inputs, **options):
        seen.append([int(label["image_id"]) for label in inputs["labels"]])
        return loss(model, inputs, **options)

    run.compute_loss = noting
    return seen


@pytest.mark.parametrize("stop", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_resumed_run_draws_what_the_straight_run_draws(stop, tmp_path, caplog):
    """Stopped in the first and in the second epoch."""
    caplog.set_level(logging.INFO, "detr_hf")
    options = {"balance_classes": 0.5, "max_steps": 10, "save_steps": stop}
    straight = trainer(tmp_path, train=rare_data(), **options)
    seen = seen_by(straight)
    straight.train()
    assert "an epoch has 9 pictures instead of 8" in caplog.text and "owl x2.00 (in 12.50%)" in caplog.text
    rare = [image for step in seen[:5] for image in step].count(7)
    assert rare == 2 and sorted(image for step in seen[:5] for image in step) == [*range(8), 7]
    resumed = trainer(tmp_path, micro_model(5), train=rare_data(), **options)
    rest = seen_by(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert rest == seen[stop:] and len(rest) == 10 - stop


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Scenes())


@pytest.mark.parametrize("train", [Stream(), Scenes()], ids=["stream", "rows that only reading tells"])
def test_what_cannot_be_balanced_is_refused(train, tmp_path):
    with pytest.raises(ValueError, match="balance_classes needs to know the objects"):
        trainer(tmp_path, train=train, balance_classes=0.1).train()
    with pytest.raises(ValueError, match="leave train_sampling_strategy out"):
        trainer(tmp_path, train=rare_data(), balance_classes=0.1, train_sampling_strategy="sequential").train()
