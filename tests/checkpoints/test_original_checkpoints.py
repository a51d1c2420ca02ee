"""The original's `.pth` files: released, panoptic, and written while training; with `args` and without."""

import logging
from argparse import Namespace

import pytest
import torch
from torch import nn

from detr_hf import DETRConfig, DETRForObjectDetection
from detr_hf.checkpoints.configs import resnet_from_shapes
from detr_hf.checkpoints.reading import is_foreign, read_checkpoint
from tests.checkpoints.foreign import (
    assert_same_outputs,
    assert_same_tensors,
    narrow_model,
    original_args,
    original_state_dict,
    panoptic_extras,
    save_original,
)

SEEN_IN_WEIGHTS = [
    "hidden_dim",
    "enc_layers",
    "dec_layers",
    "dim_feedforward",
    "pre_norm",
    "num_queries",
    "position_embedding",
    "num_position_embeddings",
    "backbone",
    "backbone_kwargs",
    "num_channels",
]

VARIANTS = {
    "sine": {},
    "learned": {"position_embedding": "learned"},
    "pre_norm": {"pre_norm": True},
    "dc5": {"backbone": "resnet50", "dilation": True},
    "no encoder": {"enc_layers": 0},
    "eight heads": {"nheads": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_args_everything_comes_back(tmp_path, variant, caplog):
    model = narrow_model(**VARIANTS[variant])
    path = save_original(model, tmp_path / "detr.pth", original_args(model.config, set_cost_bbox=3, dropout=0.2))
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(path)
    assert "assumed" not in caplog.text.lower()
    assert_same_tensors(ours.state_dict(), model.state_dict())
    assert_same_outputs(ours, model)
    for name in (*SEEN_IN_WEIGHTS, "nheads", "dilation"):
        assert getattr(ours.config, name) == getattr(model.config, name), name
    assert (ours.config.set_cost_bbox, ours.config.dropout) == (3, 0.2)


def test_packed_rows_are_query_key_value(tmp_path):
    """torch's own attention with the packed weights of the file equals ours with the unpacked ones."""
    model = narrow_model()
    ours = DETRForObjectDetection.from_pretrained(
        save_original(model, tmp_path / "detr.pth", original_args(model.config))
    )
    prefix = "transformer.decoder.layers.1.multihead_attn."
    packed = {
        name.removeprefix(prefix): t for name, t in original_state_dict(model).items() if name.startswith(prefix)
    }
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    reference.load_state_dict(packed)
    query, key, value = torch.randn(2, 7, 32), torch.randn(2, 12, 32), torch.randn(2, 12, 32)
    with torch.no_grad():
        expected, _ = reference(query, key, value)
        seen, _ = ours.transformer.decoder.layers[1].multihead_attn(query, key, value)
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"position_embedding": "learned"}, {"pre_norm": True}, {"dec_layers": 1}])
def test_without_args_shapes_decide(tmp_path, changes, caplog):
    model = narrow_model(nheads=8, **changes)
    path = save_original(model, tmp_path / "detr.pth")
    with caplog.at_level(logging.WARNING, "detr_hf"):
        checkpoint = read_checkpoint(path)
    for name in SEEN_IN_WEIGHTS:
        assert getattr(checkpoint.config, name) == getattr(model.config, name), name
    assert "dilation=False, nheads=8" in caplog.text
    assert_same_tensors(checkpoint.state_dict, model.state_dict())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_the_four_backbones_are_told_apart(backbone):
    with torch.device("meta"):
        model = DETRForObjectDetection(DETRConfig(backbone=backbone))
    assert resnet_from_shapes(model.state_dict()) == {"backbone": backbone, "num_channels": 3}


@pytest.mark.parametrize("backbone", ["wide_resnet50_2", "resnext50_32x4d", "resnet50d", "regnety_002"])
def test_other_backbones_are_not_taken_for_a_resnet(backbone):
    with torch.device("meta"):
        model = DETRForObjectDetection(DETRConfig(backbone=backbone))
    assert resnet_from_shapes(model.state_dict()) is None


def test_an_unknown_backbone_needs_args(tmp_path):
    model = narrow_model(backbone="regnety_002", backbone_kwargs=None)
    with pytest.raises(ValueError, match="no plain ResNet"):
        read_checkpoint(save_original(model, tmp_path / "without.pth"))
    ours = DETRForObjectDetection.from_pretrained(
        save_original(model, tmp_path / "with.pth", original_args(model.config))
    )
    assert_same_outputs(ours, model)


@pytest.mark.parametrize(
    ("filename", "given", "expected"),
    [
        ("detr-r18-dc5-f0fb7ef5.pth", {}, True),
        ("detr-r18.pth", {}, False),
        ("detr-r18.pth", {"dilation": True}, True),
        ("detr-r18-dc5.pth", {"dilation": False}, False),
    ],
)
def test_dilation_without_args(tmp_path, filename, given, expected, caplog):
    path = save_original(narrow_model(nheads=8), tmp_path / filename)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        config = read_checkpoint(path, **given).config
    assert config.dilation is expected
    assert ("dilation=" in caplog.text) == (not given)
    assert "nheads=8" in caplog.text


def test_from_pretrained_takes_what_weights_do_not_show(tmp_path, caplog):
    model = narrow_model(nheads=4)
    path = save_original(model, tmp_path / "detr.pth")
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(path, nheads=4, dilation=False)
    assert caplog.text == ""
    assert_same_outputs(ours, model)


