"""How fast DETR learns: arms that differ in one thing, on the same data in the same order, with the same optimiser.

An arm is a model: transformers' own DETR as it is shipped, the same at its best (auxiliary losses, the original's
initial values), or this package's with some options of its configuration. Backbone, transformer size, batches,
optimiser, learning rate, warm-up and clipping are the same for all; the learning rate stays constant after the
warm-up, so that steps to a threshold mean something. Where the backbone trains, every arm trains the same copy of it,
with this package's frozen batch norm (transformers' own drops the activations that some timm norms carry).
"""

import json
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from detr_hf.checkpoints.layouts import transformers_from_own
from detr_hf.evaluation.coco import evaluate_boxes
from detr_hf.model.configuration_detr import DETRConfig
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.training.arguments import MODEL_OPTIONS, TRAINING_OPTIONS
from detr_hf.training.ema import ExponentialMovingAverage

from .convergence_tasks import IMAGENET, Task, digit_task, picture_task
from .measuring import environment

logger = logging.getLogger(__name__)

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
THRESHOLDS = (0.25, 0.5, 0.75)


def known_arms() -> dict[str, dict[str, Any]]:
    """Returns an arm's options by its name: fields of DETRConfig, and `ema_decay` where averaged weights count."""
    recipes = {name: {**options, **TRAINING_OPTIONS.get(name, {})} for name, options in MODEL_OPTIONS.items()}
    fast = recipes["fast"]
    without = {
        f"fast_without_{part}": {name: value for name, value in fast.items() if name != option}
        for part, option in PARTS.items()
    }
    alone = {part: {PARTS[part]: fast[PARTS[part]]} for part in ("class_cost", "average")}
    return {**{name: {} for name in THEIRS}, **recipes, **ABLATION, **alone, **without}


@dataclass
class Settings:
    """What all arms of a run share. `data` is "digits", or a data set's folder."""

    data: str = "digits"
    work: str = "runs/convergence"
    steps: int = 1500
    eval_every: int = 100
    batch: int = 16
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 1e-4
    clip: float = 0.1
    hidden_dim: int = 64
    nheads: int = 4
    layers: int = 3
    num_queries: int = 16
    dropout: float = 0.0
    device: str = "cpu"
    side: int = 384
    backbone: str = "resnet50"
    backbone_weights: str | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    processes: int = 2

    def task(self) -> Task:
        """Reads or makes the data."""
        if self.data == "digits":
            return digit_task(Path(self.work), self.processes)
        if self.backbone_weights is None:
            raise ValueError("Pictures need a pretrained backbone: give --backbone-weights a file.")
        return picture_task(self.data, self.side, self.backbone, self.backbone_weights, self.mean, self.std)


@dataclass
class Run:
    """One arm with one seed: a curve of AP over steps, and the seconds of training alone."""

    arm: str
    seed: int
    lr: float
    curve: list[dict[str, float]] = field(default_factory=list)
    peak_gpu_mib: float | None = None

    def reached(self, threshold: float) -> dict[str, float] | None:
        """Returns steps and seconds at which AP50 first stood at `threshold`, interpolated, or None."""
        before = {"step": 0, "seconds": 0.0, "AP50": 0.0}
        for point in self.curve:
            if point["AP50"] >= threshold:
                part = (threshold - before["AP50"]) / (point["AP50"] - before["AP50"])
                return {name: before[name] + part * (point[name] - before[name]) for name in ("step", "seconds")}
            before = point
        return None


class FixedFeatures(nn.Module):
    """Stands in the place of a frozen backbone: the input is its feature map already."""

    def forward(self, features: Tensor) -> list[Tensor]:
        return [features]


def take_features(model: DETRForObjectDetection) -> None:
    """Makes `model` take what its backbone would give, feature maps (B, C, h, w), in the place of pictures."""
    model.backbone[0].body = FixedFeatures()
    model._check_inputs = lambda *_: None  # feature maps have other channels than pictures


