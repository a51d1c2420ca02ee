"""The backbone is frozen where the original's is, and its masks and weights are right."""

import ast
import re

import pytest
import timm
import torch
from torch import nn

from detr_hf import DETRForObjectDetection
from detr_hf.model.backbone_detr import Backbone, FrozenBatchNorm2d, Joiner

from ..conftest import NARROW, outputs_differ_by, padded_batch, some_labels, tiny_config, tiny_model


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


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "mobilenetv3_small_050", "regnety_002", "tf_efficientnet_lite0"],
)
def test_the_stride_4_stage_of_any_backbone_is_frozen(name):
    backbone = Backbone(tiny_config(backbone=name), return_interm_layers=True).train()
    features = backbone(torch.randn(1, 3, 64, 64), None)
    strides = [64 // feature.shape[-1] for feature, _ in features]
    assert [(stride, feature.requires_grad) for stride, (feature, _) in zip(strides, features, strict=True)] == [
        (4, False),
        (8, True),
        (16, True),
        (32, True),
    ]


def test_a_backbone_that_cannot_be_frozen_in_part_says_so(caplog):
    backbone = Backbone(tiny_config(backbone="hrnet_w18_small"))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert "'stage1', the end of its first stage, is not among its modules" in caplog.text


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
        OSError, match=r"ImageNet weights of resnet10t could not be had.*give a local file \(backbone_weights='FILE'\)"
    ):
        DETRForObjectDetection(tiny_config(backbone="resnet10t", backbone_weights="imagenet"))


@torch.no_grad()
def test_a_backbone_whose_channels_come_last_is_turned():
    model = tiny_model(
        backbone="swin_tiny_patch4_window7_224", backbone_kwargs={"depths": [1, 1, 1, 1], "embed_dim": 24}
    )
    features, _ = model.backbone(torch.randn(1, 3, 224, 224), None)
    assert features[-1][0].shape == (1, 192, 7, 7)
    assert model(torch.randn(1, 3, 224, 224)).logits.isfinite().all()


SWIN = {"backbone": "swin_tiny_patch4_window7_224", "backbone_kwargs": {"depths": [2, 1, 1, 1], "embed_dim": 24}}


@torch.no_grad()
def test_swin_takes_images_of_any_size_and_gives_timms_numbers_at_its_own():
    backbone = Backbone(tiny_config(**SWIN)).eval()
    images = torch.randn(1, 3, 224, 224)
    theirs = timm.create_model(SWIN["backbone"], features_only=True, out_indices=(-1,), **SWIN["backbone_kwargs"])
    theirs.eval().load_state_dict(backbone.body.state_dict())
    torch.testing.assert_close(
        backbone(images, None)[-1][0], theirs(images)[-1].permute(0, 3, 1, 2), atol=1e-5, rtol=0
    )
    assert backbone(torch.randn(1, 3, 75, 101), None)[-1][0].shape == (1, 192, 3, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "efficientformerv2_s0"])
def test_a_backbone_for_one_size_is_refused_when_it_is_built(name):
    small = {} if name == "efficientformerv2_s0" else {"depth": 2}
    with pytest.raises(ValueError, match=r"does not take images of 101x139.*resnet50") as caught:
        Backbone(tiny_config(backbone=name, backbone_kwargs=small))
    remedy = re.search(r"backbone_kwargs=(\{.*?\}) makes it take them", str(caught.value))
    assert bool(remedy) == bool(small)
    if remedy:
        backbone = Backbone(tiny_config(backbone=name, backbone_kwargs=small | ast.literal_eval(remedy[1])))
        assert backbone(torch.randn(1, 3, 50, 70), None)[-1][0].isfinite().all()


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


def test_the_joiner_is_backbone_and_position_encoding(model):
    assert isinstance(model.backbone, Joiner)
    features, pos = model.backbone(torch.randn(2, 3, 64, 96), None)
    assert features[-1][0].shape == (2, 512, 2, 3)
    assert pos.shape == (1, 32, 2, 3)


def test_dilation_halves_the_stride():
    features, _ = tiny_model(dilation=True).backbone(torch.randn(1, 3, 64, 96), None)
    assert features[-1][0].shape == (1, 512, 4, 6)


def test_a_step_that_the_meta_device_lacks_is_done_on_the_processor(monkeypatch):
    """As of RegNet with torch 2.6: from_pretrained builds every model there."""
    build, devices = timm.create_model, []

    def without_meta(*arguments, **options):
        devices.append(torch.empty(0).device.type)
        if devices[-1] == "meta":
            raise NotImplementedError("aten::_unique2: no Meta kernel registered")
        return build(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", without_meta)
    with torch.device("meta"):
        model = tiny_model(**NARROW)
    assert devices == ["meta", "cpu"] and all(one.is_meta for one in model.state_dict().values())
