"""This checkout beside another commit of it, in one run: whether a change of the code costs or gains time.

Each side is a process of its own, with its own checkout first on PYTHONPATH; weights and inputs are the same files for
both. Both are there all the time and take turns, one timing each, so that what else the machine does meets both alike.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .criterion import random_outputs
from .measuring import compare_timed, environment, require_agreement
from .models import random_model, random_pixels, random_targets

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("commit_worker.py")
# What can be asked for, and the measurements that belong to it.
PARTS = {"forward": ("forward", "forward_padded"), "criterion": ("criterion",), "train-step": ("train_step",)}
# Measurement -> pictures at a time, and their size.
PICTURES = {"forward": (1, (800, 1066)), "forward_padded": (2, (480, 640)), "train_step": (2, (320, 320))}
CRITERION = {"layers": 6, "batch": 16, "objects": 20, "queries": 100}
NUM_CLASSES = 91
OBJECTS = 10  # in each picture of a training step
REPEATS = {"criterion": 10}  # calls in one timing of what is over at once
TOLERANCE = 1e-4


class Side:
    """One checkout's worker."""

    def __init__(self, name: str, checkout: Path, folder: Path):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )
        package = Path(self._answer()["package"])
        if not package.is_relative_to(checkout):
            self.close()
            raise RuntimeError(f"The worker of {name} imported {package}; expected the package of {checkout}.")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Returns the worker's answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The worker of {self.name} ended with code {self.process.wait()}; its error is above.")
        return json.loads(line)

    def times(self, repeats: int) -> tuple[float, float]:
        """Returns wall time and processor time of one call."""
        answer = self.ask(repeats=repeats)
        return answer["wall"], answer["processor"]

    def close(self) -> None:
        """Ends the worker."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compare_commits(
    base: str,
    parts: Sequence[str] = tuple(PARTS),
    runs: int = 9,
    pictures: Mapping[str, tuple[int, tuple[int, int]]] = PICTURES,
    criterion: Mapping[str, int] = CRITERION,
    **config: Any,
) -> dict[str, Any]:
    """Returns the record: for each part the paired ratios base/here, so that above 1 this checkout is the faster.

    Args:
        base: a commit, branch or tag. This checkout is measured as it lies there, uncommitted changes included.

    Raises:
        ValueError: for a commit or part that does not exist, or outputs of the two sides that do not agree.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    commits = {"base": _commit(base), "here": _commit("HEAD"), "here_is_changed": bool(_git("status", "--porcelain"))}
    settings = {"parts": list(parts), "criterion": dict(criterion), **config}
    settings["pictures"] = {name: [batch, list(size_hw)] for name, (batch, size_hw) in pictures.items()}
    record: dict[str, Any] = {"environment": environment(), "settings": {**commits, **settings}}
    with tempfile.TemporaryDirectory() as scratch, checkout_of(commits["base"]) as base_checkout:
        folder = Path(scratch)
        _leave_model(folder, config)
        sides = []
        try:
            for name, checkout in (("here", ROOT), ("base", base_checkout)):
                sides.append(Side(name, checkout, folder))
            for measurement in (name for part in parts for name in PARTS[part]):
                torch.save(_inputs(measurement, pictures, criterion), folder / f"{measurement}.pt")
                record[measurement] = _compare_part(measurement, sides[0], sides[1], folder, runs)
        finally:
            for side in sides:
                side.close()
    return record


def _compare_part(name: str, here: Side, base: Side, folder: Path, runs: int) -> dict[str, Any]:
    found = {}
    for side in (here, base):
        file = folder / f"{name}-{side.name}.pt"
        side.ask(prepare=name, outputs=str(file))
        found[side.name] = torch.load(file, weights_only=True)
    difference = {key: _difference(found["here"][key], value) for key, value in found["base"].items()}
    require_agreement(difference, TOLERANCE)
    repeats = REPEATS.get(name, 1)
    compared = compare_timed(partial(here.times, repeats), partial(base.times, repeats), runs, warmup=1)
    return {"sides": ["here", "base"], **compared, "largest_difference": max(difference.values())}


def _difference(here: torch.Tensor, base: torch.Tensor) -> float:
    """Returns the largest difference, relative to the base's largest value."""
    return ((here - base).abs().max() / base.abs().max().clamp(min=1e-30)).item()


def _leave_model(folder: Path, config: dict[str, Any]) -> None:
    # without dropout the losses of the two sides can be compared
    config = {"backbone": "resnet50", "num_labels": NUM_CLASSES, **config, "dropout": 0.0}
    torch.save({"config": config, "weights": random_model(**config).state_dict()}, folder / "model.pt")


def _inputs(
    name: str, pictures: Mapping[str, tuple[int, tuple[int, int]]], criterion: Mapping[str, int]
) -> dict[str, Any]:
    if name == "criterion":
        sizes = {key: criterion[key] for key in ("batch", "layers", "queries")}
        logits, pred_boxes = (tensor.detach() for tensor in random_outputs("cpu", num_classes=NUM_CLASSES, **sizes))
        labels = random_targets(criterion["batch"], criterion["objects"], NUM_CLASSES)
        return {"logits": logits, "pred_boxes": pred_boxes, "labels": labels}
    batch, size_hw = pictures[name]
    pixel_values, pixel_mask = random_pixels(batch, size_hw, padded=name == "forward_padded")
    inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
    return inputs | ({"labels": random_targets(batch, OBJECTS, NUM_CLASSES)} if name == "train_step" else {})


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """Yields a folder with the files of a commit, a `git worktree` that is removed in the end."""
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Path(scratch).resolve() / "base"
        _git("worktree", "add", "--detach", str(checkout), commit)
        try:
            yield checkout
        finally:
            _git("worktree", "remove", "--force", str(checkout))


def _commit(name: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        raise ValueError(f"git knows no commit {name!r} in {ROOT}.") from None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


__all__ = ["PARTS", "checkout_of", "compare_commits"]
