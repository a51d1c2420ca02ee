"""A checkpoint comes back whole or is refused; what is new starts as in the original."""

import logging
import math
import os

import pytest
import torch
from transformers.configuration_utils import PreTrainedConfig

from detr_hf import DETRConfig, DETRForObjectDetection, DETRModel
from detr_hf.model.backbone_detr import FrozenBatchNorm2d

from ..conftest import tiny_config


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


def test_a_save_is_whole_readable_by_whom_the_umask_lets_and_has_no_shard_of_an_older_one(
    model, tmp_path, monkeypatch
):
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path, max_shard_size="100KB")
    finally:
        os.umask(before)
    shards = [path.name for path in tmp_path.glob("model-*-of-*.safetensors")]
    assert len(shards) > 1 and {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    monkeypatch.setattr(PreTrainedConfig, "save_pretrained", lambda *_, **__: 1 / 0)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_weights_saved_without_the_package_are_readable_by_whom_the_umask_lets(model, tmp_path, monkeypatch):
    """By the code that travels with a checkpoint."""
    monkeypatch.setattr(DETRForObjectDetection, "workshop", None)
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path):
    with torch.no_grad():
        model.class_embed.bias[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in 1 tensors, for example \['class_embed.bias'\]"):
        DETRForObjectDetection.from_pretrained(tmp_path)


class MyConfig(DETRConfig):
    model_type = "my_detr"
    margin: float = 0.5


class MyDETR(DETRForObjectDetection):
    config_class = MyConfig


def test_a_class_of_ones_own_is_loaded_again(tmp_path):
    fields = {name: value for name, value in tiny_config().to_dict().items() if name != "model_type"}
    own = MyDETR(MyConfig(**fields, margin=2.0))
    own.save_pretrained(tmp_path)
    loaded = MyDETR.from_pretrained(tmp_path)
    assert type(loaded) is MyDETR and type(loaded.config) is MyConfig and loaded.config.margin == 2.0
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in own.state_dict().items())
    with pytest.raises(ValueError, match=r"a model of type 'my_detr', not of a DETR.*config_class"):
        DETRForObjectDetection.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        MyDETR.from_pretrained(tmp_path)


def test_a_loaded_model_knows_where_it_came_from(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert DETRForObjectDetection.from_pretrained(tmp_path).config.name_or_path == str(tmp_path)
    assert DETRForObjectDetection.from_pretrained(tmp_path, num_queries=5).config.name_or_path == str(tmp_path)


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


def test_a_field_that_somebody_wrote_into_config_json_does_not_keep_the_weights_from_loading(model, tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    model.config.made_by = "somebody"
    model.save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        reloaded = DETRForObjectDetection.from_pretrained(tmp_path)
    assert "'made_by' that DETR does not know" in caplog.text
    assert reloaded.config.made_by == "somebody"
