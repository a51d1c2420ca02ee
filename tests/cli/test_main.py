"""The command as a whole: help, version, and how an error looks."""

import pytest
from typer.testing import CliRunner

import detr_hf
from detr_hf.cli.main import app, main


def test_help_names_the_verbs():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for verb in ("demo", "predict", "convert"):
        assert verb in shown.output
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"detr-hf {detr_hf.version.__version__}\n"


def test_a_wrong_call_exits_with_2():
    assert CliRunner().invoke(app, ["detect"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict", "a.jpg", "--threshold", "3"]).exit_code == 2


def run_main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["detr-hf", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_an_error_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    picture = tmp_path / "a.png"
    assert run_main(monkeypatch, "predict", str(tmp_path), str(picture)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("detr-hf: ") and "Traceback" not in last


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setenv("DETR_HF_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["detr-hf", "predict", str(tmp_path), str(tmp_path / "a.png")])
    with pytest.raises(Exception, match="bert"):
        main()
