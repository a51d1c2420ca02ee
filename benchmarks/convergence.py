"""How fast DETR learns: arms that differ in one thing, on the same data in the same order, with the same optimiser.

Backbone, transformer size, batches, optimiser, learning rate, warm-up and clipping are the same for all; the learning
rate stays constant after the warm-up, so that steps to a threshold mean something. Seconds are those of training
alone: processor time of its one thread on a CPU, wall time on a GPU.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detr_hf.evaluation.coco import evaluate_boxes
from detr_hf.processing.post_processing_detr import detections
from detr_hf.training.ema import ExponentialMovingAverage
from detr_hf.training.starting import has_box_queries

from .convergence_arms import build_model, known_arms, maps_of
from .convergence_record import SUMMARY, Checkpoint, Job, Run, job_of, record_to_go_on, versions, write_record
from .convergence_tasks import Settings, Task
from .forgiven import forgiven
from .worker_processes import end_with_parent

logger = logging.getLogger(__name__)

WRITTEN_EVERY = 15.0  # seconds, while other processes train


def train(
    arm: str,
    seed: int,
    settings: Settings,
    checkpoint: Checkpoint | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Trains one arm and returns its curve; with a `checkpoint` from where that stands, and saving it as it goes.

    `options` are the arm's, where it is none of `known_arms`.
    """
    options = known_arms()[arm] if options is None else options
    saved = checkpoint.load() if checkpoint is not None else {}
    run = Run(**saved["run"]) if saved else Run(arm, seed, settings.lr)
    if saved and "model" not in saved:  # it has ended
        return run
    first, spent = (run.curve[-1]["step"], run.curve[-1]["seconds"]) if saved else (0, 0.0)
    torch.set_num_threads(1)
    run.environment = versions(settings.device)
    task = settings.task(maps_of(options))
    torch.manual_seed(seed)
    model = build_model(arm, settings, task, options).to(settings.device)
    run.parameters = _count(model)
    on_gpu = settings.device != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    if not on_gpu:  # for all arms: transformers convolves channels-first unless told, in 1.3 times the time
        model.to(memory_format=torch.channels_last)
    # the faster on each: of box queries "sdpa" does without the product of all queries and cells
    is_fused = on_gpu or has_box_queries(model)
    model.set_attn_implementation("sdpa" if is_fused else "eager")
    optimizer = _optimizer(model, settings)
    decay = options.get("ema_decay") or options.get("averaged_beside")
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
        started = clock()
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * min(1.0, (step + 1) / settings.warmup)
        pixels, mask, targets = task.batch(seed, step, settings.batch, settings.device)
        model.train()
        try:
            loss = model(pixels, mask, labels=targets).loss
        except FloatingPointError as error:  # of this package's models: the loss is not finite
            _diverge(run, step + 1, spent, error)
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if average is not None:
            average.update(model, step + 1)
        last = (step + 1) % settings.eval_every == 0
        if last and on_gpu:
            torch.cuda.synchronize()
        spent += clock() - started
        if not last:
            continue
        point = {"step": step + 1, "seconds": round(spent, 2), "loss": round(float(loss.detach()), 3)}
        if not math.isfinite(point["loss"]):
            _diverge(run, step + 1, spent, "the loss is not finite")
            break
        run.curve.append(point | _evaluated(model, task, settings, average, options))
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


def _diverge(run: Run, step: int, spent: float, why: Any) -> None:
    """Ends a run's curve at a step whose loss is not finite, and says so."""
    run.diverged = step
    run.curve.append({"step": step, "seconds": round(spent, 2), "loss": None} | dict.fromkeys(SUMMARY, 0.0))
    logger.warning("%s seed %d lr %g, step %d: %s", run.arm, run.seed, run.lr, step, why)


