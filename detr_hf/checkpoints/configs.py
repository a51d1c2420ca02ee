"""Makes a `DETRConfig` from what other implementations wrote down: a transformers config.json, original `args`, or
only shapes.

What the weights show is taken from the weights, and a note that contradicts them is said in the log. What weights
cannot show (heads, dilation, dropout) comes from the caller, then from the notes, then from the original's defaults; a
guess is said as well.
"""

import logging
import re
from typing import Any

import torch
from torch import Tensor

from ..model.configuration_detr import POSITION_EMBEDDINGS, DETRConfig
from .coco_names import UNUSED, id2label_for

logger = logging.getLogger(__name__)

# Arguments of the original's main.py that are fields of DETRConfig under the same name.
_ORIGINAL_ARGUMENTS = (
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
)

# Fields of DETRConfig and what transformers' DetrConfig calls them. `auxiliary_loss` is left out on purpose: it is
# False there because it changes transformers' forward pass, which is no reason to train without it here.
_TRANSFORMERS_ARGUMENTS = {
    "hidden_dim": "d_model",
    "nheads": "encoder_attention_heads",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "dim_feedforward": "encoder_ffn_dim",
    "dropout": "dropout",
    "activation": "activation_function",
    "num_queries": "num_queries",
    "position_embedding": "position_embedding_type",
    "num_channels": "num_channels",
    "set_cost_class": "class_cost",
    "set_cost_bbox": "bbox_cost",
    "set_cost_giou": "giou_cost",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
}

