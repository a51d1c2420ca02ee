"""Predicts in thousands of pictures with `detr-hf predict`, kills it with -9 and goes on: `python -m
tests.inference.runs.killed_predict FOLDER PICTURES KILLS`.

Every process is the real command with a random tiny model; it only counts what goes through the model. Beside the run
that is killed goes one that is left alone. The two take turns of a second while the other is stopped, so that a
machine with other work slows both alike; nothing is counted of a process until it reads its first picture (starting
Python does not count), during which the other is stopped too. Prints one line of JSON: whether every picture is there
once and with the same result; how many went through the model twice because a kill lost their results; the pictures a
second of both runs, and their ratio, by the clock and by processor time; the seconds that the starts took; and the
memory of the uninterrupted process, which /proc says many times a second.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from detr_hf import DETRImageProcessor
from detr_hf.inference.runs.prediction import read_predictions

from ...conftest import tiny_model

ROOT = Path(__file__).parents[3]
SIZES_HW = [(96, 128), (128, 96), (96, 96), (90, 128)]
SHARD_SIZE = 500
BAD = 3
COUNTING = "--counting"
TURN, POLL = 1.0, 0.05  # seconds


@dataclass
class Kill:
    """When to kill a process: `wait` seconds of its turns after `at` results are on disk."""

    at: int
    wait: float


@dataclass
class Run:
    """A command that is started again after every kill, and what was counted of it."""

    line: list[str]
    out: Path
    kills: list[Kill] = field(default_factory=list)
    starting: float = 0.0
    predicting: float = 0.0
    processor: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)  # (results, MiB)
    process: subprocess.Popen | None = None
    done: bool = False

    def start(self) -> None:
        """Starts the command, waits until it is about to read its first picture, and stops it there."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        self.process = subprocess.Popen(self.line, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while self.process.poll() is None and not writes_to(self.process.pid, self.out):
            time.sleep(0.005)
        self.process.send_signal(signal.SIGSTOP)
        self.starting += time.perf_counter() - started

    def turn(self) -> None:
        """Lets the command work for a while, and kills it when it is time."""
        if self.process is None:
            self.start()
        pid, worked = self.process.pid, processor_seconds(self.process.pid)
        before, started = worked, time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        while self.process.poll() is None and time.perf_counter() - started < TURN:
            time.sleep(POLL)
            worked = processor_seconds(pid) or worked
            self.memory.append((results_in(self.out), own_mib(pid)))
            if self.kills and self.memory[-1][0] >= self.kills[0].at:
                self.kills[0].wait -= POLL
                if self.kills[0].wait <= 0:
                    self.process.kill()
                    self.process.wait()
        self.predicting += time.perf_counter() - started
        self.processor += worked - before
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
        else:
            self._ended()

    def _ended(self) -> None:
        errors = self.process.stderr.read()
        wanted = -signal.SIGKILL if self.kills else 0
        if self.process.returncode != wanted:
            raise RuntimeError(f"the process ended with {self.process.returncode}, expected {wanted}:\n{errors}")
        self.done, self.kills, self.process = not self.kills, self.kills[1:], None


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Writes JPEG files of four sizes, of which a few are broken."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        height, width = SIZES_HW[number % len(SIZES_HW)]
        Image.fromarray(coarse).resize((width, height)).save(path)
    for number in range(BAD):
        paths[(number + 1) * count // (BAD + 1)].write_bytes(b"not a picture")
    return paths


def write_model(folder: Path) -> None:
    """Writes a random tiny model that makes pictures small."""
    tiny_model().save_pretrained(folder)
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def command(model: Path, pictures: Path, out: Path, shard_size: int = SHARD_SIZE) -> list[str]:
    """The command line that is run again and again."""
    settings = ["--threshold", "0.1", "--shard-size", str(shard_size), "--out", str(out)]
    counter = out.with_suffix(".detected")
    return [
        sys.executable,
        "-m",
        __spec__.name,
        COUNTING,
        str(counter),
        "predict",
        str(model),
        str(pictures),
        *settings,
    ]


def counting(counter: Path, arguments: list[str]) -> None:
    """Runs `detr-hf` and adds the pictures that go through the model to a file."""
    from detr_hf.cli import main
    from detr_hf.inference.backends import ModelBackend

    detect = ModelBackend.results

    def count_and_detect(self, batch, threshold):
        with counter.open("ab") as file:
            file.write(b"." * len(batch))
        return detect(self, batch, threshold)

    ModelBackend.results = count_and_detect
    sys.argv[1:] = arguments
    main()


def results_in(out: Path) -> int:
    """How many results are on disk."""
    finished = len(list(out.glob("part-*")))
    return finished * SHARD_SIZE + sum(path.read_bytes().count(b"\n") for path in out.glob("unfinished/*.jsonl"))


def writes_to(process: int, out: Path) -> bool:
    """Whether a process has opened a part: its model is loaded, and the first picture is about to be read."""
    try:
        opened = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return False
    return any(Path(path).is_relative_to(out.absolute() / "unfinished") for path in opened)


def own_mib(process: int) -> float:
    """Memory of a process without what it maps from files (libraries come and go); 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def processor_seconds(process: int) -> float:
    """What a process and its threads have used; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def differences(one: Path, other: Path) -> tuple[int, float]:
    """In how many pictures the names, errors or numbers of objects differ, and the largest difference of a score."""
    count, largest = 0, 0.0
    for a, b in zip(read_predictions(one), read_predictions(other), strict=True):
        same = a["picture"] == b["picture"] and a.get("error") == b.get("error")
        scores = [[found["score"] for found in record.get("objects", ())] for record in (a, b)]
        if not same or len(scores[0]) != len(scores[1]):
            count += 1
        elif scores[0]:
            largest = max(largest, float(np.abs(np.subtract(*scores)).max()))
    return count, largest


def killed(folder: Path, count: int, kills: int) -> dict:
    """What was found."""
    paths = write_pictures(folder / "pictures", count)
    write_model(folder / "model")

    chance = random.Random(0)
    plan = [Kill(count * (number + 1) // (kills + 1), chance.uniform(0, 0.5)) for number in range(kills)]
    straight, out = folder / "straight", folder / "killed"
    alone, again = (
        Run(command(folder / "model", folder / "pictures", folder_of_run), folder_of_run, its_kills)
        for folder_of_run, its_kills in ((straight, []), (out, plan))
    )
    try:
        while not (alone.done and again.done):
            for run in (alone, again):
                if not run.done:
                    run.turn()
    finally:
        for run in (alone, again):
            if run.process is not None:  # it may be stopped, and would stay so
                run.process.kill()

    twice = out.with_suffix(".detected").stat().st_size - (count - BAD)
    names = [record["picture"] for record in read_predictions(out)]
    different, largest = differences(straight, out)
    fifths = [[mib for results, mib in alone.memory if results * 5 // (count + 1) == fifth] for fifth in range(5)]
    return {
        "pictures": count,
        "kills": kills,
        "complete_and_once": names == list(map(str, paths)),
        "errors_recorded": sum("error" in record for record in read_predictions(out)),
        "pictures_that_differ": different,
        "largest_difference_of_a_score": largest,
        "detected_twice": twice,
        "a_second_straight": round(count / alone.predicting, 1),
        "a_second_killed": round(count / again.predicting, 1),
        "ratio": round(alone.predicting / again.predicting, 3),
        "ratio_by_processor_time": round(alone.processor / again.processor, 3),
        "seconds_of_starting": [round(alone.starting, 1), round(again.starting, 1)],
        "seconds_straight": round(alone.predicting, 1),
        "most_mib_by_fifth": [round(max(fifth, default=0)) for fifth in fifths],
    }


if __name__ == "__main__":
    if sys.argv[1] == COUNTING:
        counting(Path(sys.argv[2]), sys.argv[3:])
    else:
        print(json.dumps(killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
