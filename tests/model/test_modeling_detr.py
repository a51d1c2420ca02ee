"""Invariants of the model: structure, names, freezing, initialisation, padding, precision, gradients, input checks."""

import logging
import math

import pytest
import torch
from torch import nn

from detr_hf import DETRForObjectDetection, DETRModel
from detr_hf.model import fast_layers_detr
from detr_hf.model.attention_detr import MultiheadAttention, eager_attention
from detr_hf.model.backbone_detr import FrozenBatchNorm2d, Joiner
from detr_hf.model.fast_layers_detr import attention_by_rows
from detr_hf.model.position_encoding_detr import PositionEmbeddingLearned, PositionEmbeddingSine
from detr_hf.model.queries_detr import DecoderQueries

from ..conftest import padded_batch, some_labels, tiny_config, tiny_model


def outputs_differ_by(one, other) -> float:
    return max((one.logits - other.logits).abs().max().item(), (one.pred_boxes - other.pred_boxes).abs().max().item())


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


def test_the_base_model_and_the_detection_model_read_each_others_checkpoints(model, tmp_path):
    model.save_pretrained(tmp_path / "detection")
    base, info = DETRModel.from_pretrained(tmp_path / "detection", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base.save_pretrained(tmp_path / "base")
    again, info = DETRForObjectDetection.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"class_embed", "bbox_embed"}
    assert torch.equal(again.query_embed.weight, model.query_embed.weight)


def test_saving_and_loading_keeps_every_tensor_and_every_name(model, tmp_path):
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path)
    on_disk, in_memory = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert set(on_disk) == set(in_memory)
    reloaded = DETRForObjectDetection.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(reloaded[name], tensor) for name, tensor in in_memory.items())


def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path):
    with torch.no_grad():
        model.class_embed.bias[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in 1 tensors, for example \['class_embed.bias'\]"):
        DETRForObjectDetection.from_pretrained(tmp_path)


def test_a_loaded_model_knows_where_it_came_from(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert DETRForObjectDetection.from_pretrained(tmp_path).config.name_or_path == str(tmp_path)
    assert DETRForObjectDetection.from_pretrained(tmp_path, num_queries=5).config.name_or_path == str(tmp_path)


# ----------------------------------------------------------------------------------------------------------- freezing


def trainable_parts(model) -> set[str]:
    return {
        name.split(".")[3] for name, p in model.named_parameters() if name.startswith("backbone.0") and p.requires_grad
    }


def test_stem_and_layer1_stay_frozen_also_after_loading(model, tmp_path):
    assert trainable_parts(model) == {"layer2", "layer3", "layer4"}
    model.save_pretrained(tmp_path)
    assert trainable_parts(DETRForObjectDetection.from_pretrained(tmp_path)) == {"layer2", "layer3", "layer4"}
    frozen = DETRForObjectDetection.from_pretrained(tmp_path, train_backbone=False)
    assert trainable_parts(frozen) == set()
    assert all(p.requires_grad for name, p in frozen.named_parameters() if not name.startswith("backbone.0"))


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "regnety_002", "tf_efficientnet_lite0"])
def test_the_stride_4_stage_of_any_backbone_is_frozen(name):
    model = tiny_model(backbone=name)
    pixel_values = torch.randn(1, 3, 64, 64)
    model(pixel_values, labels=some_labels(2)).loss.backward()
    info = model.backbone[0].body.feature_info.info
    strides = {stage["module"].replace(".", "_"): stage["reduction"] for stage in info}
    with_gradient = {n.split(".")[3] for n, p in model.named_parameters() if "body" in n and p.grad is not None}
    assert with_gradient
    assert all(strides.get(child, 32) > 4 for child in with_gradient)


def test_frozen_statistics_do_not_move_in_training(model):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()(torch.randn(2, 3, 64, 64), labels=some_labels(1, 2)).loss.backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_a_frozen_norm_keeps_activation_and_eps_of_the_norm_it_replaces():
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(4, eps=1e-3, act_layer=nn.ReLU).eval()
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    frozen = FrozenBatchNorm2d.from_batch_norm(norm, keep_values=True)
    features = torch.randn(2, 4, 5, 5)
    assert torch.allclose(frozen(features), norm(features), atol=1e-6)
    assert (frozen(features) >= 0).all()


