"""The page's answers, without a browser and without gradio: the shipped detector on the shipped scene."""

import base64
import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_hf import Detector
from detr_hf.app.answering import LOWEST, Answers
from detr_hf.app.models import Models
from detr_hf.checkpoints.embedded import demo_scene_path, embedded_model_path

SCENE = demo_scene_path()
MODEL = "detr-digits"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A part of the scene, which costs less."""
    path = tmp_path_factory.mktemp("small") / "a.png"
    Image.open(SCENE).crop((0, 384, 96, 496)).save(path)
    return path


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers(Models())


@pytest.fixture(scope="module")
def seen(answers) -> dict:
    answer = answers.look("me", SCENE, "scene.png", MODEL)
    assert "error" not in answer
    return answer


@pytest.fixture(scope="module")
def found(answers):
    return answers.models.detector(MODEL)


def test_a_picture_is_answered_with_all_that_a_threshold_can_pick(answers, seen, found):
    there = found(SCENE, LOWEST)
    assert json.loads(json.dumps(seen)) == seen
    assert [one["score"] for one in seen["objects"]] == there.scores.tolist()
    assert [one["box"] for one in seen["objects"]] == there.boxes.tolist()
    groups = [one for one in ElementTree.fromstring(seen["svg"]).iter() if "data-score" in one.attrib]
    assert sorted(int(one.attrib["data-index"]) for one in groups) == list(range(len(there)))
    assert (seen["width"], seen["height"]) == (512, 512) and seen["attention"]
    assert answers.shelf.get("me", seen["number"]).size < 1e6


def test_downloads_are_what_a_detector_gives(answers, seen, tmp_path, monkeypatch):
    threshold = 0.9
    shutil.copy(SCENE, tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    direct = answers.models.detector(MODEL)("scene.png", threshold)
    told = answers.download("me", seen["number"], "json", threshold)
    assert told["file"] == "scene_boxes.json" and json.loads(told["text"]) == direct.to_dict()
    assert answers.download("me", seen["number"], "svg", threshold)["text"] == direct.to_svg()
    some = answers.download("me", seen["number"], "json", threshold, ["8"])
    assert json.loads(some["text"])["objects"] == direct.filter(names="8").record()["objects"]
    assert answers.detect(SCENE, "scene.png", MODEL, threshold) == direct.record()


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_attention_comes_from_the_first_forward_pass(answers, seen, found, monkeypatch):
    direct = found.attention(SCENE, LOWEST)
    monkeypatch.setattr(Detector, "outcomes", lambda *_, **__: pytest.fail("the model ran again"))
    answer = answers.object_attention("me", seen["number"], 1)
    assert f"{direct.in_boxes()[1]:.0%} of its attention lies in its box" in answer["said"]
    alpha = decoded(answer["heat"])[..., 3].astype(float)
    cells = direct.decoder[1]
    peak = np.unravel_index(alpha.argmax(), alpha.shape)
    assert [int(at / side * count) for at, side, count in zip(peak, alpha.shape, cells.shape, strict=True)] == list(
        np.unravel_index(cells.argmax(), cells.shape)
    )
    point = answers.point_attention("me", seen["number"], 100, 400)
    assert decoded(point["heat"]).shape == (*alpha.shape, 4) and "encoder layer 2" in point["said"]


FAULTS = {
    "an object that there is not": (lambda page, number: page.object_attention("me", number, 99), "has"),
    "a point outside": (lambda page, number: page.point_attention("me", number, -1, 5), "512x512 pixels"),
    "another's picture": (lambda page, number: page.object_attention("you", number, 0), "give it again"),
    "a file of another kind": (lambda page, number: page.download("me", number, "exe", 0.5), "json or svg"),
    "a model that is not offered": (lambda page, number: page.look_again("me", number, "/etc/x"), "no model"),
    "a picture that is gone": (lambda page, _: page.look("me", SCENE.parent / "gone.png", "a.png", MODEL), "a.png"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_a_sentence(answers, seen, kind):
    ask, said = FAULTS[kind]
    error = ask(answers, seen["number"])["error"]
    assert said in error and str(SCENE.parent) not in error
    assert "error" not in answers.object_attention("me", seen["number"], 0)  # and the page goes on


def test_what_nobody_expected_names_no_insides(answers, monkeypatch, caplog):
    monkeypatch.setattr(Detector, "attention", lambda *_: {}["/secret/place"])
    assert answers.look("me", SCENE, "a.png", MODEL)["error"] == "a.png: the page failed on it. Its log says where."
    assert "/secret/place" in caplog.text
    with pytest.raises(ValueError, match="the page failed on it"):
        monkeypatch.setattr(Detector, "__call__", lambda *_: {}["/secret/place"])
        answers.detect(SCENE, "a.png", MODEL, 0.5)


def test_an_exported_model_is_shown_without_attention(answers, small, monkeypatch):
    monkeypatch.setattr(Detector, "gives_attention", False)
    answer = answers.look("me", small, "a.png", MODEL)
    assert not answer["attention"] and len(answer["objects"])
    assert "exported" in answers.object_attention("me", answer["number"], 0)["error"]


def test_models_are_named_without_their_folders_and_looked_for_at_once(small, tmp_path):
    for folder in ("a/best", "b/best"):
        shutil.copytree(embedded_model_path(), tmp_path / folder)
    models = Models([str(tmp_path / "a/best"), str(tmp_path / "b/best"), MODEL])
    assert models.names == ["best", "best (2)", MODEL] and models.about(MODEL) and not models.about("best")
    page = Answers(models)
    shutil.rmtree(tmp_path / "b")
    error = page.look("me", small, "a.png", "best (2)")["error"]
    assert error.startswith("a.png: ") and "best (2)" in error and str(tmp_path) not in error
    number = page.look("me", small, "a.png", "best")["number"]  # the other one still answers
    assert page.look_again("me", number, "best (2)")["error"].startswith("a.png: ")
    shutil.rmtree(tmp_path / "a")
    assert page.look_again("me", number, "best")["objects"]  # what was loaded needs its files no more
    with pytest.raises(OSError, match="is no folder or file here"):
        Models([MODEL, "nobody/nothing-of-this-name"])
    with pytest.raises(OSError, match="There is no such"):
        Models([str(tmp_path / "a/best")])
