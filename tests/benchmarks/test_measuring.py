"""What a record says is what was measured, and sides that do not agree are not compared."""

import json
import math
import platform
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.measuring import (
    compare,
    describe,
    differences,
    environment,
    machine_name,
    peak_memory,
    processor_name,
    require_agreement,
    spread,
    write_record,
)


def test_the_ratio_is_that_of_neighbours_and_says_who_is_faster():
    result = compare(lambda: time.sleep(0.002), lambda: time.sleep(0.02), runs=4)
    assert 3 < result["ratio"]["median"] < 12
    assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert result["ours_s"] < result["peer_s"] and result["pairs"] == 4 and "cpu_ratio" in result


def test_both_sides_come_first_equally_often():
    order = []
    compare(lambda: order.append("ours"), lambda: order.append("peer"), runs=4, warmup=0)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]


def test_the_spread_is_median_and_quartiles():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize("found", [{"logits": 0.2, "boxes": 0.0}, {"logits": math.nan, "boxes": 0.0}])
def test_sides_that_differ_are_refused(found):
    with pytest.raises(ValueError, match="differ"):
        require_agreement(found, 0.1)


def test_differences_are_the_largest_of_each_output():
    one = SimpleNamespace(logits=torch.zeros(2, 3), pred_boxes=torch.zeros(2, 4))
    two = SimpleNamespace(logits=torch.eye(2, 3) * -3, pred_boxes=torch.full((2, 4), 0.5, dtype=torch.bfloat16))
    assert differences(one, two) == {"logits": 3.0, "boxes": 0.5}


def test_peak_memory_sees_what_a_call_holds():
    peak = peak_memory(lambda: torch.ones(64 * 2**20 // 4).sum())
    if peak is None:
        pytest.skip("this system does not tell the peak of a process")
    assert 48 * 2**20 < peak < 200 * 2**20


def test_a_record_is_written_and_described(tmp_path):
    record = {"environment": environment(), "settings": {"batch": 1}, "difference": {"loss": 0.0}}
    record["forward"] = compare(lambda: None, lambda: None, runs=2)
    path = write_record("forward", record, tmp_path / "results")
    assert json.loads(path.read_text()) == record
    text = "\n".join(describe(record))
    assert "batch 1" in text and "forward: detr_hf" in text and "2 pairs" in text and "threads" in text
    assert record["environment"]["threads"] == torch.get_num_threads()
    again = write_record("forward", {}, tmp_path / "results")
    assert again == path and json.loads(path.read_text()) == {}, "the newer takes the place"


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "name"),
    [
        ("GenuineIntel", 6, "avx2 avx512f avx512_bf16 amx_tile", "amx"),
        ("GenuineIntel", 6, "avx2 avx512f", "avx512"),
        ("AuthenticAMD", 26, "avx2 avx512f", "zen5"),
        ("AuthenticAMD", 25, "avx2 avx512f", "zen4"),
        ("AuthenticAMD", 25, "avx2", "avx2"),
    ],
)
def test_a_machine_is_called_by_what_its_processor_can(vendor, family, flags, name):
    assert processor_name({"vendor_id": vendor, "cpu family": str(family), "flags": flags}) == name


def test_a_machine_has_a_name_everywhere(monkeypatch):
    assert processor_name({}) == platform.machine() and machine_name()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for model, name in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "4090")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda model=model: model)
        assert machine_name("cuda") == name
