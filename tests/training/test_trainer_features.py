"""Trainer's own features under DETRTrainer: compilation, accumulation, bf16, activation checkpointing."""

import pytest
import torch

from .scenes import Scenes, digest, micro_model, trainer

SAME = (64, 64)


def losses(folder, masks=False, **changes):
    options = {"max_steps": 3, "save_strategy": "no", "train": Scenes(8, heights=SAME, masks=masks), **changes}
    run = trainer(folder, micro_model(dropout=0.0, masks=masks), **options)
    run.train()
    return run, [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.processor
def test_bf16_follows_float32(tmp_path):
    exact_run, exact = losses(tmp_path / "exact", masks=True)
    run, rounded = losses(tmp_path / "rounded", masks=True, bf16=True)
    for name in ("loss_ce", "loss_bbox", "loss_mask", "loss_dice"):
        first, other = (one.state.log_history[0][name] for one in (run, exact_run))
        assert first == pytest.approx(other, rel=0.02), name
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_activation_checkpointing_computes_layers_twice_and_changes_nothing(tmp_path):
    def counted(folder, **changes):
        calls = []
        run = trainer(folder, micro_model(dropout=0.0), max_steps=1, save_strategy="no", **changes)
        layer = run.model.transformer.encoder.layers[0].linear1
        layer.register_forward_hook(lambda *_: calls.append(1))
        run.train()
        return len(calls), digest(run.model)

    plain, saving = counted(tmp_path / "plain"), counted(tmp_path / "saving", activation_checkpointing=True)
    assert (plain[0], saving[0]) == (1, 2)
    assert plain[1] == saving[1]


@pytest.mark.parametrize("masks", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["boxes", "masks"])
def test_accumulation_takes_the_mean_of_its_batches(masks, tmp_path):
    """One step of two batches: SGD goes along the mean of their gradients."""
    options = {"optim": "sgd", "max_grad_norm": 1e9, "warmup_steps": 0, "max_steps": 1, "save_strategy": "no"}
    run = trainer(tmp_path, micro_model(dropout=0.0, masks=masks), gradient_accumulation_steps=2, **options)
    collate, batches = run.data_collator, []

    def noting(rows):
        batches.append(collate(rows))
        return batches[-1]

    run.data_collator = noting
    run.train()
    assert run.state.global_step == 1
    model = micro_model(dropout=0.0, masks=masks).train()
    for batch in batches[:2]:  # a third may have been read ahead
        (model(**batch).loss / 2).backward()
    rates = {"backbone": run.args.backbone_learning_rate, "class_embed": run.args.head_learning_rate}
    moved = 0
    for (name, before), after in zip(model.named_parameters(), run.model.parameters(), strict=True):
        if before.requires_grad:
            rate = rates.get(name.split(".")[0], run.args.learning_rate)
            expected = before - rate * (before.grad + run.args.weight_decay * before)
            torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6, msg=name)
            moved += int(not torch.equal(after, before))
    assert moved > 20


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.timeout(900)
def test_a_compiled_model_trains_the_same(masks, tmp_path):
    _, eager = losses(tmp_path / "eager", masks)
    run, compiled = losses(tmp_path / "compiled", masks, torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled == pytest.approx(eager, rel=1e-4)
    run.save_model()
    type(run.model).from_pretrained(tmp_path / "compiled")
