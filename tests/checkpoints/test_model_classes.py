"""Who names a checkpoint gets the model that it is of."""

from pathlib import Path

import pytest
import torch
from transformers import DetrConfig, DetrForSegmentation, TimmBackboneConfig

from detr_hf.checkpoints.model_classes import has_mask_head, load_model
from detr_hf.model import DETRConfig, DETRForObjectDetection, DETRForSegmentation, DETRModel

from .foreign import original_state_dict

TINY = {"hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 1, "dim_feedforward": 16, "num_queries": 3}


def config() -> DETRConfig:
    return DETRConfig(backbone="resnet18", id2label={0: "cat", 1: "grass"}, **TINY)


@pytest.mark.parametrize(
    ("model_class", "given"),
    [
        (DETRForSegmentation, DETRForSegmentation),
        (DETRForObjectDetection, DETRForObjectDetection),
        (DETRModel, DETRForObjectDetection),
    ],
)
def test_an_own_folder_says_what_it_is(model_class: type, given: type, tmp_path: Path):
    model_class(config()).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is given


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
def test_an_originals_file_says_it_by_its_tensors(with_masks: bool, wrapped: bool, tmp_path: Path):
    model = (DETRForSegmentation if with_masks else DETRForObjectDetection)(config())
    tensors = original_state_dict(model)
    if with_masks:
        tensors = {
            f"detr.{name}": value for name, value in tensors.items() if not name.startswith(("bbox_att", "mask"))
        }
        tensors |= {name: value for name, value in model.state_dict().items() if name.startswith(("bbox_att", "mask"))}
    if wrapped:
        tensors = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"model": tensors}, tmp_path / "detr.pth")
    assert has_mask_head(tmp_path / "detr.pth") is with_masks
    loaded = load_model(tmp_path / "detr.pth", nheads=2)
    assert type(loaded) is type(model)


def test_transformers_folder_says_what_it_is(tmp_path: Path):
    backbone = TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4], use_pretrained_backbone=False)
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    DetrForSegmentation(DetrConfig(backbone_config=backbone, num_queries=3, **sizes)).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is DETRForSegmentation
