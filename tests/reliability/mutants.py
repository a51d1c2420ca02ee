"""`make mutants`: cosmic-ray changes the code that numbers hang on, one place at a time; a test must notice each.

    python -m tests.reliability.mutants                       a sample of every module
    python -m tests.reliability.mutants matcher --count 1000  every place of one
    cr-report --surviving-only --show-diff --show-output build/mutants/matcher-*.sqlite

cosmic-ray makes the changes and keeps the outcomes, so that a run that was stopped goes on. Our own is the sample, of
fixed seed, and that tests run in forks of a process that has imported torch: to start one takes ten times as long
as the tests. Files are changed in a copy, build/mutants/tree. What no test notices is listed, and judged in
`survivors.txt` beside this file. Exit code 1 below 85 % killed, of all but those that are judged to change nothing.
"""

import argparse
import importlib
import importlib.util
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path
from unittest import mock

import cosmic_ray.mutating
import pytest
from cosmic_ray.commands import execute, init
from cosmic_ray.config import ConfigDict
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "mutants"
JUDGED = Path(__file__).with_name("survivors.txt")
LEAST = 0.85
PROCESSING = "tests/processing/test_image_processing_detr.py"
# A module, and the files of its tests, the quick ones first.
MODULES: dict[str, tuple[str, ...]] = {
    "model/box_ops_detr": ("tests/model/test_box_ops_detr.py",),
    "model/matcher_detr": ("tests/model/test_loss_detr.py", "tests/model/test_fast_loss_detr.py"),
    "model/loss_detr": ("tests/model/test_loss_detr.py", "tests/model/test_fast_loss_detr.py"),
    "model/mask_loss_detr": ("tests/model/test_mask_loss_detr.py",),
    "processing/image_sizes_detr": ("tests/processing/test_image_sizes_detr.py", PROCESSING),
    "processing/pixel_batch_detr": ("tests/processing/test_pixel_batch_detr.py", PROCESSING),
    "processing/annotations_detr": ("tests/processing/test_annotations_detr.py", PROCESSING),
    "processing/image_processing_base_detr": (PROCESSING,),
    "processing/post_processing_detr": ("tests/processing/test_post_processing_detr.py", PROCESSING),
    "processing/mask_post_processing_detr": ("tests/processing/test_mask_post_processing_detr.py",),
    "processing/segments_detr": ("tests/processing/test_mask_post_processing_detr.py",),
    "evaluation/panoptic": ("tests/evaluation/test_panoptic.py",),
}
# Imported before the first fork; all of it that is not detr_hf's own.
WARM = (
    *("torch", "torchvision.transforms.v2", "scipy.optimize", "timm", "PIL.Image", "pycocotools.mask", "hotcoco"),
    *("transformers.modeling_utils", "transformers.image_processing_utils_fast", "transformers.models.detr"),
    *("transformers.models.detr.modeling_detr", "transformers.models.auto.modeling_auto", "transformers.pipelines"),
    *("transformers.loss.loss_for_object_detection", "torch._dynamo", "datasets", "transformers.trainer"),
)
# `|` stands between types nearly everywhere, and without its decorator a dataclass is none.
NOT_CHANGED = ("ReplaceBinaryOperator_BitOr_", "RemoveDecorator")


