"""No verb writes its results over what it was given, nor over a user's file; each refuses before its work."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from detr_hf.checkpoints.conversion import convert
from detr_hf.cli.main import app
from detr_hf.export.artefact import ArtefactInfo
from detr_hf.export.exporting import _checked_output
from detr_hf.visualize.saving import is_drawing, save_drawing

COCO = {"images": [], "annotations": [], "categories": []}
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "data/train.json": COCO,
        "data/notes.json": {"mine": 1},
        "model/config.json": {"model_type": "detr_hf"},
        "results.json": RESULTS,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    (tmp_path / "linked.json").symlink_to("data/train.json")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "eval model data/train.json --json data/train.json",
        "eval model data --json data/train.json",
        "eval model data --json linked.json",
        "eval results.json data --json results.json",
        "eval results.json data --results ./results.json",
        "eval model data --json new.json --results new.json",
        "eval weights.pth data --results weights.pth",
        "eval model data --json model/config.json",
        "check data/train.json --json data/train.json",
        "check data --json data/notes.json",
        "check data --preview data/a.png",
        "check data --preview data/train.json",
        "check data --preview preview.txt",
        "check data --json new.png --preview new.png",
        "benchmark weights.pth --json weights.pth",
        "benchmark model --json model/config.json",
        "inspect weights.pth --json weights.pth",
        "inspect model --json data/notes.json",
        "doctor --json data/notes.json",
        "inspect model --svg data/a.png",
        "inspect model --svg new --json new",
        "demo --out data/a.png",
        "demo --out demo.txt",
        "convert weights.pth weights.pth",
        "push model owner/name --folder data",
        "export --output data/a.png",
    ],
)
def test_nothing_is_written_over(folder, command):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code != 0 and not isinstance(done.exception, KeyError | AttributeError)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_results_of_ours_are_written_over(folder):
    """As a second run of the same command does, also where they lie in the folder that is read."""
    categories, (width, height) = [{"id": 1, "name": "cat"}], (8, 8)
    picture = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    truth = {"images": [picture], "annotations": [box], "categories": categories}
    (folder / "data" / "train.json").write_text(json.dumps(truth))
    for command in (
        "eval results.json data/train.json --json data/found.json",
        "check data/train.json --json data/checked.json --preview data/preview.png",
    ):
        for _ in range(2):
            done = CliRunner().invoke(app, command.split())
            assert done.exit_code == 0, (done.output, done.exception)
    assert is_drawing(folder / "data" / "preview.png")


def test_a_drawing_of_ours_is_written_over(folder):
    save_drawing(Image.new("RGB", (8, 8)), folder / "demo_boxes.png")
    before = (folder / "demo_boxes.png").read_bytes()
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert (folder / "demo_boxes.png").read_bytes() != before


def test_an_export_keeps_its_metadata_out_of_the_way_of_other_files(folder):
    info = ArtefactInfo("executorch", "x", {0: "cat"}, 3, 3, "float32", None, None, True, {})
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"config\.json exists"):
            _checked_output(folder / "model" / "config.pte", "executorch", overwrite)
    (folder / "own.json").write_text(info.to_json())
    assert _checked_output(folder / "own.pte", "executorch", True) == folder / "own.pte"
    (folder / "photos.onnx").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        _checked_output(folder / "photos.onnx", "onnx", True)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_conversion_does_not_remove_the_file_that_it_reads(folder, name):
    (folder / name).write_bytes(b"weights")
    (folder / "same").symlink_to(folder)
    for dst in (folder, folder / "same"):
        with pytest.raises(ValueError, match="holds the source itself"):
            convert(folder / name, dst, overwrite=True)
    assert (folder / name).read_bytes() == b"weights"
