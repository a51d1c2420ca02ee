"""Invariants of the model: structure, names, freezing, initialisation, padding, precision, gradients, input checks."""

import pytest
import torch
from packaging.version import Version

from detr_hf import DETRForObjectDetection
from detr_hf.model.queries_detr import DecoderQueries

from ..conftest import NARROW, outputs_differ_by, padded_batch, some_labels, tiny_config, tiny_model

# ---------------------------------------------------------------------------------------------------------- structure


def test_print_shows_the_structure_that_readers_of_the_original_know():
    with torch.device("meta"):
        text = str(DETRForObjectDetection(tiny_config(backbone="resnet50")))
    for part in ("(backbone): Joiner(", "(0): Backbone(", "(body): FeatureListNet(", "(1): PositionEmbeddingSine()"):
        assert part in text
    for part in ("(class_embed): Linear", "(bbox_embed): MLP", "(query_embed): Embedding", "(input_proj): Conv2d"):
        assert part in text
    assert "FrozenBatchNorm2d(64, eps=1e-05" in text


def test_parameter_names_are_the_originals_with_attention_unpacked():
    with torch.device("meta"):
        names = set(DETRForObjectDetection(tiny_config(backbone="resnet50", enc_layers=6, dec_layers=6)).state_dict())
    packed = {name.replace(f".{p}_proj.", ".in_proj_") for name in names for p in "qkv" if f".{p}_proj." in name}
    unpacked = {name for name in names if not any(f".{p}_proj." in name for p in "qkv")}
    assert len(packed | unpacked) == 458  # the tensors of the original's ResNet-50 checkpoint
    for name in (
        "backbone.0.body.layer4.2.bn3.running_var",
        "transformer.encoder.layers.5.self_attn.out_proj.bias",
        "transformer.decoder.layers.5.multihead_attn.q_proj.weight",
        "transformer.decoder.layers.0.norm3.weight",
        "transformer.decoder.norm.weight",
        "bbox_embed.layers.2.bias",
        "class_embed.weight",
        "query_embed.weight",
        "input_proj.weight",
    ):
        assert name in names


# ------------------------------------------------------------------------------------------------- padding and masks


@torch.no_grad()
def test_what_stands_on_the_padding_of_a_feature_cell_is_never_attended_to(model):
    """Only the transformer is asked: a backbone's convolutions see across the edge, in the original too."""
    pixel_values, pixel_mask = padded_batch()
    features, pos = model.backbone(pixel_values, pixel_mask)
    src = model.input_proj(features[-1][0]).flatten(2).transpose(1, 2)
    pos = pos.flatten(2).transpose(1, 2)
    valid = features[-1][1].flatten(1)
    noisy = torch.where(valid[..., None], src, torch.randn_like(src) * 100)
    queries, mask = DecoderQueries(model.query_embed.weight[None]), valid[:, None, None, :]
    clean, disturbed = (model.transformer(s, pos, queries, mask, mask)[1][0][-1] for s in (src, noisy))
    assert torch.allclose(clean, disturbed, atol=1e-5)


@torch.no_grad()
def test_the_order_of_a_batch_permutes_its_outputs(model):
    pixel_values, pixel_mask = padded_batch()
    straight, swapped = model(pixel_values, pixel_mask), model(pixel_values.flip(0), pixel_mask.flip(0))
    assert torch.allclose(straight.logits.flip(0), swapped.logits, atol=1e-5)
    assert torch.allclose(straight.pred_boxes.flip(0), swapped.pred_boxes, atol=1e-6)


# -------------------------------------------------------------------------------------------------- decoder and heads


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [False, True])
def test_auxiliary_losses_change_no_prediction(pre_norm):
    pixel_values, pixel_mask = padded_batch()
    with_aux = tiny_model(pre_norm=pre_norm, aux_loss=True)(pixel_values, pixel_mask, labels=some_labels(1, 2))
    without = tiny_model(pre_norm=pre_norm, aux_loss=False)(pixel_values, pixel_mask)
    assert outputs_differ_by(with_aux, without) < 1e-6
    assert len(with_aux.auxiliary_outputs) == 2 and without.auxiliary_outputs is None


@torch.no_grad()
def test_requested_states_and_attentions_are_returned_and_agree(model):
    batch = padded_batch()
    outputs = model(*batch, output_attentions=True, output_hidden_states=True)
    assert outputs_differ_by(outputs, model(*batch)) < 1e-6
    assert [tuple(a.shape) for a in outputs.cross_attentions] == [(2, 4, 7, 12)] * 3
    assert [tuple(a.shape) for a in outputs.decoder_attentions] == [(2, 4, 7, 7)] * 3
    assert [tuple(a.shape) for a in outputs.encoder_attentions] == [(2, 4, 12, 12)] * 2
    assert len(outputs.encoder_hidden_states) == 3 and len(outputs.decoder_hidden_states) == 4
    assert torch.allclose(outputs.cross_attentions[0].sum(-1), torch.ones(()), atol=1e-5)
    assert outputs.cross_attentions[-1][1, ..., -1].max() < 1e-6  # the last cell of the second image is padding
    assert torch.equal(outputs.decoder_hidden_states[-1], outputs.last_hidden_state)
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)


