"""The arms of the convergence benchmark: their names, their options, and the model of each.

An arm is a model: transformers' own DETR as it is shipped, the same at its best (auxiliary losses, the original's
initial values), or this package's with some options of its configuration. Where the backbone trains, every arm trains
the same copy of it, with this package's frozen batch norm: that of transformers drops the activations that some timm
norms carry.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detr_hf.checkpoints.layouts import transformers_from_own
from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.training.arguments import MODEL_OPTIONS, TRAINING_OPTIONS

from .convergence_tasks import Settings, Task

THEIRS = ("transformers", "transformers-best")
# One aid or option at a time, for the ablation; the recipes are those of DETRTrainingArguments.
ABLATION: dict[str, dict[str, Any]] = {
    "encoder": {"encoder_aux_head": True},
    "groups": {"num_query_groups": 4},
    "denoising": {"num_denoising": 20},
    "denoising_negatives": {"num_denoising": 20, "denoising_negatives": True},
    "reference": {"reference_points": True},
    "encoder_denoising": {"encoder_aux_head": True, "num_denoising": 20},
    "encoder_denoising_reference": {"encoder_aux_head": True, "num_denoising": 20, "reference_points": True},
    "encoder_groups": {"encoder_aux_head": True, "num_query_groups": 4},
    "all_aids": {"encoder_aux_head": True, "num_query_groups": 4, "num_denoising": 20},
    "all_and_reference": {
        "encoder_aux_head": True,
        "num_query_groups": 4,
        "num_denoising": 20,
        "reference_points": True,
    },
}
# The parts of `fast`; an arm `fast_without_...` leaves one out.
PARTS = {
    "encoder": "encoder_aux_head",
    "denoising": "num_denoising",
    "class_cost": "set_cost_class",
    "average": "ema_decay",
}


def known_arms() -> dict[str, dict[str, Any]]:
    """Returns an arm's options by its name: fields of DETRConfig, and `ema_decay` where averaged weights count."""
    recipes = {name: {**options, **TRAINING_OPTIONS.get(name, {})} for name, options in MODEL_OPTIONS.items()}
    fast = recipes["fast"]
    without = {
        f"fast_without_{part}": {name: value for name, value in fast.items() if name != option}
        for part, option in PARTS.items()
    }
    alone = {part: {PARTS[part]: fast[PARTS[part]]} for part in ("class_cost", "average")}
    return {**{name: {} for name in THEIRS}, **recipes, **ABLATION, **alone, **without}


class FixedFeatures(nn.Module):
    """Stands in the place of a frozen backbone: the input is its feature map already."""

    def forward(self, features: Tensor) -> list[Tensor]:
        return [features]


def take_features(model: DETRForObjectDetection) -> None:
    """Makes `model` take what its backbone would give, feature maps (B, C, h, w), in the place of pictures."""
    model.backbone[0].body = FixedFeatures()
    model._check_inputs = lambda *_: None  # feature maps have other channels than pictures


class LastStage(nn.Module):
    """Gives transformers' model the same backbone as ours."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        return self.body(pixel_values)


def build_model(arm: str, settings: Settings, task: Task) -> nn.Module:
    """Returns the model of an arm on the CPU, drawn from torch's random generator."""
    options = {name: value for name, value in known_arms()[arm].items() if name != "ema_decay"}
    config = DETRConfig(
        hidden_dim=settings.hidden_dim,
        nheads=settings.nheads,
        enc_layers=settings.layers,
        dec_layers=settings.layers,
        dim_feedforward=4 * settings.hidden_dim,
        dropout=settings.dropout,
        num_queries=settings.num_queries,
        id2label=dict(task.id2label),
        **{**task.backbone, **({"backbone_weights": None} if task.are_features else {})},
        **options,
    )
    model = DETRForObjectDetection(config)
    if task.are_features:
        take_features(model)
    return _theirs(model, like_the_original=arm == THEIRS[1]) if arm in THEIRS else model


def _theirs(ours: DETRForObjectDetection, like_the_original: bool) -> nn.Module:
    """Returns transformers' DETR on the same backbone, as shipped or with the initial values and losses of `ours`."""
    from transformers import DetrConfig, DetrForObjectDetection as TheirDETR

    config = ours.config
    theirs = DetrConfig(
        backbone_config={  # a stand-in that the next lines replace
            "model_type": "timm_backbone",
            "backbone": "resnet18",
            "use_pretrained_backbone": False,
            "out_indices": [4],
        },
        d_model=config.hidden_dim,
        encoder_layers=config.enc_layers,
        decoder_layers=config.dec_layers,
        encoder_attention_heads=config.nheads,
        decoder_attention_heads=config.nheads,
        encoder_ffn_dim=config.dim_feedforward,
        decoder_ffn_dim=config.dim_feedforward,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        num_queries=config.num_queries,
        auxiliary_loss=like_the_original,
        id2label=dict(config.id2label),
        label2id=dict(config.label2id),
    )
    model = TheirDETR(theirs)
    channels = ours.input_proj.in_channels
    if like_the_original:
        names = {
            name: transformers_from_own(name, False) for name in ours.state_dict() if not name.startswith("backbone.")
        }
        weights = {names[name]: value.clone() for name, value in ours.state_dict().items() if name in names}
        weights = {name: value for name, value in weights.items() if "input_projection" not in name}
        filled = TheirDETR.from_pretrained(None, config=theirs, state_dict=weights, dtype=torch.float32)
        model.load_state_dict(filled.state_dict())
    model.model.input_projection = nn.Conv2d(channels, config.hidden_dim, kernel_size=1)
    if like_the_original:
        model.model.input_projection.load_state_dict(ours.input_proj.state_dict())
        if not any(torch.equal(value, ours.query_embed.weight) for value in model.parameters()):
            raise RuntimeError("transformers did not take the initial values: its names have changed.")
    else:
        model._init_weights(model.model.input_projection)
    encoder = next(module for module in model.modules() if type(module).__name__ == "DetrConvEncoder")
    encoder.model = LastStage(ours.backbone[0].body)
    return model


__all__ = ["ABLATION", "build_model", "known_arms", "take_features"]
