"""Checkpoints of transformers' DETR and Table Transformer give the same outputs here, in any layout."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import DetrConfig, DetrForSegmentation, DetrModel

from detr_hf import DETRForObjectDetection, DETRModel
from detr_hf.checkpoints.reading import is_foreign, read_checkpoint
from tests.checkpoints.foreign import (
    NAMES,
    assert_same_outputs,
    assert_same_tensors,
    save_tensors,
    small_arguments,
    their_detr,
    their_resnet,
    their_table_transformer,
    timm_backbone,
)
from tests.conftest import padded_batch


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A DETR of transformers and the folder that it was saved to."""
    theirs = their_detr()
    folder = tmp_path_factory.mktemp("hub")
    theirs.save_pretrained(folder)
    return theirs, folder


def edit_config(folder, **changes):
    """Changes entries of config.json; None deletes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


VARIANTS = {
    "sine": {},
    "learned": {"position_embedding_type": "learned"},
    "dc5": {"dilation": True, "backbone_config": timm_backbone("resnet50", output_stride=16)},
    "resnet18": {"backbone_config": timm_backbone("resnet18")},
    "gelu": {"activation_function": "gelu"},
    "one channel": {"num_channels": 1, "backbone_config": timm_backbone(num_channels=1)},
}


@pytest.mark.parametrize("make", [their_detr, their_table_transformer])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_those_of_transformers(tmp_path, make, variant):
    theirs = make(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    ours = DETRForObjectDetection.from_pretrained(tmp_path)
    if variant == "one channel":
        pixel_values, pixel_mask = padded_batch()
        with torch.no_grad():
            seen, expected = ours(pixel_values[:, :1], pixel_mask), theirs(pixel_values[:, :1], pixel_mask)
        torch.testing.assert_close(seen.logits, expected.logits, atol=1e-4, rtol=0)
    else:
        assert_same_outputs(ours, theirs)
    assert ours.config.pre_norm == (make is their_table_transformer)
    assert ours.config.dilation == (variant == "dc5")
    assert ours.config.id2label == NAMES


def test_disk_is_the_old_layout(hub_folder):
    """Guards the premise of these tests: what transformers saves has the Hub's names."""
    names = load_file(hub_folder[1] / "model.safetensors").keys()
    assert "model.backbone.conv_encoder.model.layer1.0.bn1.running_var" in names
    assert "model.encoder.layers.0.fc1.weight" in names
    assert "model.decoder.layers.0.encoder_attn.out_proj.weight" in names


def test_memory_layout_equals_disk_layout(hub_folder, tmp_path):
    theirs, folder = hub_folder
    in_memory = theirs.state_dict()
    assert "model.encoder.layers.0.mlp.fc1.weight" in in_memory
    assert "model.encoder.layers.0.self_attn.o_proj.weight" in in_memory
    save_tensors(tmp_path / "memory", theirs.config, in_memory)
    assert_same_tensors(read_checkpoint(tmp_path / "memory").state_dict, read_checkpoint(folder).state_dict)


@pytest.mark.parametrize(
    "resnet",
    [
        {},
        {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        {"layer_type": "basic", "hidden_sizes": [64, 32, 64, 128]},
    ],
    ids=["small bottleneck", "resnet18", "small basic"],
)
def test_transformers_own_resnet(tmp_path, resnet):
    """The `no_timm` revisions on the Hub."""
    theirs = their_detr(backbone_config=their_resnet(**resnet))
    theirs.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight" in names
    ours = DETRForObjectDetection.from_pretrained(tmp_path)
    assert_same_outputs(ours, theirs)
    assert ours.config.backbone == ("resnet50" if not resnet else "resnet18")


def test_transformers_own_resnet_of_known_size_needs_no_backbone_kwargs(tmp_path):
    theirs = their_detr(
        backbone_config=their_resnet(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    )
    theirs.save_pretrained(tmp_path)
    config = read_checkpoint(tmp_path).config
    assert (config.backbone, config.backbone_kwargs, config.dilation) == ("resnet18", None, False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"out_features": ["stage3"]}, "out_features"),
    ],
)
def test_resnets_that_timm_has_not_are_refused(tmp_path, change, named):
    their_detr(backbone_config=their_resnet(**change)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=named):
        read_checkpoint(tmp_path)


