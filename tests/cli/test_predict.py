"""`detr-hf predict`: which model, which pictures, what is written, and the exit code."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image as ImageFeature
from PIL import Image
from typer import BadParameter
from typer.testing import CliRunner

from detr_hf import Detector, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.cli.main import app
from detr_hf.cli.naming import split_model
from detr_hf.cli.predict_files import summary
from detr_hf.cli.predict_run import duration, process_device, process_name, progress_text
from detr_hf.inference.results import BestBelow, Detections
from detr_hf.inference.runs.drawings import DRAWING_OF, drawing_paths
from detr_hf.inference.runs.prediction import Progress, read_predictions
from detr_hf.visualize.saving import is_drawing

from ..conftest import tiny_config, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    """A checkpoint with masks, which all are half the picture or more at random."""
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(0)
    DETRForSegmentation(tiny_config()).save_pretrained(folder)
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


def test_attention_is_drawn_beside_the_boxes_of_one_forward_pass(model, photos, tmp_path, monkeypatch):
    drawn, runs, forward = tmp_path / "drawn", [], DETRForObjectDetection.forward
    (photos / "sub" / "a.png").write_bytes(b"no picture")
    monkeypatch.setattr(
        DETRForObjectDetection, "forward", lambda *given, **named: runs.append(0) or forward(*given, **named)
    )
    done = predict(model, photos, "-t", 0.1, "--save", drawn, "--attention", "--json", tmp_path / "found.json")
    assert done.exit_code == 1 and len(runs) == 2, done.output
    assert len(json.loads((tmp_path / "found.json").read_text())["failed"]) == 1
    names = ["a_attention.png", "a_boxes.png", "b_attention.jpg", "b_boxes.jpg"]
    assert sorted(path.name for path in drawn.iterdir()) == names
    with Image.open(drawn / "a_attention.png") as picture:
        assert picture.width > 320
    assert is_drawing(drawn / "a_attention.png"), "no picture of the next run"
    done = predict(model, photos, "--attention")
    assert done.exit_code == 2 and "--save" in done.stderr


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
        ["https://host/a", picture],
    ):
        assert split_model(arguments, None) == (None, arguments)
    assert split_model([str(model), picture], "other") == ("other", [str(model), picture])
    with pytest.raises(BadParameter, match="pictures are missing"):
        split_model([str(model)], None)


def test_what_is_neither_a_model_nor_a_picture_is_refused_by_name(model, photos, tmp_path, monkeypatch):
    """The shipped model would answer in place of the one that was meant."""
    monkeypatch.chdir(tmp_path)
    for path in ("empty", "notes", "weights", "out/checkpoint-5", "my-model"):
        Path(path).mkdir(parents=True)
    Path("notes/a.txt").touch()
    for path in ("weights/model.safetensors", "out/checkpoint-5/config.json", "my-model/config.json"):
        Path(path).touch()
    for wrong, said in (
        ("empty", "empty holds no checkpoint"),
        ("notes", r"notes holds no checkpoint.*1 \.txt \(a\.txt\)"),
        ("weights", "weights holds model.safetensors and no config.json"),
        ("out", "out is no model, and holds some: name out/checkpoint-5"),
        ("./gone", "no file or folder './gone'"),
        ("my-modle/", "no file or folder 'my-modle/'. Did you mean my-model?"),
    ):
        for arguments in ([wrong, "photos"], ["photos", wrong], [wrong]):
            with pytest.raises(BadParameter, match=said):
                split_model(arguments, None)
        assert split_model([wrong, "photos"], str(model)) == (str(model), [wrong, "photos"])
    for named in (str(model), "detr-digits"):
        with pytest.raises(BadParameter, match="is a model: name it before the pictures"):
            split_model(["photos", named], None)
        assert split_model([named, "photos"], None) == (named, ["photos"])
    for arguments, named in ((["", "photos"], None), (["photos", ""], str(model)), (["photos"], "")):
        with pytest.raises(BadParameter, match="a name is empty"):
            split_model(arguments, named)
    with pytest.raises(BadParameter, match="no file or folder 'facebook/detr-resnet-50'"):
        split_model(["photos", "facebook/detr-resnet-50"], None)


def test_pictures_of_the_web_are_fetched_and_what_was_made_is_named(model, photos, tmp_path, monkeypatch):
    content = (photos / "a.png").read_bytes()

    def fetched(url, name, timeout):
        if "gone" in url:
            raise ValueError(f"{name} could not be fetched")
        return content

    monkeypatch.setattr("detr_hf.processing.image_sources_detr._fetched", fetched)
    url, gone, save = "https://host/at/a%20b.png?x=1", "http://host/gone.png", tmp_path / "boxes"
    done = predict(
        model, url, photos / "a.png", gone, "--threshold", 0.1, "--save", save, "--json", tmp_path / "f.json"
    )
    assert done.exit_code == 1 and f"Drawn pictures: {save}" in done.stderr and f"Left out {gone}: " in done.stderr
    assert sorted(path.name for path in save.iterdir()) == ["a b_boxes.png", "a_boxes.png"]
    written = json.loads((tmp_path / "f.json").read_text())
    file, fetched_one = sorted(written["pictures"], key=lambda one: one["path"], reverse=True)[::-1]
    assert {one["path"] for one in written["pictures"]} == {url, str(photos / "a.png")}
    assert file["objects"] == fetched_one["objects"] != []
    nothing = predict(model, gone, "--save", tmp_path / "none")
    assert nothing.exit_code == 1 and "Drawn pictures" not in nothing.stderr and not (tmp_path / "none").exists()
    refused = predict(model, url, "--out", tmp_path / "run")
    assert isinstance(refused.exception, ValueError) and f"{url} is a web address" in str(refused.exception)


def test_limit_and_image_size(model, photos, tmp_path):
    done = predict(model, photos, "--limit", 2, "--image-size", 32, "--threshold", 0.1, "--json", tmp_path / "f.json")
    assert done.exit_code == 0 and "The first 2 of 3 pictures (--limit)." in done.stderr
    found = json.loads((tmp_path / "f.json").read_text())["pictures"]
    detector = Detector.from_pretrained(model)
    detector.resize_to(32)
    assert dict(detector.image_processor.size) == {"shortest_edge": 32, "longest_edge": 48}
    assert [Path(one["path"]).name for one in found] == ["a.png", "b.jpg"]
    scores = detector(photos / "a.png", threshold=0.1).scores.tolist()
    assert [one["score"] for one in found[0]["objects"]] == pytest.approx(scores, abs=1e-5)
    run = predict(model, photos, "--limit", 2, "--out", tmp_path / "run")
    assert run.exit_code == 0 and len(list(read_predictions(tmp_path / "run"))) == 2


def test_a_run_into_a_folder_and_the_same_command_again(model, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"not a picture")
    command = (model, photos, "--out", tmp_path / "run", "--threshold", 0.1, "--shard-size", 2)
    done = predict(*command)
    assert done.exit_code == 0, done.output  # a bad picture is a result at this scale, torchrun would stop the others
    assert "4 pictures" in done.stderr and "1 of them could not be read" in done.stderr and "Complete" in done.stderr
    records = list(read_predictions(tmp_path / "run"))
    assert [Path(record["picture"]).name for record in records] == ["a.png", "b.jpg", "broken.jpg", "a.png"]
    assert "error" in records[2] and len(records[1]["objects"]) > 0
    again = predict(*command)
    assert again.exit_code == 0 and "0 pictures" in again.stderr and "4 were done before" in again.stderr
    other = predict(*command[:-3], 0.2)
    assert isinstance(other.exception, ValueError) and "threshold was 0.1, now 0.2" in str(other.exception)


def test_masks_and_maps_are_drawn_and_written(segmenter, photos, tmp_path):
    for task, drawn, keys in (
        (None, "masks", set()),  # things alone
        ("panoptic", "panoptic", {"segments"}),
        ("semantic", "semantic", {"classes"}),
        ("detection", "boxes", set()),
    ):
        given = ("--task", task) if task else ()
        out = (*given, "--save", tmp_path / drawn, "--json", tmp_path / f"{drawn}.json")
        done = predict(segmenter, photos / "a.png", "--threshold", 0.1, *out)
        assert done.exit_code == 0, done.output
        assert ("Task: instance" in done.stderr) == (task is None)
        assert [path.name for path in (tmp_path / drawn).iterdir()] == [f"a_{drawn}.png"]
        written = json.loads((tmp_path / f"{drawn}.json").read_text())
        (picture,) = written["pictures"]
        assert written.get("task", "detection") == (task or "instance") and keys <= picture.keys()
        assert ("segmentation" in picture["objects"][0]) == (task in (None, "panoptic"))
        assert ("% " in done.stdout) == (task == "semantic")
    found = {name: (tmp_path / name / f"a_{name}.png").read_bytes() for name in DRAWING_OF.values()}
    assert len(set(found.values())) == 4
    assert predict(segmenter, photos, tmp_path).stdout.count("\n") == 3  # drawings are not looked at again


def test_runs_of_masks(segmenter, model, photos, tmp_path):
    done = predict(segmenter, photos, "--threshold", 0.1, "--out", tmp_path / "run", "--format", "coco-panoptic")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "run" / "panoptic.json").read_text())
    assert {one["file_name"] for one in written["annotations"]} == {
        path.name for path in (tmp_path / "run" / "panoptic").iterdir()
    }
    assert len(written["annotations"]) == 3 and written["categories"][0] == {"id": 0, "name": "cat", "isthing": 1}
    assert all("segments" in record for record in read_predictions(tmp_path / "run"))
    refused = predict(model, photos, "--out", tmp_path / "other", "--task", "panoptic")
    assert isinstance(refused.exception, ValueError) and "take a checkpoint with a mask head" in str(refused.exception)
    mixed = predict(segmenter, photos, "--out", tmp_path / "other", "--task", "instance", "--format", "png")
    assert isinstance(mixed.exception, ValueError) and "semantic maps" in str(mixed.exception)


def test_a_run_over_a_data_set(model, photos, tmp_path):
    paths = sorted(photos.rglob("*.*"))
    table = Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", ImageFeature())
    table.save_to_disk(tmp_path / "saved")
    for arguments in ((model,), ("--model", model)):
        out = tmp_path / f"run{len(arguments)}"
        done = predict(*arguments, "--dataset", tmp_path / "saved", "--out", out, "--format", "parquet")
        assert done.exit_code == 0, done.output
        assert [(record["height"], record["width"]) for record in read_predictions(out)] == [
            Image.open(path).size[::-1] for path in paths
        ]


def test_a_run_over_the_drawn_digits(model, tmp_path, monkeypatch):
    monkeypatch.setattr("detr_hf.data.readers.digit_data.SCENES", {"train": 1, "validation": 2})
    monkeypatch.chdir(tmp_path)
    flags = ("--dataset", "digits", "--out", "run", "--image-size", "64", "--every", "5", "--format", "coco")
    assert "train, validation: choose" in " ".join(predict(model, *flags).output.split())
    done = predict(model, *flags, "--split", "validation")
    assert done.exit_code == 0, done.output
    for said in ("No frames are left out", "what scores over 0.7; AP counts all", "of coco_images.json"):
        assert said in done.output
    assert [record["picture"] for record in read_predictions("run")] == ["digits/validation#0", "digits/validation#1"]


def test_options_that_contradict_each_other_are_a_wrong_call(model, photos, tmp_path):
    for wrong, word in (
        ((model, photos, "--out", tmp_path / "run", "--json", tmp_path / "x.json"), "--json"),
        ((model, "--dataset", "some/data"), "--out"),
        ((model, photos, "film.mp4"), "--out"),
        ((model, photos, "--dataset", "some/data", "--out", tmp_path / "run"), "takes the place of"),
        ((), "no picture is named"),
    ):
        done = predict(*wrong)
        assert done.exit_code == 2 and word in done.stderr, done.output
    assert not (tmp_path / "run").exists()


def test_progress_says_how_far_how_fast_and_how_long():
    assert progress_text(Progress(200, 1000, 3, 5000, 10.0)) == (
        "1,200 of 5,000 pictures, 100.0 a second, 0:00:38 left, 3 could not be read"
    )
    assert progress_text(Progress(0, 0, 0, None, 0.0)) == "0 pictures, 0.0 a second"
    assert duration(3723.4) == "1:02:03"


def test_each_process_names_itself_and_takes_a_gpu_of_its_own(monkeypatch):
    assert process_name() == "" and process_device(None) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert process_name() == "[1 of 4] "
    assert process_device(None) == "cuda:1" and process_device("cpu") == "cpu"


def test_drawings_never_share_a_name():
    pictures = {Path("x/a.png"): Path("a.png"), Path("y/a.png"): Path("a.png"), Path("y/a.tiff"): Path("a.tiff")}
    targets = drawing_paths(pictures, Path("out"))
    assert list(targets.values()) == [Path("out/a_boxes.png"), Path("out/a_boxes_2.png"), Path("out/a_boxes_3.png")]


def digests(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("photos/a.png", "--json", "photos/a.png"),
        ("photos", "--json", "photos/sub/../a.png"),
        ("photos", "--json", "linked.json"),
        ("photos/a.png", "--json", "photos/b.jpg"),  # not given, and nothing that predict wrote
        ("photos/a.png", "--json", "annotations.json"),
        ("photos/a.png", "--json", "model/config.json"),
        ("photos/a.png", "--save", "photos/b.jpg"),
        ("photos/a.png", "--out", "photos/b.jpg"),
        ("photos/a.png", "--out", "photos"),
    ],
    ids=" ".join,
)
def test_nothing_that_was_there_is_written_over(model, photos, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked.json").hardlink_to(photos / "b.jpg")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "detr_hf"}')
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    before = digests(tmp_path)
    monkeypatch.setattr(Detector, "outcomes", lambda *_, **__: pytest.fail("looked at a picture first"))
    done = predict("--model", model, *arguments)
    assert done.exit_code != 0 and not isinstance(done.exception, AssertionError)
    assert digests(tmp_path) == before


def test_a_json_file_of_an_earlier_run_is_written_over(model, photos, tmp_path):
    for _ in range(2):
        assert predict(model, photos, "--json", photos / "found.json").exit_code == 0
    assert len(json.loads((photos / "found.json").read_text())["pictures"]) == 3


def test_drawings_beside_their_pictures_spare_the_users_and_are_no_pictures_later(model, photos):
    Image.new("L", (60, 80)).save(photos / "a_boxes.png")
    before = digests(photos)
    for _ in range(2):
        done = predict(model, photos, "--save", photos)
        assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4  # the three, and the user's a_boxes.png
    after = digests(photos)
    assert {name: after[name] for name in before} == before
    drawn = ["a_boxes_2.png", "a_boxes_boxes.png", "b_boxes.jpg", "sub/a_boxes.png"]
    assert sorted(after.keys() - before.keys()) == drawn
    assert predict(model, *sorted(photos.glob("*.*"))).stdout.count("\n") == 3  # as a shell writes out photos/*
    assert predict(model, photos / "b_boxes.jpg").exit_code == 0  # named alone, it is meant


def test_pictures_of_one_name_get_a_drawing_each(model, photos, tmp_path, caplog):
    Image.open(photos / "a.png").save(photos / "a.bmp")
    save = tmp_path / "boxes"
    done = predict(model, photos / "a.png", photos / "a.bmp", photos / "sub" / "a.png", "--save", save)
    assert done.exit_code == 0
    assert sorted(path.name for path in save.iterdir()) == ["a_boxes.png", "a_boxes_2.png", "a_boxes_3.png"]
    assert "2 drawings is taken" in caplog.text and str(photos / "sub" / "a.png") in caplog.text


def test_a_run_in_which_nothing_could_be_read_has_failed(model, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(b"not a picture")
    for out in (("--out", tmp_path / "run"), ("--out", tmp_path / "run"), ()):  # also where all was done before
        assert predict(model, tmp_path / "photos", *out).exit_code == 1
    with tarfile.open(tmp_path / "notes.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "a.png", "notes.txt")
    assert predict(model, tmp_path / "notes.tar", "--out", tmp_path / "other").exit_code == 1
    Image.new("RGB", (60, 80)).save(tmp_path / "photos" / "c.png")
    assert predict(model, tmp_path / "photos", "--out", tmp_path / "third").exit_code == 0


def test_what_a_folder_holds_besides_is_said_and_also_where_there_is_no_picture(model, photos, caplog):
    (photos / "notes.txt").touch()
    (photos / "film.mp4").touch()
    done = predict(model, photos)
    assert done.exit_code == 0 and ".mp4 hold many pictures: --out" in done.stderr
    assert "1 .txt (notes.txt)" in caplog.text and "1 .mp4 (film.mp4)" in caplog.text
    (photos / "only").mkdir()
    (photos / "only" / "IMG.HEIC").touch()
    done = predict(model, photos / "only")
    assert done.exit_code == 2 and "IMG.HEIC" in done.stderr


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names are not allowed there")
def test_a_file_name_that_is_no_text_is_one_line_and_stops_nothing(model, photos):
    for name in (b"a\xff.png", b"b\nc.png"):
        shutil.copy(photos / "a.png", os.path.join(os.fsencode(photos), name))
    Path(os.fsdecode(os.path.join(os.fsencode(photos), b"\xfe.png"))).write_bytes(b"no picture")
    done = predict(model, photos)
    assert done.exit_code == 1 and len(done.stdout.splitlines()) == 5
    assert "a\\udcff.png" in done.stdout and "b\\nc.png" in done.stdout and "\\udcfe.png" in done.stderr


def test_a_font_is_taken_for_the_names(model, photos, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
    for name, chosen in (("plain", ()), ("serif", ("--font", font))):
        done = predict(model, photos / "a.png", "--threshold", 0.1, "--save", tmp_path / name, *chosen)
        assert done.exit_code == 0
    plain, serif = (np.array(Image.open(tmp_path / name / "a_boxes.png")) for name in ("plain", "serif"))
    assert not np.array_equal(plain, serif)
    assert predict(model, photos / "a.png", "--save", tmp_path, "--font", "gone.ttf").exit_code == 2


def test_where_nothing_is_found_the_line_says_what_came_nearest():
    nearest = BestBelow("cat", 0.41, 0.7)
    empty = Detections([], [], [], [], size_hw=(4, 5), best_below=nearest)
    assert summary(empty) == "nothing over 0.70; the best is 0.41 cat"
    assert summary(Detections([], [], [], [], size_hw=(4, 5))) == "nothing"
