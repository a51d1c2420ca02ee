"""Stage 2: DETR on the pre-trained backbone, with training-only aids; what is saved is plain DETR."""

import copy
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from detr_hf.configuration_detr import DETRConfig
from detr_hf.image_processing_detr import DETRImageProcessor
from detr_hf.modeling_detr import DETRForObjectDetection

from .batches import loader, normalise
from .recipe import DETECT_LOG, Recipe, RunLog, rank_and_world_size, save_atomically, set_lr
from .report import evaluate

LOGGED = ("loss_ce", "loss_bbox", "loss_giou", "class_error", "loss_ce_enc", "loss_giou_enc", "loss_ce_dn")


def build_detector(recipe: Recipe, backbone_weights: Path | None) -> DETRForObjectDetection:
    """DETR on the thin ResNet, with the recipe's aids."""
    names = {label: str(label) for label in range(10)}
    config = DETRConfig(
        backbone=recipe.backbone,
        backbone_kwargs=recipe.backbone_kwargs,
        backbone_weights=None if backbone_weights is None else str(backbone_weights),
        dilation=recipe.stride == 16,
        hidden_dim=recipe.hidden_dim,
        nheads=recipe.nheads,
        enc_layers=recipe.enc_layers,
        dec_layers=recipe.dec_layers,
        dim_feedforward=recipe.dim_feedforward,
        dropout=0.0,
        num_queries=recipe.num_queries,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        **aids(recipe),
    )
    return DETRForObjectDetection(config)


def aids(recipe: Recipe) -> dict:
    """The training-only options of DETRConfig that the recipe asks for."""
    return {
        "encoder_aux_head": recipe.encoder_weight > 0,
        "encoder_aux_coef": recipe.encoder_weight,
        "num_query_groups": recipe.query_groups,
        "num_denoising": recipe.num_denoising,
    }


def learning_rate_factor(step: int, progress: float, recipe: Recipe) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_fraction`; `progress` is in [0, 1]."""
    return min((step + 1) / recipe.warmup, 1.0, (1 - progress) / recipe.decay_fraction)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the exponential moving average of the weights; it follows faster in the beginning."""
    decay = min(decay, (1 + step) / (10 + step))
    current = dict(model.named_parameters())
    for name, slow in average.named_parameters():
        slow.lerp_(current[name], 1 - decay)


def average_gradients(net: nn.Module) -> None:
    """Makes every process's gradients the mean of all, in one message; nothing to do in a single process."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / world_size)


def start_model(recipe: Recipe, backbone_weights: Path | None) -> DETRForObjectDetection:
    """The model to train: new around the pre-trained backbone, or the recipe's `init` checkpoint with fresh aids."""
    torch.manual_seed(recipe.seed)
    if recipe.init:
        return DETRForObjectDetection.from_pretrained(recipe.init, **aids(recipe))
    detr = build_detector(recipe, backbone_weights)
    detr.config.backbone_weights = None  # a file of this machine; the checkpoint holds the weights
    return detr


def train_detector(
    recipe: Recipe, backbone_weights: Path | None, work: Path, processor: DETRImageProcessor
) -> DETRForObjectDetection:
    """Trains the detector and returns the average of its weights; goes on from the last state in `work`, if any."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detr = start_model(recipe, backbone_weights).to(device, memory_format=torch.channels_last).train()
    if device == "cpu":
        detr.set_attn_implementation("eager")  # its backward is faster than sdpa's on a CPU
    average = copy.deepcopy(detr).strip_training_aids().eval()
    optimizer = make_optimizer(detr, recipe)
    state_path, first = work / "detect_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        detr.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log, started = (
        RunLog(work / DETECT_LOG, processes=rank_and_world_size()[1], device=_name(device)),
        time.monotonic(),
    )
    for step, (pixels, targets) in enumerate(loader(recipe, "detect", first, recipe.steps), start=first):
        progress = step / recipe.steps
        if recipe.minutes:
            progress = max(progress, (time.monotonic() - started) / (60 * recipe.minutes))
        if progress >= 1:
            break
        set_lr(optimizer, learning_rate_factor(step, progress, recipe))
        if step == max(first, recipe.late_step):
            detr.backbone[0].body.layer1.requires_grad_(True)
        targets = [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets]
        outputs = detr(normalise(pixels.to(device, non_blocking=True)), labels=targets)
        optimizer.zero_grad()
        outputs.loss.backward()
        average_gradients(detr)
        nn.utils.clip_grad_norm_(detr.parameters(), recipe.clip)
        optimizer.step()
        if rank_and_world_size()[0] != 0:
            continue
        update_average(average, detr, step, recipe.ema_decay)
        log.add(step, outputs.loss, {name: outputs.loss_dict[name] for name in LOGGED if name in outputs.loss_dict})
        if (step + 1) % recipe.save_every == 0:
            states = {"net": detr.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**states, "step": step + 1}, state_path)
            average.save_pretrained(work / "checkpoint")
            processor.save_pretrained(work / "checkpoint")
            summary = evaluate(average, processor, num_scenes=128).metrics.summary
            log.note(step=step + 1, AP=round(summary["AP"], 4), AP50=round(summary["AP50"], 4))
    return average.to("cpu")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the backbone's own learning rate."""
    others, backbone, first_stage = [], [], []
    for name, parameter in net.named_parameters():
        if "backbone" not in name:
            others.append(parameter)
        elif "layer1" in name:
            first_stage.append(parameter)  # without a gradient, and so left alone, until `late_step`
        elif parameter.requires_grad:
            backbone.append(parameter)
    rates = ((others, recipe.lr), (backbone, recipe.lr_backbone), (first_stage, recipe.lr_backbone))
    groups = [{"params": parameters, "base_lr": rate} for parameters, rate in rates]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
