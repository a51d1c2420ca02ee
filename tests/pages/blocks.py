"""A plugin that makes every block of a page a test: `pytest -p tests.pages.blocks README.md docs`.

Python blocks of a page share one namespace, shell blocks their folder; both find what `stage.py` makes, and programs
are those of `shim.py`. In the tables of docs/coming_from.md the code of each line's second cell runs too. A block that
cannot run is skipped with its reason, and there may be three of these. What a page's prose takes for granted, such as
`model`, is made in an invisible block.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests.hub.conftest import client_environment
from tests.hub.server import HubServer
from tests.pages.shim import end_app

ROOT = Path(__file__).resolve().parents[2]
MOST_SKIPPED = 3
LONGEST = 900  # seconds of a shell block
ROW = re.compile(r"^\|(?!\s*-)[^|\n]*\|([^|\n]*`[^|\n]*)\|", re.MULTILINE)
SHIMS = ("detr-hf", "python", "pip", "pytest", "make", "torchrun", "accelerate")

FOLDER = Path(tempfile.mkdtemp(prefix="pages_"))
HUB = HubServer().start()
# Before huggingface_hub is imported, which reads them once.
os.environ.update(client_environment(HUB.endpoint, FOLDER / "home"))
os.environ.update({"DOCS_WARM": str(FOLDER / "warm"), "DOCS_APP": str(FOLDER / "app")})
os.environ.update({"TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"})
os.environ.update({"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])})
os.environ["PATH"] = f"{FOLDER / 'bin'}{os.pathsep}{os.environ['PATH']}"


@cache
def stage() -> Any:
    """Returns the stage, made once, with the warm process beside it."""
    from .stage import Stage, train_shortly

    (FOLDER / "bin").mkdir()
    for name in SHIMS:
        shim = FOLDER / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/pages/shim.py"} {name} "$@"\n')
        shim.chmod(0o755)
    Page.warm = subprocess.Popen([sys.executable, str(ROOT / "tests/pages/warm.py"), os.environ["DOCS_WARM"]])
    train_shortly()
    return Stage(FOLDER, HUB)


class Printing(PythonEvaluator):
    """Runs a block, which has to print what stands behind its lines `print(...)  # what`, if anything does."""

    def __call__(self, example: Example) -> None:
        """Raises where something else is printed."""
        promised = re.findall(r"^print\(.*\)  # (.*)$", example.parsed, re.MULTILINE)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            super().__call__(example)
        if promised:
            assert printed.getvalue().splitlines() == promised


def shell(example: Example) -> None:
    """Runs a block as bash does; the first command that fails is an error, with all that was printed."""
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}"


def rows(document: Document) -> Iterator[Region]:
    """Yields the code of second cells in tables of what changes: a command, or Python."""
    if not document.path.endswith("coming_from.md"):
        return
    for row in ROW.finditer(document.text):
        for code in re.finditer(r"`([^`]+)`", row[1]):
            if not code[1].startswith("--"):  # an option alone, which tests/test_docs.py looks up
                start = row.start(1) + code.start()
                yield Region(start, start + len(code[0]), code[1], cell)


def cell(example: Example) -> None:
    """Runs the code of a table's cell."""
    if example.parsed.startswith(("detr-hf ", "torchrun ", "pip ")):
        return shell(example)
    exec(compile(example.parsed, example.path, "exec"), example.namespace)


class Page:
    """The folder in which the blocks of the page at work run."""

    inside: Any = None
    warm: subprocess.Popen | None = None

    @classmethod
    def enter(cls, namespace: dict[str, Any]) -> None:
        """Goes there; the namespace is the page's."""
        cls.inside = stage().folder_of(str(len(os.listdir(FOLDER))))
        os.chdir(cls.inside.__enter__())

    @classmethod
    def leave(cls, namespace: dict[str, Any]) -> None:
        """Comes back, and leaves nothing."""
        os.chdir(ROOT)
        namespace.clear()
        end_app()
        if cls.inside is not None:
            cls.inside.__exit__(None, None, None)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", Printing()), CodeBlockParser("bash", shell), rows, SkipParser()],
    path=str(ROOT),
    pattern="*.md",
    setup=Page.enter,
    teardown=Page.leave,
).pytest()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many blocks ran, by page, and which did not, and why."""
    passed, skipped = (terminalreporter.stats.get(kind, []) for kind in ("passed", "skipped"))
    ran = Counter(report.nodeid.split("::")[0] for report in passed if getattr(report, "is_block", False))
    for page, count in sorted(ran.items()):
        terminalreporter.write_line(f"{count:4} {page}")
    for report in skipped:
        terminalreporter.write_line(f"skipped: {report.nodeid}: {report.longrepr[2]}")
    terminalreporter.write_line(f"{ran.total()} blocks of {len(ran)} pages executed, {len(skipped)} skipped")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    """Prints what is wrong at once: a run of all pages takes its time."""
    report = yield
    report.is_block = isinstance(getattr(item, "example", None), Example) and isinstance(item.example.parsed, str)
    if report.failed:
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"\n{item.nodeid}: {call.excinfo.exconly()[-3000:]}")
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Makes too many skipped blocks a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if len(reporter.stats.get("skipped", [])) > MOST_SKIPPED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure() -> None:
    """Ends what was started."""
    if Page.warm is not None:
        Page.warm.kill()
    HUB.stop()
    subprocess.run(["rm", "-rf", str(FOLDER)])
