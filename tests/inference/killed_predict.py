"""Predicts in thousands of pictures with `detr-hf predict`, kills it with -9 and goes on: `python -m
tests.inference.killed_predict FOLDER PICTURES KILLS`.

Every process is the real command with a random tiny model; it only counts what goes through the model. A run that is
left alone comes first. Prints one line of JSON: whether every picture is there once and with the same result; how many
went through the model twice because a kill lost their results; the pictures a second of both runs from the first
picture that is read (starting Python does not count), and their ratio, by the clock and by processor time (on a busy
machine both are coarse); the ratio from beginning to end by the clock; and the memory of the uninterrupted process,
which /proc says five times a second.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_hf import DETRImageProcessor
from detr_hf.inference.prediction import read_predictions

from ..conftest import tiny_model

ROOT = Path(__file__).parents[2]
SIZES_HW = [(96, 128), (128, 96), (96, 96), (90, 128)]
SHARD_SIZE = 500
BAD = 3
COUNTING = "--counting"


class Session(NamedTuple):
    """One process: seconds from its start and from its first picture to its end, the processor's seconds of the
    latter, and (results, MiB) while it ran."""

    seconds: float
    predicting: float
    processor: float
    memory: list[tuple[int, float]]


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
    from detr_hf.inference.detector import Detector

    detect = Detector._results

    def count_and_detect(self, batch, threshold):
        with counter.open("ab") as file:
            file.write(b"." * len(batch))
        return detect(self, batch, threshold)

    Detector._results = count_and_detect
    sys.argv[1:] = arguments
    main()


def results_in(out: Path) -> int:
    """How many results are on disk."""
    finished = len(list(out.glob("part-*")))
    return finished * SHARD_SIZE + sum(path.read_bytes().count(b"\n") for path in out.glob("unfinished/*.jsonl"))


def session(line: list[str], out: Path, kill_at: int | None = None, wait: float = 0.0) -> Session:
    """Runs the command to its end, or kills it `wait` seconds after `kill_at` results are there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    first, memory, worked, worked_first = None, [], 0.0, 0.0
    started = time.perf_counter()
    process = subprocess.Popen(line, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        results = results_in(out)
        worked = processor_seconds(process.pid) or worked
        if first is None and writes_to(process.pid, out):
            first, worked_first = time.perf_counter(), worked
        memory.append((results, own_mib(process.pid)))
        if kill_at is not None and results >= kill_at:
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
    ended = time.perf_counter()
    errors = process.stderr.read()
    wanted = 0 if kill_at is None else -signal.SIGKILL
    if process.returncode != wanted:
        raise RuntimeError(f"the process ended with {process.returncode}, expected {wanted}:\n{errors}")
    return Session(ended - started, ended - (first or ended), worked - worked_first, memory)


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

    straight, out = folder / "straight", folder / "killed"
    alone = session(command(folder / "model", folder / "pictures", straight), straight)
    line, chance = command(folder / "model", folder / "pictures", out), random.Random(0)
    sessions = [
        session(line, out, kill_at=count * (number + 1) // (kills + 1), wait=chance.uniform(0, 0.5))
        for number in range(kills)
    ]
    sessions.append(session(line, out))

    twice = out.with_suffix(".detected").stat().st_size - (count - BAD)
    names = [record["picture"] for record in read_predictions(out)]
    different, largest = differences(straight, out)
    rates = [count / alone.predicting, count / sum(one.predicting for one in sessions)]
    costs = [alone.processor, sum(one.processor for one in sessions)]
    fifths = [[mib for results, mib in alone.memory if results * 5 // (count + 1) == fifth] for fifth in range(5)]
    return {
        "pictures": count,
        "kills": kills,
        "complete_and_once": names == list(map(str, paths)),
        "errors_recorded": sum("error" in record for record in read_predictions(out)),
        "pictures_that_differ": different,
        "largest_difference_of_a_score": largest,
        "detected_twice": twice,
        "a_second_straight": round(rates[0], 1),
        "a_second_killed": round(rates[1], 1),
        "ratio": round(rates[1] / rates[0], 3),
        "ratio_by_processor_time": round(costs[0] / costs[1], 3),
        "ratio_from_start_to_end": round(alone.seconds / sum(one.seconds for one in sessions), 3),
        "seconds_straight": round(alone.seconds, 1),
        "most_mib_by_fifth": [round(max(fifth, default=0)) for fifth in fifths],
    }


if __name__ == "__main__":
    if sys.argv[1] == COUNTING:
        counting(Path(sys.argv[2]), sys.argv[3:])
    else:
        print(json.dumps(killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