def test_weights_overrule_args(tmp_path, caplog):
    model = narrow_model()
    args = original_args(model.config, num_queries=100, enc_layers=6)
    with caplog.at_level(logging.WARNING, "detr_hf"):
        config = read_checkpoint(save_original(model, tmp_path / "detr.pth", args)).config
    assert (config.num_queries, config.enc_layers) == (7, 2)
    assert "num_queries=100" in caplog.text and "enc_layers=6" in caplog.text


@pytest.mark.parametrize(("lr_backbone", "trained"), [(1e-5, True), (0.0, False)])
def test_a_frozen_backbone_stays_frozen(tmp_path, lr_backbone, trained):
    model = narrow_model()
    path = save_original(model, tmp_path / "detr.pth", original_args(model.config, lr_backbone=lr_backbone))
    ours = DETRForObjectDetection.from_pretrained(path)
    assert ours.config.train_backbone is trained
    assert ours.backbone[0].body.layer4[0].conv1.weight.requires_grad is trained


def test_training_checkpoints_name_what_they_leave_out(tmp_path):
    model = narrow_model()
    trained = narrow_model(seed=1)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    sum(parameter.sum() for parameter in trained.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 200)
    path = save_original(
        model,
        tmp_path / "checkpoint.pth",
        original_args(model.config),
        optimizer=optimizer.state_dict(),
        lr_scheduler=scheduler.state_dict(),
        epoch=41,
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.source == "original"
    assert checkpoint.path == path
    assert sorted(checkpoint.ignored) == ["epoch", "lr_scheduler", "optimizer"]
    assert_same_tensors(checkpoint.state_dict, model.state_dict())


def test_panoptic_files(tmp_path, caplog):
    model = narrow_model()
    extras = panoptic_extras()
    content = {f"detr.{name}": tensor for name, tensor in original_state_dict(model).items()} | extras
    torch.save({"model": content, "args": original_args(model.config, masks=True)}, tmp_path / "panoptic.pth")
    with caplog.at_level(logging.WARNING, "detr_hf"):
        ours = DETRForObjectDetection.from_pretrained(tmp_path / "panoptic.pth")
    assert f"mask head ({len(extras)} tensors) is left out" in caplog.text
    assert_same_tensors(ours.state_dict(), model.state_dict())
    checkpoint = read_checkpoint(tmp_path / "panoptic.pth")
    assert set(checkpoint.ignored) == set(extras)
    assert_same_tensors(checkpoint.mask_head, extras)


@pytest.mark.parametrize("container", ["bare", "state_dict", "module prefix"])
def test_other_containers(tmp_path, container):
    model = narrow_model(nheads=8)
    tensors = original_state_dict(model)
    content = {
        "bare": tensors,
        "state_dict": {"state_dict": tensors, "epoch": 3},
        "module prefix": {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    }[container]
    torch.save(content, tmp_path / "detr.pth")
    assert_same_tensors(read_checkpoint(tmp_path / "detr.pth").state_dict, model.state_dict())


def test_class_names_of_coco(tmp_path):
    names = read_checkpoint(
        save_original(narrow_model(num_labels=91, id2label=None), tmp_path / "a.pth")
    ).config.id2label
    assert len(names) == 91
    assert [names[index] for index in (0, 1, 12, 13, 90)] == ["N/A", "person", "N/A", "stop sign", "toothbrush"]
    assert sum(name != "N/A" for name in names.values()) == 80
    panoptic = read_checkpoint(
        save_original(narrow_model(num_labels=250, id2label=None), tmp_path / "b.pth")
    ).config.id2label
    assert (len(panoptic), panoptic[187], panoptic[249]) == (250, "sky-other-merged", "N/A")
    assert sum(name != "N/A" for name in panoptic.values()) == 133
    others = read_checkpoint(save_original(narrow_model(), tmp_path / "c.pth")).config.id2label
    assert others == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_round_trip_original_own_transformers_own(tmp_path):
    model = narrow_model(position_embedding="learned", backbone="test_resnet", backbone_kwargs=None)
    path = save_original(model, tmp_path / "detr.pth", original_args(model.config))
    assert is_foreign(path)
    ours = DETRForObjectDetection.from_pretrained(path)
    ours.save_pretrained(tmp_path / "own")
    own = DETRForObjectDetection.from_pretrained(tmp_path / "own")
    own.to_transformers().save_pretrained(tmp_path / "transformers")
    again = DETRForObjectDetection.from_pretrained(tmp_path / "transformers")
    for stage in (ours, own, again):
        assert_same_tensors(stage.state_dict(), model.state_dict())
    differing = {"dtype", "transformers_version", "_name_or_path", "architectures"}
    first, last = ours.config.to_dict(), again.config.to_dict()
    assert {name: value for name, value in first.items() if name not in differing} == {
        name: value for name, value in last.items() if name not in differing
    }


def test_a_part_of_a_detr_is_refused(tmp_path):
    tensors = original_state_dict(narrow_model())
    part = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    torch.save({"model": part}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="not a whole DETR"):
        read_checkpoint(tmp_path / "part.pth")


def test_safetensors_without_config(tmp_path):
    from safetensors.torch import save_file

    model = narrow_model(nheads=8)
    save_file(original_state_dict(model), tmp_path / "detr.safetensors")
    assert_same_tensors(read_checkpoint(tmp_path / "detr.safetensors").state_dict, model.state_dict())


def test_args_may_be_a_dict(tmp_path):
    model = narrow_model()
    path = save_original(model, tmp_path / "a.pth", args=vars(original_args(model.config)))
    assert read_checkpoint(path).config.nheads == 4
    assert isinstance(original_args(model.config), Namespace)