def test_config_keys_of_transformers_4(hub_folder, tmp_path):
    """The Hub's config.json has `backbone` and `use_timm_backbone` where 5.x writes `backbone_config`."""
    theirs, folder = hub_folder
    save_tensors(tmp_path, theirs.config, load_file(folder / "model.safetensors"))
    old = {
        "backbone": "test_resnet",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone_config": None,
        "dtype": None,
        "torch_dtype": "float32",
        "max_position_embeddings": 1024,
        "scale_embedding": False,
        "classifier_dropout": 0.0,
        "num_hidden_layers": 2,
        "class_cost": 1.5,
        "bbox_cost": 4.0,
        "eos_coefficient": 0.2,
        "dropout": 0.0,
        "transformers_version": "4.21.0",
    }
    edit_config(tmp_path, **old)
    ours = DETRForObjectDetection.from_pretrained(tmp_path)
    assert_same_outputs(ours, theirs)
    config = ours.config
    assert (config.backbone, config.dilation) == ("test_resnet", False)
    assert (config.set_cost_class, config.set_cost_bbox, config.set_cost_giou) == (1.5, 4.0, 2)
    assert (config.eos_coef, config.dropout) == (0.2, 0.0)
    assert config.aux_loss  # False there only because it changes the forward pass there


@pytest.mark.parametrize(
    "entries",
    [{"dilation": True}, {"backbone_kwargs": {"out_indices": [1, 2, 3, 4], "in_chans": 3, "output_stride": 16}}],
    ids=["dilation", "backbone_kwargs"],
)
def test_dilation_in_old_configs(hub_folder, tmp_path, entries):
    theirs, folder = hub_folder
    save_tensors(tmp_path, theirs.config, load_file(folder / "model.safetensors"))
    edit_config(tmp_path, backbone="resnet50", use_timm_backbone=True, backbone_config=None, **entries)
    assert read_checkpoint(tmp_path).config.dilation


def test_dilation_that_transformers_ignores_is_ignored_and_said(tmp_path, caplog):
    theirs = their_detr(dilation=True, backbone_config=timm_backbone())
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(tmp_path)
    assert "output_stride" in caplog.text
    assert_same_outputs(ours, theirs)


def test_auxiliary_loss_of_transformers_is_warned_about(hub_folder, tmp_path, caplog):
    theirs, folder = hub_folder
    save_tensors(tmp_path, theirs.config, load_file(folder / "model.safetensors"))
    edit_config(tmp_path, auxiliary_loss=True)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(tmp_path)
    assert "auxiliary_loss" in caplog.text
    assert_same_outputs(ours, theirs)  # theirs runs without the flag


def test_position_tables_under_the_names_of_transformers_4(tmp_path):
    theirs = their_detr(position_embedding_type="learned")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("model.position_embedding", "model.backbone.position_embedding"): tensors[name]
        for name in tensors
    }
    assert old.keys() != tensors.keys()
    save_tensors(tmp_path, theirs.config, old)
    assert_same_outputs(DETRForObjectDetection.from_pretrained(tmp_path), theirs)


def test_base_model_files(hub_folder, tmp_path):
    theirs, _ = hub_folder
    base = DetrModel(theirs.config).eval()
    base.load_state_dict(theirs.model.state_dict())
    base.save_pretrained(tmp_path)
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    ours = DETRModel.from_pretrained(tmp_path)
    with torch.no_grad():
        seen, expected = ours(*padded_batch()), base(*padded_batch())
    torch.testing.assert_close(seen.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=0)


def test_detection_model_from_base_files_says_what_is_new(hub_folder, tmp_path):
    theirs, _ = hub_folder
    DetrModel(theirs.config).save_pretrained(tmp_path)
    _, info = DETRForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"class_embed", "bbox_embed"}


def test_panoptic_files_give_the_detector_and_name_the_mask_head(tmp_path, caplog):
    torch.manual_seed(0)
    theirs = DetrForSegmentation(
        DetrConfig(**small_arguments(d_model=64, encoder_attention_heads=8, decoder_attention_heads=8))
    )
    theirs.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert "detr.model.query_position_embeddings.weight" in on_disk
    checkpoint = read_checkpoint(tmp_path)
    heads = {name for name in on_disk if name.startswith(("bbox_attention.", "mask_head."))}
    assert set(checkpoint.ignored) == heads == set(checkpoint.mask_head)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(tmp_path)
    assert "mask head" in caplog.text
    assert_same_tensors(ours.state_dict(), checkpoint.state_dict)
    # the names of transformers 5.x in memory come back to the original's
    save_tensors(tmp_path / "memory", theirs.config, theirs.state_dict())
    assert_same_tensors(read_checkpoint(tmp_path / "memory").mask_head, checkpoint.mask_head)