class LastStage(nn.Module):
    """Gives transformers' model the same backbone as ours."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        return self.body(pixel_values)


def build_model(arm: str, settings: Settings, task: Task) -> nn.Module:
    """Returns the model of an arm on the CPU, drawn from torch's random generator."""
    options = {name: value for name, value in known_arms()[arm].items() if name != "ema_decay"}
    config = DETRConfig(
        hidden_dim=settings.hidden_dim,
        nheads=settings.nheads,
        enc_layers=settings.layers,
        dec_layers=settings.layers,
        dim_feedforward=4 * settings.hidden_dim,
        dropout=settings.dropout,
        num_queries=settings.num_queries,
        id2label=dict(task.id2label),
        **{**task.backbone, **({"backbone_weights": None} if task.are_features else {})},
        **options,
    )
    model = DETRForObjectDetection(config)
    if task.are_features:
        take_features(model)
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
    encoder.model = LastStage(ours.backbone[0].body)
    return model


class Checkpoint:
    """Where a run stands, in a file, so that a killed benchmark goes on; one of other settings is not read."""

    def __init__(self, path: Path, settings: Settings):
        self.path, self.settings = path, json.dumps(asdict(settings))

    def load(self) -> dict[str, Any]:
        """Returns what was saved last; `{}` if that is nothing."""
        if not self.path.exists():
            return {}
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        return saved if saved["settings"] == self.settings else {}

    def save(self, **state: Any) -> None:
        """Replaces what was saved before."""
        part = self.path.with_suffix(".part_new")
        torch.save({"settings": self.settings, **state}, part)
        os.replace(part, self.path)


def train(arm: str, seed: int, settings: Settings, checkpoint: Checkpoint | None = None) -> Run:
    """Trains one arm and returns its curve; with a `checkpoint` from where that stands, and saving it as it goes."""
    saved = checkpoint.load() if checkpoint is not None else {}
    run = Run(**saved["run"]) if saved else Run(arm, seed, settings.lr)
    if saved and "model" not in saved:  # it has ended
        return run
    first, spent = (run.curve[-1]["step"], run.curve[-1]["seconds"]) if saved else (0, 0.0)
    torch.set_num_threads(1)
    task = settings.task()
    torch.manual_seed(seed)
    model = build_model(arm, settings, task).to(settings.device)
    on_gpu = settings.device != "cpu"
    if not on_gpu:  # for all arms: transformers convolves channels-first unless told, in 1.3 times the time
        model.to(memory_format=torch.channels_last)
    model.set_attn_implementation("sdpa" if on_gpu else "eager")  # the faster on each, for all arms
    optimizer = _optimizer(model, settings)
    decay = known_arms()[arm].get("ema_decay")
    average = ExponentialMovingAverage(model, decay) if decay else None
    if saved:
        logger.info("%s seed %d goes on from step %d", arm, seed, first)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if average is not None:
            average.load(saved["average"])
        torch.set_rng_state(saved["random"])
        if on_gpu:
            torch.cuda.set_rng_state(saved["gpu_random"])
    for step in range(first, settings.steps):
        started = time.perf_counter() if on_gpu else time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * min(1.0, (step + 1) / settings.warmup)
        pixels, mask, targets = task.batch(seed, step, settings.batch, settings.device)
        model.train()
        loss = model(pixels, mask, labels=targets).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if average is not None:
            average.update(model, step + 1)
        last = (step + 1) % settings.eval_every == 0
        if last and on_gpu:
            torch.cuda.synchronize()
        spent += (time.perf_counter() if on_gpu else time.process_time()) - started
        if last:
            point = {"step": step + 1, "seconds": round(spent, 2), "loss": round(float(loss.detach()), 3)}
            with average.swapped_in(model) if average is not None else nullcontext():
                run.curve.append(point | measure(model, task, settings))
            if on_gpu:
                run.peak_gpu_mib = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            logger.info("%s seed %d lr %g: %s", arm, seed, settings.lr, run.curve[-1])
            if checkpoint is not None:
                checkpoint.save(
                    run=asdict(run),
                    model=model.state_dict(),
                    optimizer=optimizer.state_dict(),
                    average=average.average if average is not None else None,
                    random=torch.get_rng_state(),
                    gpu_random=torch.cuda.get_rng_state() if on_gpu else None,
                )
    if checkpoint is not None:
        checkpoint.save(run=asdict(run))  # small: it waits for the other runs of the benchmark
    return run


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    inside = [value for name, value in parameters if "conv_encoder" in name or name.startswith("backbone.0")]
    known = {id(value) for value in inside}
    groups = [
        {"params": [value for _, value in parameters if id(value) not in known], "full_lr": settings.lr},
        {"params": inside, "full_lr": settings.backbone_lr},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)


