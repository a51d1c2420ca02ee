"""Two runs into one output folder are never mixed: neither in what is kept, nor in what is resumed."""

import json
import shutil

import pytest

from detr_hf.errors import CheckpointError
from detr_hf.training.checkpointing import MANIFEST, RUN_NAME, checkpoints_in, last_complete_checkpoint, run_of
from detr_hf.training.runs import LOCK, take_folder
from detr_hf.whole_files import let_go

from .scenes import Scenes, digest, micro_model, trainer

ASIDE = "_earlier_run_1"


def names(folder) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


def forget_run(checkpoint) -> None:
    """Makes a checkpoint one of a version that knew no runs."""
    (checkpoint / RUN_NAME).unlink()
    sizes = json.loads((checkpoint / MANIFEST).read_text())
    del sizes[RUN_NAME]
    (checkpoint / MANIFEST).write_text(json.dumps(sizes))


def train(folder, steps: int, resume=None, seed: int = 0, model=None, **changes):
    run = trainer(folder, model or micro_model(seed), max_steps=steps, save_total_limit=2, **changes)
    run.train(resume_from_checkpoint=resume)
    return run


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory):
    """A run of five steps, whose last two checkpoints are kept."""
    folder = tmp_path_factory.mktemp("runs") / "five"
    train(folder, 5)
    return folder


@pytest.fixture
def out(five_steps, tmp_path):
    return shutil.copytree(five_steps, tmp_path / "out")


def test_two_trainings_at_once_do_not_share_a_folder(tmp_path):
    lock = tmp_path / "out" / LOCK
    assert take_folder(tmp_path / "out") is None
    try:
        with pytest.raises(
            CheckpointError, match=r"out is being trained into by process \d+ on .* another output_dir"
        ):
            train(tmp_path / "out", 1)
    finally:
        let_go(lock)  # as the system does for a process that was killed
    assert lock.exists() and train(tmp_path / "out", 1).state.global_step == 1
    assert not lock.exists() and names(tmp_path / "out") == ["checkpoint-1"]
    (tmp_path / "file").touch()
    assert "file/out cannot be written" in take_folder(tmp_path / "file" / "out")


# the second run -> its steps, and what differs
SECOND = {
    "shorter": (3, {}),
    "as long": (5, {}),
    "longer": (7, {}),
    "other data": (3, {"train": Scenes(5)}),
    "another model": (3, {"model": lambda: micro_model(dec_layers=1)}),
    "other classes": (3, {"model": lambda: micro_model(id2label=dict(enumerate("abcd")))}),
    "the best is kept": (3, {"evaluation": Scenes(2, noise=False), "eval_strategy": "steps", "eval_steps": 1}),
}
SECOND_SLOW = ("as long", "longer", "other data", "other classes")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SECOND_SLOW)) for case in SECOND]
)
def test_a_second_run_keeps_its_own_checkpoints_and_resume_takes_them(case, out, caplog):
    steps, changes = SECOND[case]
    changes = {**changes, "model": changes["model"]()} if "model" in changes else changes
    run = train(out, steps, seed=1, **changes)
    assert names(out)[-1] == f"checkpoint-{steps}" and len(names(out)) == 2
    assert {run_of(path) for path in checkpoints_in(out)} == {run._run.id}
    assert names(out / ASIDE) == ["checkpoint-4", "checkpoint-5"]
    assert last_complete_checkpoint(out).name == f"checkpoint-{steps}"
    assert f"moved to {out / ASIDE}" in caplog.text and f"{out / ASIDE / 'checkpoint-5'}" in caplog.text
    if run.state.best_model_checkpoint:
        assert json.loads((out / names(out)[-1] / "trainer_state.json").read_text())["max_steps"] == steps
        assert run.state.best_model_checkpoint in map(str, checkpoints_in(out))


@pytest.mark.slow
def test_every_further_run_has_a_folder_of_its_own(out):
    for steps in (1, 2):
        train(out, steps)
    assert names(out / ASIDE) == ["checkpoint-4", "checkpoint-5"]
    assert names(out / "_earlier_run_2") == ["checkpoint-1"] and names(out) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.slow
def test_a_run_that_was_set_aside_can_be_gone_on_with(out, tmp_path):
    """And it sets the second aside; what it comes to is what it would have come to."""
    straight = train(tmp_path / "straight", 6)
    train(out, 3, seed=1)
    resumed = train(out, 6, resume=str(out / ASIDE / "checkpoint-4"))
    assert digest(resumed.model) == digest(straight.model)
    assert names(out) == ["checkpoint-5", "checkpoint-6"]
    assert names(out / "_earlier_run_2") == ["checkpoint-2", "checkpoint-3"]


def test_going_on_from_an_older_checkpoint_keeps_the_new_branch(out):
    """Its later checkpoints are of steps that this run takes anew."""
    before = run_of(out / "checkpoint-4")
    run = train(out, 6, resume=out / "checkpoint-4", learning_rate=1e-2)
    assert names(out) == ["checkpoint-5", "checkpoint-6"] and names(out / ASIDE) == ["checkpoint-5"]
    assert run._run.id == before == run_of(out / ASIDE / "checkpoint-5")