def test_num_batches_tracked_is_dropped_silently(hub_folder, tmp_path, caplog):
    theirs, folder = hub_folder
    tensors = load_file(folder / "model.safetensors")
    tensors["model.backbone.conv_encoder.model.layer2.0.downsample.1.num_batches_tracked"] = torch.tensor(5)
    save_tensors(tmp_path, theirs.config, tensors)
    with caplog.at_level(logging.INFO, "detr_hf"):
        checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.ignored == []
    assert caplog.text == ""
    assert_same_outputs(DETRForObjectDetection.from_pretrained(tmp_path), theirs)


def test_unknown_tensors_are_named(hub_folder, tmp_path, caplog):
    theirs, folder = hub_folder
    save_tensors(
        tmp_path, theirs.config, load_file(folder / "model.safetensors") | {"model.extra.weight": torch.zeros(2)}
    )
    with caplog.at_level(logging.WARNING, "detr_hf"):
        checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.ignored == ["model.extra.weight"]
    assert "model.extra.weight" in caplog.text


def test_every_tensor_is_used(hub_folder):
    theirs, folder = hub_folder
    checkpoint = read_checkpoint(folder)
    assert checkpoint.source == "detr"
    assert checkpoint.path == folder
    assert len(checkpoint.state_dict) == len(theirs.state_dict())
    assert is_foreign(folder)


def test_shards_and_pickles_hold_the_same(hub_folder, tmp_path):
    theirs, folder = hub_folder
    expected = read_checkpoint(folder).state_dict
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="500KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert_same_tensors(read_checkpoint(tmp_path / "sharded").state_dict, expected)
    theirs.config.save_pretrained(tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickle" / "pytorch_model.bin")
    assert_same_tensors(read_checkpoint(tmp_path / "pickle").state_dict, expected)


def test_subfolder(hub_folder):
    _, folder = hub_folder
    checkpoint = read_checkpoint(folder.parent, subfolder=folder.name)
    assert_same_tensors(checkpoint.state_dict, read_checkpoint(folder).state_dict)
    ours = DETRForObjectDetection.from_pretrained(folder.parent, subfolder=folder.name)
    assert_same_tensors(ours.state_dict(), checkpoint.state_dict)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"decoder_attention_heads": 8}, "encoder_attention_heads=4 and decoder_attention_heads=8"),
        ({"decoder_ffn_dim": 128}, "encoder_ffn_dim=64 and decoder_ffn_dim=128"),
        ({"backbone_config": {"model_type": "swin"}}, "'swin'"),
        ({"backbone_config": timm_backbone(output_stride=8)}, "output_stride=8"),
        ({"backbone_config": timm_backbone(out_indices=[1, 2, 3])}, r"out_indices=\[1, 2, 3\]"),
        ({"backbone_config": timm_backbone("resnet5000")}, "resnet5000"),
        (
            {"backbone_config": None, "backbone": "resnet18", "backbone_kwargs": {"drop_path_rate": 0.1}},
            "drop_path_rate",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_reason(hub_folder, tmp_path, entries, named):
    theirs, folder = hub_folder
    save_tensors(tmp_path, theirs.config, load_file(folder / "model.safetensors"))
    edit_config(tmp_path, **entries)
    with pytest.raises(ValueError, match=named):
        read_checkpoint(tmp_path)


def test_class_names_follow_the_head(hub_folder, tmp_path, caplog):
    """A config.json whose id2label has gaps or too many entries still gives one name to each row of the head."""
    theirs, folder = hub_folder
    save_tensors(tmp_path, theirs.config, load_file(folder / "model.safetensors"))
    edit_config(tmp_path, id2label={"0": "cat", "2": "owl", "7": "yak"})
    with caplog.at_level(logging.WARNING, "detr_hf"):
        checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.config.id2label == {0: "cat", 1: "N/A", 2: "owl"}
    assert "7 (yak)" in caplog.text


def test_round_trip_through_our_own_folder(hub_folder, tmp_path):
    theirs, folder = hub_folder
    ours = DETRForObjectDetection.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    assert not is_foreign(tmp_path)
    again, info = DETRForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_tensors(again.state_dict(), ours.state_dict())
    assert_same_tensors(read_checkpoint(tmp_path).state_dict, ours.state_dict())
    assert read_checkpoint(tmp_path).source == "detr_hf"
    assert_same_outputs(again, theirs)
