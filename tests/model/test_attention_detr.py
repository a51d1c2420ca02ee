"""Attention is torch's own, whichever implementation computes it."""

import pytest
import torch
from torch import nn

from detr_hf.model.attention_detr import MultiheadAttention

from ..conftest import outputs_differ_by, padded_batch, tiny_config, tiny_model


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_every_attention_implementation_gives_the_same_outputs(implementation):
    model = tiny_model()
    batch = padded_batch()
    expected = model(*batch)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation(implementation)
    assert outputs_differ_by(model(*batch), expected) < 1e-5


def test_attention_matches_torchs_own_multihead_attention():
    config = tiny_config(dropout=0.0)
    config._attn_implementation = "sdpa"
    ours, theirs = MultiheadAttention(config), nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        for projection, rows in zip(
            (ours.q_proj, ours.k_proj, ours.v_proj), theirs.in_proj_weight.chunk(3), strict=True
        ):
            projection.weight.copy_(rows)
            projection.bias.zero_()
        ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    expected, weights = theirs(query, key, value, average_attn_weights=False)
    assert torch.allclose(ours(query, key, value)[0], expected, atol=1e-6)
    assert torch.allclose(ours(query, key, value, output_attentions=True)[1], weights, atol=1e-6)
