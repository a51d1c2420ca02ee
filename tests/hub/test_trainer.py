"""Trainer's pushes: while it trains, at the end, and what their cards say."""

import json
import re

import pytest

from detr_hf.errors import HubError

from . import actions


@pytest.mark.slow
def test_a_run_of_30_steps_pushes_every_save_and_then_the_whole(hub, client, tmp_path):
    folder = client(actions.scenes, str(tmp_path / "data"))
    trained = client(actions.train_and_push, folder, str(tmp_path / "out"))
    stored = hub.repositories["models/me/trained"]
    steps = [f"Training in progress, step {step}" for step in (10, 20, 30)]
    assert stored.messages == ["initial commit", *steps, "End of training"]
    for commit in stored.commits:
        files = hub.files("me/trained", commit)
        assert not files or ("model.safetensors" in files and "modeling_detr.py" in files)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    loaded = client(actions.load, "me/trained", verify=True)
    assert loaded["digest"] == trained["digest"] and loaded["size"] == actions.SIZE
    files = hub.files("me/trained")
    facts = json.loads(files["facts.json"])
    card = files["README.md"].decode()
    assert {"examples.png", "training_curves.png"} <= set(files)
    assert "30 steps of 2 pictures" in card and "Score" in card and "drawn digits" in card
    assert facts["evaluation"]["AP"] is not None and str(tmp_path) not in card
    client(actions.validate_card, card)
    assert any(path.endswith("README.md") for path in trained["files"])


@pytest.mark.slow
def test_a_push_that_fails_does_not_stop_the_training(hub, client, tmp_path):
    folder = client(actions.scenes, str(tmp_path / "data"))
    hub.faults.left["put_403"] = 1
    client(actions.train_and_push, folder, str(tmp_path / "out"), max_steps=4, eval_steps=2, save_steps=2)
    messages = hub.repositories["models/me/trained"].messages
    assert messages[-1] == "End of training" and len(messages) == 3  # of two pushes on the way, one failed


@pytest.mark.slow
def test_checkpoints_go_along_in_the_same_commit_and_without_arguments_in_a_pickle(hub, client, tmp_path):
    folder = client(actions.scenes, str(tmp_path / "data"))
    client(
        actions.train_and_push,
        folder,
        str(tmp_path / "out"),
        max_steps=2,
        eval_steps=1,
        save_steps=1,
        hub_strategy="checkpoint",
        ema_decay=0.5,
    )
    stored = hub.repositories["models/me/trained"]
    commits = dict(zip(stored.messages, stored.commits, strict=True))
    commit = commits["Training in progress, step 2"]
    files = set(hub.files("me/trained", commit))
    assert {"last-checkpoint/trainer_state.json", "last-checkpoint/model.safetensors", "model.safetensors"} <= files
    assert not [name for name in files if re.search(r"training_args\.bin$", name)]


def test_a_trainer_without_rights_says_so_before_it_trains(hub, client, tmp_path):
    folder = client(actions.scenes, str(tmp_path / "data"))
    with pytest.raises(HubError, match="Could not make the repository me/trained: the token was refused"):
        client(actions.train_and_push, folder, str(tmp_path / "out"), hub_token="hf_mistyped")
