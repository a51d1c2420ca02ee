"""What runs long, and what runs at once: memory, handles, threads, temporary files; threads, forks, two processes."""

import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detr_hf import Detector, DETRImageProcessor
from detr_hf.evaluation import DetectionEvaluator

from ..bad_inputs.test_catalogue import HERE, catalogue
from ..conftest import NARROW, tiny_model, tiny_segmenter
from ..training.scenes import Scenes, digest, micro_model, trainer, write_coco
from .killing import ROOT, app, detr_hf, model_in, models, noise

FLAT_MIB = 3.0  # by a thousand, of memory that is in use
MIB = 2**20


def held() -> dict[str, float]:
    """Returns MiB of memory in use (what the allocator keeps for later is given back), handles, threads, files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "mib": pages * os.sysconf("SC_PAGE_SIZE") / MIB,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir(tempfile.gettempdir())),
    }


def in_child(work: Callable[[], Any]) -> Any:
    """Returns what the work gives in a process of its own, as JSON holds it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writer, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as opened:
        text = opened.read()
    os.waitpid(child, 0)
    return json.loads(text or '{"error": "the process died"}')


def slope(samples: list[tuple[int, dict[str, float]]], flat_mib: float = FLAT_MIB) -> tuple[str, list[str]]:
    """Returns how memory grew over the second half, by a thousand, and what else did not stay."""
    (first, before), (last, after) = samples[len(samples) // 2], samples[-1]
    grown = (after["mib"] - before["mib"]) / max(last - first, 1) * 1000
    faults = [
        f"{name}: {before[name]} to {after[name]}"
        for name in ("handles", "threads", "files")
        if after[name] > before[name]
    ]
    if grown * max(last - first, 1) / 1000 > flat_mib and grown > flat_mib:
        faults.append(f"memory grows by {grown:.1f} MiB a thousand")
    course = ", ".join(f"{count}: {sample['mib']:.0f}" for count, sample in samples[:: max(1, len(samples) // 4)])
    return f"MiB at {course}; {grown:+.1f} a thousand; handles, threads, files kept: {not faults}", faults


def soak(work: Callable[[Any], list[Any]], flat_mib: float = FLAT_MIB) -> Callable[[Any], tuple[str, list[str]]]:
    """Returns the part of a work that gives samples."""

    def part(budget: Any) -> tuple[str, list[str]]:
        def alone() -> list[Any]:
            tempfile.tempdir = tempfile.mkdtemp(dir=budget.folder)  # where nobody else leaves files
            return work(budget)

        found = in_child(alone)
        if isinstance(found, dict):
            return found["error"], [found["error"]]
        return slope([(count, sample) for count, sample in found], flat_mib)

    return part


def predictions(budget: Any) -> list[Any]:
    """Pictures of random sizes as arrays, files and lists through one detector."""
    chance, count = random.Random(budget.seed), budget.count(20_000)
    detector = Detector(tiny_model(**NARROW), DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))
    path, samples = noise(budget.folder / "a.png", 0), []
    for number in range(count):
        size = (chance.randint(16, 200), chance.randint(16, 200), 3)
        image = np.full(size, chance.randrange(256), np.uint8)
        detector(chance.choice((image, path, [image, path, image])), threshold=0.5)
        if number % max(1, count // 20) == 0 or number == count - 1:
            samples.append((number, held()))
        if time.monotonic() > budget.until:
            break
    return samples


class OfAnySize(Scenes):
    """Scenes whose heights are drawn each time."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.heights = tuple(random.choice(range(32, 129, 8)) for _ in range(2))
        return super().__getitem__(index)


def training_steps(budget: Any) -> list[Any]:
    """Steps of training at random sizes; what they hold is seen when a batch is read."""
    steps, samples = budget.count(2_000), []

    class Watched(OfAnySize):
        read = 0

        def __getitem__(self, index: int) -> dict[str, Any]:
            if Watched.read % max(1, 2 * steps // 20) == 0:
                samples.append((Watched.read // 2, held()))
            Watched.read += 1
            return super().__getitem__(index)

    options = {"save_strategy": "no", "logging_steps": 10_000, "per_device_train_batch_size": 2}
    trainer(budget.folder / "out", micro_model(), train=Watched(8), max_steps=steps, **options).train()
    return [*samples, (steps, held())]


def evaluations(budget: Any) -> list[Any]:
    """`detr-hf eval` of a hundred queries with masks on panoptic data: what is kept is kept small."""
    count, samples, root = budget.count(2_000), [], budget.folder
    write_panoptic_of(root / "data", count)
    tiny_segmenter(num_queries=100, id2label={0: "owl", 1: "sky"}, **NARROW).save_pretrained(root / "model")
    DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / "model")
    update = DetectionEvaluator.update

    def watched(self: DetectionEvaluator, *batch: Any) -> None:
        update(self, *batch)
        if len(self) >= len(samples) * max(8, count // 20):
            samples.append((len(self), held()))

    DetectionEvaluator.update = watched
    detr_hf("eval", root / "model", root / "data", "--task", "panoptic", "--json", root / "found.json")
    found = json.loads((root / "found.json").read_text())
    assert found["panoptic"]["num_images"] == found["masks"]["num_images"] == count, "some pictures were not measured"
    return samples


def write_panoptic_of(root: Path, count: int) -> None:
    """Writes a panoptic data set of so many pictures to measure on, which are two under other names."""
    path = write_coco(root, panoptic=True) / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    for kind, folder, key in (("images", root / "val", "id"), ("annotations", path.with_suffix(""), "image_id")):
        given, content[kind] = content[kind], []
        for number in range(count):
            one = given[number % 2]
            name = f"{number}{Path(one['file_name']).suffix}"
            os.link(folder / one["file_name"], folder / name)
            content[kind].append({**one, key: number + 1, "file_name": name})
        for one in given:
            (folder / one["file_name"]).unlink()
    path.write_text(json.dumps(content))


def threads(budget: Any) -> tuple[str, list[str]]:
    """Eight threads share a detector: the results are those of one, to the bit."""
    detector = Detector(tiny_model(**NARROW), DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (40 + 7 * index, 64, 3), dtype=np.uint8) for index in range(12)]
    expected = [as_numbers(detector(image, threshold=0.0)) for image in images]
    wrong: list[str] = []

    def work(which: int) -> None:
        for turn in range(budget.count(50)):
            index = (which + turn) % len(images)
            if as_numbers(detector(images[index], threshold=0.0)) != expected[index]:
                wrong.append(f"thread {which}, picture {index}: other results")

    workers = [threading.Thread(target=work, args=(which,)) for which in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    forked = in_child(lambda: [as_numbers(detector(image, threshold=0.0)) for image in images])
    if forked != json.loads(json.dumps(expected)):
        wrong.append(f"a forked process: {str(forked)[:200]}")
    return f"{8 * budget.count(50)} predictions in 8 threads and {len(images)} after a fork, {len(wrong)} wrong", wrong


def as_numbers(found: Any) -> list[Any]:
    return [[name, float(score), *map(float, box)] for name, _, score, box in found]


def two_processes(budget: Any) -> tuple[str, list[str]]:
    """Two processes save into one folder, and predict into one run: whole, or refused by name."""
    root, faults = budget.folder, []
    made, versions = models(root)
    for round_ in range(budget.count(20)):
        place = root / f"both{round_ % 2}" / "model"
        children = [
            fork(lambda version=version, place=place: made[version].save_pretrained(place)) for version in (0, 1)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if model_in(place, versions) not in (0, 1) or any(codes):
            faults.append(f"round {round_}: exit codes {codes}, version {model_in(place, versions)}")
    (root / "pictures").mkdir()
    for index in range(60):
        noise(root / "pictures" / f"{index}.png", index)
    line = ["predict", str(root / "model0"), str(root / "pictures"), "--threshold", "0", "--out", str(root / "run")]
    said = [root / f"said{index}" for index in (0, 1)]
    children = [fork(lambda path=path: invoke(line, path)) for path in said]
    for child in children:
        os.waitpid(child, 0)
    texts = [path.read_text() for path in said]
    if not any(text.startswith("0 ") for text in texts) or not all(
        text.startswith("0 ") or "Another process is writing" in text for text in texts
    ):
        faults.append(f"predict --out: {texts}")
    return f"{budget.count(20)} saves by two at once, one run by two; {len(faults)} faults", faults


def invoke(line: list[str], path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, line)
    path.write_text(f"{done.exit_code} {done.output[-500:]} {done.exception}")


def fork(work: Callable[[], Any]) -> int:
    """Returns the id of a process that does the work."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def same_seed(budget: Any) -> tuple[str, list[str]]:
    """Runs of one seed, with other numbers of workers and other things done before; a run of another seed; then the
    tests of two processes."""
    steps = budget.count(200)

    def weights(name: str, **options: Any) -> str:
        run = trainer(budget.folder / name, train=Scenes(8), max_steps=steps, save_strategy="no", **options)
        run.train()
        return digest(run.model)

    first = weights("first")
    np.random.seed(5), random.seed(5)  # what a process drew before is none of a run's chances
    again = {
        "again": weights("again"),
        "one worker": weights("one", dataloader_num_workers=1),
        "three that live on": weights("three", dataloader_num_workers=3, dataloader_persistent_workers=True),
    }
    faults = [f"{name}: other weights than those of the first run" for name, found in again.items() if found != first]
    if weights("other", seed=7) == first:
        faults.append("another seed gives the same weights")
    said, failed = run_tests(["tests/training/test_distributed_training.py"])
    return f"{steps} steps, {len(again)} runs like the first: {not faults}; two processes: {said}", faults + failed


def run_tests(names: list[str]) -> tuple[str, list[str]]:
    """Returns the last line of pytest on these tests, slow ones too, and those that failed."""
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *names]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    failed = [one for one in lines if one.startswith(("FAILED", "ERROR"))]
    return lines[-1].strip("= "), failed or ([f"exit code {done.returncode}: {lines[-1]}"] if done.returncode else [])


def whole_catalogue(budget: Any) -> tuple[str, list[str]]:
    """Runs every test that the catalogue of bad inputs names; a share of them where the scale is one."""
    proofs = [entry.proof.partition("[")[0] for entry in catalogue() if entry.proof != HERE]
    named = sorted({f"tests/{proof}" for proof in proofs})
    chosen = named[:: max(1, round(len(named) / budget.count(len(named))))]
    return run_tests(["tests/bad_inputs/test_catalogue.py", *chosen])


RUNNING = {
    "soak-predict": ("20,000 pictures of random sizes: memory flat, nothing left", soak(predictions)),
    "soak-train": ("2,000 steps of random sizes: memory flat, nothing left", soak(training_steps)),
    "soak-eval": ("2,000 pictures with masks: 5 KiB kept of each, nothing left", soak(evaluations, 5.0)),
    "threads": ("8 threads and a fork: the results of one, to the bit", threads),
    "two-processes": ("one folder: one whole model; one run, or refused by name", two_processes),
    "same-seed": ("one seed, any number of workers: the same weights to the bit; two processes 1e-5", same_seed),
    "catalogue": ("233 of 233 bad inputs as they should", whole_catalogue),
}
