"""`detr-hf export`: wrong calls cost no tracing, and what it writes predicts."""

import re

import pytest
from typer.testing import CliRunner

from detr_hf.cli import export as export_module
from detr_hf.cli.main import app

from ..conftest import tiny_model
from ..export.artefacts import small_processor, small_segmenter


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64x96"], "needs --static"),
        (["--static", "--size", "64"], "expected HEIGHTxWIDTH"),
        (["--to", "tflite"], "is not one of"),
        (["--task", "segmentation"], "is a detector, without masks"),
        (["--to", "openvino", "--dtype", "int8", "--calibration", "nowhere"], "no picture in nowhere"),
    ],
)
def test_a_wrong_call_exits_with_2(checkpoint, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    done = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "x.onnx"), *arguments])
    assert done.exit_code == 2 and message in re.sub(r"[\s│]+", " ", done.output)
    assert not (tmp_path / "x.onnx").exists()


def test_what_the_options_say_reaches_the_exporter(checkpoint, tmp_path, monkeypatch):
    calls = []

    def export_model(model, processor, output, to, **options):
        calls.append((output.name, to, options))
        output.write_bytes(b"x" * 1_500_000)
        return output, "0 cases"

    monkeypatch.setattr("detr_hf.export.exporting.export_model", export_model)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", str(checkpoint)])
    assert done.exit_code == 0 and "checkpoint.onnx (1.5 MB)" in done.output
    CliRunner().invoke(app, ["export", str(checkpoint), "--static", "--to", "torch-export", "--batch", "2"])
    CliRunner().invoke(
        app, ["export", str(checkpoint), "--static", "--size", "64x128", "--no-mask", "--accept-difference"]
    )
    (name, to, options), (second, kind, fixed), (_, _, sized) = calls
    assert (name, to, options["batch"], options["size_hw"]) == ("checkpoint.onnx", "onnx", None, None)
    # 480x640 at a shortest side of 64
    assert (second, kind, fixed["batch"], tuple(fixed["size_hw"])) == ("checkpoint.pt2", "torch-export", 2, (64, 85))
    assert sized["size_hw"] == (64, 128) and not sized["masked"] and options["masked"]
    assert sized["accept_difference"] and not options["accept_difference"]


def test_masks_are_exported_unless_told_otherwise(tmp_path, monkeypatch):
    calls = []

    def export_model(model, processor, output, to, **options):
        calls.append((model.has_mask_head, options["mask_queries"]))
        output.write_bytes(b"x")
        return output, "0 cases"

    monkeypatch.setattr("detr_hf.export.exporting.export_model", export_model)
    monkeypatch.chdir(tmp_path)
    small_segmenter().save_pretrained("masks")
    small_processor().save_pretrained("masks")
    outputs = [
        CliRunner().invoke(app, ["export", "masks", *options]).output
        for options in ([], ["--mask-queries", "3"], ["--task", "detection"], ["--task", "segmentation"])
    ]
    assert calls == [(True, None), (True, 3), (False, None), (True, None)]
    assert ["the masks of all 7 queries" in output for output in outputs] == [True, False, False, True]


def test_calibration_takes_pictures_spread_over_the_folder(tmp_path, monkeypatch):
    from PIL import Image

    for number in range(7):
        Image.new("RGB", (80, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(export_module, "MOST_CALIBRATION_PICTURES", 3)
    pixels = export_module.calibration_pixels(str(tmp_path), small_processor(do_normalize=False, do_rescale=False))
    assert [values.shape for values in pixels] == [(3, 64, 80)] * 3
    assert [round(float(values[0].mean())) for values in pixels] == [0, 3, 6]
    assert export_module.calibration_pixels(None, small_processor()) == []


def test_the_shipped_training_scenes_calibrate(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_module, "MOST_CALIBRATION_PICTURES", 2)
    assert [values.shape for values in export_module.calibration_pixels("digits", small_processor())] == [
        (3, 64, 64)
    ] * 2


@pytest.mark.slow
def test_export_and_predict(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from detr_hf.checkpoints.embedded import demo_scene_path

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", "--to", "onnx"])
    assert done.exit_code == 0 and "24 cases" in done.output, done.output
    outputs = [
        CliRunner().invoke(app, ["predict", *model, str(demo_scene_path())]).stdout
        for model in ([], ["--model", "detr-digits.onnx"])
    ]
    assert "digits_scene.png" in outputs[0] and outputs[0] == outputs[1]
