"""kill -9 at random moments of everything that writes: nothing half-written is ever taken for whole.

A child writes one version after the other to one place, without end, and is killed. What is there then must be one of
the versions or nothing; the next writer removes what was left, and leaves its own version.
"""

import hashlib
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from detr_hf import DETRImageProcessor
from detr_hf.checkpoints.conversion import convert
from detr_hf.cli.main import app
from detr_hf.export import exporting
from detr_hf.inference.runs.prediction import read_predictions
from detr_hf.whole_files import is_leftover

from ..conftest import NARROW, tiny_model
from ..training import killed as training_killed

VERSIONS = (0, 1)
LONGEST_WAIT = 0.5  # seconds after a first version is there
WATCHED, LONGEST_WATCH = 0.7, 5.0  # the share of kills that wait for a write to begin, and the seconds they wait
ROOT = Path(__file__).parents[2]


@dataclass
class Writer:
    """How a version is written, and which one is there: None for nothing that could be loaded, -1 for a mixture."""

    write: Callable[[int], Any]
    version: Callable[[], int | None]
    place: Path


def killed(make: Callable[[Path], Writer], whole: int = 50) -> Callable[[Any], tuple[str, list[str]]]:
    """Returns the part that kills such a writer."""

    def part(budget: Any) -> tuple[str, list[str]]:
        writer, chance = make(budget.folder), random.Random(budget.seed)
        faults, nothing, while_writing, kills = [], 0, 0, 0
        for kills in range(1, budget.count(whole) + 1):
            kill_once(writer, chance)
            while_writing += bool(unfinished(writer.place))
            found = writer.version()
            nothing += found is None
            if found == -1:
                faults.append(f"kill {kills}: a mixture is taken for whole")
            write_once(writer, kills % 2)
            left = unfinished(writer.place)
            if writer.version() != kills % 2 or left:
                faults.append(f"kill {kills}: the next writer left {writer.version()}, and {left}")
            if time.monotonic() > budget.until:
                break
        return (
            f"{kills} kills, {while_writing} while writing: {kills - nothing - len(faults)} whole, {nothing} nothing",
            faults,
        )

    return part


def unfinished(place: Path) -> list[str]:
    """Returns the names of what was begun beside a writer's place and is not yet whole."""
    with suppress(FileNotFoundError):  # a folder that went while it was looked into
        return [path.name for path in place.parent.rglob("*") if is_leftover(path)]
    return []


def kill_once(writer: Writer, chance: random.Random) -> None:
    """Starts a child that writes without end, and kills it: at any time, or as soon as something is half written."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                for version in VERSIONS:
                    writer.write(version)
        finally:
            os._exit(1)
    try:
        time.sleep(chance.uniform(0.05, LONGEST_WAIT))
        until = time.monotonic() + (LONGEST_WATCH if chance.random() < WATCHED else 0)
        while time.monotonic() < until and not unfinished(writer.place):
            pass  # a write takes less than a sleep's grain
    finally:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"


def write_once(writer: Writer, version: int) -> None:
    """Writes in a process of its own, as the next command does: one process looks for what was left only once."""
    child = os.fork()
    if child == 0:
        try:
            writer.write(version)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the next writer failed"


def digest(path: Path) -> str:
    tensors = sorted(load_file(path).items())
    return hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in tensors)).hexdigest()


def model_in(folder: Path, versions: list[tuple[str, int]]) -> int | None:
    """Returns the version of a model's folder, by weights and number of decoder layers."""
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        return None
    layers = json.loads((folder / "config.json").read_text())["dec_layers"]
    found = (digest(folder / "model.safetensors"), layers)
    return versions.index(found) if found in versions else -1


def models(root: Path) -> tuple[list[Any], list[tuple[str, int]]]:
    """Returns two models of other sizes, written below the root, and what tells them."""
    made = [tiny_model(version, dec_layers=1 + version, **NARROW) for version in VERSIONS]
    for version, model in enumerate(made):
        model.save_pretrained(root / f"model{version}")
        DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / f"model{version}")
    return made, [(digest(root / f"model{version}" / "model.safetensors"), 1 + version) for version in VERSIONS]


def saving(root: Path) -> Writer:
    made, versions = models(root)
    place = root / "saved" / "model"
    return Writer(lambda version: made[version].save_pretrained(place), lambda: model_in(place, versions), place)


def converting(root: Path) -> Writer:
    _, versions = models(root)
    place = root / "converted" / "model"

    def write(version: int) -> None:
        convert(root / f"model{version}", place, overwrite=True)

    return Writer(write, lambda: model_in(place, versions), place)


