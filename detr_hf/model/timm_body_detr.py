"""The timm network inside a `Backbone`, and where its first weights come from.

What differs on purpose from the original: any timm model that supports `features_only` will do, and weights come from
timm or a file, only when asked for.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict as read_state_dict

from .configuration_detr import DETRConfig


def create_timm_body(config: DETRConfig, out_indices: tuple[int, ...], load_weights: bool) -> nn.Module:
    """Returns timm's feature extractor for the stages `out_indices`, with its own norms, still to be frozen.

    Raises:
        ValueError: when timm cannot build such an extractor, or a file holds other weights than its.
        OSError: when the weights cannot be had.
    """
    import timm  # only where a model is built: it takes longer to import than the rest of this package

    arguments = dict(config.backbone_kwargs or {}, in_chans=config.num_channels)
    if config.dilation:
        arguments["output_stride"] = 16
    name, pretrained = config.backbone, {}
    if load_weights and config.backbone_weights == "imagenet":
        name, pretrained = name_of_weights(config), {"pretrained": True}
    elif load_weights:
        state_dict = _read_weights(config, name, arguments)
        pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state_dict, "num_classes": 0}}
    try:
        return timm.create_model(name, features_only=True, out_indices=out_indices, **arguments, **pretrained)
    except (TypeError, NotImplementedError, AttributeError, AssertionError) as error:
        hint = " and output_stride (dilation=False helps)" if config.dilation else ""
        raise ValueError(
            f"timm could not build backbone={name!r} as a feature extractor with {arguments}: {error}. Choose a model "
            f"that supports features_only{hint}, and check backbone_kwargs."
        ) from error
    except (OSError, RuntimeError) as error:
        if not load_weights:
            raise
        raise OSError(
            f"timm's ImageNet weights of {name} could not be had: {error} Connect to the Hub once, so that they are "
            "in the cache, or give a local file (backbone_weights='FILE')."
        ) from error


def name_of_weights(config: DETRConfig) -> str:
    """Returns timm's name of the weights that `backbone_weights` means.

    By "imagenet" that is torchvision's where there are any: from these the original started, and timm's default is
    another recipe.
    """
    import timm

    original = f"{config.backbone}.tv_in1k"
    is_original = config.backbone_weights == "imagenet" and timm.is_model_pretrained(original)
    return original if is_original else config.backbone


def pixel_statistics(config: DETRConfig) -> tuple[list[float], list[float]] | None:
    """Returns mean and deviation (C,) that the backbone's first weights were trained with, as timm knows them.

    None where there are no such weights, or timm knows of other channels.
    """
    import timm

    if config.backbone_weights is None:
        return None
    entry = timm.get_pretrained_cfg(name_of_weights(config), allow_unregistered=True)
    if entry is None or len(entry.mean) != config.num_channels:
        return None
    return list(entry.mean), list(entry.std)


def _read_weights(config: DETRConfig, name: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Reads a local file and checks that it holds the whole backbone; a classifier's head may be there or not."""
    import timm

    path = config.backbone_weights
    if not os.path.isfile(path):
        raise FileNotFoundError(f"backbone_weights={path!r} is neither 'imagenet' nor a file.")
    state_dict = read_state_dict(path, weights_only=True)
    with torch.device("meta"):
        classifier = timm.create_model(name, num_classes=0, **arguments)
    expected = {key: tensor.shape for key, tensor in classifier.state_dict().items() if "num_batches" not in key}
    missing = [key for key in expected if key not in state_dict]
    if missing:
        raise ValueError(
            f"{path} does not hold the weights of timm's {name}: {len(missing)} of {len(expected)} tensors are "
            f"missing, for example {missing[:3]}. Save the state dict of timm.create_model({name!r}, ...) there, or "
            "change backbone."
        )
    wrong = [key for key, shape in expected.items() if state_dict[key].shape != shape]
    if wrong:
        raise ValueError(
            f"{path} holds tensors of other shapes than timm's {name} with {arguments}: {wrong[0]} is "
            f"{tuple(state_dict[wrong[0]].shape)}, expected {tuple(expected[wrong[0]])}. Check backbone_kwargs and "
            "num_channels."
        )
    return {key: tensor for key, tensor in state_dict.items() if key in classifier.state_dict()}
