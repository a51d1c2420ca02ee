"""Makes tiny checkpoints of every foreign kind: by transformers itself, or by hand from the original's rules."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    ResNetConfig,
    TableTransformerConfig,
    TableTransformerForObjectDetection,
)

from detr_hf import DETRConfig, DETRForObjectDetection
from tests.conftest import padded_batch, randomise_frozen_statistics, tiny_model

NAMES = {0: "cat", 1: "dog", 2: "owl"}
NARROW = {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16]}  # a ResNet-18 or -50 of some kilobytes


def narrow_model(**changes) -> DETRForObjectDetection:
    """Returns our tiny model on a ResNet that is thin, but has the names of a full one."""
    return tiny_model(**({"backbone_kwargs": NARROW} | changes))


def timm_backbone(name: str = "test_resnet", **changes) -> dict[str, Any]:
    """Returns a backbone_config as the Hub's checkpoints have it."""
    return {
        "model_type": "timm_backbone",
        "backbone": name,
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [1, 2, 3, 4],
    } | changes


def small_arguments(**changes) -> dict[str, Any]:
    """Returns the arguments of a tiny transformers DETR or Table Transformer."""
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 7,
        "init_std": 0.3,  # so that an exchanged tensor shows in the outputs
        "id2label": NAMES,
        "label2id": {name: index for index, name in NAMES.items()},
        "backbone_config": timm_backbone(),
    } | changes


def their_detr(**changes) -> DetrForObjectDetection:
    """Returns a random tiny DETR of transformers, with random frozen statistics."""
    return _randomised(DetrForObjectDetection, DetrConfig(**small_arguments(**changes)))


def their_table_transformer(**changes) -> TableTransformerForObjectDetection:
    """Returns a random tiny Table Transformer, with random frozen statistics."""
    return _randomised(TableTransformerForObjectDetection, TableTransformerConfig(**small_arguments(**changes)))


def their_resnet(**changes) -> ResNetConfig:
    """Returns the configuration of a small ResNet of transformers' own kind."""
    small = {
        "depths": [1, 2, 1, 1],
        "hidden_sizes": [32, 64, 96, 128],
        "layer_type": "bottleneck",
        "out_features": ["stage4"],
    }
    return ResNetConfig(**(small | changes))


def _randomised(model_class: type[PreTrainedModel], config) -> PreTrainedModel:
    torch.manual_seed(11)
    model = model_class(config).eval()
    randomise_frozen_statistics(model)
    with torch.no_grad():  # biases and norms start as constants, and would hide that two were exchanged
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def outputs(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Returns logits and boxes of a padded batch."""
    with torch.no_grad():
        seen = model.eval()(*padded_batch())
    return seen.logits, seen.pred_boxes


def assert_same_outputs(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Compares logits to 1e-4 (of large ones, 1e-4 of them) and boxes to 3e-5; there must be something to compare."""
    logits, boxes = outputs(model)
    their_logits, their_boxes = outputs(expected)
    assert their_logits.std() > 0.05
    assert their_boxes.std() > 0.01
    torch.testing.assert_close(logits, their_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, their_boxes, atol=3e-5, rtol=0)  # torch 2.6: 2e-5


def assert_same_tensors(state_dict: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compares names and every bit."""
    assert state_dict.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(state_dict[name], tensor)]
    assert not different


def original_state_dict(model: DETRForObjectDetection) -> dict[str, Tensor]:
    """Returns the weights as facebookresearch/detr names and packs them."""
    ours = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = {}
    for name, tensor in ours.items():
        if ".q_proj." in name:
            parts = [ours[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            packed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            packed[name] = tensor
    return packed


def original_args(config: DETRConfig, **changes) -> Namespace:
    """Returns what the original's argument parser would have held for `config`, with some of what else it holds."""
    names = [
        "hidden_dim",
        "nheads",
        "enc_layers",
        "dec_layers",
        "dim_feedforward",
        "dropout",
        "pre_norm",
        "num_queries",
        "position_embedding",
        "backbone",
        "dilation",
        "aux_loss",
        "set_cost_class",
        "set_cost_bbox",
        "set_cost_giou",
        "bbox_loss_coef",
        "giou_loss_coef",
        "mask_loss_coef",
        "dice_loss_coef",
        "eos_coef",
    ]
    known = {name: getattr(config, name) for name in names}
    rest = {
        "lr": 1e-4,
        "lr_backbone": 1e-5,
        "masks": False,
        "dataset_file": "coco",
        "output_dir": "",
        "device": "cuda",
        "seed": 42,
    }
    return Namespace(**(known | rest | changes))


def save_original(model: DETRForObjectDetection, path: Path, args: Namespace | None = None, **extra) -> Path:
    """Writes a `.pth` file as the original does; `extra` goes beside `model`."""
    content = {"model": original_state_dict(model), **extra}
    if args is not None:
        content["args"] = args
    torch.save(content, path)
    return path


def panoptic_extras(hidden_dim: int = 32, nheads: int = 4) -> dict[str, Tensor]:
    """Returns the tensors of a mask head, in the original's names."""
    context = hidden_dim + nheads
    widths = [context, hidden_dim // 2, hidden_dim // 4, hidden_dim // 8, hidden_dim // 16]
    shapes = {"lay1": (context, context, 3, 3), "gn1": (context,)}
    for index in range(2, 6):
        shapes[f"lay{index}"] = (widths[index - 1], widths[index - 2], 3, 3)
        shapes[f"gn{index}"] = (widths[index - 1],)
    shapes["out_lay"] = (1, widths[-1], 3, 3)
    for index, channels in enumerate((256, 128, 64), start=1):
        shapes[f"adapter{index}"] = (widths[index], channels, 1, 1)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"mask_head.{name}.weight"] = torch.randn(shape)
        tensors[f"mask_head.{name}.bias"] = torch.randn(shape[0])
    for name in ("q_linear", "k_linear"):
        tensors[f"bbox_attention.{name}.weight"] = torch.randn(hidden_dim, hidden_dim)
        tensors[f"bbox_attention.{name}.bias"] = torch.randn(hidden_dim)
    return tensors


def save_tensors(folder: Path, config, tensors: dict[str, Tensor]) -> Path:
    """Writes config.json and model.safetensors with exactly these names."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
