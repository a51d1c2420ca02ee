"""How fast DETR learns: arms that differ in one thing, on the same data in the same order, with the same optimiser.

Backbone, transformer size, batches, optimiser, learning rate, warm-up and clipping are the same for all; the learning
rate stays constant after the warm-up, so that steps to a threshold mean something.
"""

import json
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_hf.evaluation.coco import evaluate_boxes
from detr_hf.training.ema import ExponentialMovingAverage

from .convergence_arms import build_model, known_arms
from .convergence_tasks import Settings, Task
from .measuring import environment
from .worker_processes import end_with_parent

logger = logging.getLogger(__name__)

THRESHOLDS = (0.25, 0.5, 0.75)


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
        with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
            futures = [pool.submit(_run_one, job, settings, out) for job in plan]
            for future in as_completed(futures):
                record["runs"].append(asdict(future.result()))
                _write(record, out)
    for job in plan:
        _checkpoint_path(job, out).unlink(missing_ok=True)
    return record


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


__all__ = ["THRESHOLDS", "Run", "measure", "run_arms", "train"]
