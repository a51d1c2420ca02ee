"""Asking for speed: precision and compilation; same outputs, one compilation for all sizes, no graph break."""

import copy
import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detr_hf import Detector, DETRForObjectDetection, DETRTrainingArguments
from detr_hf.export import runtimes
from detr_hf.model import compiling_detr
from detr_hf.model.compiling_detr import SLOW_BFLOAT16, SLOW_FLOAT16, bfloat16_hardware, optimize_for_inference

from ..conftest import NARROW, padded_batch, tiny_model
from ..export.artefacts import info_of


@pytest.fixture
def counting_backend(monkeypatch):
    """Replaces Inductor, which is slow to start, by a backend that runs the graph as it is; returns the graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: original(*a, **{**k, "backend": backend, "mode": None}))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.processor
def test_it_returns_the_model_in_eval_mode_and_in_the_dtype(model):
    assert model.train().optimize_for_inference("bfloat16") is model
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).logits
        expected = tiny_model()(torch.randn(1, 3, 64, 64)).logits
    assert logits.dtype == torch.bfloat16 and logits.shape == expected.shape


@pytest.mark.processor
def test_bfloat16_stays_near_float32(model):
    pixels, mask = padded_batch()
    with torch.no_grad():
        expected = model(pixels, mask)
        low = model.optimize_for_inference(torch.bfloat16)(pixels.bfloat16(), mask)
    assert (low.logits.float() - expected.logits).abs().max() < 0.1
    assert (low.pred_boxes.float() - expected.pred_boxes).abs().max() < 0.02


@pytest.fixture
def shallow() -> DETRForObjectDetection:
    """A model that is traced quickly."""
    return tiny_model(enc_layers=1, dec_layers=1, **NARROW)


@pytest.mark.slow
def test_one_graph_serves_every_size_and_batch(shallow, counting_backend):
    model = shallow
    sizes = [(2, 64, 96), (2, 96, 64), (3, 128, 96), (5, 70, 101), (4, 160, 64)]
    batches = [torch.randn(b, 3, h, w) for b, h, w in sizes]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    model.optimize_for_inference(compile=True)
    for batch, plain in zip(batches, expected, strict=True):
        found = model(batch)
        assert not found.logits.requires_grad
        assert (found.logits - plain.logits).abs().max() < 1e-5
        assert (found.pred_boxes - plain.pred_boxes).abs().max() < 1e-5
    assert len(counting_backend) == 1


@pytest.mark.slow
def test_a_padded_batch_is_compiled_without_a_graph_break(shallow, counting_backend):
    model = shallow
    pixels, mask = padded_batch()
    with torch.no_grad():
        expected = model(pixels, mask)
    found = model.optimize_for_inference(compile=True)(pixels, mask)
    assert (found.logits - expected.logits).abs().max() < 1e-5
    assert len(counting_backend) == 1


@pytest.mark.slow
def test_compilation_is_no_part_of_what_is_saved_or_copied(shallow, counting_backend, tmp_path):
    model = shallow
    pixels = torch.randn(2, 3, 64, 64)
    names = list(model.state_dict())
    expected = model.optimize_for_inference(compile=True)(pixels).logits
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for other in (DETRForObjectDetection.from_pretrained(tmp_path).eval(), twin):
            assert torch.allclose(other(pixels).logits, expected, atol=1e-5)


def test_it_can_be_undone(model, counting_backend):
    model.optimize_for_inference(compile=True).optimize_for_inference()
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert not counting_backend


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"dtype": "int8"}, "dtype"), ({"dtype": torch.int8}, "dtype"), ({"compile": "fast"}, "compile")],
)
def test_what_there_is_not_is_refused(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        optimize_for_inference(model, **arguments)


# ----------------------------------------------------------------------------------------- processors without bfloat16


@pytest.fixture
def said(monkeypatch, caplog):
    """Returns the sentences about slow bfloat16; nothing was said before."""
    compiling_detr._say_once.cache_clear()
    yield lambda: [record.getMessage() for record in caplog.records if record.getMessage() == SLOW_BFLOAT16]
    compiling_detr._say_once.cache_clear()


@pytest.fixture(params=[False, True], ids=["without bfloat16", "with bfloat16"])
def hardware(request, monkeypatch) -> bool:
    monkeypatch.setattr(compiling_detr, "bfloat16_hardware", lambda: request.param)
    return request.param


def optimized(tmp_path, monkeypatch):
    for _ in range(2):
        tiny_model().optimize_for_inference("bfloat16")


def detector(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    Detector.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")


def trained(tmp_path, monkeypatch):
    DETRTrainingArguments(str(tmp_path), use_cpu=True, bf16=True, report_to=[])


def exported(tmp_path, monkeypatch):
    """The check of an artefact loads it like everybody else."""
    info = info_of(tiny_model(), to="torch-export", dtype="bfloat16")
    monkeypatch.setattr(runtimes, "_extra_file", lambda path: info.to_json())
    monkeypatch.setattr(torch.export, "load", lambda path: SimpleNamespace(module=lambda: None))
    runtimes.load_runtime(tmp_path / "small.pt2")


@pytest.mark.parametrize("work", [optimized, detector, trained, exported])
def test_slow_bfloat16_is_said_once_before_the_work(work, hardware, said, tmp_path, monkeypatch):
    work(tmp_path, monkeypatch)
    assert said() == ([] if hardware else [SLOW_BFLOAT16])
    assert SLOW_BFLOAT16.count(". ") == 0 and "float32" in SLOW_BFLOAT16


@pytest.mark.parametrize("fast", [True, False])
def test_slow_float16_is_said_once(fast, said, caplog, monkeypatch, model):
    monkeypatch.setattr(compiling_detr, "float16_hardware", lambda: fast)
    for _ in range(2):
        model.optimize_for_inference("float16")
    compiling_detr.warn_of_slow_dtype(torch.float16, "cuda:0")
    assert [record.getMessage() for record in caplog.records].count(SLOW_FLOAT16) == (0 if fast else 1)


def test_other_dtypes_and_devices_are_not_warned_of(said, monkeypatch, model, tmp_path):
    monkeypatch.setattr(compiling_detr, "bfloat16_hardware", lambda: False)
    compiling_detr.warn_of_slow_dtype(torch.bfloat16, "cuda:0")
    for dtype in (None, "float32", "float16"):
        model.optimize_for_inference(dtype)
    DETRTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    assert not said()


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "amx_tile", "limit", "expected"),
    [
        ("x86_64", False, False, False, None, False),  # AVX2
        ("x86_64", True, False, False, None, False),  # AVX-512 alone
        ("x86_64", True, True, False, None, True),
        ("AMD64", True, False, True, None, True),
        ("x86_64", True, True, True, "avx512_core_vnni", False),
        ("x86_64", True, True, True, "AVX512_CORE_BF16", True),
        ("x86_64", False, True, True, "AVX2", False),  # oneDNN sees its limit
        ("aarch64", True, False, False, None, True),
        ("arm64", None, False, False, None, False),  # a torch without oneDNN
    ],
)
def test_who_multiplies_bfloat16(machine, onednn, avx512_bf16, amx_tile, limit, expected, monkeypatch):
    def answer():
        if onednn is None:
            raise AttributeError("no such operator")
        return onednn

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", answer, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx_tile, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bfloat16_hardware() is expected


@pytest.mark.processor
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
def test_it_agrees_with_the_system():
    flags = set(re.findall(r"[\w-]+", Path("/proc/cpuinfo").read_text(encoding="utf-8").lower()))
    limited = "ONEDNN_MAX_CPU_ISA" in os.environ
    assert bfloat16_hardware() == (bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) and not limited)