# ----------------------------------------------------------------------------------------------------- initialisation


def check_initialisation(model) -> None:
    """Deviations of the original: Xavier in the transformer, N(0, 1) queries, torch's default in the heads."""
    layer = model.transformer.decoder.layers[0]
    width, feed_forward = model.config.hidden_dim, model.config.dim_feedforward
    expected = {
        layer.self_attn.q_proj.weight: math.sqrt(2 / (4 * width)),  # Xavier of the packed (3 D, D) matrix
        layer.multihead_attn.v_proj.weight: math.sqrt(2 / (4 * width)),
        layer.self_attn.out_proj.weight: math.sqrt(2 / (2 * width)),
        layer.linear1.weight: math.sqrt(2 / (width + feed_forward)),
        layer.linear2.weight: math.sqrt(2 / (width + feed_forward)),
        model.query_embed.weight: 1.0,
        model.bbox_embed.layers[0].weight: 1 / math.sqrt(3 * width),
        model.class_embed.weight: 1 / math.sqrt(3 * width),
        model.input_proj.weight: 1 / math.sqrt(3 * model.input_proj.in_channels),
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.12)
    assert not layer.self_attn.q_proj.bias.any() and not layer.self_attn.out_proj.bias.any()
    assert layer.linear1.bias.any()
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert all(n.weight.eq(1).all() and n.running_var.eq(1).all() and not n.running_mean.any() for n in norms)


def test_initialisation_is_the_originals():
    torch.manual_seed(0)
    check_initialisation(DETRForObjectDetection(tiny_config(hidden_dim=64, num_queries=60, dim_feedforward=128)))


def test_initialisation_is_the_originals_when_built_on_the_meta_device():
    torch.manual_seed(0)
    config = tiny_config(hidden_dim=64, num_queries=60, dim_feedforward=128)
    model = DETRForObjectDetection.from_pretrained(None, config=config, state_dict={})
    check_initialisation(model)
    conv = model.backbone[0].body.layer2[0].conv1.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (conv.shape[0] * 9)), rel=0.1)


def test_learned_tables_are_uniform_also_on_the_meta_device():
    config = tiny_config(position_embedding="learned")
    for model in (
        DETRForObjectDetection(config),
        DETRForObjectDetection.from_pretrained(None, config=config, state_dict={}),
    ):
        table = model.backbone[1].row_embed.weight
        assert table.min() >= 0 and table.max() <= 1 and abs(table.mean().item() - 0.5) < 0.05


# ------------------------------------------------------------------------------------------------ backbone weights


def test_backbone_weights_from_a_file_reach_the_model_and_only_at_construction(tmp_path):
    import timm
    from safetensors.torch import save_file

    source = timm.create_model("resnet18", num_classes=5)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    model = DETRForObjectDetection(tiny_config(backbone_weights=str(tmp_path / "backbone.safetensors")))
    assert torch.equal(model.backbone[0].body.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    assert torch.equal(model.backbone[0].body.bn1.running_var, source.bn1.running_var)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "backbone.safetensors").unlink()
    reloaded = DETRForObjectDetection.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.backbone[0].body.layer3[0].conv1.weight, source.layer3[0].conv1.weight)


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"does not hold the weights of timm's resnet18: \d+ of \d+ tensors are missing"
    ):
        DETRForObjectDetection(tiny_config(backbone_weights=str(tmp_path / "other.safetensors")))
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "rgb.safetensors")
    with pytest.raises(ValueError, match=r"other shapes.*conv1.weight"):
        DETRForObjectDetection(tiny_config(backbone_weights=str(tmp_path / "rgb.safetensors"), num_channels=1))
    with pytest.raises(FileNotFoundError, match="neither 'imagenet' nor a file"):
        DETRForObjectDetection(tiny_config(backbone_weights="imagnet"))


