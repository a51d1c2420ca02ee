"""Every command that writes, to a place that it cannot write to: one sentence that names it, and old files intact."""

import contextlib
import encodings.utf_8_sig  # noqa: F401 - nobody may not be allowed to read Python's own files
import importlib.readers  # noqa: F401
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detr_hf.cli.main import main
from detr_hf.whole_files import is_leftover

from ..data import layouts
from .killing import models, noise

NOBODY = 65534
OLD = '{"threshold": 0, "pictures": [], "failed": []}'


def commands(root: Path, place: Path) -> dict[str, list[Any]]:
    """Returns the commands that write into `place`, by a name; `root` holds what they read."""
    model, picture, data = root / "model0", root / "a.png", root / "data"
    return {
        "demo --out": ["demo", "--out", place / "boxes.png"],
        "predict --json": ["predict", model, picture, "--json", place / "found.json"],
        "predict --save": ["predict", model, picture, "--save", place / "drawn"],
        "predict --out": ["predict", model, picture, "--out", place / "run"],
        "convert": ["convert", root / "model1", place / "converted"],
        "check --json": ["check", data, "--json", place / "checked.json"],
        "check --preview": ["check", data, "--preview", place / "preview.png"],
        "eval --json": ["eval", model, data, "--json", place / "eval.json"],
        "inspect --json": ["inspect", model, "--size", "64x64", "--json", place / "way.json"],
        "inspect --svg": ["inspect", model, "--size", "64x64", "--svg", place / "way.svg"],
        "benchmark --json": [
            *("benchmark", model, "--runtimes", "torch", "--runs", "2", "--size", "64x64"),
            *("--json", place / "timed.json"),
        ],
        "export": [
            *("export", model, "--to", "torch-export", "--static", "--size", "64x64", "-o", place / "exported.pt2"),
        ],
        "push --folder": ["push", model, "somebody/something", "--folder", place / "pushed"],
        "verify --write": ["verify", "--write", place / "model"],
        "doctor --json": ["doctor", "--no-self-test", "--json", place / "doctor.json"],
        "train": [
            *("train", "--model", model, "--data", data, "--output_dir", place / "trained", "--max_steps", "1"),
            *("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--skip_check"),
        ],
    }


def outcome(line: list[Any], before: Callable[[], Any]) -> tuple[Any, str]:
    """Returns exit code and last words of a command, in a child process that `before` prepares."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        said, code = io.StringIO(), None
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                before()
                sys.argv = ["detr-hf", *map(str, line)]
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code
            except BaseException as error:
                said.write(f"Traceback: {type(error).__name__}: {error}")
        os.write(writer, json.dumps([code, said.getvalue()[-3000:]]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as opened:
        code, said = json.loads(opened.read() or '[null, "the process died"]')
    os.waitpid(child, 0)
    return code, said


def one_sentence(line: list[Any], place: Path, before: Callable[[], Any] = lambda: None) -> list[str]:
    """Returns what is wrong with how a command failed."""
    code, said = outcome(line, before)
    faults = []
    if code not in (1, 2) or "Traceback" in said:
        faults.append(f"exit code {code}: {' '.join(said.split())[-300:]}")
    elif str(place) not in "".join(said.split("\n")).replace(" ", "") and place.name not in said:
        faults.append(f"the place is not named: {' '.join(said.split())[-300:]}")
    return faults


def tried(budget: Any, place: Path, before: Callable[[], Any] = lambda: None) -> tuple[str, list[str]]:
    """Returns how the commands failed there."""
    old = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    lines, faults = commands(budget.folder, place), []
    for name, line in lines.items():
        faults += [f"{name}: {fault}" for fault in one_sentence(line, place, before)]
        if {path: path.read_bytes() for path in old if path.exists()} != old:
            faults.append(f"{name}: an old file is not what it was")
        left = [path.name for path in place.rglob("*") if is_leftover(path)]
        if left:
            faults.append(f"{name}: {left} is left")
    return f"{len(lines)} commands, {len(faults)} faults; old files intact", faults


def prepare(root: Path, place: Path) -> None:
    """Writes what the commands read, and an old result where they shall write."""
    models(root)
    noise(root / "a.png", 0)
    layouts.write_coco(root / "data")
    place.mkdir(exist_ok=True)
    (place / "found.json").write_text(OLD)
    shutil.copytree(root / "model1", place / "model")


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[str | None]:
    """A small disk of its own at a folder; gives why there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        yield "needs root to mount a small disk"
        return
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        yield f"mounting is not allowed here ({done.stderr.decode().strip()})"
        return
    try:
        yield None
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def on_small_disk(size: str, spoil: Callable[[Path], Any]) -> Callable[[Any], tuple[str, list[str]]]:
    """Returns the part that tries a disk of its own, once it is spoilt."""

    def part(budget: Any) -> tuple[str, list[str]]:
        place = budget.folder / "place"
        with mounted(place, size) as why_not:
            if why_not:
                return f"skipped: {why_not}", []
            prepare(budget.folder, place)
            spoil(place)
            return tried(budget, place)

    return part


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def make_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def no_permission(budget: Any) -> tuple[str, list[str]]:
    if os.geteuid() != 0:
        return "skipped: needs root to become nobody", []
    place = budget.folder / "place"
    prepare(budget.folder, place)
    for path in (budget.folder, *budget.folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tried(budget, place, lambda: os.setuid(NOBODY))


def clock_backwards(budget: Any) -> tuple[str, list[str]]:
    """A clock that was set back by a day: what was written before lies in the future, and so do files of a run."""
    place, faults = budget.folder / "place", []
    prepare(budget.folder, place)
    (place / "found.json").unlink()
    lines = commands(budget.folder, place)
    for name, line in lines.items():
        for more in AGAIN.get(name, [[], []]):  # the second finds what the first has written
            tomorrow = time.time() + 86_400
            for path in budget.folder.rglob("*"):
                os.utime(path, (tomorrow, tomorrow))
            code, said = outcome([*line, *more], lambda: None)
            if code not in (0, None):
                faults.append(f"{name} {' '.join(more)}: exit code {code}: {' '.join(said.split())[-300:]}")
            elif not any(path.stat().st_mtime < tomorrow for path in place.rglob("*") if path.is_file()):
                faults.append(f"{name} {' '.join(more)}: it wrote nothing")
    steps = sorted(path.name for path in (place / "trained").glob("checkpoint-*"))
    if steps != ["checkpoint-3"]:
        faults.append(f"train: {steps} are kept of 3 steps, of which the last is wanted")
    return f"{len(lines)} commands, most of them twice, {len(faults)} faults", faults


# What commands are given besides, for each time: the second finds its own result there.
SAVING = ["--save_strategy", "steps", "--save_steps", "1"]
AGAIN: dict[str, list[list[str]]] = {
    "convert": [[], ["--overwrite"]],
    "export": [[], ["--overwrite"]],
    "predict --out": [[]],  # a run that is complete has nothing to write
    "push --folder": [[]],  # it asks for a new folder
    "train": [SAVING, [*SAVING, "--max_steps", "3", "--save_total_limit", "1", "--resume_from_checkpoint", "true"]],
}
WANTED = "every command that writes: one sentence, old files intact, nothing left"
PLACES = {
    "full-disk": (WANTED, on_small_disk("2m", fill)),
    "read-only": (WANTED, on_small_disk("2m", make_read_only)),
    "no-permission": (WANTED, no_permission),
    "clock-back": ("every command that writes, with all files from tomorrow: its result is there", clock_backwards),
}
