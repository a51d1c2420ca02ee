"""Checkpoints are whole or not there: whatever write fails, and whenever the process is killed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from detr_hf.errors import CheckpointError
from detr_hf.training import checkpointing
from detr_hf.training.checkpointing import (
    checkpoints_in,
    delete_old_checkpoints,
    fault_of,
    finish_writing,
    last_complete_checkpoint,
    start_writing,
)

from .scenes import digest, micro_model, trainer


def write(folder: Path, step: int, content: str = "weights") -> Path:
    final = folder / f"checkpoint-{step}"
    unfinished = start_writing(final)
    (unfinished / "model.safetensors").write_text(content)
    (unfinished / "trainer_state.json").write_text("{}")
    finish_writing(unfinished, final)
    return final


def test_what_is_being_written_is_no_checkpoint(tmp_path):
    write(tmp_path, 1)
    unfinished = start_writing(tmp_path / "checkpoint-2")
    (unfinished / "model.safetensors").write_text("half")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-1"
    assert not list(tmp_path.glob("checkpoint-2"))
    finish_writing(unfinished, tmp_path / "checkpoint-2")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-2"
    assert not list(tmp_path.glob("_*"))


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path, step)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_a_step_that_is_saved_again_replaces_the_old(tmp_path):
    write(tmp_path, 1, "old")
    assert (write(tmp_path, 1, "newer") / "model.safetensors").read_text() == "newer"


@pytest.mark.parametrize("harm", ["cut", "missing", "grown"])
def test_a_damaged_checkpoint_is_passed_over(harm, tmp_path, caplog):
    write(tmp_path, 1)
    weights = write(tmp_path, 2) / "model.safetensors"
    {
        "cut": lambda: weights.write_text("w"),
        "missing": weights.unlink,
        "grown": lambda: weights.write_text("weights and more"),
    }[harm]()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-1"
    assert "checkpoint-2 is not complete (model.safetensors" in caplog.text


def test_checkpoints_of_plain_trainer_are_judged_by_their_files(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / checkpointing.MANIFEST).unlink()
    assert fault_of(checkpoint) is None
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "SafetensorError" in fault_of(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert fault_of(checkpoint) == "it has no weights"
    (checkpoint / "trainer_state.json").write_text("{")
    assert "JSONDecodeError" in fault_of(checkpoint)


def test_old_checkpoints_go_but_never_the_best_or_the_last(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step)
    delete_old_checkpoints(tmp_path, keep=2, best=str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-5"]
    delete_old_checkpoints(tmp_path, keep=1, best=None)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    start_writing(tmp_path / "checkpoint-7")
    (tmp_path / "_deleted-checkpoint-3").mkdir()
    (tmp_path / "_mine").mkdir()
    trainer(tmp_path, max_steps=1).train()
    assert sorted(path.name for path in tmp_path.glob("_*")) == ["_mine"]


@pytest.fixture(scope="module")
def straight_digest(tmp_path_factory) -> str:
    """The weights of a run that nothing stops."""
    straight = trainer(tmp_path_factory.mktemp("straight"), max_steps=4)
    straight.train()
    return digest(straight.model)


@pytest.mark.parametrize(
    "failing",
    [
        "model.safetensors",
        checkpointing.MANIFEST,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")
        ),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(failing, straight_digest, tmp_path, monkeypatch):
    """The disk fills up in the middle of one file, each in turn; afterwards the run resumes."""
    run = trainer(tmp_path / "full", max_steps=4)
    fill_disk_at(failing, run, monkeypatch, step=3)
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint-3 could not be written .*last complete checkpoint is .*checkpoint-2;.*Make room",
    ):
        run.train()
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.undo()

    resumed = trainer(tmp_path / "full", micro_model(seed=5), max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == straight_digest


def fill_disk_at(name: str, run, monkeypatch, step: int) -> None:
    """Lets the writing of one file fail half-way, at one step."""

    def full(path) -> bool:
        return run.state.global_step == step and Path(str(path)).name == name

    def fail(path):
        Path(path).write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    save, write_text, save_json = torch.save, Path.write_text, type(run.state).save_to_json
    monkeypatch.setattr(
        torch,
        "save",
        lambda thing, path, *args, **options: fail(path) if full(path) else save(thing, path, *args, **options),
    )
    monkeypatch.setattr(
        Path,
        "write_text",
        lambda path, *args, **options: fail(path) if full(path) else write_text(path, *args, **options),
    )
    monkeypatch.setattr(
        type(run.state), "save_to_json", lambda state, path: fail(path) if full(path) else save_json(state, path)
    )
    save_pretrained = run.model.save_pretrained

    def save_model(folder, **options):
        if full(Path(folder) / "model.safetensors"):
            fail(Path(folder) / "model.safetensors")
        save_pretrained(folder, **options)

    monkeypatch.setattr(run.model, "save_pretrained", save_model)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_a_real_limit_on_file_size_leaves_the_checkpoint_before(tmp_path):
    """The kernel refuses the bytes, in whatever library writes them: optimizer.pt is larger than the limit, the
    weights are not."""
    script = (
        "import resource, signal, sys\n"
        "from tests.training.scenes import trainer\n"
        "run = trainer(sys.argv[1], max_steps=3)\n"
        "save = run._save_checkpoint\n"
        "def limited(model, trial):\n"
        "    if run.state.global_step == 2:\n"
        "        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))\n"
        "    save(model, trial)\n"
        "run._save_checkpoint = limited\n"
        "run.train()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 1
    assert "CheckpointError" in done.stderr and "checkpoint-2 could not be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert fault_of(tmp_path / "checkpoint-1") is None
    with safe_open(tmp_path / "checkpoint-1" / "model.safetensors", framework="pt") as weights:
        assert len(list(weights.keys())) > 50


def run_killed(folder: Path, kills: int, *words: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(folder), str(kills), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kill_9_while_saving_every_step(tmp_path):
    check_kills(run_killed(tmp_path / "run", 1), 1)  # fifty times below


@pytest.mark.slow
def test_kill_9_while_masks_are_learnt(tmp_path):
    check_kills(run_killed(tmp_path / "run", 5, "masks"), 5)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_times_kill_9_while_saving_every_step(tmp_path):
    found = run_killed(tmp_path / "run", 50)
    check_kills(found, 50)
    assert found["while_saving"] >= 5  # else the test did not hit what it is for


def check_kills(found: dict, kills: int) -> None:
    assert found["kills"] == found["resumable"] == kills
    assert found["most_saves_lost"] <= 1
    assert found["same_as_straight"]
