"""`detr-hf push` and `detr-hf verify`, where no Hub is needed; `tests/hub` has the rest."""

import shutil

import pytest
from typer.testing import CliRunner

from detr_hf.cli.main import app
from detr_hf.errors import IntegrityError
from detr_hf.inference.embedded import embedded_model_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_what_would_be_pushed_can_be_looked_at(tmp_path):
    folder = tmp_path / "out"
    shown = run("push", str(embedded_model_path()), "me/digits", "--folder", str(folder), "--license", "apache-2.0")
    assert shown.exit_code == 0, shown.output
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "model.safetensors", "modeling_detr.py", "SHA256SUMS", "facts.json"} <= names
    assert 'from_pretrained("me/digits", trust_remote_code=True)' in (folder / "README.md").read_text()
    assert run("verify", str(folder)).output.startswith(f"{folder}: ")
    (folder / "modeling_detr.py").write_text("damaged")
    failed = run("verify", str(folder))
    assert isinstance(failed.exception, IntegrityError) and "modeling_detr.py differs" in str(failed.exception)
    assert run("push", str(embedded_model_path()), "me/digits", "--folder", str(folder)).exit_code == 2


def test_a_manifest_is_written_for_a_folder_that_is_trusted(tmp_path):
    folder = shutil.copytree(embedded_model_path(), tmp_path / "model")
    (folder / "SHA256SUMS").unlink()
    assert run("verify", str(folder)).exception is not None
    assert run("verify", "--write", str(folder)).exit_code == 0
    assert "files are whole" in run("verify", str(folder)).output
    assert run("verify", "--write", str(tmp_path / "none")).exit_code == 2


@pytest.mark.parametrize("verb", ["push", "verify"])
def test_the_verbs_are_listed_and_explain_themselves(verb):
    assert verb in run("--help").output
    assert run(verb, "--help").exit_code == 0
