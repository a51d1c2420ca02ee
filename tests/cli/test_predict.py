"""`detr-hf predict`: which model, which pictures, what is written, and the exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer import BadParameter
from typer.testing import CliRunner

from detr_hf import Detector, DETRImageProcessor
from detr_hf.cli.app import app
from detr_hf.cli.predict import drawing_paths, split_model

from ..conftest import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name, size_hw in (("a.png", (60, 80)), ("b.jpg", (80, 60)), ("sub/a.png", (60, 80))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)).save(folder / name)
    return folder


def predict(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_a_folder_to_pictures_and_json(model, photos, tmp_path):
    done = predict(
        model, photos, "--threshold", 0.1, "--save", tmp_path / "boxes", "--json", tmp_path / "out" / "found.json"
    )
    assert done.exit_code == 0, done.output
    assert f"Model: {model}" in done.stderr
    drawn = sorted(path.relative_to(tmp_path / "boxes").as_posix() for path in (tmp_path / "boxes").rglob("*.*"))
    assert drawn == ["a_boxes.png", "b_boxes.jpg", "sub/a_boxes.png"]
    written = json.loads((tmp_path / "out" / "found.json").read_text())
    assert written["threshold"] == 0.1 and written["failed"] == [] and written["model"] == str(model)
    assert [Path(entry["path"]).name for entry in written["pictures"]] == ["a.png", "b.jpg", "a.png"]
    expected = Detector.from_pretrained(model)(photos / "b.jpg", threshold=0.1)
    assert [entry["score"] for entry in written["pictures"][1]["objects"]] == pytest.approx(
        expected.scores.tolist(), abs=1e-5
    )
    assert len(expected) > 0
    for line in done.stdout.splitlines():
        assert line.startswith(str(photos))


def test_bad_files_are_named_and_the_rest_goes_on(model, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"not a picture")
    done = predict(model, photos, tmp_path / "missing.png", "--json", tmp_path / "found.json")
    assert done.exit_code == 1
    assert "broken.jpg" in done.stderr and "missing.png" in done.stderr and "2 of 5" in done.stderr
    written = json.loads((tmp_path / "found.json").read_text())
    assert len(written["pictures"]) == 3
    assert sorted(Path(failure["path"]).name for failure in written["failed"]) == ["broken.jpg", "missing.png"]


def test_nothing_to_look_at_is_a_wrong_call(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in ((model,), (model, tmp_path / "empty"), ("--model", model, tmp_path / "*.jpg")):
        done = predict(*arguments)
        assert done.exit_code == 2, done.output
    assert "no picture" in predict(model, tmp_path / "empty").stderr


def test_results_inside_the_folder_are_not_looked_at_again(model, photos):
    for _ in range(2):
        done = predict(model, photos, "--save", photos / "boxes")
        assert done.exit_code == 0 and len(done.stdout.splitlines()) == 3
    assert len(list((photos / "boxes").rglob("*.*"))) == 3


def test_a_file_in_place_of_the_folder_to_save_in_is_a_wrong_call(model, photos):
    before = (photos / "a.png").read_bytes()
    assert predict(model, photos / "b.jpg", "--save", photos / "a.png").exit_code == 2
    assert (photos / "a.png").read_bytes() == before


def test_which_argument_is_the_model(model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    picture = str(photos / "a.png")
    taken = {
        (str(model), picture): str(model),
        ("weights.pth", picture): "weights.pth",
        ("facebook/detr-resnet-50", picture): "facebook/detr-resnet-50",
        ("my-detr", picture): "my-detr",
    }
    for arguments, expected in taken.items():
        assert split_model(list(arguments), None) == (expected, [picture])
    for arguments in (
        [picture],
        [str(photos), picture],
        ["missing.jpg", picture],
        ["phot*/x", picture],
        ["./gone", picture],
    ):
        assert split_model(arguments, None) == (None, arguments)
    assert split_model([str(model), picture], "other") == ("other", [str(model), picture])
    with pytest.raises(BadParameter, match="pictures are missing"):
        split_model([str(model)], None)


def test_drawings_never_share_a_name():
    pictures = {Path("x/a.png"): Path("a.png"), Path("y/a.png"): Path("a.png"), Path("y/a.tiff"): Path("a.tiff")}
    targets = drawing_paths(pictures, Path("out"))
    assert list(targets.values()) == [Path("out/a_boxes.png"), Path("out/a_boxes_2.png"), Path("out/a_boxes_3.png")]