@pytest.mark.parametrize(("how", "left"), [("delete", None), ("refuse", ["checkpoint-4", "checkpoint-5"])])
def test_an_earlier_run_may_be_deleted_or_refused(how, left, out):
    if how == "refuse":
        with pytest.raises(CheckpointError, match=r"checkpoint-4, checkpoint-5 of an earlier run.*'set_aside'"):
            train(out, 3, earlier_checkpoints=how)
        assert names(out) == left
        train(out, 6, resume=True, earlier_checkpoints=how)
    else:
        train(out, 3, earlier_checkpoints=how)
        assert names(out) == ["checkpoint-2", "checkpoint-3"]
    assert not (out / ASIDE).exists()


def test_a_run_that_saves_nothing_moves_nothing(out):
    train(out, 1, save_strategy="no")
    assert names(out) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("resume", [True, "auto"])
def test_checkpoints_without_a_run_are_taken_as_one_with_a_word(resume, out, caplog):
    """Those of plain Trainer, and of versions before this."""
    for path in checkpoints_in(out):
        forget_run(path)
    run = train(out, 6, resume=resume)
    assert "does not say which run it is of" in caplog.text
    assert names(out) == ["checkpoint-5", "checkpoint-6"] and not (out / ASIDE).exists()
    assert {run_of(path) for path in checkpoints_in(out)} == {run._run.id}


def test_a_mixture_is_not_guessed_at(out):
    """As when somebody moves a checkpoint back."""
    train(out, 2)
    (out / ASIDE / "checkpoint-5").rename(out / "checkpoint-5")
    for resume in (True, "auto"):
        with pytest.raises(CheckpointError, match=r"checkpoints of several runs: .*checkpoint-5 of run"):
            train(out, 6, resume=resume)
    train(out, 3, resume=str(out / "checkpoint-2"))
    assert names(out) == ["checkpoint-2", "checkpoint-3"] and names(out / "_earlier_run_2") == ["checkpoint-5"]


def test_what_cannot_be_resumed_is_refused_with_what_there_is(out, tmp_path):
    other = micro_model(id2label={0: "cat", 1: "owl", 2: "dog"})
    with pytest.raises(CheckpointError, match=r"classes cat, dog, owl, and this model has cat, owl, dog.*from_pretr"):
        train(out, 6, resume=True, model=other)
    for path in checkpoints_in(out):
        forget_run(path)  # the configuration knows
    with pytest.raises(CheckpointError, match="this model has cat, owl, dog"):
        train(out, 6, resume=str(out / "checkpoint-5"), model=other)
    with pytest.raises(ValueError, match=r"does not fit the model(.|\n)*size mismatch"):
        train(out, 6, resume=str(out / "checkpoint-5"), model=micro_model(num_queries=9))
    micro_model().save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model", out / "checkpoint-9"):
        with pytest.raises(CheckpointError, match=r"no checkpoint of a training.*: checkpoint-4, checkpoint-5"):
            train(out, 6, resume=str(path))
    (out / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"not complete: optimizer.pt is missing"):
        train(out, 6, resume=str(out / "checkpoint-5"))
    train(out, 1)
    shutil.rmtree(out / "checkpoint-1")
    with pytest.raises(CheckpointError, match=rf"no complete checkpoint.*there are: {ASIDE}/checkpoint-4, "):
        train(out, 1, resume=True)


@pytest.mark.slow
def test_other_data_and_a_missing_optimiser_are_said(out, caplog):
    train(out, 6, resume=True, train=Scenes(6))
    assert "was trained on 8 pictures, and there are 6 now" in caplog.text
    train(out, 1, save_only_model=True)
    train(out, 2, resume=True)
    assert "the optimiser starts anew" in caplog.text


@pytest.mark.parametrize("steps", [5, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_at_its_end_takes_no_further_step(steps, out, caplog):
    before = digest(train(out, 5, resume=True).model)
    run = train(out, steps, resume=True)
    assert run.state.global_step == 5 and digest(run.model) == before
    assert f"is at step 5 and ends at step {steps}: there is nothing left" in caplog.text
    assert names(out) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.slow
def test_the_best_is_this_runs_wherever_its_folder_is(best_is_kept, tmp_path):
    """The output folder was moved, and another run has a checkpoint at the old place."""
    changes = {"evaluation": Scenes(2, noise=False), "eval_strategy": "steps", "eval_steps": 1}
    first = trainer(tmp_path / "out", max_steps=3, save_total_limit=2, **changes)
    scores = iter([0.1, 0.4, 0.2])
    first.evaluate, evaluate = lambda **options: {**evaluate(**options), "eval_ap": next(scores)}, first.evaluate
    first.train()
    shutil.move(tmp_path / "out", tmp_path / "moved")
    train(tmp_path / "out", 3, seed=4)
    again = trainer(tmp_path / "moved", micro_model(3), max_steps=3, **changes)
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")
    assert digest(again.model) == digest(first.model)
    by_loss = trainer(tmp_path / "moved", micro_model(3), max_steps=4, metric_for_best_model="loss", **changes)
    by_loss.train(resume_from_checkpoint=True)
    assert by_loss.state.best_global_step == 4
