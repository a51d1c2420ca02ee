"""`detr-hf benchmark`: every runtime has a row with its numbers, or a line that says why it has none."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from detr_hf import Detector
from detr_hf.cli.main import app
from detr_hf.inference import benchmarking
from detr_hf.inference.benchmarking import RUNTIMES, has_bfloat16
from detr_hf.model import compiling_detr

from ..export.artefacts import info_of, small_model, small_processor
from ..inference.rectangles import Rectangles


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    small_model().save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return str(folder)


def run(*arguments: str):
    return CliRunner().invoke(app, ["benchmark", *arguments])


class StandIn:
    """A worker that is there at once and has its numbers ready; the last one says what it was to load."""

    loaded: tuple = ()

    def __init__(self, runtime, *arguments):
        type(self).loaded = (runtime, *arguments)

    def ask(self, question):
        return (0.004, 0.008) if question == "time" else 123_000_000

    def close(self):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(benchmarking, "_Worker", StandIn)
    monkeypatch.setattr(benchmarking, "_export", lambda detector, runtime, folder, mask_queries: folder / runtime)
    return StandIn


def check_content(found: dict, runtimes: set[str], batch: int) -> None:
    assert {row["runtime"] for row in found["rows"]} == runtimes
    for row in found["rows"]:
        times = row["milliseconds"]
        assert 0 < times["low"] <= times["median"] <= times["high"]
        assert row["pictures_per_second"] == pytest.approx(batch * 1000 / times["median"])
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > 10e6
    assert found["environment"]["processor"] and found["environment"]["versions"]["torch"] == version("torch")


@pytest.mark.slow  # every runtime is measured below, in this process
def test_a_model_is_measured_in_processes_of_its_own(checkpoint, tmp_path):
    """bfloat16 is measured because it is asked for, whatever the processor has; tiny, it does not take long."""
    out = tmp_path / "new" / "speed.json"
    arguments = ["--runtimes", "torch,bfloat16", "--size", "64x96", "--batch", "2", "--runs", "2", "--threads", "1"]
    done = run(checkpoint, *arguments, "--json", str(out))
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    check_content(found, {"torch", "bfloat16"}, batch=2)
    assert found["settings"]["size_hw"] == [64, 96] and found["left_out"] == {}
    assert re.search(r"^ *torch +[\d.]+ +[\d.]+ to [\d.]+ +[\d.]+ +\w+$", done.output, re.MULTILINE)
    assert "2 x 64x96" in done.output and "1 threads" in done.output


@pytest.mark.slow
def test_every_runtime_measures(checkpoint, tmp_path):
    done = run(checkpoint, "--runtimes", ",".join(RUNTIMES), "--runs", "2", "--json", str(tmp_path / "speed.json"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "speed.json").read_text())
    check_content(found, set(RUNTIMES), batch=1)
    assert found["settings"]["size_hw"] == [64, 85], "what the processor makes of 480x640"
    memory = {row["runtime"]: row["peak_memory_bytes"] for row in found["rows"]}
    assert None in memory.values() or memory["onnx"] < memory["torch"] / 2, "its process has loaded no torch"


def test_the_table_names_every_row_and_what_is_left_out(checkpoint, stand_in, monkeypatch):
    def missing(detector, runtime, folder, mask_queries):
        if runtime == "onnx":
            raise ImportError(
                "Exporting to onnx needs onnx, which does not load: pip install 'detr-hf[export]'.\nmore"
            )
        return folder / runtime

    monkeypatch.setattr(benchmarking, "_export", missing)
    monkeypatch.setattr(benchmarking, "has_bfloat16", lambda device: False)
    done = run(checkpoint)
    assert done.exit_code == 0, done.output
    for row in ("torch", "compiled", "openvino"):
        assert re.search(rf"^ *{row} +4\.0 +4\.0 to 4\.0 +250\.0 +123$", done.output, re.MULTILINE)
    assert "bfloat16 left out: this machine has no bfloat16 arithmetic" in done.output
    assert "onnx left out: Exporting to onnx needs onnx" in done.output and "more" not in done.output


def test_an_exported_model_runs_as_what_it_is(stand_in, monkeypatch, tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    detector = SimpleNamespace(
        model=SimpleNamespace(info=info_of(small_model(), batch=2, size_hw=(64, 96))),
        backend=SimpleNamespace(processed=lambda picture: (None, torch.zeros(1, 3, 64, 85))),
        task="detection",
    )
    monkeypatch.setattr(benchmarking.Detector, "from_pretrained", lambda *_, **__: detector)
    done = run(str(path))
    assert done.exit_code == 0, done.output
    assert stand_in.loaded == ("onnx", path, True, (2, 3, 64, 96), "cpu", None, None)
    for row in set(RUNTIMES) - {"onnx"}:
        assert f"{row} left out: the model is exported already, to onnx" in done.output


def test_masks_of_as_many_queries_as_are_asked_for(stand_in, checkpoint, monkeypatch):
    refused = run(checkpoint, "--mask-queries", "3")
    assert isinstance(refused.exception, ValueError) and "is a detector" in str(refused.exception)
    model = Rectangles([(0, score, (0.2, 0.2, 0.8, 0.8)) for score in (0.3, 0.9, 0.5, 0.7)])
    model.optimize_for_inference = lambda compile: None
    detector = lambda source, device, task=None, dtype=None: Detector(model, small_processor(), task)  # noqa: E731
    monkeypatch.setattr(benchmarking.Detector, "from_pretrained", detector)
    asked = {None: "masks of all queries", 3: "masks of 3 queries", 0: "64x85, 10 timings"}
    for count, shown in asked.items():
        done = run(checkpoint, "--runtimes", "torch", *(() if count is None else ("--mask-queries", str(count))))
        assert done.exit_code == 0 and shown in done.output, done.output
        assert stand_in.loaded[-1] == count
    pixels = np.zeros((2, 3, 64, 96), np.float32)
    for count, least in ((None, None), (3, 0.4), (4, -1.0)):
        benchmarking._torch_call("torch", "segmenter", pixels, "cpu", 1, count)()
        assert model.asked[-1] == (least and pytest.approx(least))


def test_a_measurement_of_nothing_is_an_error(checkpoint, stand_in, monkeypatch):
    def missing(*arguments):
        raise ImportError("no onnx")

    monkeypatch.setattr(benchmarking, "_export", missing)
    done = run(checkpoint, "--runtimes", "onnx")
    assert done.exit_code == 1 and str(done.exception) == "onnx: no onnx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtimes", "torch,tflite"], "there is no 'tflite'; choose from torch"),
        (["--size", "64"], "expected HEIGHTxWIDTH"),
        (["--batch", "0"], "greater than or equal to 1"),
        (["--runs", "1"], "greater than or equal to 2"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in re.sub(r"[\s│]+", " ", done.output)


def test_a_process_that_cannot_load_says_why(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"broken\.onnx"):
        benchmarking._Worker("onnx", Path(tmp_path / "broken.onnx"), True, (1, 3, 64, 64), "cpu", None)


def test_bfloat16_is_in_the_processor_or_not(monkeypatch):
    for told in (False, True):
        monkeypatch.setattr(compiling_detr, "bfloat16_hardware", lambda told=told: told)
        assert has_bfloat16("cpu") is told
