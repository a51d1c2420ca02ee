"""Makes transformers' own model out of ours: exact, or refused with the reason.

Exact means the outputs in evaluation. Training there is not the same, whatever the weights: transformers drops out the
encoder's input as well, its loss differs between one process and several, and its `auxiliary_loss` changes the forward
pass (which is why the flag is left off here, though ours trains with auxiliary losses).
"""

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..model.backbone_detr import FrozenBatchNorm2d
from ..model.configuration_detr import DETRConfig
from ..model.modeling_detr import DETRForObjectDetection
from ..model.pretrained_detr import MASK_PARTS
from ..model.training_aids_detr import PREFIX
from .layouts import transformers_from_own

logger = logging.getLogger(__name__)

THEIR_EPS = 1e-5  # transformers' frozen batch norm has no other
THEIR_POSITIONS = 50  # rows of its learned position tables
LOGIT_TOLERANCE = 1e-4  # of the largest logit; float32 through a random ResNet-101 stays an order below
BOX_TOLERANCE = 1e-5

_WHOLE_NUMBERS = {  # fields that transformers' configuration stores as int
    "class_cost": "set_cost_class",
    "bbox_cost": "set_cost_bbox",
    "giou_cost": "set_cost_giou",
    "bbox_loss_coefficient": "bbox_loss_coef",
    "giou_loss_coefficient": "giou_loss_coef",
    "mask_loss_coefficient": "mask_loss_coef",
    "dice_loss_coefficient": "dice_loss_coef",
}


def to_transformers(model: DETRForObjectDetection) -> PreTrainedModel:
    """Returns transformers' `DetrForObjectDetection`, or `TableTransformerForObjectDetection` under `pre_norm`.

    A `DETRForSegmentation` becomes a `DetrForSegmentation`.

    It has copies of the weights, on the same device, in the same dtype and training mode. Its outputs on a padded
    batch are compared with ours before it is returned. With learned position embeddings it fails beyond 50 feature
    cells a side, where ours goes on.

    Raises:
        ValueError: when transformers' model cannot compute the same; TypeError: for another model than
            DETRForObjectDetection.
    """
    if not isinstance(model, DETRForObjectDetection):
        raise TypeError(f"to_transformers takes a DETRForObjectDetection, not a {type(model).__name__}.")
    reasons = _obstacles(model)
    if reasons:
        raise ValueError(f"transformers' DETR cannot compute the same as this model: {'; '.join(reasons)}.")
    if model.config.class_weights:
        logger.warning("transformers has no class_weights: training there weighs all classes alike.")
    state_dict = _their_state_dict(model)
    model_class, config = _their_class_and_config(model)
    theirs, info = model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=torch.float32, output_loading_info=True
    )
    unfilled = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if unfilled or info.get("mismatched_keys"):
        raise ValueError(
            f"transformers builds the backbone {model.config.backbone!r} with other tensors than detr_hf: "
            f"{unfilled or info['mismatched_keys']}. It cannot hold this model."
        )
    _refuse_other_outputs(model, theirs)
    theirs.config.dtype = model.dtype
    return theirs.to(device=model.device, dtype=model.dtype).train(model.training)


def _obstacles(model: DETRForObjectDetection) -> list[str]:
    """Returns, as parts of a sentence, what in `model` transformers' DETR has no place for."""
    config = model.config
    reasons = []
    if any(tensor.is_meta for tensor in model.parameters()):
        reasons.append("it has no weights yet, they are on the meta device")
    if config.backbone_kwargs:
        reasons.append(f"backbone_kwargs={config.backbone_kwargs} cannot be stored in its backbone configuration")
    norms = {name: norm for name, norm in model.backbone.named_modules() if isinstance(norm, FrozenBatchNorm2d)}
    active = [name for name, norm in norms.items() if not isinstance(norm.act, nn.Identity | None)]
    if active:
        reasons.append(
            f"{len(active)} batch norms of {config.backbone} carry an activation, which it drops (first: {active[0]})"
        )
    other_eps = sorted({norm.eps for norm in norms.values()} - {THEIR_EPS})
    if other_eps:
        reasons.append(f"the batch norms of {config.backbone} have eps={other_eps[0]}, and it has {THEIR_EPS} only")
    if config.position_embedding == "learned" and config.num_position_embeddings != THEIR_POSITIONS:
        reasons.append(
            f"its learned position tables have {THEIR_POSITIONS} rows, these {config.num_position_embeddings}"
        )
    if config.reference_points:
        reasons.append("it has reference points (reference_points=True), which move the boxes")
    if config.box_queries:
        reasons.append("its queries are boxes found in the picture (box_queries=True)")
    if model.has_mask_head:
        reasons += _obstacles_of_masks(config)
    homeless = [name for name in _inference_weights(model) if _their_name(model, name) is None]
    if homeless:
        reasons.append(f"{len(homeless)} tensors have no counterpart, for example {homeless[:3]}")
    return reasons


