"""Attention that is faster in bfloat16 on a CPU gives the numbers of transformers', and steps back for others."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from detr_hf.model import fast_attention_detr
from detr_hf.model.attention_detr import eager_attention
from detr_hf.model.fast_attention_detr import attention_by_rows

from ..conftest import padded_batch, tiny_model


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_rows_is_attention(masked, monkeypatch):
    monkeypatch.setattr("detr_hf.model.fast_attention_detr.SCORES", 1)  # as few rows at a time as there may be
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8) for length in (75, 50, 50))
    mask = torch.rand(2, 1, 1, 50) > 0.3 if masked else None
    module = tiny_model()
    expected, _ = eager_attention(module, query, key, value, mask, scaling=8**-0.5)
    found, weights = attention_by_rows(module, query, key, value, mask, scaling=8**-0.5)
    assert weights is None
    torch.testing.assert_close(found, expected)


@pytest.mark.processor
@pytest.mark.parametrize(
    ("dtype", "gradients", "amx", "name"),
    [
        (torch.bfloat16, False, False, "attention_by_rows"),
        (torch.bfloat16, False, True, None),
        (torch.bfloat16, True, False, "eager_attention"),
        (torch.bfloat16, True, True, "eager_attention"),
        (torch.float32, False, False, None),
        (torch.float32, True, False, None),
    ],
)
def test_bfloat16_on_a_cpu_takes_the_attention_that_is_faster_there(dtype, gradients, amx, name, monkeypatch):
    monkeypatch.setattr(fast_attention_detr, "_has_amx", lambda: amx)
    used = []
    for each in ("attention_by_rows", "eager_attention"):
        attend = getattr(fast_attention_detr, each)
        monkeypatch.setattr(
            fast_attention_detr, each, lambda *a, each=each, attend=attend, **k: used.append(each) or attend(*a, **k)
        )
    model, (pixel_values, pixel_mask) = tiny_model(), padded_batch()
    expected = model(pixel_values, pixel_mask).pred_boxes.detach()
    used.clear()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), torch.set_grad_enabled(gradients):
        found = model(pixel_values, pixel_mask).pred_boxes
    assert (found.float() - expected).abs().max() < 0.05
    assert (used[0] if used else None) == name
    if gradients:
        found.float().sum().backward()
        assert model.transformer.encoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.processor
def test_a_backward_pass_keeps_no_more_attention_weights_than_it_may(monkeypatch):
    monkeypatch.setattr("detr_hf.model.fast_attention_detr.KEPT_SCORES", 1)
    monkeypatch.setattr(fast_attention_detr, "eager_attention", None)  # calling it fails
    model = tiny_model().bfloat16()
    model(padded_batch()[0].bfloat16()).pred_boxes.float().sum().backward()


@pytest.mark.processor
@pytest.mark.parametrize("name", ["sdpa", "own"])
def test_an_attention_that_was_put_in_transformers_table_is_called(name, monkeypatch):
    called, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._local_mapping, name, lambda *a, **k: called.append(name) or sdpa(*a, **k)
    )
    model = tiny_model().bfloat16()
    model.set_attn_implementation(name)
    with torch.no_grad():
        model(padded_batch()[0].bfloat16())
    assert len(called) == 2 + 2 * 3  # encoder, and two of each layer of the decoder
