"""Asking for speed: precision and compilation; same outputs, one compilation for all sizes, no graph break."""

import copy

import pytest
import torch

from detr_hf import DETRForObjectDetection
from detr_hf.model.compiling_detr import optimize_for_inference

from ..conftest import padded_batch, tiny_model


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


def test_it_returns_the_model_in_eval_mode_and_in_the_dtype(model):
    assert model.train().optimize_for_inference("bfloat16") is model
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).logits
        expected = tiny_model()(torch.randn(1, 3, 64, 64)).logits
    assert logits.dtype == torch.bfloat16 and logits.shape == expected.shape


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
    return tiny_model(enc_layers=1, dec_layers=1)


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


def test_a_padded_batch_is_compiled_without_a_graph_break(shallow, counting_backend):
    model = shallow
    pixels, mask = padded_batch()
    with torch.no_grad():
        expected = model(pixels, mask)
    found = model.optimize_for_inference(compile=True)(pixels, mask)
    assert (found.logits - expected.logits).abs().max() < 1e-5
    assert len(counting_backend) == 1


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
