"""`make reliability`: what must not break, part by part, with a table at the end; exit code 1 where a part fails.

    python -m tests.reliability.run                               every part, at its whole size (hours)
    python -m tests.reliability.run --scale 0.01 --minutes 10     a hundredth of it, in ten minutes at most
    python -m tests.reliability.run pictures kill-json --seed 7   two parts, with other chances

A part that the time ends is told by its count. The same seed gives the same cases.
"""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers

from .families import FAMILIES
from .fuzzing import fuzz
from .killing import KILLS
from .places import PLACES
from .running import RUNNING

WIDTHS = (16, 58, 66, 8)


@dataclass
class Budget:
    """How much of a part is done: the share of its whole size, the time it must end by, and its chances."""

    scale: float
    until: float
    seed: str
    folder: Path

    def count(self, whole: int) -> int:
        """Returns the share of a number, at least 1."""
        return max(1, round(whole * self.scale))


@dataclass
class Row:
    """A line of the table."""

    part: str
    wanted: str
    seen: str
    seconds: float
    is_right: bool
    faults: list[str]


# A part's name -> what is wanted, and what it does: returns what was seen and the faults.
Part = tuple[str, Callable[[Budget], tuple[str, list[str]]]]


def fuzz_part(name: str) -> Part:
    """Returns the part of a family of cases."""
    make, whole = FAMILIES[name]

    def part(budget: Budget) -> tuple[str, list[str]]:
        found = fuzz(make(budget.folder), budget.count(whole), f"{budget.seed} {name}", budget.until)
        short = "" if found.cases >= budget.count(whole) else f" (of {budget.count(whole)}: the time was over)"
        return f"{found}{short}", found.faults

    return f"{whole:,} cases: no death, none over 5 s, errors that are documented", part


def parts() -> dict[str, Part]:
    """Returns every part by its name."""
    return {name: fuzz_part(name) for name in FAMILIES} | KILLS | PLACES | RUNNING


def run_part(name: str, budget: Budget) -> Row:
    """Returns the line of a part; a fault of the part itself is one."""
    wanted, part = parts()[name]
    started = time.monotonic()
    try:
        with quiet():
            seen, faults = part(budget)
    except Exception as error:
        seen, faults = f"{type(error).__name__}: {str(error)[:200]}", ["the part did not end"]
    return Row(name, wanted, seen, time.monotonic() - started, not faults, faults)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings and progress bars out of the output: thousands of cases say them thousands of times."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        datasets.enable_progress_bars()
        if bars:
            transformers.utils.logging.enable_progress_bar()


def line(*cells: object) -> str:
    """Returns a line of the table."""
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Runs parts and prints their table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.run", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"by default all: {', '.join(parts())}")
    parser.add_argument("--scale", type=float, default=1.0, help="the share of each part's size, at least one case")
    parser.add_argument("--minutes", type=float, default=600.0, help="for all parts together")
    parser.add_argument("--seed", default="0")
    given = parser.parse_args(arguments)
    unknown = set(given.parts) - set(parts())
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts())}")
    torch.set_num_threads(1)
    chosen, end, rows = given.parts or list(parts()), time.monotonic() + 60 * given.minutes, []
    print(line("part", "wanted", "seen", "seconds"))
    for index, name in enumerate(chosen):
        until = time.monotonic() + max(0.0, end - time.monotonic()) / (len(chosen) - index)
        with tempfile.TemporaryDirectory() as folder:
            row = run_part(name, Budget(given.scale, until, given.seed, Path(folder)))
        rows.append(row)
        mark = "" if row.is_right else f"  FAULTS: {len(row.faults)}"
        print(line(row.part, row.wanted, row.seen, f"{row.seconds:.0f}") + mark, flush=True)
        for fault in list(dict.fromkeys(row.faults))[:10]:
            print(f"    {fault}", flush=True)
        print(f"    python -m tests.reliability.run {name} --scale {given.scale:g} --seed {given.seed}", flush=True)
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
