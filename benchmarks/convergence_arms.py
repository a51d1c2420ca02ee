"""The arms of the convergence benchmark: their names, their options, and the model of each.

An arm is data, and a model: transformers' own DETR as it is shipped, the same at its best (auxiliary losses, the
original's initial values), another detector of transformers (`convergence_peers`), or this package's with some options
of its configuration, which may be given on the command line. Where the backbone trains, every arm trains
the same copy of it, with this package's frozen batch norm: that of transformers drops the activations that some timm
norms carry.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from detr_hf.checkpoints.layouts import transformers_from_own
from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.model.presets_detr import PRESETS
from detr_hf.training.arguments import MODEL_OPTIONS, TRAINING_OPTIONS

from .convergence_features import MAPS, ONE_MAP, FixedFeatures, LastMaps
from .convergence_peers import build_peer, peer_arms
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
# What an arm may say besides fields of DETRConfig.
NOT_THE_MODEL = ("ema_decay", "maps", "peer", "mended", "averaged_beside")


def known_arms() -> dict[str, dict[str, Any]]:
    """Returns an arm's options by its name: fields of DETRConfig, `ema_decay` where averaged weights count, and `maps`
    (strides) where it takes others than one at stride 16. A peer's say which, and what is mended."""
    recipes = {name: {**options, **TRAINING_OPTIONS.get(name, {})} for name, options in MODEL_OPTIONS.items()}
    fast = recipes["fast"]
    without = {
        f"fast_without_{part}": {name: value for name, value in fast.items() if name != option}
        for part, option in PARTS.items()
    }
    alone = {part: {PARTS[part]: fast[PARTS[part]]} for part in ("class_cost", "average")}
    ours = {"precise": precise_arm(), "precise-without-denoising": {**precise_arm(), "num_denoising": 0}}
    return {**{name: {} for name in THEIRS}, **recipes, **ours, **ABLATION, **alone, **without, **peer_arms()}


def precise_arm() -> dict[str, Any]:
    """Returns the preset "precise", as wide as the other arms are."""
    fields = {name: value for name, value in PRESETS["precise"].items() if name != "dim_feedforward"}
    return {**fields, "maps": (8, 16, 32), "ema_decay": 0.999}


def arm_of_config(text: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns name and options of an arm that is given as data: fields of DETRConfig, those of a `recipe` before
    them, `maps` and `ema_decay`; the `name` is "config" unless it says another.

    Raises:
        ValueError: something is no field of DETRConfig, or no arm could have that name or those maps.
    """
    options = dict(text)
    name, recipe = options.pop("name", "config"), options.pop("recipe", None)
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in known_arms():
        raise ValueError(f"An arm cannot be named {name!r}: letters, digits, _ and -, and none of the known arms.")
    if recipe is not None and recipe not in MODEL_OPTIONS:
        raise ValueError(f"There is no recipe {recipe!r}; choose from {', '.join(MODEL_OPTIONS)}.")
    if tuple(options.get("maps", ONE_MAP)) not in MAPS:
        raise ValueError(f"maps is {options['maps']}; choose from {', '.join(str(list(maps)) for maps in MAPS)}.")
    fields = vars(DETRConfig())
    unknown = [field for field in options if field not in fields and field not in ("maps", "ema_decay")]
    if unknown:
        raise ValueError(f"DETRConfig has no {unknown[0]!r}, nor is it one of name, recipe, maps and ema_decay.")
    return name, {**(known_arms()[recipe] if recipe else {}), **options}


def maps_of(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the strides of the maps that an arm takes."""
    return tuple(options.get("maps", ONE_MAP))


def take_features(model: DETRForObjectDetection, shapes: Iterable[tuple[int, int, int]] = ()) -> None:
    """Makes `model` take what its backbone would give, feature maps (B, C, h, w), in the place of pictures.

    Several maps come as one row, and `shapes` are theirs.
    """
    shapes = list(shapes)
    model.backbone[0].body = FixedFeatures(shapes)
    if model.config.box_queries:  # the pictures' size is that of their coarsest map
        find, stride = model.box_queries.find, model.box_queries.strides[-1]
        size_hw = torch.tensor([[side * stride for side in shapes[-1][1:]]])
        model.box_queries.find = lambda encode, memory, features, _: find(encode, memory, features, size_hw)
    model._check_inputs = lambda *_: None  # feature maps have other channels than pictures


def build_model(arm: str, settings: Settings, task: Task, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Returns the model of an arm on the CPU, drawn from torch's random generator; `options` are those of `known_arms`
    unless given."""
    options = known_arms()[arm] if options is None else options
    if "peer" in options:
        return build_peer(dict(options), settings, task)
    several = len(maps_of(options)) > 1
    shared = {
        "hidden_dim": settings.hidden_dim,
        "nheads": settings.nheads,
        "enc_layers": settings.layers,
        "dec_layers": settings.layers,
        "dim_feedforward": 4 * settings.hidden_dim,
        "dropout": settings.dropout,
        "num_queries": settings.num_queries,
        "id2label": dict(task.id2label),
        **task.backbone,
        **({"backbone_weights": None} if task.are_features else {}),
        **({"dilation": False} if several else {}),
    }
    own = {name: value for name, value in options.items() if name not in NOT_THE_MODEL}
    model = DETRForObjectDetection(DETRConfig(**{**shared, **own}))
    if task.are_features:
        take_features(model, task.shapes)
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
    encoder.model = LastMaps(ours.backbone[0].body, 1)
    return model


__all__ = ["ABLATION", "arm_of_config", "build_model", "known_arms", "maps_of", "take_features"]
