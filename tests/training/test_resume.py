"""A run that was stopped and resumed is the run that was not, bit for bit; and loading a checkpoint restores every
tensor."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from detr_hf import DETRForObjectDetection
from detr_hf.errors import CheckpointError

from .scenes import Scenes, digest, micro_model, trainer

CASES = {
    "in the middle of an epoch": ({}, 3),
    "two workers that live on": ({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, 3),
    "accumulation": ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, 3),
    "training aids and averaged weights": ({"recipe": "fast_ref", "ema_decay": 0.9}, 3),
    "masks, training aids and averaged weights": ({"masks": True, "recipe": "fast", "ema_decay": 0.9}, 3),
}
LONGER = {  # or what others above do too
    "at the end of an epoch": ({}, 4),
    "evaluation between": ({"eval_strategy": "steps", "eval_steps": 2, "save_steps": 1}, 3),
    "cosine": ({"lr_scheduler_type": "cosine"}, 5),
    "bfloat16": ({"bf16": True}, 3),
    "averaged weights and two workers": ({"ema_decay": 0.9, "dataloader_num_workers": 2}, 3),
    "averaged weights": ({"ema_decay": 0.9}, 3),
    "two workers": ({"dataloader_num_workers": 2}, 3),
    "masks alone": ({"masks": True, "freeze_detector": True}, 3),
    "masks, accumulation": (
        {"masks": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "ema_decay": 0.9},
        3,
    ),
    "masks, bfloat16 and two workers": ({"masks": True, "bf16": True, "dataloader_num_workers": 2}, 3),
}
CASES |= LONGER


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in LONGER)) for case in CASES])
def test_a_resumed_run_is_the_straight_run(case, tmp_path):
    changes, stop = CASES[case]
    changes, masks = dict(changes), "masks" in changes
    changes.pop("masks", None)
    evaluation = Scenes(3, noise=False) if "eval_strategy" in changes else None
    changes = {"save_steps": stop, **changes}
    straight = trainer(tmp_path / "straight", micro_model(masks=masks), evaluation=evaluation, **changes)
    straight.train()

    shutil.copytree(tmp_path / "straight" / f"checkpoint-{stop}", tmp_path / "resumed" / f"checkpoint-{stop}")
    torch.manual_seed(12345)  # nothing may depend on where the new process's generators happen to be
    resumed = trainer(tmp_path / "resumed", micro_model(99, masks), evaluation=evaluation, **changes)
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == straight.state.global_step == 6
    assert digest(resumed.model) == digest(straight.model)
    for file in ("model.safetensors", "training_weights.safetensors"):
        ours, theirs = (tmp_path / name / "checkpoint-6" / file for name in ("straight", "resumed"))
        assert ours.exists() == theirs.exists() == (file == "model.safetensors" or "ema_decay" in changes)
        if ours.exists():
            assert ours.read_bytes() == theirs.read_bytes()
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (straight, resumed)]
    assert losses[0] == losses[1]


def test_the_test_would_see_a_difference(tmp_path):
    """Dropout and noise are on: another seed gives other weights."""
    runs = [trainer(tmp_path / str(seed), seed=seed, max_steps=2) for seed in (1, 2)]
    for run in runs:
        run.train()
    assert digest(runs[0].model) != digest(runs[1].model)


@pytest.mark.parametrize(
    "changes",
    [{"dataloader_num_workers": 2}, {"eval_strategy": "steps", "eval_steps": 1}],
    ids=["workers", "evaluation"],
)
def test_neither_workers_nor_evaluation_change_the_run(changes, tmp_path):
    plain = trainer(tmp_path / "plain", max_steps=3)
    other = trainer(tmp_path / "other", evaluation=Scenes(3), max_steps=3, load_best_model_at_end=False, **changes)
    plain.train()
    other.train()
    assert digest(plain.model) == digest(other.model)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_best_checkpoint_is_restored_by_name(decay, best_is_kept, tmp_path):
    run = trainer(
        tmp_path,
        evaluation=Scenes(4, noise=False),
        eval_strategy="steps",
        eval_steps=1,
        ema_decay=decay,
        save_total_limit=2,
    )
    scores = iter([0.1, 0.4, 0.2, 0.3, 0.1, 0.0])
    run.evaluate, evaluate = lambda **options: {**evaluate(**options), "eval_ap": next(scores)}, run.evaluate
    run.train()

    assert run.state.best_global_step == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    best = DETRForObjectDetection.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    ours = run.model.state_dict()
    assert ours.keys() == best.keys()
    assert [name for name in ours if not torch.equal(ours[name], best[name])] == []
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert any(not torch.equal(ours[name], last[name]) for name in ours)
    run.save_model(str(tmp_path / "final"))
    final = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in best)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    other = trainer(tmp_path, micro_model(dec_layers=1), max_steps=2)
    with pytest.raises(ValueError, match="does not fit the model"):
        other.train(resume_from_checkpoint=True)


def test_without_a_checkpoint_true_is_an_error_and_auto_starts(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run.train(resume_from_checkpoint=True)
    run.train(resume_from_checkpoint="auto")
    assert run.state.global_step == 1


def test_a_run_that_averages_goes_on_without_averaging(tmp_path):
    trainer(tmp_path, max_steps=2, ema_decay=0.9).train()
    plain = trainer(tmp_path, max_steps=2)
    plain._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    own = load_file(tmp_path / "checkpoint-2" / "training_weights.safetensors")
    assert all(torch.equal(dict(plain.model.named_parameters())[name], weight) for name, weight in own.items())
