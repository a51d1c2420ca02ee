"""`to_transformers` gives the same outputs and the same bits, or says why it cannot."""

import logging

import pytest
import torch
from transformers import AutoModelForObjectDetection, DetrForObjectDetection, TableTransformerForObjectDetection

from detr_hf import DETRForObjectDetection, DETRModel
from detr_hf.checkpoints import transformers_model as module
from detr_hf.checkpoints.reading import read_checkpoint
from detr_hf.checkpoints.transformers_model import to_transformers
from tests.checkpoints.foreign import assert_same_outputs, assert_same_tensors, narrow_model, outputs
from tests.conftest import padded_batch, tiny_model

SMALL = {"backbone": "test_resnet"}
VARIANTS = {
    "sine": SMALL,
    "learned": SMALL | {"position_embedding": "learned"},
    "pre_norm": SMALL | {"pre_norm": True},
    "pre_norm, learned": SMALL | {"pre_norm": True, "position_embedding": "learned"},
    "dc5": {"backbone": "resnet50", "dilation": True},
    "gelu": SMALL | {"activation": "gelu"},
    "no encoder": SMALL | {"enc_layers": 0},
    "layer norms": {"backbone": "test_convnext"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_tensors(tmp_path, variant):
    model = tiny_model(**VARIANTS[variant])
    with torch.no_grad():  # random heads are nearly silent
        model.class_embed.weight.mul_(3)
        model.bbox_embed.layers[2].weight.mul_(3)
    theirs = model.to_transformers()
    expected = TableTransformerForObjectDetection if model.config.pre_norm else DetrForObjectDetection
    assert type(theirs) is expected
    logits, boxes = outputs(model)
    their_logits, their_boxes = outputs(theirs)
    torch.testing.assert_close(their_logits, logits, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(their_boxes, boxes, atol=2e-6, rtol=0)
    assert logits.std() > 0.1

    theirs.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is expected
    assert_same_tensors(loaded.state_dict(), theirs.state_dict())
    back = read_checkpoint(tmp_path)
    assert_same_tensors(back.state_dict, model.state_dict())
    for name in (
        "backbone",
        "dilation",
        "pre_norm",
        "position_embedding",
        "enc_layers",
        "nheads",
        "dropout",
        "id2label",
    ):
        assert getattr(back.config, name) == getattr(model.config, name), name


def test_the_new_model_shares_nothing_with_ours():
    model = tiny_model(**SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = model.to_transformers()
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.add_(1)
    assert_same_tensors(model.state_dict(), before)


def test_config_is_carried_over():
    model = tiny_model(**SMALL, dropout=0.2, set_cost_bbox=7.0, eos_coef=0.5, giou_loss_coef=3, num_queries=11)
    config = model.to_transformers().config
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.2, 0.2, 0.2)
    assert (config.bbox_cost, config.giou_loss_coefficient, config.eos_coefficient, config.num_queries) == (
        7,
        3,
        0.5,
        11,
    )
    assert config.id2label == model.config.id2label
    assert config.auxiliary_loss is False
    assert model.config.aux_loss


def test_weights_that_are_no_whole_numbers_are_rounded_and_said(caplog):
    model = tiny_model(**SMALL, set_cost_bbox=2.6, set_cost_class=0.3, dice_loss_coef=0.0)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        theirs = model.to_transformers()
    assert (theirs.config.bbox_cost, theirs.config.class_cost, theirs.config.dice_loss_coefficient) == (3, 1, 0)
    assert "set_cost_bbox=2.6 becomes 3" in caplog.text and "set_cost_class=0.3 becomes 1" in caplog.text
    assert_same_outputs(theirs, model)


def test_mode_and_dtype_are_kept():
    model = tiny_model(**SMALL).train()
    assert model.to_transformers().training
    assert model.training
    half = tiny_model(**SMALL).to(torch.bfloat16)
    theirs = half.to_transformers()
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    pixel_values, pixel_mask = padded_batch()
    with torch.no_grad():
        assert torch.isfinite(theirs(pixel_values.bfloat16(), pixel_mask).logits).all()
    again = half.to_transformers().state_dict()
    assert_same_tensors(again, theirs.state_dict())


def test_the_random_generator_is_left_alone():
    model = tiny_model(**SMALL)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.to_transformers()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "test_efficientnet"}, "batch norms of test_efficientnet carry an activation"),
        ({"backbone": "tf_efficientnet_lite0"}, "eps=0.001"),
        ({"backbone_kwargs": {"layers": [1, 1, 1, 1]}}, "backbone_kwargs="),
        (
            {"backbone": "test_resnet", "position_embedding": "learned", "num_position_embeddings": 20},
            "50 rows, these 20",
        ),
    ],
)
def test_refusals_say_why(changes, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_model(**changes).to_transformers()


def test_tensors_without_a_place_are_refused():
    model = tiny_model(**SMALL)
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 tensors have no counterpart.*extra\.weight"):
        model.to_transformers()


def test_a_model_without_heads_or_weights_is_refused():
    with pytest.raises(TypeError, match="not a DETRModel"):
        to_transformers(DETRModel(narrow_model().config))
    with torch.device("meta"):
        empty = DETRForObjectDetection(tiny_model(**SMALL).config)
    with pytest.raises(ValueError, match="meta device"):
        empty.to_transformers()


def test_a_difference_in_outputs_is_refused(monkeypatch):
    """Whatever the cause: here one of their layers is broken on purpose."""
    model = tiny_model(**SMALL)
    build = module._their_state_dict

    def damaged(ours):
        tensors = build(ours)
        tensors["model.decoder.layernorm.weight"] *= 1.01
        return tensors

    monkeypatch.setattr(module, "_their_state_dict", damaged)
    with pytest.raises(ValueError, match="gives other outputs"):
        model.to_transformers()
