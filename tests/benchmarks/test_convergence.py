"""The convergence benchmark: same data for all arms, honest thresholds, and transformers' model on our backbone."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import convergence, convergence_tasks
from benchmarks.convergence import run_arms
from benchmarks.convergence_arms import build_model, known_arms
from benchmarks.convergence_record import Checkpoint, Run
from benchmarks.convergence_report import summarise
from benchmarks.convergence_tasks import Settings, Task, digit_task, picture_task
from detr_hf.training.arguments import MODEL_OPTIONS
from tests.data.layouts import write_coco


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a few digit scenes on a backbone that was hardly trained."""
    folder = tmp_path_factory.mktemp("convergence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convergence_tasks, "TRAIN_SCENES", 24)
        patch.setattr(convergence_tasks, "VALIDATION_SCENES", 6)
        patch.setattr(convergence_tasks, "PRETRAIN_STEPS", 4)
        patch.setattr(convergence_tasks, "PRETRAIN_BATCH", 4)
        digit_task(folder, 1)
    return folder


@pytest.fixture
def settings(work) -> Settings:
    return Settings(work=str(work), steps=4, eval_every=2, batch=4, warmup=2, hidden_dim=32, layers=2)


def test_a_batch_depends_on_seed_and_step_alone(settings):
    task = settings.task()
    one, again, other = (task.batch(*which, 4, "cpu") for which in ((0, 3), (0, 3), (1, 3)))
    assert torch.equal(one[0], again[0]) and not torch.equal(one[0], other[0])
    epoch = torch.cat([task.batch(0, step, 4, "cpu")[0] for step in range(6)])
    assert len(epoch.flatten(1).unique(dim=0)) == 24, "every scene once an epoch"


def test_transformers_at_its_best_starts_from_our_values(settings):
    task = settings.task()
    torch.manual_seed(3)
    ours = build_model("detr", settings, task).eval()
    torch.manual_seed(3)
    theirs = build_model("transformers-best", settings, task).eval()
    torch.manual_seed(3)
    shipped = build_model("transformers", settings, task).eval()
    features = task.validation.pixels
    with torch.no_grad():
        expected, found, other = (model(features).logits for model in (ours, theirs, shipped))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(other, expected, atol=1e-2)
    assert theirs.config.auxiliary_loss and not shipped.config.auxiliary_loss


@pytest.mark.slow
def test_every_arm_trains_and_the_files_say_how_it_went(settings, tmp_path):
    out = tmp_path / "results" / "run.json"
    arms = ["transformers", "transformers-best", "fast", "fast_ref", "all_aids"]
    record = run_arms(arms, [0], settings, out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    assert [run["arm"] for run in record["runs"]] == arms
    for run in record["runs"]:
        assert [point["step"] for point in run["curve"]] == [2, 4]
        assert all(np.isfinite(point["loss"]) and 0 <= point["AP50"] <= 1 for point in run["curve"])
        assert run["curve"][1]["seconds"] > run["curve"][0]["seconds"] > 0
    assert json.loads(out.read_text())["settings"] == json.loads(json.dumps(settings.to_record()))
    text = summarise(out)
    assert all(arm in text for arm in arms) and text.startswith(out.with_suffix(".md").read_text().strip())
    assert not list(out.parent.glob("*.part*")), "parts of finished runs are gone"


@pytest.mark.slow
def test_an_arm_that_averages_measures_the_average_and_trains_as_without(settings, tmp_path):
    arms = ["fast_without_average", "fast"]
    plain, averaged = (run["curve"] for run in run_arms(arms, [0], settings, tmp_path / "run.json")["runs"])
    assert [point["loss"] for point in plain] == [point["loss"] for point in averaged]
    weights = []
    for arm in arms:
        torch.manual_seed(0)
        weights.append(build_model(arm, settings, settings.task()).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_average_is_what_is_measured(settings, monkeypatch):
    """After one step of a large rate, the averaged weights lie between the first and the last."""
    seen = []
    monkeypatch.setattr(convergence, "measure", lambda model, *_: seen.append(next(model.parameters()).clone()) or {})
    for arm in ("fast_without_average", "fast"):
        convergence.train(arm, 0, Settings(**{**asdict(settings), "steps": 2, "lr": 0.1}))
    assert not torch.equal(*seen)


@pytest.mark.slow
def test_a_seed_gives_the_same_curve_again(settings, tmp_path):
    curves = [run_arms(["fast"], [1], settings, tmp_path / f"{name}.json")["runs"][0]["curve"] for name in "ab"]
    without_time = [[{**point, "seconds": None} for point in curve] for curve in curves]
    assert without_time[0] == without_time[1]


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_and_gives_the_same_curves(settings, tmp_path, monkeypatch):
    settings = Settings(**{**asdict(settings), "dropout": 0.1, "steps": 5})
    arms, out, measure, calls = ["detr", "fast"], tmp_path / "run.json", convergence.measure, []

    def counting(*arguments, killed_at=None):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return measure(*arguments)

    straight = run_arms(arms, [0], settings, tmp_path / "straight.json")["runs"]
    monkeypatch.setattr(convergence, "measure", lambda *arguments: counting(*arguments, killed_at=4))
    with pytest.raises(KeyboardInterrupt):
        run_arms(arms, [0], settings, out)
    calls.clear()
    monkeypatch.setattr(convergence, "measure", counting)
    runs = run_arms(arms, [0], settings, out)["runs"]
    assert len(calls) == 1, "the finished run and the evaluated half of the other were not done again"
    for one, other in zip(runs, straight, strict=True):
        assert [point | {"seconds": 0} for point in one["curve"]] == [p | {"seconds": 0} for p in other["curve"]]
    assert not list(tmp_path.glob("*.part*"))


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(settings, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.part", settings)
    checkpoint.save(run={})
    assert checkpoint.load() and not Checkpoint(checkpoint.path, Settings()).load()


def test_thresholds_are_interpolated_and_never_invented():
    curve = [
        {"step": 100, "seconds": 10.0, "AP50": 0.1},
        {"step": 200, "seconds": 30.0, "AP50": 0.4},
        {"step": 300, "seconds": 40.0, "AP50": 0.3},
    ]
    run = Run("detr", 0, 1e-3, curve)
    assert run.reached(0.25) == {"step": pytest.approx(150), "seconds": pytest.approx(20)}
    assert run.reached(0.05)["step"] == pytest.approx(50)
    assert run.reached(0.5) is None


def test_an_unknown_arm_is_named():
    with pytest.raises(ValueError, match=r"'quick'.*transformers-best.*fast"):
        run_arms(["quick"], [0], Settings(), None)
    assert set(MODEL_OPTIONS) < set(known_arms())


def test_the_arms_without_one_part_of_fast_are_fast_without_it():
    arms = known_arms()
    lacking = {name: arms["fast"].keys() - arms[name].keys() for name in arms if name.startswith("fast_without_")}
    assert set().union(*lacking.values()) == arms["fast"].keys(), "every part has its arm"
    assert all(len(missing) == 1 and arms[name].items() < arms["fast"].items() for name, missing in lacking.items())


TRAINS_FOR_MINUTES = """
import os, sys, time
from multiprocessing import get_context
from pathlib import Path
from benchmarks.worker_processes import end_with_parent

def train(path):
    end_with_parent()
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)

if __name__ == "__main__":
    worker = get_context("spawn").Process(target=train, args=sys.argv[1:])
    worker.start()
    worker.join()
"""


def test_a_killed_benchmark_leaves_no_worker(tmp_path):
    script, pid = tmp_path / "benchmark.py", tmp_path / "pid"
    script.write_text(TRAINS_FOR_MINUTES)
    root = str(Path(__file__).parents[2])  # benchmarks/ is no part of what is installed
    parent = subprocess.Popen([sys.executable, script, pid], env={**os.environ, "PYTHONPATH": root})
    try:
        wait_until(lambda: pid.exists() and pid.read_text(), "the worker has started")
        worker = int(pid.read_text())
        os.kill(worker, 0)  # it runs
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not _runs(worker), "the worker has ended")


def wait_until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_pictures_without_a_backbone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--backbone-weights"):
        Settings(data=str(tmp_path)).task()


def test_crops_keep_boxes_on_their_objects():
    """A coloured object on black stays inside its box, whatever is cut and mirrored."""
    rng = np.random.default_rng(0)
    picture = torch.zeros(3, 96, 96, dtype=torch.uint8)
    picture[:, 30:50, 20:60] = 255  # in an unpadded picture of 64 x 80
    target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[40 / 80, 40 / 64, 40 / 80, 20 / 64]])}
    kept = 0
    for _ in range(30):
        cropped, moved = convergence_tasks.crop_and_flip(rng, picture, target, (64, 80))
        assert not cropped[:, 64:].any() and not cropped[:, :, 80:].any(), "padding stays empty"
        if not len(moved["boxes"]):
            continue
        kept += 1
        rows, columns = (cropped[0] > 127).nonzero(as_tuple=True)
        seen = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        cx, cy, w, h = (moved["boxes"][0] * torch.tensor([80, 64, 80, 64])).tolist()
        assert seen == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=2.0)
    assert kept > 20


def test_a_data_set_becomes_a_task(tmp_path):
    weights = tmp_path / "weights.safetensors"
    write_coco(tmp_path / "data")
    task = picture_task(str(tmp_path / "data"), 64, "resnet18", str(weights), (0.5,) * 3, (0.5,) * 3)
    assert isinstance(task, Task) and not task.are_features
    pixels, mask, targets = task.batch(0, 0, 1, "cpu")
    assert pixels.shape == (1, 3, 64, 64) and mask.shape == (1, 64, 64) and len(targets) == 1
    assert all((target["boxes"] >= 0).all() and (target["boxes"] <= 1).all() for target in task.train.targets)
    assert task.validation.truth["annotations"]
