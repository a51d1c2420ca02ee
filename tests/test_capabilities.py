"""What a run says last: which capabilities the machine lacks, and what was checked in its plain form because of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import capabilities
from .capabilities import CAPABILITIES, TOOK_PLAIN_FORM, closing_lines, has

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(monkeypatch) -> Iterator[dict[str, bool]]:
    """A machine that has everything but AMX and executorch."""
    having = dict.fromkeys(CAPABILITIES, True) | {"AMX": False, "executorch": False}
    monkeypatch.setattr(capabilities, "CAPABILITIES", {name: lambda name=name: having[name] for name in having})
    has.cache_clear()
    yield having
    has.cache_clear()


def report_of(test: str, when: str = "call", *properties: tuple[str, str]) -> pytest.TestReport:
    """Returns a report as a worker of xdist sends it."""
    report = pytest.TestReport(test, (test, 1, test), {}, "passed", None, when, user_properties=properties)
    return pytest.TestReport._from_json(json.loads(json.dumps(report._to_json())))


def test_what_is_absent_is_said(machine):
    assert closing_lines([report_of("a")]) == ["capabilities absent here: AMX, executorch"]


def test_nothing_absent_is_said_too(machine):
    machine.update(AMX=True, executorch=True)
    assert closing_lines([]) == ["capabilities absent here: none"]


def test_checks_in_the_plain_form_are_counted_once_a_case(machine):
    plain = (TOOK_PLAIN_FORM, "AMX")
    reports = [
        report_of(f"t.py::{case}", when, plain) for case in ("b[1]", "b[2]", "a") for when in ("call", "teardown")
    ]
    other = report_of("t.py::c", "call", ("another property", "AMX"))
    assert closing_lines([*reports, other])[1:] == ["took the plain form without AMX: t.py::a (1), t.py::b (2)"]


def test_the_fixture_answers_and_tells(machine, machine_has, request):
    assert machine_has("AVX2") and not machine_has("AMX")
    assert request.node.user_properties == [(TOOK_PLAIN_FORM, "AMX")]
    request.node.user_properties.clear()  # this machine may well have it


@pytest.mark.slow
def test_a_run_in_workers_under_a_limit_says_it_in_its_last_lines():
    arguments = ("-n", "1", "-k", "test_linear_is_the_layer_and_relu", "tests/model/test_fast_kernels_detr.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    absent, plain, counts = done.stdout.splitlines()[-3:]
    assert absent.startswith("capabilities absent here: AVX2, AVX-512, ") and "instructions for bfloat16" in absent
    assert plain.startswith("took the plain form without oneDNN's linear layer in bfloat16: ") and "(4)" in plain
    assert " 8 passed" in counts
