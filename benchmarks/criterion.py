"""The loss: this package's criterion beside transformers', on the same outputs and targets."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.loss_detr import SetCriterion
from detr_hf.model.matcher_detr import HungarianMatcher

from .measuring import check_device, compare, environment, require_agreement
from .models import random_targets


def compare_criteria(
    device: str, batch: int, objects: int, layers: int, queries: int, runs: int, num_classes: int = 91
) -> dict[str, Any]:
    """Returns the record: forward, and forward with backward, over all layers.

    Raises:
        ValueError: when loss or gradients of the two sides differ.
    """
    check_device(device)
    logits, pred_boxes = random_outputs(device, batch, layers, queries, num_classes)
    targets = random_targets(batch, objects, num_classes, device)
    config = DETRConfig(num_queries=queries, dec_layers=layers, id2label={i: str(i) for i in range(num_classes)})
    sides = {
        "ours": partial(_our_loss, config, logits, pred_boxes, targets),
        "peer": partial(_peer_loss, config, logits, pred_boxes, targets),
    }
    found = {name: _loss_and_gradients(side, logits, pred_boxes) for name, side in sides.items()}
    difference = {
        "loss": abs(found["ours"][0] - found["peer"][0]) / abs(found["peer"][0]),
        "gradients": max((a - b).abs().max().item() for a, b in zip(found["ours"][1], found["peer"][1], strict=True)),
    }
    record: dict[str, Any] = {
        "environment": environment(device),
        "settings": {"device": device, "batch": batch, "objects": objects, "layers": layers, "queries": queries},
        "difference": require_agreement(difference, 1e-5),
        "forward": compare(sides["ours"], sides["peer"], runs, device, warmup=2),
    }
    backward = {name: partial(_loss_and_gradients, side, logits, pred_boxes) for name, side in sides.items()}
    record["forward_backward"] = compare(backward["ours"], backward["peer"], runs, device, warmup=2)
    return record


def random_outputs(device: str, batch: int, layers: int, queries: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns logits (L, B, Q, K + 1) and boxes (L, B, Q, 4), cxcywh in [0, 1], that want gradients."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(layers, batch, queries, num_classes + 1, generator=generator)
    boxes = torch.rand(layers, batch, queries, 4, generator=generator) * 0.5 + 0.25
    return logits.to(device).requires_grad_(), boxes.to(device).requires_grad_()


def _our_loss(config: DETRConfig, logits: Tensor, pred_boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    matcher = HungarianMatcher(config.set_cost_class, config.set_cost_bbox, config.set_cost_giou)
    weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coef, "loss_giou": config.giou_loss_coef}
    return SetCriterion(matcher, weights, config.eos_coef)(logits, pred_boxes, targets)[0]


def _peer_loss(config: DETRConfig, logits: Tensor, pred_boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    from transformers import DetrConfig

    theirs = DetrConfig(  # whole numbers only: it refuses 1.0
        num_labels=config.num_labels,
        auxiliary_loss=True,
        class_cost=int(config.set_cost_class),
        bbox_cost=int(config.set_cost_bbox),
        giou_cost=int(config.set_cost_giou),
        bbox_loss_coefficient=int(config.bbox_loss_coef),
        giou_loss_coefficient=int(config.giou_loss_coef),
        eos_coefficient=config.eos_coef,
        decoder_layers=config.dec_layers,
    )
    loss, _, _ = ForObjectDetectionLoss(
        logits[-1], targets, logits.device, pred_boxes[-1], theirs, outputs_class=logits, outputs_coord=pred_boxes
    )
    return loss


def _loss_and_gradients(
    loss: Callable[[], Tensor], logits: Tensor, pred_boxes: Tensor
) -> tuple[float, tuple[Tensor, ...]]:
    value = loss()
    return value.item(), torch.autograd.grad(value, (logits, pred_boxes))


__all__ = ["compare_criteria", "random_outputs"]
