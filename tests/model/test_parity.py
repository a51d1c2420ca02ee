"""The numbers of transformers' DETR and Table Transformer with the same random weights, on a padded batch.

transformers' models are the independent source: they were verified against the original's code. Their auxiliary losses
change the forward pass, so they run without, and the loss is compared layer by layer in test_loss_detr.py.
"""

import pytest
import torch
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.detr import DetrConfig

from ..conftest import some_labels, tiny_model

pytestmark = pytest.mark.processor

VARIANTS = {
    "resnet18": {},
    "resnet50": {"backbone": "resnet50", "hidden_dim": 64, "dim_feedforward": 96},
    "learned": {"position_embedding": "learned"},
    "pre_norm (Table Transformer)": {"pre_norm": True},
    "dc5": {"backbone": "resnet50", "dilation": True},
    "gelu": {"activation": "gelu"},
    "no encoder layer left out, one decoder layer": {"enc_layers": 3, "dec_layers": 1},
}


def batch():
    generator = torch.Generator().manual_seed(11)
    pixel_values = torch.randn(2, 3, 160, 224, generator=generator)
    pixel_mask = torch.ones(2, 160, 224, dtype=torch.int64)
    pixel_mask[1, 97:] = 0
    pixel_mask[1, :, 130:] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_those_of_transformers(variant):
    ours = tiny_model(**VARIANTS[variant])
    theirs = ours.to_transformers().eval()
    expected, got = theirs(*batch()), ours(*batch())
    assert (got.logits - expected.logits).abs().max() < 1e-4
    assert (got.pred_boxes - expected.pred_boxes).abs().max() < 1e-5
    spread = got.pred_boxes.std(dim=1).min()
    assert spread > 1e-4  # the queries differ, so that agreement means something


@pytest.mark.parametrize("variant", ["resnet18", "learned", "pre_norm (Table Transformer)"])
def test_gradients_equal_those_of_transformers(variant):
    """In float64, since a random model is ill-conditioned; without dropout, which the two place differently."""
    ours = tiny_model(**VARIANTS[variant], dropout=0.0, aux_loss=False).double().train()
    theirs = ours.to_transformers().double().train()
    pixel_values, pixel_mask = batch()
    labels = some_labels(4, 2)
    loss = ours(pixel_values.double(), pixel_mask, labels=labels).loss
    outputs = theirs(pixel_values.double(), pixel_mask)
    expected, _, _ = ForObjectDetectionLoss(
        outputs.logits.float(), labels, torch.device("cpu"), outputs.pred_boxes.float(), DetrConfig(num_labels=3)
    )
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    expected.backward()
    their_heads = {
        "class_embed.weight": "class_labels_classifier.weight",
        "query_embed.weight": "model.query_position_embeddings.weight",
    }
    their_heads |= {f"bbox_embed.layers.{i}.weight": f"bbox_predictor.layers.{i}.weight" for i in range(3)}
    their_heads |= {"input_proj.weight": "model.input_projection.weight"}
    our_gradients = {name: p.grad for name, p in ours.named_parameters()}
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for our_name, their_name in their_heads.items():
        scale = their_gradients[their_name].abs().max()
        assert (our_gradients[our_name] - their_gradients[their_name]).abs().max() <= 1e-5 * scale, our_name
