"""DETR can be built part by part, and every example in the parts' docstrings runs and gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import detr_hf.model

from ..conftest import padded_batch, tiny_config

FILES = sorted(path.stem for path in Path(detr_hf.model.__file__).parent.glob("*_detr.py"))
# Named in the construction as it is taught; each shows its shapes.
PARTS = [
    "Backbone",
    "Joiner",
    "PositionEmbeddingSine",
    "PositionEmbeddingLearned",
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "Transformer",
    "MLP",
    "HungarianMatcher",
    "SetCriterion",
    "build_backbone",
    "build_position_encoding",
    "build_transformer",
    "DETRModel",
    "DETRForObjectDetection",
]


@pytest.mark.parametrize("file", FILES)
def test_the_examples_in_docstrings_run(file):
    assert not doctest.testmod(importlib.import_module(f"detr_hf.model.{file}")).failed


@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_the_construction_has_an_example(name):
    assert ">>> " in getattr(detr_hf.model, name).__doc__, f"{name} shows no example of its shapes"


def test_parts_put_together_by_hand_are_the_model():
    """The construction as it is taught: backbone, projection, transformer, heads; no model class."""
    from detr_hf.model import MLP, DecoderQueries, DETRForObjectDetection, build_backbone, build_transformer

    config = tiny_config(dropout=0.0)
    torch.manual_seed(0)
    model = DETRForObjectDetection(config).eval()
    backbone, transformer = build_backbone(config).eval(), build_transformer(config).eval()
    bbox_embed = MLP(config.hidden_dim, config.hidden_dim, 4, 3)
    for part, theirs in ((backbone, model.backbone), (transformer, model.transformer), (bbox_embed, model.bbox_embed)):
        part.load_state_dict(theirs.state_dict())
    pixel_values, pixel_mask = padded_batch()
    with torch.no_grad():
        features, pos = backbone(pixel_values, pixel_mask)
        feature_map, mask = features[-1]
        src = model.input_proj(feature_map).flatten(2).transpose(1, 2)
        padded = mask.flatten(1)[:, None, None, :]
        queries = DecoderQueries(model.query_embed.weight[None])
        _, (states, *_) = transformer(src, pos.flatten(2).transpose(1, 2), queries, padded, padded)
        state = transformer.decoder.norm(states[-1])
        expected = model(pixel_values, pixel_mask)
    torch.testing.assert_close(bbox_embed(state).sigmoid(), expected.pred_boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.class_embed(state), expected.logits, rtol=1e-4, atol=1e-5)