def _evaluated(
    model: nn.Module,
    task: Task,
    settings: Settings,
    average: ExponentialMovingAverage | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what a point says of the weights that count: the average's, or the model's with the average beside."""
    beside = "averaged_beside" in options
    point = measure(model, task, settings) if average is None or beside else {}
    with average.swapped_in(model) if average is not None else nullcontext():
        if average is not None and not beside:
            return measure(model, task, settings)
        if beside:
            found = measure(model, task, settings)
            point["averaged"] = {name: found[name] for name in SUMMARY[:3] if name in found}
    return point


def _count(model: nn.Module) -> dict[str, int]:
    return {
        "all": sum(value.numel() for value in model.parameters()),
        "trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "in the backbone": sum(value.numel() for name, value in model.named_parameters() if "backbone." in name),
    }


def _group_of(name: str) -> str:
    return "backbone" if "conv_encoder" in name or name.startswith("backbone.0") else "rest"


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    rates = {"rest": settings.lr, "backbone": settings.backbone_lr, "slow": settings.lr / 10}
    groups: dict[str, list[Tensor]] = {name: [] for name in rates}
    group_of = getattr(model, "group_of", _group_of)
    for name, value in model.named_parameters():
        if value.requires_grad:
            groups[group_of(name)].append(value)
    found = [{"params": values, "full_lr": rates[name]} for name, values in groups.items() if values]
    return torch.optim.AdamW(found, weight_decay=settings.weight_decay)


@torch.no_grad()
def measure(model: nn.Module, task: Task, settings: Settings) -> dict[str, Any]:
    """Returns AP on the validation pictures, of all, by size and by class, and with kinds of mistakes forgiven.

    Detections are what users get: of this package's and transformers' DETR the likeliest class of each query, of
    other peers the best pairs of query and class; boxes are clipped to the picture.
    """
    model.eval()
    rows, number = [np.empty((0, 7))], 0
    for pixels, mask in task.validation_batches(32, settings.device):
        outputs = model(pixels, mask)
        sizes_hw = torch.tensor(task.validation.sizes_hw[number : number + len(pixels)])
        if hasattr(model, "detections"):
            found = model.detections(outputs, sizes_hw)
        else:
            found = detections(outputs.logits, outputs.pred_boxes, None, sizes_hw)
        for one in found:
            corners = one["boxes"].double()
            boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
            column = boxes.new_full((len(boxes), 1), number)
            values = [column, boxes, one["scores"][:, None].double(), one["labels"][:, None].double()]
            rows.append(torch.cat(values, 1).cpu().numpy())
            number += 1
    all_rows, truth = np.concatenate(rows), task.validation.truth
    metrics = evaluate_boxes(truth, all_rows)
    classes = {
        name: {"AP": _rounded(row["AP"]), "AP50": _rounded(row["AP50"]), "objects": int(row["objects"])}
        for name, row in metrics.per_class.items()
    }
    repaired = {kind: _rounded(value) for kind, value in forgiven(truth, all_rows).items()}
    return {**{name: _rounded(metrics.summary[name]) for name in SUMMARY}, "classes": classes, "forgiven": repaired}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def run_arms(
    arms: Iterable[str] | Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
    settings: Settings,
    out: Path,
    jobs: int = 1,
    rates: Iterable[float] | None = None,
) -> dict[str, Any]:
    """Trains every arm with every seed (and rate), in `jobs` processes; the JSON file is rewritten at each evaluation.

    Killed and started again with the same arguments, it goes on: each run from its last evaluation. Started with more
    arms, seeds or rates, it adds these to the record.

    Args:
        arms: names of `known_arms`, or arms by name with their options.
        seeds: one run each.
        settings: shared by all.
        out: the JSON file; until all runs have ended, a checkpoint of each lies beside it.
        jobs: processes at a time.
        rates: learning rates to try instead of `settings.lr`.

    Raises:
        ValueError: an arm is not known, or the record is of other settings or of another arm of that name.
    """
    if not isinstance(arms, Mapping):
        arms = list(arms)
        unknown = [arm for arm in arms if arm not in known_arms()]
        if unknown:
            raise ValueError(f"There is no arm {unknown[0]!r}; choose from {', '.join(known_arms())}.")
        arms = {arm: known_arms()[arm] for arm in arms}
    rates = list(rates or [settings.lr])
    plan = [(arm, seed, rate) for rate in rates for seed in seeds for arm in arms]
    record = record_to_go_on(out, settings, arms)
    done = {job_of(run): run for run in record["runs"] if Run(**run).has_ended(settings)}
    for maps in {maps_of(options) for options in arms.values()}:
        settings.task(maps)  # made once, before several processes would
    out.parent.mkdir(parents=True, exist_ok=True)
    left = [job for job in plan if job not in done]
    starts = [(job, _checkpoint(job, settings, out, arms[job[0]]), settings, arms[job[0]]) for job in left]
    finished: dict[Job, dict[str, Any]] = {}

    def write() -> None:
        started = {job: checkpoint.load(mmap=True).get("run") for job, checkpoint, *_ in starts if job not in finished}
        found = {job_of(run): run for run in record["runs"]} | {job: run for job, run in started.items() if run}
        record["runs"] = list((found | finished).values())
        write_record(record, out)

    if jobs == 1:
        for job, *start in starts:
            start[0].told = write
            finished[job] = asdict(_run_one(job, *start))
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
            futures = {pool.submit(_run_one, *start): start[0] for start in starts}
            while futures:
                for future in wait(futures, WRITTEN_EVERY, FIRST_COMPLETED).done:
                    finished[futures.pop(future)] = asdict(future.result())
                write()
    write()
    for job in plan:
        _checkpoint(job, settings, out, arms[job[0]]).path.unlink(missing_ok=True)
    return record


def _checkpoint(job: Job, settings: Settings, out: Path, options: Mapping[str, Any]) -> Checkpoint:
    arm, seed, rate = job
    path = out.with_name(f"{out.stem}.{arm}.{seed}.{rate:g}.part")
    return Checkpoint(path, _at_rate(settings, rate), json.loads(json.dumps(options)))


def _at_rate(settings: Settings, rate: float) -> Settings:
    return Settings(**{**asdict(settings), "lr": rate, "backbone_lr": settings.backbone_lr * rate / settings.lr})


def _run_one(job: Job, checkpoint: Checkpoint, settings: Settings, options: Mapping[str, Any]) -> Run:
    arm, seed, rate = job
    return train(arm, seed, _at_rate(settings, rate), checkpoint, options)


__all__ = ["Run", "measure", "run_arms", "train"]
