"""`make coverage`: which lines and branches of detr_hf the quick tests run, room by room, then of all together.

    python -m tests.reliability.covered                      every room of tests/, then the whole
    python -m tests.reliability.covered model processing     these rooms, with what is kept of the others
    python -m tests.reliability.covered --only-report        what is kept

What a room's tests ran is kept in build/coverage until the room is run again, so that the whole can be measured in
pieces. What child processes run does not count. Exit code 1 below the least of lines and branches that are wanted.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "coverage"
LINES, BRANCHES = 90, 85
NOT_QUICK = ("benchmarks", "first_hour", "pages", "reliability", "transformers_common")


def rooms() -> dict[str, list[str]]:
    """Returns the rooms of tests/ by name, and as "tests" the files that are in none."""
    folders = sorted(path.parent.name for path in (ROOT / "tests").glob("*/__init__.py"))
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py"))
    return {**{name: [f"tests/{name}"] for name in folders if name not in NOT_QUICK}, "tests": files}


def coverage(*arguments: object, **settings: str) -> int:
    """Returns the exit code of the program `coverage`."""
    line = [sys.executable, "-m", "coverage", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env=os.environ | settings, check=False).returncode


def measure(room: str, paths: list[str]) -> int:
    """Keeps what the tests of a room run; returns pytest's exit code."""
    for old in KEPT.glob(f"{room}.*"):
        old.unlink()
    KEPT.mkdir(parents=True, exist_ok=True)
    tests = ("pytest", "-q", "-m", "not slow", "--timeout", "1200", *paths)
    return coverage("run", "-m", *tests, COVERAGE_FILE=str(KEPT / f"{room}.data"))


def report() -> int:
    """Prints lines and branches by room of detr_hf and in all; returns 1 where they are less than wanted."""
    whole = {"COVERAGE_FILE": str(KEPT / "all")}
    if coverage("combine", "--keep", "-q", *sorted(KEPT.glob("*.data*")), **whole):
        return 1
    coverage("json", "-q", "-o", KEPT / "all.json", **whole)
    counts: dict[str, list[int]] = {}
    for name, file in json.loads((KEPT / "all.json").read_text())["files"].items():
        parts, summary = Path(name).parts, file["summary"]
        of_file = [
            *(summary["covered_lines"], summary["num_statements"]),
            *(summary["covered_branches"], summary["num_branches"]),
        ]
        for room in (parts[1] if len(parts) > 2 else "detr_hf", "all"):
            counts[room] = [a + b for a, b in zip(counts.get(room, [0] * 4), of_file, strict=True)]
    print(f"{'room':14}{'lines':>8}{'%':>7}{'branches':>10}{'%':>7}")
    for room, (lines, of_lines, branches, of_branches) in sorted(counts.items(), key=lambda item: item[0] == "all"):
        shares = (100 * lines / max(of_lines, 1), 100 * branches / max(of_branches, 1))
        print(f"{room:14}{of_lines:8}{shares[0]:7.1f}{of_branches:10}{shares[1]:7.1f}")
    print(f"wanted of all: {LINES} % of lines, {BRANCHES} % of branches")
    return int(shares[0] < LINES or shares[1] < BRANCHES)


def main(arguments: list[str] | None = None) -> int:
    """Measures rooms and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.covered", description=__doc__.split("\n")[0])
    parser.add_argument("rooms", nargs="*", help=f"by default all: {', '.join(rooms())}")
    parser.add_argument("--only-report", action="store_true")
    given = parser.parse_args(arguments)
    unknown = set(given.rooms) - set(rooms())
    if unknown:
        parser.error(f"there is no room {', '.join(sorted(unknown))}; there are {', '.join(rooms())}")
    chosen = [] if given.only_report else given.rooms or list(rooms())
    failed = [room for room in chosen if measure(room, rooms()[room])]
    if failed:
        print(f"tests fail in {', '.join(failed)}")
    return report() or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
