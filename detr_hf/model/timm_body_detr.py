"""The timm network inside a `Backbone`, and where its first weights come from.

What differs on purpose from the original: any timm model that supports `features_only` and takes images of any size
will do, and weights come from timm or a file, only when asked for. Swin, which timm builds for one size, is made to
take any; its numbers at that size stay.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict as read_state_dict

from .configuration_detr import DETRConfig

ANY_SIZE_HW = (101, 139)  # divides by nothing
# What modules have that may be made for one size: ResNets and their kin have none of it, and need no trial.
SIGNS_OF_SIZE = ("attn", "feat_size", "img_size", "pos_embed", "rel_pos", "relative_position_bias_table")
# What makes other timm models take any size; it changes what they compute, so that it is the user's choice.
REMEDIES = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False})


def create_timm_body(config: DETRConfig, out_indices: tuple[int, ...], load_weights: bool) -> nn.Module:
    """Returns timm's feature extractor for the stages `out_indices`, with its own norms, still to be frozen.

    Raises:
        ValueError: when timm cannot build such an extractor, or one that takes images of any size (or of the
            `img_size` in `backbone_kwargs`), or a file holds other weights than its.
        OSError: when the weights cannot be had.
    """
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
        body = _built(name, features_only=True, out_indices=out_indices, **arguments, **pretrained)
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
    if "img_size" not in arguments:
        _take_any_size(body)
    _refuse_one_size(body, config, dict(arguments, out_indices=out_indices))
    return body


def _built(name: str, **arguments: Any) -> nn.Module:
    """Returns timm's network, also on the meta device where a step has no kernel there (RegNet, torch 2.6)."""
    import timm  # only where a model is built: it takes longer to import than the rest of this package

    try:
        return timm.create_model(name, **arguments)
    except NotImplementedError:
        if torch.empty(0).device.type != "meta":
            raise
        with torch.device("cpu"):
            return timm.create_model(name, **arguments).to("meta")


def _take_any_size(body: nn.Module) -> None:
    """Makes a network of windows pad images, and shift its windows by the size of an image, not of a setting."""
    for module in body.modules():
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True
        if hasattr(module, "strict_img_size"):
            module.strict_img_size, module.dynamic_img_pad = False, True


def _refuse_one_size(body: nn.Module, config: DETRConfig, arguments: dict[str, Any]) -> None:
    """Raises ValueError where an image of any size, or of the size that was asked for, does not go through.

    Nothing is tried on the meta device, where a checkpoint is loaded that was built before.
    """
    if not any(hasattr(module, sign) for module in body.modules() for sign in SIGNS_OF_SIZE):
        return
    size = arguments.get("img_size", ANY_SIZE_HW)
    size_hw = (size, size) if isinstance(size, int) else tuple(size)
    reason = _fault_at(body, config.num_channels, size_hw)
    if reason is None:
        return
    import timm

    remedy = ""
    for more in REMEDIES:
        try:
            other = timm.create_model(config.backbone, features_only=True, **arguments | more)
        except Exception:  # each family has its own words for an argument that it does not know
            continue
        if _fault_at(other, config.num_channels, size_hw) is None:
            remedy = f" backbone_kwargs={more} makes it take them, slowly."
            break
    raise ValueError(
        f"backbone={config.backbone!r} does not take images of {size_hw[0]}x{size_hw[1]} pixels ({reason}), and those "
        f"of a DETR have any size. Choose a convolutional network, such as resnet50 or convnext_tiny, or Swin.{remedy}"
    )


def _fault_at(body: nn.Module, num_channels: int, size_hw: tuple[int, int]) -> str | None:
    """Returns what goes wrong with an image of this size, in timm's words; None if nothing does."""
    image = torch.zeros(1, num_channels, *size_hw)
    if image.is_meta:
        return None
    training = body.training
    try:
        with torch.no_grad():
            body.eval()(image)
    except Exception as error:  # assertions, shapes that do not match, views that do not fit
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    finally:
        body.train(training)
    return None


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