def noise(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def detr_hf(*arguments: Any) -> None:
    """Runs a command; its error is the caller's."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def results(root: Path) -> Writer:
    models(root)
    place = root / "results" / "found.json"
    place.parent.mkdir()
    pictures = [[noise(root / f"{version}{index}.png", index) for index in range(1 + version)] for version in VERSIONS]

    def write(version: int) -> None:
        detr_hf("predict", root / "model0", *pictures[version], "--threshold", "0", "--json", place)

    def version() -> int | None:
        if not place.is_file():
            return None
        try:
            return len(json.loads(place.read_text())["pictures"]) - 1
        except (ValueError, KeyError):
            return -1

    return Writer(write, version, place)


def exports(root: Path) -> Writer:
    """OpenVINO's two files in a folder, without the seconds that tracing takes."""
    place = root / "exported" / "model"
    place.parent.mkdir()

    def write(version: int) -> None:
        with exporting.unfinished_folder(place) as folder:
            (folder / place.name).mkdir()
            for ending in ("bin", "xml"):
                (folder / place.name / f"openvino_model.{ending}").write_bytes(bytes([version]) * 500_000)
            exporting.put_in_place(folder, place)

    def version() -> int | None:
        found = {path.name: path.read_bytes() for path in place.glob("*")}
        contents = set(found.values())
        if not found:
            return None
        is_whole = len(found) == 2 and len(contents) == 1 and len(next(iter(contents))) == 500_000
        return next(iter(contents))[0] if is_whole else -1

    return Writer(write, version, place)


def predicting(budget: Any) -> tuple[str, list[str]]:
    """`predict --out`, killed again and again: every picture once, with the results of a run that was left alone."""
    root, chance = budget.folder, random.Random(budget.seed)
    models(root)
    (root / "pictures").mkdir()
    count, kills = 200, budget.count(50)
    for index in range(count):
        noise(root / "pictures" / f"{index:04}.png", index)
    line = ("predict", root / "model0", root / "pictures", "--threshold", "0")
    detr_hf(*line, "--out", root / "straight")
    done = 0
    for number in range(kills):
        out = root / f"killed{number // 5}"  # each run is killed five times, and then ends
        child = os.fork()
        if child == 0:
            detr_hf(*line, "--out", out)
            os._exit(0)
        time.sleep(chance.uniform(0.05, 1.5))
        os.kill(child, signal.SIGKILL)
        done += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if time.monotonic() > budget.until:
            break
    expected = list(read_predictions(root / "straight"))
    faults = []
    for out in sorted(root.glob("killed*")):
        detr_hf(*line, "--out", out)
        found = list(read_predictions(out))
        if found != expected:
            faults.append(
                f"{out.name}: {len(found)} results for {count} pictures, or others than those of a straight run"
            )
    return f"{done} of {number + 1} killed in work; {len(list(root.glob('killed*')))} runs as a straight one", faults


def training(budget: Any) -> tuple[str, list[str]]:
    """Saving at every step: resumable after each kill, and in the end as a run that was never stopped."""
    found = training_killed.kill_again_and_again(budget.folder / "killed", budget.count(50), False)
    end = found["last_step"] + 1
    resumed, straight = (training_killed.train(budget.folder / name, end) for name in ("killed", "straight"))
    right = resumed == straight and found["resumable"] == found["kills"] and found["most_saves_lost"] <= 1
    seen = f"{found['resumable']} of {found['kills']} resumed, {found['while_saving']} killed while saving"
    seen += ", the same end" if resumed == straight else ", ANOTHER END"
    return seen, [] if right else [json.dumps(found)]


def pushing(budget: Any) -> tuple[str, list[str]]:
    """By the test of ten kills of a push to the loopback Hub, as often as it takes."""
    from .running import run_tests

    rounds = budget.count(5)
    test = "tests/hub/test_faults.py::test_a_killed_push_leaves_the_old_repository_or_the_new_one"
    faults = [fault for _ in range(rounds) for fault in run_tests([test])[1]]
    return f"{10 * rounds} kills, {len(faults)} rounds failed", faults


WHOLE = "50 kills: one version or nothing is there, never a mixture"
KILLS = {
    "kill-save": (WHOLE, killed(saving)),
    "kill-convert": (WHOLE, killed(converting)),
    "kill-json": (WHOLE, killed(results)),
    "kill-export": (f"{WHOLE}, nor nothing", killed(exports)),
    "kill-predict": ("50 kills: every picture once, as a run that was left alone", predicting),
    "kill-training": ("50 kills: all resumed, at most one save lost, the same end", training),
    "kill-push": ("50 kills: the old repository or the new one", pushing),
}