def test_imagenet_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match=r"ImageNet weights of resnet10t could not be had.*give backbone_weights a local file"
    ):
        DETRForObjectDetection(tiny_config(backbone="resnet10t", backbone_weights="imagenet"))


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
def test_a_backbone_whose_channels_come_last_is_turned():
    model = tiny_model(
        backbone="swin_tiny_patch4_window7_224", backbone_kwargs={"depths": [1, 1, 1, 1], "embed_dim": 24}
    )
    features, _ = model.backbone(torch.randn(1, 3, 224, 224), None)
    assert features[-1][0].shape == (1, 192, 7, 7)
    assert model(torch.randn(1, 3, 224, 224)).logits.isfinite().all()


@torch.no_grad()
def test_a_mask_without_padding_is_no_mask(model):
    pixel_values, _ = padded_batch()
    ones = torch.ones(2, 96, 128, dtype=torch.int64)
    assert outputs_differ_by(model(pixel_values, ones), model(pixel_values)) == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_dtype_of_the_mask_does_not_matter(model, dtype):
    pixel_values, pixel_mask = padded_batch()
    assert outputs_differ_by(model(pixel_values, pixel_mask.to(dtype)), model(pixel_values, pixel_mask)) == 0


@torch.no_grad()
def test_the_order_of_a_batch_permutes_its_outputs(model):
    pixel_values, pixel_mask = padded_batch()
    straight, swapped = model(pixel_values, pixel_mask), model(pixel_values.flip(0), pixel_mask.flip(0))
    assert torch.allclose(straight.logits.flip(0), swapped.logits, atol=1e-5)
    assert torch.allclose(straight.pred_boxes.flip(0), swapped.pred_boxes, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_every_attention_implementation_gives_the_same_outputs(implementation):
    model = tiny_model()
    batch = padded_batch()
    expected = model(*batch)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation(implementation)
    assert outputs_differ_by(model(*batch), expected) < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_rows_is_attention(masked, monkeypatch):
    monkeypatch.setattr("detr_hf.model.fast_layers_detr.SCORES", 1)  # as few rows at a time as there may be
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
    monkeypatch.setattr(fast_layers_detr, "_has_amx", lambda: amx)
    used = []
    for each in ("attention_by_rows", "eager_attention"):
        attend = getattr(fast_layers_detr, each)
        monkeypatch.setattr(
            fast_layers_detr, each, lambda *a, each=each, attend=attend, **k: used.append(each) or attend(*a, **k)
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
    monkeypatch.setattr("detr_hf.model.fast_layers_detr.KEPT_SCORES", 1)
    monkeypatch.setattr(fast_layers_detr, "eager_attention", None)  # calling it fails
    model = tiny_model().bfloat16()
    model(padded_batch()[0].bfloat16()).pred_boxes.float().sum().backward()


# ------------------------------------------------------------------------------------------------ position encodings


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


def test_the_joiner_is_backbone_and_position_encoding(model):
    assert isinstance(model.backbone, Joiner)
    features, pos = model.backbone(torch.randn(2, 3, 64, 96), None)
    assert features[-1][0].shape == (2, 512, 2, 3)
    assert pos.shape == (1, 32, 2, 3)


def test_dilation_halves_the_stride():
    features, _ = tiny_model(dilation=True).backbone(torch.randn(1, 3, 64, 96), None)
    assert features[-1][0].shape == (1, 512, 4, 6)


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


def test_only_logits_and_boxes_survive_an_evaluation():
    kept = set(tiny_model()(torch.randn(1, 3, 64, 64), labels=some_labels(1)).keys())
    assert kept - set(tiny_config().keys_to_ignore_at_inference) == {"loss", "logits", "pred_boxes"}


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


@pytest.mark.parametrize("masked", [False, True])
def test_a_training_forward_has_no_graph_break(masked):
    torch._dynamo.reset()
    model = tiny_model(dropout=0.0).train()
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


# ---------------------------------------------------------------------------------------------- extra config fields


def test_a_field_that_somebody_wrote_into_config_json_does_not_keep_the_weights_from_loading(model, tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    model.config.made_by = "somebody"
    model.save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        reloaded = DETRForObjectDetection.from_pretrained(tmp_path)
    assert "'made_by' that DETR does not know" in caplog.text
    assert reloaded.config.made_by == "somebody"
