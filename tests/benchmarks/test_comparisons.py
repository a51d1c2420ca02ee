"""Every comparison runs both sides, small, and refuses sides that do not agree."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import forward, gpu, preprocess as preprocessing
from benchmarks.__main__ import app
from benchmarks.aids import compare_aids
from benchmarks.convergence_arms import ABLATION
from benchmarks.criterion import compare_criteria
from benchmarks.drawing import compare_drawings
from benchmarks.forward import compare_forward, floating_point_operations
from benchmarks.growth import compare_growth
from benchmarks.measuring import machine_name
from benchmarks.models import dtype_named, random_pair, random_pixels
from benchmarks.start import COMMANDS
from benchmarks.train_step import compare_train_steps, loss_difference, steps_of_both_sides
from detr_hf.model.fast_backbone_detr import InferenceBody

SMALL = {
    "backbone": "resnet18",
    "hidden_dim": 32,
    "nheads": 4,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 32,
    "num_queries": 12,
}


@pytest.fixture(autouse=True)
def small_machine_test(monkeypatch):
    """What measures the machine is large: in bfloat16 it takes minutes where no hardware computes that."""
    monkeypatch.setattr(forward, "SIDE", 256)
    monkeypatch.setattr(forward, "CHANNELS", 64)


@pytest.mark.processor
@pytest.mark.parametrize("padded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_forward(padded):
    record = compare_forward("cpu", "float32", 2, (64, 96), padded, False, False, runs=2, **SMALL)
    assert max(record["difference_float32"].values()) < 1e-4 and record["forward"]["ratio"]["median"] > 0
    assert record["settings"]["padded"] is padded
    rates = record["gflop_a_second"]
    assert rates["ours"] == pytest.approx(rates["gflop_of_a_forward"] / record["forward"]["ours_s"])
    assert rates["machine"] > 0


@pytest.mark.processor
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_what_is_measured_is_the_folded_model_that_users_get(dtype, monkeypatch):
    bodies, of = [], InferenceBody.of
    monkeypatch.setattr(InferenceBody, "of", lambda *arguments: bodies.append(of(*arguments)) or bodies[-1])
    compare_forward("cpu", dtype, 1, (64, 64), False, False, False, runs=2, **SMALL)
    compare_growth({"side": [64]}, "cpu", dtype, runs=2, **SMALL)
    assert bodies and None not in bodies


@pytest.mark.processor
@pytest.mark.slow
def test_the_peer_may_run_in_another_precision():
    records = {
        peer_dtype: compare_forward("cpu", "bfloat16", 1, (64, 64), False, False, False, 2, peer_dtype, **SMALL)
        for peer_dtype in (None, "float32")
    }
    assert {name: record["settings"]["peer_dtype"] for name, record in records.items()} == {
        None: "bfloat16",
        "float32": "float32",
    }
    assert records[None]["difference"] != records["float32"]["difference"]  # its outputs are those of that precision


def test_operations_of_a_forward_pass_grow_with_its_pixels_and_count_a_product_twice():
    linear = torch.nn.Linear(5, 7)
    assert floating_point_operations(linear, {"input": torch.zeros(3, 5)}) == 2 * 3 * 5 * 7
    model, _ = random_pair("cpu", **SMALL)
    small, large = (
        floating_point_operations(model, {"pixel_values": torch.zeros(1, 3, side, side)}) for side in (64, 128)
    )
    assert 3 * small < large < 5 * small


@pytest.mark.slow
def test_aids_cost_time_in_training_and_leave_nothing_at_inference():
    record = compare_aids("cpu", 1, (64, 64), runs=2, **{**SMALL, "backbone": "test_resnet"})
    assert set(ABLATION) < set(record)
    for name in ABLATION:
        assert record[name]["stripped"] == {"logits": 0.0, "boxes": 0.0}
        assert (
            record[name]["step_s"] > 0
            and record[name]["plain_s"] > 0
            and record[name]["time_over_plain"]["median"] > 0
        )


def test_models_that_differ_are_not_compared(monkeypatch):
    def broken_pair(device, **config):
        ours, peer = random_pair(device, **config)
        torch.nn.init.constant_(ours.class_embed.bias, 1.0)
        return ours, peer

    monkeypatch.setattr("benchmarks.forward.random_pair", broken_pair)
    with pytest.raises(ValueError, match="differ"):
        compare_forward("cpu", "float32", 1, (64, 64), False, False, False, runs=2, **SMALL)


@pytest.mark.slow
@pytest.mark.processor
def test_train_step():
    record = compare_train_steps("cpu", "float32", 2, (64, 64), False, False, runs=2, **SMALL)
    assert record["difference"]["loss"] < 1e-4 and record["train_step"]["pairs"] == 2


def test_a_step_trains_and_leaves_no_gradient():
    ours, peer = steps_of_both_sides("cpu", "float32", 2, (64, 64), False, False, **SMALL)
    assert loss_difference(ours, peer)["loss"] < 1e-5
    for step in (ours, peer):
        before = step.model.query_embed.weight.clone() if step is ours else None
        assert step().isfinite()
        assert all(parameter.grad is None for parameter in step.model.parameters())
        assert before is None or not torch.equal(before, step.model.query_embed.weight)


def test_criterion():
    record = compare_criteria("cpu", batch=2, objects=3, layers=2, queries=10, runs=2, num_classes=5)
    assert record["difference"]["loss"] < 1e-5 and record["difference"]["gradients"] < 1e-5
    assert {"forward", "forward_backward"} <= record.keys()


def test_preprocess():
    record = preprocessing.compare_processors(2, (60, 80), runs=2)
    assert record["difference"]["grey_levels"] < 1.05 and record["settings"]["shape"] == [2, 3, 800, 1066]
    assert record["postprocess"]["difference"] < 1e-3


def test_drawing():
    pytest.importorskip("supervision")
    record = compare_drawings(3, (48, 64), runs=2)
    assert record["with_masks"]["ratio"]["median"] > 0 and record["masks"]["unpainted"] <= 0.02


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    config = {name: value for name, value in SMALL.items() if name != "num_queries"}
    axes = {"side": [], "queries": [5]}
    record = compare_growth(axes, "cpu", "float32", runs=2, out=tmp_path, **config)
    assert [point["queries"] for point in record["queries"]] == [5] and record["batch"] == []
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_cold_starts_compare_what_they_say():
    assert COMMANDS["import_our_model"][1].startswith("from detr_hf") and COMMANDS["help"][-1] == "--help"


def test_the_padded_pictures_are_zero_where_the_mask_is():
    pixels, mask = random_pixels(3, (40, 60), padded=True)
    assert mask.sum(dim=(1, 2)).tolist() == [2400, 30 * 45, 2400]
    assert (pixels[1] * (1 - mask[1])).abs().sum() == 0


def test_an_unknown_dtype_and_a_missing_gpu_are_refused():
    with pytest.raises(ValueError, match="float8"):
        dtype_named("float8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="GPU"):
            compare_forward("cuda", "float32", 1, (64, 64), False, False, False, runs=2)


def test_the_gpu_table_keeps_what_was_measured_when_a_section_fails(tmp_path, monkeypatch):
    def good(kept):
        kept["number"] = 3
        return {"value": 1.0}

    def bad(kept):
        raise RuntimeError(f"out of memory after {kept['number']}")

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "sections", lambda: {"good": good, "bad": bad, "again": good})
    lines = list(gpu.gpu_table(tmp_path / "gpu.json", 100.0))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert len(lines) == 3 and record["good"] == record["again"] == {"value": 1.0}
    assert record["bad"]["error"] == "RuntimeError: out of memory after 3" and "traceback" in record["bad"]
    list(gpu.gpu_table(tmp_path / "late.json", -1.0))
    assert "not_measured" in json.loads((tmp_path / "late.json").read_text())["good"]


CRITERION = ["criterion", "--batch", "1", "--objects", "2", "--layers", "1", "--queries", "5", "--runs", "2"]


def test_the_command_line_writes_the_record(tmp_path):
    done = CliRunner().invoke(app, [*CRITERION, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["settings"]["queries"] == 5 and str(written) in done.output.replace(
        "\n", ""
    )
    assert written.name == "criterion-batch-1-objects-2-layers-1-queries-5.json"


def test_records_lie_in_the_folder_of_their_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.criterion.compare_criteria", lambda *_, **__: {"environment": {}})
    assert CliRunner().invoke(app, ["criterion"]).exit_code == 0
    assert CliRunner().invoke(app, ["criterion", "--machine", "toaster"]).exit_code == 0
    assert (tmp_path / machine_name() / "criterion.json").is_file()
    assert (tmp_path / "toaster/criterion.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "forward"),
        (["--dtype", "bfloat16", "--peer-dtype", "float32", "--runs", "3"], "forward-bfloat16-peer-float32"),
        (["--dtype", "bfloat16", "--compile-peer"], "forward-bfloat16-compiled-peer"),
        (["--padded"], "forward-padded"),
        (["--height", "480", "--backbone", "resnet18"], "forward-height-480-backbone-resnet18"),
    ],
)
def test_other_options_are_other_records(tmp_path, monkeypatch, arguments, name):
    calls = []
    monkeypatch.setattr("benchmarks.forward.compare_forward", lambda *values, **_: calls.append(values) or {})
    done = CliRunner().invoke(app, ["forward", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0 and [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]
    assert calls[0][2] == (2 if "--padded" in arguments else 1), "a picture without a larger one is not padded"
