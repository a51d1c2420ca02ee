"""A push makes a whole repository in one commit, which loads to the same model, and says what it is."""

import hashlib
import json

import pytest

from detr_hf.hub.manifest import MANIFEST

from . import actions

CODE = {"modeling_detr.py", "configuration_detr.py", "image_processing_detr.py"}


def test_one_commit_holds_everything_and_loads_to_the_same_model(hub, client):
    pushed = client(actions.push_model, "detr-a", license="apache-2.0")
    files = hub.files("me/detr-a")
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "facts.json"} | CODE <= set(
        files
    )
    assert {"id2label.json", MANIFEST} <= set(files)
    assert len(hub.repositories["models/me/detr-a"].messages) == 2  # the Hub's own, and ours
    assert hub.count("POST .*/commit/") == 1
    assert json.loads(files["id2label.json"]) == {"0": "cat", "1": "dog", "2": "owl"}
    loaded = client(actions.load, "me/detr-a", verify=True)
    assert loaded["digest"] == pushed["digest"]
    assert loaded["outputs"] == pushed["outputs"]
    assert loaded["size"] == actions.SIZE


def test_no_file_of_a_push_can_run_code_when_it_is_unpickled(hub, client):
    client(actions.push_model, "detr-a")
    assert not [name for name in hub.files("me/detr-a") if name.endswith((".bin", ".pth", ".pt", ".pkl"))]


def test_the_manifest_is_one_that_sha256sum_reads(hub, client):
    client(actions.push_model, "detr-a")
    files = hub.files("me/detr-a")
    listed = dict(reversed(line.split("  ", 1)) for line in files[MANIFEST].decode().splitlines())
    assert set(listed) == set(files) - {MANIFEST, "README.md"}
    assert all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in listed.items())


def test_pushing_does_not_change_the_model_or_later_saves(hub, client, tmp_path):
    assert client(actions.push_model, "detr-a")["training"] is False
    assert client(actions.saved_files, str(tmp_path)) == ["config.json", "model.safetensors"]


def test_the_same_push_again_makes_no_commit_and_uploads_nothing(hub, client):
    first = client(actions.push_model, "detr-a")
    puts = hub.count("^PUT")
    assert client(actions.push_model, "detr-a")["oid"] == first["oid"]
    assert hub.count("^PUT") == puts


def test_a_new_push_leaves_nothing_of_the_old_one_but_keeps_other_files(hub, client):
    client(actions.push_model, "detr-a", max_shard_size="200KB")
    shards = [name for name in hub.files("me/detr-a") if name.startswith("model-0")]
    assert len(shards) > 1 and "model.safetensors.index.json" in hub.files("me/detr-a")
    hub.put("me/detr-a", {"notes.txt": b"mine", "pytorch_model.bin": b"old"})
    pushed = client(actions.push_model, "detr-a", 1)
    files = hub.files("me/detr-a")
    assert [name for name in files if name.endswith((".safetensors", ".index.json", ".bin"))] == ["model.safetensors"]
    assert files["notes.txt"] == b"mine"
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == pushed["digest"]


@pytest.mark.slow
def test_shards_load_and_verify(hub, client):
    pushed = client(actions.push_model, "detr-a", max_shard_size="200KB")
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == pushed["digest"]


@pytest.mark.slow
def test_a_card_that_somebody_wrote_stays_unless_asked(hub, client):
    client(actions.push_model, "detr-a")
    hub.put("me/detr-a", {"README.md": b"# My own words"})
    client(actions.push_model, "detr-a", 1)
    assert hub.files("me/detr-a")["README.md"] == b"# My own words"
    client(actions.verified, "me/detr-a", force_download=True)
    client(actions.push_model, "detr-a", 1, overwrite_card=True)
    assert b"carion2020end" in hub.files("me/detr-a")["README.md"]


@pytest.mark.slow
def test_private_repositories_branches_and_pull_requests(hub, client):
    main = client(actions.push_model, "detr-a", private=True)
    branch = client(actions.push_model, "detr-a", 1, revision="better")
    proposed = client(actions.push_model, "detr-a", 2, create_pr=True)
    assert hub.repositories["models/me/detr-a"].private
    assert proposed["pr"].endswith("/me/detr-a/discussions/1")
    expected = {"main": main, "better": branch, branch["oid"]: branch, "refs/pr/1": proposed}
    for revision, pushed in expected.items():
        assert client(actions.load, "me/detr-a", revision=revision, verify=True)["digest"] == pushed["digest"]


@pytest.mark.slow
def test_the_card_has_measured_numbers_pictures_and_valid_metadata(hub, client, tmp_path):
    evaluation = {
        **dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"), 0.25),
        "APs": None,
        "num_images": 12,
        "per_class": {"cat": {"AP": 0.5, "AP50": 0.75, "objects": 7}},
    }
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_ap": 0.1, "eval_ap50": 0.2}]
    client(actions.push_with_data, "detr-a", str(tmp_path / "data"), evaluation=evaluation, log_history=log)
    files = hub.files("me/detr-a")
    card = files["README.md"].decode()
    assert "| cat | 7 | 0.500 | 0.750 |" in card and "| 0.250 | 0.250 | 0.250 | – |" in card
    assert "![What the model finds" in card and "training_curves.png" in card
    for name, least in (("examples.png", (400, 200)), ("training_curves.png", (400, 200))):
        size = actions.size_of(files[name])
        assert size[0] >= least[0] and size[1] >= least[1]
    assert str(tmp_path) not in card  # the path of this machine is nobody's business
    client(actions.validate_card, card)
    with pytest.raises(ValueError, match="license"):
        client(actions.validate_card, card.replace("license: apache-2.0", "license: none-such"))


@pytest.mark.slow
def test_a_plain_model_can_be_pushed_for_stock_transformers(hub, client):
    pushed = client(actions.push_plain, "plain", format="transformers")
    files = hub.files("me/plain")
    assert json.loads(files["config.json"])["model_type"] == "detr"
    assert not [name for name in files if name.endswith(".py")]
    assert b"trust_remote_code" not in files["README.md"]
    loaded = client(actions.load, "me/plain", verify=True)  # the package reads it too, to the same weights
    assert loaded["digest"] == pushed["digest"]


@pytest.mark.parametrize("options", [{"format": "transformers"}, {"format": "onnx"}], ids=["inexpressible", "unknown"])
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_committed(hub, client, options):
    with pytest.raises(ValueError, match=r"backbone_kwargs|not known"):
        client(actions.push_model, "detr-a", **options)
    assert hub.files("me/detr-a") == {}


def test_a_data_set_comes_back_as_it_was(hub, client, tmp_path):
    before, after = client(actions.push_scenes, "me/scenes", client(actions.scenes, str(tmp_path / "data")))
    assert set(after) == {"id2label", "train", "val"}
    assert hub.repositories["datasets/me/scenes"].private
    assert after == before


def test_two_splits_that_would_have_one_name_are_refused():
    from datasets import Dataset

    from detr_hf.hub import push_dataset

    with pytest.raises(ValueError, match="'a b', 'a_b' would be a_b, a_b"):
        push_dataset({name: Dataset.from_dict({"x": [1]}) for name in ("a b", "a_b")}, "me/data")