def test_the_last_class_is_no_object_and_boxes_are_normalised(model):
    outputs = model(torch.randn(1, 3, 64, 64))
    assert outputs.logits.shape == (1, 7, 4)
    assert ((outputs.pred_boxes > 0) & (outputs.pred_boxes < 1)).all()


def test_an_evaluation_keeps_logits_and_boxes_at_the_places_of_transformers_detr():
    names = tiny_model()(torch.randn(1, 3, 64, 64), labels=some_labels(1)).keys()
    kept = [name for name in names if name not in tiny_config().keys_to_ignore_at_inference]
    assert kept == ["loss", "loss_dict", "logits", "pred_boxes"]


# ------------------------------------------------------------------------------------------- training and precision


def test_every_trainable_parameter_gets_a_gradient_even_without_objects():
    model = tiny_model().train()
    model(torch.randn(2, 3, 64, 64), labels=some_labels(0, 0)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(dropout=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(*padded_batch(), labels=some_labels(2, 1)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.processor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pure_half_precision_trains(dtype):
    model = tiny_model().to(dtype).train()
    pixel_values, pixel_mask = padded_batch()
    loss = model(pixel_values.to(dtype), pixel_mask, labels=some_labels(2, 1)).loss
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert model.class_embed.weight.grad.dtype == dtype


@pytest.mark.processor
def test_autocast_trains():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny_model().train()(*padded_batch(), labels=some_labels(2, 1)).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.xfail(
    Version(torch.__version__) < Version("2.7"), raises=NameError, reason="torch 2.6 loses a name of transformers'"
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_training_forward_has_no_graph_break(masked):
    torch._dynamo.reset()
    model = tiny_model(dropout=0.0, enc_layers=1, dec_layers=2, **NARROW).train()  # is traced quickly
    pixel_values, pixel_mask = padded_batch()
    batch = (pixel_values, pixel_mask) if masked else (pixel_values,)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # fullgraph raises at a graph break
    assert outputs_differ_by(compiled(*batch), model(*batch)) < 1e-6


def count_host_syncs(monkeypatch, run) -> int:
    """Counts what would make a GPU wait: values of a tensor read by the host, without those already copied there."""
    on_host, syncs = set(), []

    def counted(method, original):
        def call(tensor, *args, **kwargs):
            if tensor.untyped_storage().data_ptr() not in on_host:
                syncs.append(method)
            result = original(tensor, *args, **kwargs)
            if method == "cpu":
                result = result.clone()
                on_host.add(result.untyped_storage().data_ptr())
                kept.append(result)
            return result

        return call

    kept: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        for method in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, method, counted(method, getattr(torch.Tensor, method)))
        run()
    return len(syncs)


@pytest.mark.parametrize("dec_layers", [1, 4])
def test_forward_and_loss_make_at_most_three_host_syncs(monkeypatch, dec_layers):
    model = tiny_model(dec_layers=dec_layers).train()
    pixel_values, pixel_mask = padded_batch()
    labels = some_labels(2, 3)
    syncs = count_host_syncs(monkeypatch, lambda: model(pixel_values, pixel_mask, labels=labels))
    assert 1 <= syncs <= 3


# ------------------------------------------------------------------------------------------------------ input checks


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixel_values": torch.zeros(1, 4, 64, 64)}, r"shape \(1, 4, 64, 64\); expected \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"expected \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(0, 3, 64, 64)}, "batch size is 0"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "uint8; expected floating point"),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.float64)},
            r"torch.float64 and the model's weights are torch.float32; give pixel_values.to\(torch.float32\)",
        ),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": torch.ones(1, 32, 32)},
            r"pixel_mask has shape \(1, 32, 32\).*expected \(1, 64, 64\)",
        ),
        (
            {
                "pixel_values": torch.zeros(2, 3, 64, 64),
                "pixel_mask": torch.stack([torch.ones(64, 64), torch.zeros(64, 64)]),
            },
            r"pixel_mask is 0 everywhere for image \[1\]",
        ),
    ],
)
def test_bad_inputs_are_refused_by_name(model, batch, message):
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_pixels_wider_than_the_weights_are_refused_but_under_autocast():
    model, pixels = tiny_model(**NARROW).to(torch.bfloat16), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"float32 and the model's weights are torch.bfloat16; give pixel_values.to"):
        model(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(pixels).logits.isfinite().all()
        with pytest.raises(ValueError, match=r"float64"):
            model(pixels.double())
