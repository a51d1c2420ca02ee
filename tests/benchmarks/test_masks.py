"""Masks are measured beside transformers' on sides that agree, and every case of a fault has its right answer here."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import masks
from benchmarks.__main__ import app
from benchmarks.mask_faults import FAULTS, compare_faults
from benchmarks.measuring import in_turn, of_pairs
from benchmarks.tables import faults_table

from .test_comparisons import SMALL

CONFIG = {**SMALL, "nheads": 8, "num_queries": 8}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(masks, "TRAIN_HW", (64, 96))
    for name, size in (("PICTURE_HW", (40, 60)), ("MAP_HW", (20, 30)), ("LARGE_HW", (60, 80))):
        monkeypatch.setattr(masks, name, size)
    monkeypatch.setattr(masks, "LARGE_QUERIES", 12)


@pytest.mark.processor
@pytest.mark.slow
def test_all_that_masks_cost_is_compared(small):
    record = masks.compare_masks("cpu", "float32", (132, 196), 2, 3, 2, **CONFIG)
    assert record["kept_queries"] == 2 and max(record["difference"].values()) < 1e-4
    assert record["train_step"]["difference"] < 1e-4 and record["panoptic_segmentation"]["difference"] < 0.01
    compared = [*record["after_decoder"].values(), *record["forward"].values(), record["train_step"]]
    compared += [record[name] for name in ("panoptic_segmentation", "instance_segmentation", "large_picture")]
    assert len(compared) == 7
    assert all(found["pairs"] == 2 and found["ours_s"] > 0 and found["ratio"]["median"] > 0 for found in compared)


def test_a_mask_head_that_differs_is_not_compared(monkeypatch):
    def broken(ours, peer, *arguments):
        torch.nn.init.constant_(peer.mask_head.output_conv.bias, 1.0)
        return calls(ours, peer, *arguments)

    calls = masks._calls
    monkeypatch.setattr(masks, "_calls", broken)
    with pytest.raises(ValueError, match="masks_of_kept"):
        masks._inference("cpu", "float32", (132, 196), 2, 2, **CONFIG)


def test_calls_in_turn_keep_their_places_whichever_comes_first():
    seen = []
    rounds = in_turn([lambda name=name: seen.append(name) or (name, 2 * name) for name in (1, 2, 8)], 2)
    assert seen == [1, 2, 8, 8, 2, 1] and rounds == [[(1, 2), (2, 4), (8, 16)]] * 2
    found = of_pairs([(times[0], times[-1]) for times in rounds])
    assert found["ours_s"] == 1 and found["ratio"]["median"] == 8 and found["pairs"] == 2


def test_faults_are_right_here_and_shown_beside_transformers(tmp_path):
    cases = compare_faults()["cases"]
    assert [(case["what"], case["ours"]) for case in cases] == [(case["what"], case["right"]) for case in cases]
    wrong = [case["what"] for case in cases if case["transformers"] != case["right"]]
    assert len(cases) == len(FAULTS) and len(wrong) == len(cases) - 1  # it finds duplicates itself
    done = CliRunner().invoke(app, ["masks", "--part", "faults", "--out", str(tmp_path)])
    assert done.exit_code == 0 and faults_table(cases) in done.output
    assert json.loads((tmp_path / "masks-faults.json").read_text())["cases"] == cases


@pytest.mark.parametrize(("options", "words"), [(["--part", "size"], "size"), (["--kept", "100"], "not fewer")])
def test_what_cannot_be_measured_is_refused(options, words):
    done = CliRunner().invoke(app, ["masks", *options])
    assert done.exit_code == 2 and words in done.output