def run_in_fork(command: str, timeout: float) -> tuple[TestOutcome, str]:
    """Runs pytest with the command's words, in place of `cosmic_ray.testing.run_tests`; a time out is a kill."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
                del sys.modules[name]
            sys.path.insert(0, os.getcwd())
            code = pytest.main(shlex.split(command))
            sys.stdout.flush()
            os._exit(int(code))
        end, ended = time.monotonic() + timeout, (0, 0)
        while not ended[0] and time.monotonic() < end:
            time.sleep(0.05)
            ended = os.waitpid(child, os.WNOHANG)
        if not ended[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return TestOutcome.KILLED, "timeout"
        said.seek(0)
        outcome = TestOutcome.KILLED if os.waitstatus_to_exitcode(ended[1]) else TestOutcome.SURVIVED
        return outcome, said.read().decode(errors="replace")


def fresh_tree() -> Path:
    """Returns a copy of what the tests need, in which files may be changed."""
    tree = KEPT / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("detr_hf", "tests", "examples", "benchmarks", "docs", "model_cards"):
        shutil.copytree(ROOT / name, tree / name, ignore=left_out)
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy2(path, tree)
    return tree


def sample(items: tuple[WorkItem, ...], count: int, chance: random.Random) -> set[str]:
    """Returns the ids of changes at so many places, one a place: an operator has eleven others, a number two."""
    places: dict[tuple[int, int], list[WorkItem]] = {}
    for item in sorted(items, key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence)):
        if not item.mutations[0].operator_name.removeprefix("core/").startswith(NOT_CHANGED):
            places.setdefault(item.mutations[0].start_pos, []).append(item)
    return {chance.choice(places[place]).job_id for place in chance.sample(sorted(places), min(count, len(places)))}


def change(result: WorkResult) -> str:
    """Returns the changed line before and after, which outlives edits elsewhere in the module."""
    lines = [line for line in result.diff.split("\n") if line[:1] in "-+" and line[:4] not in ("--- ", "+++ ")]
    return " -> ".join(" ".join(line[1:].split()) for line in lines)


def run(module: str, count: int, seed: str) -> tuple[int, int]:
    """Prints a module's line and its survivors; returns how many changes were tried and killed."""
    path, tests = Path("detr_hf") / f"{module}.py", MODULES[module]
    texts = "".join(Path(name).read_text(encoding="utf-8") for name in (path, *tests))
    session = KEPT / f"{path.stem.removesuffix('_detr')}-{zlib.crc32(texts.encode()):08x}-{seed}-{count}.sqlite"
    command = shlex.join(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests])
    began = time.monotonic()
    if run_in_fork(command, 3600)[0] is TestOutcome.KILLED:
        raise SystemExit(f"{module}: its tests fail without a change; run pytest {command}")
    limit = 60 + 10 * (time.monotonic() - began)
    compiled = Path(importlib.util.cache_from_source(path))

    def tested(command: str, timeout: float) -> tuple[TestOutcome, str]:
        compiled.unlink(missing_ok=True)  # Python would take it for the change's, within the same second
        return run_in_fork(command, timeout)

    with use_db(session) as work, mock.patch.object(cosmic_ray.mutating, "run_tests", tested):
        if not work.num_work_items:
            init([path], work, {})
            chosen = sample(work.work_items, count, random.Random(f"{seed} {module}"))
            left_out = [item.job_id for item in work.work_items if item.job_id not in chosen]
            work.set_multiple_results(left_out, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
        execute(work, ConfigDict({"test-command": command, "timeout": limit, "distributor": {"name": "local"}}))
        done = [pair for pair in work.completed_work_items if pair[1].worker_outcome is WorkerOutcome.NORMAL]
        every = work.num_work_items
    compiled.unlink(missing_ok=True)
    equal = {line.split(" = equal")[0] for line in JUDGED.read_text("utf-8").splitlines() if " = equal" in line}
    alive = sorted(f"{module}: {change(result)}" for _, result in done if not result.is_killed)
    unequal = [line for line in alive if line not in equal]
    tried, killed = len(done) - len(alive) + len(unequal), len(done) - len(alive)
    print(f"{module:40}{every:6} changes {tried:5} tried {killed:5} killed {len(alive) - len(unequal):4} equal")
    print("".join(f"    {line}\n" for line in unequal), end="", flush=True)
    return tried, killed


def main(arguments: list[str] | None = None) -> int:
    """Runs the modules and prints their lines; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"by default all: {', '.join(MODULES)}")
    parser.add_argument("--count", type=int, default=20, help="places changed in a module")
    parser.add_argument("--seed", default="0")
    given = parser.parse_args(arguments)
    names = {Path(name).name.removesuffix("_detr"): name for name in MODULES}
    unknown = set(given.modules) - set(names)
    if unknown:
        parser.error(f"there is no module {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in WARM:
        importlib.import_module(name)
    os.chdir(fresh_tree())
    results = [run(names[name], given.count, given.seed) for name in given.modules or names]
    tried, killed = (sum(result[place] for result in results) for place in (0, 1))
    print(f"{killed} of {tried} killed ({killed / max(tried, 1):.0%}; wanted {LEAST:.0%})")
    return 0 if killed >= LEAST * tried else 1


if __name__ == "__main__":
    sys.exit(main())
