"""What a convergence benchmark keeps: runs, where each stands, and the record of all, in which nothing is lost."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from detr_hf.evaluation.coco import choose_backend

from .convergence_tasks import Settings
from .measuring import environment

THRESHOLDS = (0.25, 0.5, 0.75)
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Job = tuple[str, int, float]  # arm, seed, learning rate


@dataclass
class Run:
    """One arm with one seed: a curve of AP over steps, and the seconds of training alone.

    A point of the curve has `step`, `seconds`, the `loss` of that step, COCO's AP (`SUMMARY`), that of each class
    (`classes`), AP50 with each kind of mistake `forgiven`, and where that was asked for the AP of `averaged` weights.
    `diverged` is the step at which the loss was no longer finite: there the run ended.
    """

    arm: str
    seed: int
    lr: float
    curve: list[dict[str, Any]] = field(default_factory=list)
    peak_gpu_mib: float | None = None
    parameters: dict[str, int] | None = None
    diverged: int | None = None
    environment: dict[str, Any] | None = None

    def has_ended(self, settings: Settings) -> bool:
        """Whether no evaluation is left to do."""
        last = settings.steps // settings.eval_every * settings.eval_every
        return self.diverged is not None or (bool(self.curve) and self.curve[-1]["step"] >= last)

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
    """Where a run stands, in a file, so that a killed benchmark goes on; one of other settings is not read.

    `told` is called after everything that is saved.
    """

    def __init__(self, path: Path, settings: Settings, options: Mapping[str, Any] | None = None):
        self.path, self.settings = path, json.dumps([settings.to_record(), options])
        self.told: Callable[[], None] | None = None

    def load(self, mmap: bool = False) -> dict[str, Any]:
        """Returns what was saved last; `{}` if that is nothing. `mmap` reads no weights until they are asked for."""
        if not self.path.exists():
            return {}
        saved = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mmap)
        return saved if saved["settings"] == self.settings else {}

    def save(self, **state: Any) -> None:
        """Replaces what was saved before."""
        part = self.path.with_suffix(".part_new")
        torch.save({"settings": self.settings, **state}, part)
        os.replace(part, self.path)
        if self.told is not None:
            self.told()


def versions(device: str) -> dict[str, Any]:
    """Returns the machine and the version of everything, this checkout's commit and the evaluator's too."""
    found = environment(device)
    for name in (choose_backend(), "safetensors", "pillow", "huggingface_hub"):
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {**found, "commit": described.stdout.strip() or None, "evaluator": choose_backend()}


def job_of(run: Mapping[str, Any]) -> Job:
    """Returns what tells a run from the others of its record."""
    return run["arm"], run["seed"], run["lr"]


def record_to_go_on(out: Path, settings: Settings, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the record that lies at `out` with these arms, or a new one."""
    record: dict[str, Any] = {"environment": versions(settings.device), "settings": settings.to_record()}
    record |= {"arms": {}, "runs": []}
    if out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))
        theirs, ours = (_compared(one["settings"]) for one in (found, json.loads(json.dumps(record))))
        other = [name for name in ours if theirs.get(name) != ours[name]]
        if other or "arms" not in found:
            what = ", ".join(f"{name} {theirs.get(name)!r} and not {ours[name]!r}" for name in other) or "no arms"
            raise ValueError(f"{out} is a record of another benchmark ({what}); give another --name, or move it away.")
        record = found
    for arm, options in json.loads(json.dumps(arms)).items():
        if record["arms"].get(arm, options) != options:
            known = record["arms"][arm]
            raise ValueError(f"{out} has an arm {arm!r} that is {known} and not {options}; name it anew.")
        record["arms"][arm] = options
    return record


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that all runs of a record share: not the rates, but how the backbone's goes by them."""
    shared = {name: value for name, value in settings.items() if name not in ("lr", "backbone_lr")}
    return shared | {"backbone_lr / lr": round(settings["backbone_lr"] / settings["lr"], 6)}


def write_record(record: dict[str, Any], out: Path) -> None:
    """Replaces the JSON file."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


__all__ = [
    "SUMMARY",
    "THRESHOLDS",
    "Checkpoint",
    "Job",
    "Run",
    "job_of",
    "record_to_go_on",
    "versions",
    "write_record",
]
