"""Stage 1: the backbone learns to name the digit of every feature cell, with live batch norm.

Which cell belongs to which digit, and the loss, are those of DETR's encoder loss (`training_aids_detr.py`).
"""

import math
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_hf.model.loss_detr import SetCriterion
from detr_hf.model.matcher_detr import HungarianMatcher, PackedTargets
from detr_hf.model.predictions_detr import Predictions
from detr_hf.model.training_aids_detr import FeatureFrame, assign_tokens, encoder_loss

from .batches import loader, normalise
from .recipe import PRETRAIN_LOG, Recipe, RunLog, save_atomically, set_lr

BACKBONE_WEIGHTS = "backbone.safetensors"
CRITERION = SetCriterion(HungarianMatcher(), {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0})


class DenseHead(nn.Module):
    """Class and box of every cell of a feature map, for the pre-training; boxes are relative to the cell's centre."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.class_embed = nn.Linear(channels, num_classes + 1)
        self.bbox_embed = nn.Linear(channels, 4)
        nn.init.zeros_(self.bbox_embed.weight)
        nn.init.zeros_(self.bbox_embed.bias)

    def forward(self, features: Tensor, frame: FeatureFrame) -> tuple[Tensor, Tensor]:
        """From `features (B, C, h, w)`: logits (B, S, K + 1) and boxes cxcywh (B, S, 4)."""
        hidden = F.relu(self.hidden(features.flatten(2).transpose(1, 2)))
        raw = self.bbox_embed(hidden)
        boxes = torch.cat(
            [(raw[..., :2] + frame.centres(raw.device).logit()).sigmoid(), (raw[..., 2:] - 1.5).sigmoid()], dim=-1
        )
        return self.class_embed(hidden), boxes


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def pretrain_backbone(recipe: Recipe, work: Path) -> None:
    """Trains the thin ResNet to name the digit of every cell, and saves its weights; goes on from the last state."""
    path = work / BACKBONE_WEIGHTS
    if path.exists():
        return
    torch.manual_seed(recipe.seed)
    extra = {"output_stride": 16} if recipe.stride == 16 else {}
    body = timm.create_model(recipe.backbone, features_only=True, out_indices=(-1,), **recipe.backbone_kwargs, **extra)
    body = body.to(memory_format=torch.channels_last)
    net = nn.ModuleDict({"body": body, "head": DenseHead(body.feature_info.channels()[-1], 10)})
    groups = [{"params": list(net.parameters()), "base_lr": recipe.pretrain_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    state_path, first = work / "pretrain_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log = RunLog(work / PRETRAIN_LOG)
    net.train()
    for step, (pixels, targets) in enumerate(loader(recipe, "pretrain", first, recipe.pretrain_steps), start=first):
        set_lr(cosine(step, recipe.pretrain_steps, 50), optimizer)
        features = body(normalise(pixels))[-1]
        frame = FeatureFrame(*features.shape[-2:], None)
        logits, boxes = net["head"](features, frame)
        packed = PackedTargets.from_list(targets, len(pixels), pixels.device)
        answers = Predictions(logits[None], boxes[None])
        loss, parts = encoder_loss(CRITERION, answers, assign_tokens(frame, packed, num_classes=10))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        log.add(step, loss, parts)
        if (step + 1) % 200 == 0:
            states = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**states, "step": step + 1}, state_path)
    save_file({name: tensor.contiguous() for name, tensor in body.state_dict().items()}, path)