_RESNETS = {  # (bottleneck, blocks of layer1 to layer4) -> name in timm and torchvision
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_RESNET_PLANES = (64, 128, 256, 512)
_RESNET_TENSOR = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+")
_BODY = "backbone.0.body."


def config_from_transformers(theirs: dict[str, Any], state_dict: dict[str, Tensor]) -> DETRConfig:
    """Returns our configuration for a config.json of `model_type` `detr` or `table-transformer`.

    Args:
        theirs: the content of config.json, of any transformers version.
        state_dict: the weights, in our names; they decide the number of classes and the sizes that config.json does
            not have.

    Raises:
        ValueError: for what a DETR in this package cannot be.
    """
    _refuse_unequal_sides(theirs)
    fields = {ours: theirs[name] for ours, name in _TRANSFORMERS_ARGUMENTS.items() if theirs.get(name) is not None}
    fields |= _backbone_from_transformers(theirs, state_dict)
    fields["pre_norm"] = theirs["model_type"] == "table-transformer"
    if "backbone.1.row_embed.weight" in state_dict:
        fields["num_position_embeddings"] = _position_rows(state_dict)
    dtype = theirs.get("dtype") or theirs.get("torch_dtype")
    if dtype is not None:
        fields["dtype"] = dtype
    if theirs.get("auxiliary_loss"):
        logger.warning(
            "This checkpoint has auxiliary_loss=True. transformers then feeds the normed state of a decoder layer to "
            "the next layer, which the original and detr_hf do not: the outputs differ from transformers' with this "
            "flag, and equal those without it."
        )
    return DETRConfig(**fields, id2label=_labels_from_transformers(theirs, state_dict))


def config_from_shapes(
    state_dict: dict[str, Tensor],
    args: dict[str, Any],
    source: str,
    dilation: bool | None = None,
    nheads: int | None = None,
) -> DETRConfig:
    """Returns the configuration of weights in our names that came without a config.json.

    Args:
        state_dict: the weights of a whole detector, in our names.
        args: the original's command line arguments as a dict, empty where the file has none.
        source: name of the file, for messages; `dc5` in it means dilation.
        dilation, nheads: what the weights cannot show, if the caller knows.

    Raises:
        ValueError: when the weights are not those of a DETR that can be built.
    """
    fields = {name: args[name] for name in _ORIGINAL_ARGUMENTS if args.get(name) is not None}
    if "position_embedding" in fields:
        fields["position_embedding"] = POSITION_EMBEDDINGS.get(
            fields["position_embedding"], fields["position_embedding"]
        )
    seen = _seen_in_shapes(state_dict, fields.get("backbone"), source)
    for name, value in seen.items():
        if name in fields and fields[name] != value:
            logger.warning(
                "%s: its args say %s=%r, but its weights %r, which is taken.", source, name, fields[name], value
            )
    fields |= seen
    if args.get("lr_backbone") is not None:
        fields["train_backbone"] = args["lr_backbone"] > 0  # the original's rule for freezing it
    fields |= {name: value for name, value in (("dilation", dilation), ("nheads", nheads)) if value is not None}
    fields |= _guess_unseen(fields, source)
    return DETRConfig(**fields, id2label=id2label_for(state_dict["class_embed.weight"].shape[0] - 1))


# The eight files of facebookresearch/detr, whose settings are known: no more than their names has to be read.
RELEASED = re.compile(
    r"detr-r(50|101)(-dc5)?(-panoptic)?-"
    r"(e632da11|f0fb7ef5|2c7b67e5|a2e86def|00ce5173|b423a359|da08f1b1|40021d53)\.pth"
)


def _guess_unseen(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """Returns what neither weights nor args nor the caller told, and says so."""
    from_name = "dc5" in source.lower()
    guesses = {name: value for name, value in (("dilation", from_name), ("nheads", 8)) if name not in fields}
    if guesses and not RELEASED.fullmatch(source):
        logger.warning(
            "%s does not say %s, and weights do not show it. Assumed: %s%s. If that is wrong, give %s (detr-hf "
            "convert has the flags).",
            source,
            " or ".join(guesses),
            ", ".join(f"{name}={value}" for name, value in guesses.items()),
            " (because of 'dc5' in the name)" if guesses.get("dilation") else "",
            " and ".join(f"{name}=..." for name in guesses),
        )
    return guesses


def _seen_in_shapes(state_dict: dict[str, Tensor], backbone: str | None, source: str) -> dict[str, Any]:
    """Returns every field that the shapes of a detector's weights decide."""
    needed = (
        "class_embed.weight",
        "query_embed.weight",
        "input_proj.weight",
        "transformer.decoder.layers.0.linear1.weight",
    )
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise ValueError(
            f"{source} is not a whole DETR: it has no {missing[0]}, without which its configuration cannot be known."
        )
    num_queries, hidden_dim = state_dict["query_embed.weight"].shape
    seen = {
        "hidden_dim": hidden_dim,
        "num_queries": num_queries,
        "enc_layers": _count(state_dict, r"transformer\.encoder\.layers\.(\d+)\."),
        "dec_layers": _count(state_dict, r"transformer\.decoder\.layers\.(\d+)\."),
        "dim_feedforward": state_dict["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "pre_norm": "transformer.encoder.norm.weight" in state_dict,
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in state_dict else "sine",
    }
    if seen["position_embedding"] == "learned":
        seen["num_position_embeddings"] = _position_rows(state_dict)
    resnet = resnet_from_shapes(state_dict)
    if resnet is not None:
        seen |= resnet
    elif backbone is None:
        raise ValueError(
            f"The backbone in {source} is no plain ResNet, and the file has no args that name it: save the model with "
            "save_pretrained of the library that made it, or add args=argparse.Namespace(backbone=<timm name>) to "
            "the file."
        )
    return seen


def resnet_from_shapes(state_dict: dict[str, Tensor]) -> dict[str, Any] | None:
    """Returns `backbone`, `backbone_kwargs` and `num_channels` of a plain ResNet, or None for another network.

    Depths and widths of no named ResNet are given to timm as `layers` and `channels`.
    """
    body = {name.removeprefix(_BODY): tensor for name, tensor in state_dict.items() if name.startswith(_BODY)}
    stem = body.get("conv1.weight")
    blocks = tuple(_count(body, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    if stem is None or stem.shape[0] != 64 or stem.shape[2] != 7 or 0 in blocks:
        return None
    if not all(_RESNET_TENSOR.fullmatch(name) for name in body):
        return None
    bottleneck = "layer1.0.conv3.weight" in body
    planes = [_plain_width(body, f"layer{stage}.0", bottleneck) for stage in range(1, 5)]
    if None in planes:
        return None
    name = _RESNETS.get((bottleneck, blocks), "resnet50" if bottleneck else "resnet18")
    changes: dict[str, Any] = {}
    if (bottleneck, blocks) not in _RESNETS:
        changes["layers"] = list(blocks)
    if tuple(planes) != _RESNET_PLANES:
        changes["channels"] = planes
    return {"backbone": name, "num_channels": stem.shape[1]} | ({"backbone_kwargs": changes} if changes else {})


def _plain_width(body: dict[str, Tensor], block: str, bottleneck: bool) -> int | None:
    """Returns the width of a residual block, or None for a wide or grouped one."""
    weights = [body.get(f"{block}.conv{index}.weight") for index in ((1, 2, 3) if bottleneck else (1, 2))]
    if any(weight is None for weight in weights):
        return None
    width = weights[0].shape[0]
    expected = [(width, 1), (width, 3), (4 * width, 1)] if bottleneck else [(width, 3), (width, 3)]
    plain = [(weight.shape[0], weight.shape[2]) for weight in weights] == expected and weights[1].shape[1] == width
    return width if plain else None


def _backbone_from_transformers(theirs: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the fields that describe the backbone, for each of the ways in which transformers wrote it down."""
    backbone = theirs.get("backbone_config")
    if backbone is None and not theirs.get("use_timm_backbone", True):
        return _resnet_from_transformers({}, theirs, state_dict)
    if backbone is None:
        backbone = _timm_from_old_config(theirs)
    kind = backbone.get("model_type")
    if kind == "resnet":
        return _resnet_from_transformers(backbone, theirs, state_dict)
    if kind != "timm_backbone":
        raise ValueError(
            f"The checkpoint's backbone is transformers' {kind!r}. detr_hf reads timm backbones and transformers' "
            "ResNet; this one has no equivalent in timm that could be filled."
        )
    if theirs.get("dilation") and not backbone.get("output_stride"):
        logger.warning(
            "The checkpoint says dilation=True, but its backbone_config has no output_stride, so that transformers "
            "runs it without dilation; detr_hf does the same. Set dilation=True if it was trained with it."
        )
    stride = backbone.get("output_stride") or 32
    if stride not in (16, 32):
        raise ValueError(
            f"The checkpoint's backbone has output_stride={stride}; detr_hf has 32, and 16 with dilation."
        )
    name = backbone["backbone"].removeprefix("timm/")
    _refuse_earlier_stage(backbone.get("out_indices"), name)
    channels = backbone.get("num_channels") or theirs.get("num_channels") or 3
    return {"backbone": name, "dilation": stride == 16, "num_channels": channels}


def _timm_from_old_config(theirs: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers 4 wrote as `backbone`, `dilation` and `backbone_kwargs` as one backbone_config."""
    arguments = dict(theirs.get("backbone_kwargs") or {})
    channels = arguments.pop("in_chans", None)
    unknown = sorted(
        set(arguments) - {"out_indices", "out_features", "output_stride", "num_channels", "features_only"}
    )
    if unknown:
        raise ValueError(
            f"The checkpoint gives its timm backbone the arguments {unknown}, which detr_hf cannot carry over."
        )
    dilated = {"output_stride": 16} if theirs.get("dilation") else {}
    name = theirs.get("backbone") or "resnet50"
    return {"model_type": "timm_backbone", "backbone": name, "num_channels": channels} | dilated | arguments


def _resnet_from_transformers(
    backbone: dict[str, Any], theirs: dict[str, Any], state_dict: dict[str, Tensor]
) -> dict[str, Any]:
    """Returns the fields for transformers' own ResNet, whose depths and widths are read from the weights."""
    last = f"stage{len(backbone.get('depths') or _RESNET_PLANES)}"
    features = backbone.get("out_features") or [last]
    odd = {
        "hidden_act": backbone.get("hidden_act", "relu") != "relu",
        "downsample_in_first_stage": backbone.get("downsample_in_first_stage", False),
        "downsample_in_bottleneck": backbone.get("downsample_in_bottleneck", False),
        "out_features": features[-1] != last,
    }
    fields = resnet_from_shapes(state_dict)
    if fields is None or any(odd.values()):
        named = (
            ", ".join(f"{name}={backbone.get(name)!r}" for name, is_odd in odd.items() if is_odd)
            or "its depths or widths"
        )
        raise ValueError(
            f"The checkpoint's ResNet of transformers differs from the original's in {named}, which timm has not."
        )
    if theirs.get("dilation"):
        logger.warning(
            "The checkpoint says dilation=True, which transformers ignores for its own ResNet; so does detr_hf."
        )
    return fields | {"dilation": False}


def _refuse_earlier_stage(out_indices: list[int] | None, name: str) -> None:
    if not out_indices or out_indices[-1] == -1:
        return
    import timm

    try:
        with torch.device("meta"):
            levels = len(timm.create_model(name, features_only=True).feature_info)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint's backbone {name!r} is not known to timm: {error}") from error
    if max(out_indices) % levels != levels - 1:
        raise ValueError(
            f"The checkpoint reads its backbone at out_indices={list(out_indices)}, and so ends before the last of "
            f"{levels} stages; detr_hf reads the last stage."
        )


def _refuse_unequal_sides(theirs: dict[str, Any]) -> None:
    for what, default in (("attention_heads", 8), ("ffn_dim", 2048)):
        encoder, decoder = theirs.get(f"encoder_{what}", default), theirs.get(f"decoder_{what}", default)
        if encoder != decoder:
            raise ValueError(
                f"The checkpoint has encoder_{what}={encoder} and decoder_{what}={decoder}. DETRConfig has one number "
                "for both, as the original; such a checkpoint can only run in transformers."
            )


def _labels_from_transformers(theirs: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[int, str]:
    names = {int(index): str(name) for index, name in (theirs.get("id2label") or {}).items()}
    head = state_dict.get("class_embed.weight")
    num_classes = len(names) or int(theirs.get("num_labels", 2)) if head is None else head.shape[0] - 1
    if not names:
        return id2label_for(num_classes)
    beyond = [f"{index} ({names[index]})" for index in sorted(names) if not 0 <= index < num_classes]
    if beyond:
        logger.warning(
            "The class head has %d classes, but id2label also names %s. Those names are left out.",
            num_classes,
            ", ".join(beyond[:5]),
        )
    return {index: names.get(index, UNUSED) for index in range(num_classes)}


def _position_rows(state_dict: dict[str, Tensor]) -> int:
    rows, columns = (state_dict[f"backbone.1.{axis}_embed.weight"].shape[0] for axis in ("row", "col"))
    if rows != columns:
        raise ValueError(
            f"The learned position tables have {rows} rows and {columns} columns; detr_hf has as many of both."
        )
    return rows


def _count(state_dict: dict[str, Tensor], pattern: str) -> int:
    """Returns one more than the greatest index that `pattern` captures at the start of any name."""
    found = (re.match(pattern, name) for name in state_dict)
    return max((int(match[1]) + 1 for match in found if match), default=0)
