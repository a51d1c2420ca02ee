"""What a person reads while a DETR trains."""

import contextlib
import io
import re
from unittest import mock

import pytest

from detr_hf.training import watching

from .scenes import Scenes, micro_model, trained, trainer

OPTIONS = {"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "no", "max_steps": 24, "warmup_steps": 2}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The lines of a run with three evaluations, and the run."""
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), mock.patch.object(watching, "LEAST_STEPS", 10):
        run = trainer(tmp_path_factory.mktemp("run"), evaluation=Scenes(3, noise=False), recipe="fast", **OPTIONS)
        run.train()
        run.evaluate()
    return [line for line in stream.getvalue().splitlines() if line], run


def test_it_begins_with_what_begins(said):
    head = "\n".join(said[0][:4])
    model = said[1].model
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for words in (
        f"DETRForObjectDetection on test_resnet: {count:.1f} M parameters",
        "float32 on the CPU",
        "Recipe fast, rates of scratch (the transformer is new): learning rate 0.001, backbone 1e-05, class head",
        "weights averaged (0.999)",
        "8 pictures to learn from, 3 to measure on, of 800 pixels",
        "24 steps of 2 pictures (6 epochs)",
    ):
        assert words in head, words


def test_a_line_an_evaluation_and_none_of_trainers_dictionaries(said):
    lines, run = said
    assert not [line for line in lines if line.startswith("{")]
    evaluations = [line for line in lines if re.match(r"step \d+ of 24 .*AP ", line)]
    assert len(evaluations) == 3  # the one after training is whoever asked's
    pattern = (
        r"step 10 of 24 \(epoch 2.5\)  loss [\d.]+  AP 0\.\d{3}  AP50 0\.\d{3}  .*[\d.]+ s a step  0:0\d:\d\d left"
    )
    assert re.match(pattern, evaluations[0])
    logged = [entry for entry in run.state.log_history if "eval_ap" in entry]
    assert f"AP {logged[0]['eval_ap']:.3f}" in evaluations[0]


def test_time_and_verdict_are_said_once(said):
    lines = said[0]
    assert len([line for line in lines if "s a step (of 8 measured)" in line]) == 1
    assert len([line for line in lines if "learn" in line and " of 24 steps" in line]) == 1


def test_a_trained_transformer_is_named_and_the_words_are_the_callers(tmp_path, capsys):
    run = trainer(tmp_path, trained(micro_model()), freeze_backbone=True, max_steps=1, save_strategy="no")
    run.watch.words = str.upper
    run.train()
    text = capsys.readouterr().err
    assert "RECIPE FINETUNE (THE TRANSFORMER'S WEIGHTS ARE TRAINED ONES)" in text and "BACKBONE FROZEN" in text


def test_a_long_training_on_a_cpu_is_told_what_makes_it_shorter(tmp_path):
    run = trainer(tmp_path, max_steps=100)
    run.state.max_steps = 100_000
    run.watch._seconds.extend([3.0] * 8)
    assert re.search(r"83\.3 hours to go.*freeze_backbone=True", run.watch._expected(run.args, run.state))
    run.state.max_steps = 100
    assert run.watch._expected(run.args, run.state).endswith("some 5 minutes to go.")
