"""`detr-hf doctor`: what a report needs, no token, exit code 1 for what is wrong, and one where torch is broken."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detr_hf.checkpoints.embedded import DEMO_DIGITS
from detr_hf.cli.main import app
from detr_hf.inference import diagnosis
from detr_hf.whole_files import whole_file

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_everything_is_said_but_no_secret(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hf_secret@mirror.example/hf?token=hf_secret")
    left = tmp_path / "deep" / "er" / ".model.onnx.0123abcd.detr_hf.unfinished"
    left.parent.mkdir(parents=True)
    left.touch()
    with whole_file(tmp_path / "in_work.json"):
        done = run(tmp_path, "--json", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "hf_secret" not in done.output + text
    found = json.loads(text)
    environment = found["system"]["environment"]
    assert (environment["HF_ENDPOINT"], environment["HF_TOKEN"]) == ("https://mirror.example/hf", "set (not shown)")
    assert found["hub"]["token"] is True
    assert [Path(path).name for path in found["leftovers"] if str(tmp_path) in path] == [left.name]
    assert left.exists() and str(left) in done.output
    test = found["self_test"]
    assert test["passed"] and test["found"] == ["8", "8", "6", "1", "2"] and test["seconds_of_loading"] > 0
    named = {f"{each['name']}{each['wanted']}" for each in found["packages"] if not each["extras"]}
    assert {line.partition(",")[0] for line in PROJECT["dependencies"]} <= named | {"transformers>=5.23"}
    assert set(found["extras"]) == set(PROJECT["optional-dependencies"]) - {"test", "dev"}
    assert all(each["version"] is None or f"{each['name']} " in done.output for each in found["packages"])
    assert run(tmp_path, "--no-self-test", "--json", tmp_path / "report.json").exit_code == 0  # over its own


def test_what_is_outside_its_bounds_or_missing_is_a_fault_and_named(monkeypatch):
    versions = {"torch": "2.5.1", "timm": None, "optuna": None, "onnx": "1.0"}
    monkeypatch.setattr(diagnosis, "version_of", lambda name: versions.get(name, "99.0"))
    done = run("--no-self-test")
    assert done.exit_code == 1
    for words in (
        "FAULT: torch is 2.5.1, and >=2.6 is needed: pip install 'torch>=2.6'",
        "FAULT: timm is not installed",
        "FAULT: transformers is 99.0, and",
        "extra search: optuna missing, for which: pip install 'detr-hf[search]'",
        "outside >=1.19",
    ):
        assert words in done.output, done.output
    assert "FAULT: o" not in done.output  # nobody needs optuna or onnx to detect


def not_all() -> dict:
    return {"passed": False, "found": [], "expected": ["8"], "device": "cpu", "memory_mib": 1} | {
        f"{what}": 1.0
        for what in ("seconds_of_imports", "seconds_of_loading", "ms_of_first_picture", "ms_of_next_pictures")
    }


@pytest.mark.parametrize(
    ("part", "answer", "code", "words"),
    [
        ("look_at_scene", not_all, 1, "FAULT: the self-test failed: detr-digits found nothing in the shipped scene"),
        ("look_at_scene", lambda: 1 / 0, 1, "FAULT: the self-test did not run: ZeroDivisionError"),
        ("processor", lambda: 1 / 0, 0, "cannot be asked: ZeroDivisionError"),
    ],
)
def test_what_fails_is_a_line_of_the_report(part, answer, code, words, monkeypatch):
    monkeypatch.setattr(diagnosis, "look_at_scene", lambda: not_all() | {"passed": True})
    monkeypatch.setattr(diagnosis, part, answer)
    done = run()
    assert done.exit_code == code and words in done.output, done.output


def test_other_digits_at_other_places_do_not_pass():
    right = [(name, x + 1.0, y - 1.0) for name, (x, y) in DEMO_DIGITS]
    assert diagnosis.are_the_digits(right)
    moved = [*right[:-1], ("2", right[-1][1] + 9, right[-1][2])]
    for wrong in (right[:-1], [*right, right[-1]], [("3", *right[0][1:]), *right[1:]], moved):
        assert not diagnosis.are_the_digits(wrong)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert run(tmp_path / "gone").exit_code == 2