def _obstacles_of_masks(config: DETRConfig) -> list[str]:
    reasons = []
    if config.pre_norm:
        reasons.append("it has no masks with pre_norm")
    joined = config.hidden_dim + config.nheads
    if joined % 8:
        reasons.append(f"its mask head needs hidden_dim + nheads to be a multiple of 8, and they are {joined}")
    widths = [config.hidden_dim // part for part in (2, 4, 8, 16)]
    other = [width for width in widths if min(8, width) != math.gcd(8, width)]
    if other:
        reasons.append(
            f"the mask head's norm of {other[0]} channels has {math.gcd(8, other[0])} groups, there {min(8, other[0])}"
        )
    return reasons


def _their_name(model: DETRForObjectDetection, name: str) -> str | None:
    """Returns a tensor's name in a Hub file; the files of panoptic models keep the original's names of the head."""
    if model.has_mask_head and name.startswith(MASK_PARTS):
        return name
    theirs = transformers_from_own(name, model.config.pre_norm)
    return f"detr.{theirs}" if model.has_mask_head and theirs else theirs


def _their_state_dict(model: DETRForObjectDetection) -> dict[str, Tensor]:
    """Returns float32 copies under the names of a Hub file, which transformers converts to those of its version."""
    return {
        _their_name(model, name): tensor.detach().to("cpu", torch.float32, copy=True)
        if tensor.is_floating_point()
        else tensor.detach().to("cpu", copy=True)
        for name, tensor in _inference_weights(model).items()
    }


def _inference_weights(model: DETRForObjectDetection) -> dict[str, Tensor]:
    """Returns the weights without those that only training uses."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(PREFIX)}


def _their_class_and_config(model: DETRForObjectDetection) -> tuple[type[PreTrainedModel], Any]:
    ours = model.config
    if model.has_mask_head:
        from transformers import DetrConfig as Config, DetrForSegmentation as Model
    elif ours.pre_norm:
        from transformers import TableTransformerConfig as Config, TableTransformerForObjectDetection as Model
    else:
        from transformers import DetrConfig as Config, DetrForObjectDetection as Model
    levels = len(model.backbone[0].body.feature_info.info)
    backbone: dict[str, Any] = {
        "model_type": "timm_backbone",
        "backbone": ours.backbone,
        "num_channels": ours.num_channels,
        "features_only": True,
        "use_pretrained_backbone": False,
        # all but the stem, as every Hub checkpoint
        "out_indices": list(range(levels - 4 if model.has_mask_head else 1, levels)) if levels > 1 else [0],
    }
    if ours.dilation:
        backbone["output_stride"] = 16
    return Model, Config(
        backbone_config=backbone,
        num_channels=ours.num_channels,
        dilation=ours.dilation,
        d_model=ours.hidden_dim,
        encoder_layers=ours.enc_layers,
        decoder_layers=ours.dec_layers,
        encoder_attention_heads=ours.nheads,
        decoder_attention_heads=ours.nheads,
        encoder_ffn_dim=ours.dim_feedforward,
        decoder_ffn_dim=ours.dim_feedforward,
        activation_function=ours.activation,
        # one probability here, three there
        dropout=ours.dropout,
        attention_dropout=ours.dropout,
        activation_dropout=ours.dropout,
        num_queries=ours.num_queries,
        position_embedding_type=ours.position_embedding,
        auxiliary_loss=False,
        eos_coefficient=float(ours.eos_coef),
        id2label=dict(ours.id2label),
        label2id=dict(ours.label2id),
        **_whole_numbers(ours),
    )


def _whole_numbers(ours: DETRConfig) -> dict[str, int]:
    """Returns the weights of loss and cost, a positive one rounded to at least 1; they change no output."""
    rounded = {}
    for theirs, name in _WHOLE_NUMBERS.items():
        value = getattr(ours, name)
        rounded[theirs] = int(value) if value == int(value) else max(1, round(value))
        if rounded[theirs] != value:
            logger.warning(
                "transformers stores %s as a whole number: %s=%s becomes %d. That changes training there only.",
                theirs,
                name,
                value,
                rounded[theirs],
            )
    return rounded


@torch.no_grad()
def _refuse_other_outputs(model: DETRForObjectDetection, theirs: PreTrainedModel) -> None:
    """Compares both models in float32 on the CPU, on two images of which one is padded."""
    ours = copy.deepcopy(model).to("cpu", torch.float32).eval()
    config = getattr(ours.backbone[0].body, "pretrained_cfg", None) or {}
    height, width = config["input_size"][1:] if config.get("fixed_input_size") else (96, 128)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, ours.config.num_channels, height, width, generator=generator)
    pixel_mask = torch.ones(2, height, width, dtype=torch.long)
    pixel_mask[1, height * 2 // 3 :] = 0
    pixel_mask[1, :, width * 2 // 3 :] = 0
    pixel_values[1] *= pixel_mask[1]
    expected = ours(pixel_values, pixel_mask)
    seen = theirs.eval()(pixel_values, pixel_mask)
    logits = _difference(expected.logits, seen.logits)
    boxes = (expected.pred_boxes - seen.pred_boxes).abs().max().item()
    masks = _difference(expected.pred_masks, seen.pred_masks) if model.has_mask_head else 0.0
    if not (max(logits, masks) <= LOGIT_TOLERANCE and boxes <= BOX_TOLERANCE):
        raise ValueError(
            f"transformers' {type(theirs).__name__} gives other outputs with these weights: logits differ by "
            f"{logits:.2g}, boxes by {boxes:.2g}, masks by {masks:.2g}. It probably builds the backbone "
            f"{ours.config.backbone!r} differently. Keep this model in detr_hf."
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest difference of logits, as a part of the largest of them where that is above 1."""
    return (ours - theirs).abs().max().item() / max(1.0, ours.abs().max().item())
