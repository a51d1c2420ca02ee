"""Stage 1: the backbone learns to name the digit of every feature cell, with live batch norm.

The dense one-to-many supervision of feature cells serves stage 2 as well, there on the encoder's output.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_hf.box_ops_detr import box_cxcywh_to_xyxy, generalized_box_iou

from .batches import loader, normalise
from .recipe import PRETRAIN_LOG, Recipe, RunLog, save_atomically, set_lr

BACKBONE_WEIGHTS = "backbone.safetensors"


@dataclass
class Assignment:
    """The object of each feature cell: `positive` and `ignored` (B, S) bool, `labels` (B, S), `boxes` (B, S, 4)."""

    positive: Tensor
    ignored: Tensor
    labels: Tensor
    boxes: Tensor


def cell_centres(h: int, w: int) -> Tensor:
    """Centres (S, 2) of the cells of a feature map as x, y in [0, 1], row by row."""
    ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2)


@torch.no_grad()
def assign_cells(centres: Tensor, targets: list[dict[str, Tensor]]) -> Assignment:
    """Gives an object the cells in the middle 60 % of its box, and the nearest one; the rest of its box is ignored."""
    labels = nn.utils.rnn.pad_sequence([target["class_labels"] for target in targets], batch_first=True)  # (B, N)
    boxes = nn.utils.rnn.pad_sequence([target["boxes"] for target in targets], batch_first=True)
    real = nn.utils.rnn.pad_sequence([torch.ones(len(target["boxes"])) for target in targets], batch_first=True).bool()
    distance = (centres[None, :, None] - boxes[:, None, :, :2]).abs() / (boxes[:, None, :, 2:] / 2).clamp(min=1e-6)
    distance = distance.amax(-1).masked_fill(~real[:, None], math.inf)  # (B, S, N); 1 at the border of the box
    nearest, owner = distance.min(-1)
    positive, ignored = nearest < 0.6, nearest < 1.1
    image, number = real.nonzero(as_tuple=True)
    cell = distance.argmin(1)[image, number]
    positive[image, cell] = True
    owner[image, cell] = number
    index = owner[..., None]
    return Assignment(positive, ignored & ~positive, labels.gather(1, owner), boxes.gather(1, index.expand(-1, -1, 4)))


def dense_loss(logits: Tensor, boxes: Tensor, assigned: Assignment, background_weight: float) -> dict[str, Tensor]:
    """Cross-entropy of `logits (B, S, K + 1)`; L1 and GIoU with DETR's weights of positive `boxes (B, S, 4)`."""
    background = logits.shape[-1] - 1
    wanted = torch.where(assigned.positive, assigned.labels, background)
    weight = torch.where(assigned.positive, 1.0, background_weight) * ~assigned.ignored
    entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(weight)
    chosen, goal = boxes[assigned.positive], assigned.boxes[assigned.positive]
    overlap = generalized_box_iou(box_cxcywh_to_xyxy(chosen), box_cxcywh_to_xyxy(goal))
    count = max(len(chosen), 1)
    right = (logits.argmax(-1) == assigned.labels)[assigned.positive].float().sum() / count
    return {
        "dense_ce": (entropy * weight).sum() / weight.sum(),
        "dense_bbox": 5 * (chosen - goal).abs().sum() / count,
        "dense_giou": 2 * (1 - overlap).sum() / count,
        "dense_accuracy": right.detach(),
    }


class DenseHead(nn.Module):
    """Class and box of every cell of a feature map, for the pre-training; boxes are relative to the cell's centre."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.class_embed = nn.Linear(channels, num_classes + 1)
        self.bbox_embed = nn.Linear(channels, 4)
        nn.init.zeros_(self.bbox_embed.weight)
        nn.init.zeros_(self.bbox_embed.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From `features (B, C, h, w)`: logits (B, S, K + 1), boxes cxcywh (B, S, 4) and the cells' centres (S, 2)."""
        centres = cell_centres(*features.shape[-2:])
        hidden = F.relu(self.hidden(features.flatten(2).transpose(1, 2)))
        raw = self.bbox_embed(hidden)
        boxes = torch.cat([(raw[..., :2] + centres.logit()).sigmoid(), (raw[..., 2:] - 1.5).sigmoid()], dim=-1)
        return self.class_embed(hidden), boxes, centres


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
        set_lr(optimizer, cosine(step, recipe.pretrain_steps, 50))
        logits, boxes, centres = net["head"](body(normalise(pixels))[-1])
        parts = dense_loss(logits, boxes, assign_cells(centres, targets), recipe.background_weight)
        loss = parts["dense_ce"] * 2 + parts["dense_bbox"] + parts["dense_giou"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        log.add(step, loss, parts)
        if (step + 1) % 200 == 0:
            states = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**states, "step": step + 1}, state_path)
    save_file({name: tensor.contiguous() for name, tensor in body.state_dict().items()}, path)
