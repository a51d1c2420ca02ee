"""Stage 2: DETR on the pre-trained backbone, with training-only aids; what is saved is plain DETR."""

import copy
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.convergence_arms import take_features
from detr_hf.model.backbone_detr import FrozenBatchNorm2d
from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.model.outputs_detr import DETRObjectDetectionOutput
from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .batches import drawn_batches, loader, normalise, padding_mask
from .kept import kept_batches
from .muon import Muon
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
    """The options of DETRConfig that the recipe asks for and inference does not read."""
    return {
        "encoder_aux_head": recipe.encoder_weight > 0,
        "encoder_aux_coef": recipe.encoder_weight,
        "num_query_groups": recipe.query_groups,
        "num_denoising": recipe.num_denoising,
    }


def learning_rate_factor(step: int, progress: float, recipe: Recipe) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_fraction`; `progress` is in [0, 1]."""
    return min((step + 1) / recipe.warmup, 1.0, (1 - progress) / recipe.decay_fraction)


def pair_weights(average: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The average's weights and norms, and the model's, of all that both have."""
    current, slow = model.state_dict(), average.state_dict()
    both = [name for name, value in slow.items() if value.is_floating_point() and name in current]
    return [slow[name] for name in both], [current[name] for name in both]


@torch.no_grad()
def update_average(pairs: tuple[list[Tensor], list[Tensor]], step: int, decay: float) -> None:
    """Moves the exponential moving average of the weights; it follows faster in the beginning."""
    torch._foreach_lerp_(*pairs, 1 - min(decay, (1 + step) / (10 + step)))


def average_gradients(trained: list[Tensor]) -> None:
    """Makes every process's gradients the mean of all, in one message; nothing to do in a single process."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
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


class Run:
    """Where a run of the second stage stands: model, average of its weights, optimiser, steps and seconds so far.

    It begins with the last state in `work`, if there is one.
    """

    def __init__(self, recipe: Recipe, model: DETRForObjectDetection, work: Path):
        self.recipe, self.model, self.path = recipe, model, work / "detect_state.pt"
        self.average = copy.deepcopy(model).strip_training_aids().eval()
        model.config.bbox_loss_coef *= recipe.box_weight
        model.config.giou_loss_coef *= recipe.box_weight
        model.config.set_cost_class = recipe.cost_class
        model.config.iou_label_power = recipe.iou_label_power
        if recipe.kept_batches:
            take_features(model)
        self.optimizers = make_optimizers(model, recipe)
        self.step, seconds_before = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=model.device, weights_only=True)
            self.model.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(its_state)
            self.step, seconds_before = state["step"], state.get("seconds", 0.0)
        self.started = time.monotonic() - seconds_before
        self.pairs = pair_weights(self.average, self.model)

    @property
    def seconds(self) -> float:
        """How long this run has taken, all its parts together."""
        return time.monotonic() - self.started

    @property
    def trained(self) -> list[Tensor]:
        """What the optimisers move."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        return [parameter for group in groups for parameter in group["params"]]

    def progress(self, step: int) -> float:
        """How much of the run is over at `step`, by steps or by minutes; 1 and more is the end."""
        by_time = self.seconds / (60 * self.recipe.minutes) if self.recipe.minutes else 0.0
        return max(step / self.recipe.steps, by_time)

    def save(self) -> None:
        """Writes the state."""
        state = {
            "net": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_atomically({**state, "step": self.step, "seconds": self.seconds}, self.path)

    def take_step(
        self, inputs: Tensor, targets: list[dict[str, Tensor]], progress: float
    ) -> DETRObjectDetectionOutput:
        """Trains on one batch of pixels, or of feature maps where the recipe keeps them."""
        set_lr(learning_rate_factor(self.step, progress, self.recipe), *self.optimizers)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.recipe.autocast):
            outputs = self.model(*self._model_inputs(inputs, targets), labels=targets)
        self.model.zero_grad()
        outputs.loss.backward()
        average_gradients(self.trained)
        nn.utils.clip_grad_norm_(self.trained, self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        update_average(self.pairs, self.step, self.recipe.ema_decay)
        self.step += 1
        return outputs

    def _model_inputs(self, inputs: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
        if self.recipe.kept_batches:
            return inputs, None
        mask = padding_mask(inputs, targets)
        return normalise(inputs, mask), mask


def who_draws(recipe: Recipe, device: str) -> str:
    """Who draws the training scenes: "device" or "workers"; "kept" where they were drawn before."""
    if recipe.kept_batches:
        return "kept"
    if recipe.draw != "auto":
        return recipe.draw
    return "device" if device == "cuda" and rank_and_world_size()[1] == 1 else "workers"


def train_detector(
    recipe: Recipe, backbone_weights: Path | None, work: Path, processor: DETRImageProcessor
) -> DETRForObjectDetection:
    """Trains the detector and returns the average of its weights; goes on from the last state in `work`, if any."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    detr = start_model(recipe, backbone_weights).to(device, memory_format=torch.channels_last).train()
    if device == "cpu":
        detr.set_attn_implementation("eager")  # its backward is faster than sdpa's on a CPU
    run = Run(recipe, detr, work)
    first, first_process = run.step, rank_and_world_size()[0] == 0
    drawn_by = who_draws(recipe, device)
    log = RunLog(work / DETECT_LOG, rank_and_world_size()[1], _name(device), drawn_by)
    if run.progress(run.step) >= 1:
        batches = ()
    elif drawn_by == "kept":
        batches = kept_batches(recipe, run.average.backbone[0], work / "features", run.step)
    elif drawn_by == "device":
        batches = drawn_batches(recipe, device, run.step, run.progress)
    else:
        batches = loader(recipe, "detect", run.step, recipe.steps)
    for inputs, targets in batches:
        progress = run.progress(run.step)
        if progress >= 1:
            break
        if run.step == max(first, recipe.late_step) and drawn_by != "kept":
            detr.backbone[0].body.layer1.requires_grad_(True)
        targets = [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets]
        outputs = run.take_step(inputs.to(device, non_blocking=True), targets, progress)
        if not first_process:
            continue
        parts = {name: outputs.loss_dict[name] for name in LOGGED if name in outputs.loss_dict}
        log.add(run.step - 1, outputs.loss, parts)
        if run.step % recipe.save_every == 0:
            run.save()
            run.average.save_pretrained(work / "checkpoint")
            processor.save_pretrained(work / "checkpoint")
            summary = evaluate(run.average, processor, num_scenes=128).metrics.summary
            log.note(step=run.step, AP=round(summary["AP"], 4), AP50=round(summary["AP50"], 4))
    if first_process and run.step > first:
        run.save()
        log.note(step=run.step, minutes=round(run.seconds / 60, 2))
    return run.average.to("cpu")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def make_optimizers(net: DETRForObjectDetection, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW with the backbone's own learning rate, and Muon where the recipe asks for it.

    With `whole_backbone` what DETR leaves frozen learns too.
    """
    norms = []
    if recipe.whole_backbone:
        net.backbone.requires_grad_(True)
        frozen = [module for module in net.backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
        norms = [values.requires_grad_(True) for module in frozen for values in (module.weight, module.bias)]
    others, matrices, backbone, first_stage = [], [], [], []
    for name, parameter in net.named_parameters():
        if "backbone" not in name:
            by_muon = recipe.muon_lr and name.startswith("transformer.") and parameter.ndim == 2
            (matrices if by_muon else others).append(parameter)
        elif "layer1" in name:
            first_stage.append(parameter)  # without a gradient, and so left alone, until `late_step`
        elif parameter.requires_grad:
            backbone.append(parameter)
    rates = ((others, recipe.lr), (backbone + norms, recipe.lr_backbone), (first_stage, recipe.lr_backbone))
    groups = [{"params": parameters, "base_lr": rate} for parameters, rate in rates if parameters]
    adam = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=net.device.type == "cuda")
    if not matrices:
        return [adam]
    return [adam, Muon([{"params": matrices, "base_lr": recipe.muon_lr}], weight_decay=recipe.weight_decay)]
