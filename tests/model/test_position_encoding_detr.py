"""Position encodings look at the image alone, in float32, and beyond their tables."""

import pytest
import torch

from detr_hf.model.position_encoding_detr import PositionEmbeddingLearned, PositionEmbeddingSine


@pytest.mark.processor
def test_sine_encodings_are_computed_in_float32_whatever_the_dtype():
    mask = torch.ones(1, 30, 40, dtype=torch.bool)
    encode = PositionEmbeddingSine(64)
    exact = encode(torch.zeros(1, 8, 30, 40), mask)
    half = encode(torch.zeros(1, 8, 30, 40, dtype=torch.bfloat16), mask)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.004  # the rounding of bfloat16 itself
    assert torch.equal(encode(torch.zeros(1, 8, 30, 40), None), exact)


def test_sine_encodings_of_a_padded_image_are_those_of_the_image_alone():
    mask = torch.zeros(1, 12, 16, dtype=torch.bool)
    mask[:, :9, :11] = True
    encode = PositionEmbeddingSine(8)
    padded, alone = encode(torch.zeros(1, 8, 12, 16), mask), encode(torch.zeros(1, 8, 9, 11), None)
    assert torch.allclose(padded[..., :9, :11], alone, atol=1e-6)


def test_learned_encodings_reach_beyond_their_table():
    encode = PositionEmbeddingLearned(8, num_embeddings=6)
    inside = encode(torch.zeros(1, 1, 4, 6), None)
    assert torch.equal(inside[0, :8, 2, 3], encode.col_embed.weight[3])
    assert torch.equal(inside[0, 8:, 2, 3], encode.row_embed.weight[2])
    beyond = encode(torch.zeros(1, 1, 11, 6), None)  # 11 rows read the 6 of the table, the ends meeting
    assert torch.allclose(beyond[0, 8:, 10, 0], encode.row_embed.weight[5], atol=1e-6)
    assert torch.allclose(beyond[0, 8:, 2, 0], encode.row_embed.weight[1], atol=1e-6)