@torch.no_grad()
def measure(model: nn.Module, task: Task, settings: Settings) -> dict[str, float]:
    """Returns AP, AP50 and AP75 on the validation pictures; of each query the likeliest class, as post-processing."""
    model.eval()
    found, number = [], 0
    for pixels, mask in task.validation_batches(64, settings.device):
        outputs = model(pixels, mask)
        scores, labels = outputs.logits.float().softmax(-1)[..., :-1].max(-1)
        for row in torch.cat([outputs.pred_boxes.float(), scores[..., None], labels[..., None]], dim=-1).cpu():
            height, width = task.validation.sizes_hw[number]
            scale = torch.tensor([width, height, width, height])
            boxes = row[:, :4] * scale
            boxes[:, :2] -= boxes[:, 2:] / 2
            for box, score, label in zip(boxes.tolist(), row[:, 4].tolist(), row[:, 5].tolist(), strict=True):
                found.append({"image_id": number, "category_id": int(label), "bbox": box, "score": score})
            number += 1
    summary = evaluate_boxes(task.validation.truth, found).summary
    return {name: round(summary[name], 4) for name in ("AP", "AP50", "AP75")}


def run_arms(
    arms: Iterable[str], seeds: Iterable[int], settings: Settings, out: Path, jobs: int = 1, rates=None
) -> dict[str, Any]:
    """Trains every arm with every seed (and rate), in `jobs` processes; the JSON file is rewritten as each ends.

    Killed and started again with the same arguments, it goes on: each run from its last evaluation.

    Args:
        arms: names of `known_arms`.
        seeds: one run each.
        settings: shared by all.
        out: the JSON file; until all runs have ended, a checkpoint of each lies beside it.
        jobs: processes at a time.
        rates: learning rates to try instead of `settings.lr`.
    """
    arms = list(arms)
    unknown = [arm for arm in arms if arm not in known_arms()]
    if unknown:
        raise ValueError(f"There is no arm {unknown[0]!r}; choose from {', '.join(known_arms())}.")
    settings.task()  # made once, before several processes would
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = [(arm, seed, rate) for rate in rates or [settings.lr] for seed in seeds for arm in arms]
    record: dict[str, Any] = {"environment": environment(settings.device), "settings": asdict(settings), "runs": []}
    if jobs == 1:
        for job in plan:
            record["runs"].append(asdict(_run_one(job, settings, out)))
            _write(record, out)
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker) as pool:
            futures = [pool.submit(_run_one, job, settings, out) for job in plan]
            for future in as_completed(futures):
                record["runs"].append(asdict(future.result()))
                _write(record, out)
    for job in plan:
        _checkpoint_path(job, out).unlink(missing_ok=True)
    return record


def _start_worker() -> None:
    """Logs as the parent does, and ends when the parent is no more: a killed benchmark must not train on."""
    logging.basicConfig(level=logging.INFO)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=follow_parent, daemon=True).start()


def _run_one(job: tuple[str, int, float], settings: Settings, out: Path) -> Run:
    arm, seed, rate = job
    settings = Settings(**{**asdict(settings), "lr": rate, "backbone_lr": settings.backbone_lr * rate / settings.lr})
    return train(arm, seed, settings, Checkpoint(_checkpoint_path(job, out), settings))


def _checkpoint_path(job: tuple[str, int, float], out: Path) -> Path:
    arm, seed, rate = job
    return out.with_name(f"{out.stem}.{arm}.{seed}.{rate:g}.part")


def _write(record: dict[str, Any], out: Path) -> None:
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


__all__ = ["ABLATION", "THRESHOLDS", "Run", "Settings", "build_model", "known_arms", "measure", "run_arms", "train"]
