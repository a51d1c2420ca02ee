"""`detr-hf convert`: there and back gives the same tensors."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from detr_hf import DETRForObjectDetection
from detr_hf.cli.main import app

from ..conftest import tiny_model


def test_to_transformers_and_back(tmp_path: Path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "own")
    for src, dst, to in (("own", "theirs", "transformers"), ("theirs", "back", "detr_hf")):
        done = CliRunner().invoke(app, ["convert", str(tmp_path / src), str(tmp_path / dst), "--to", to])
        assert done.exit_code == 0, done.output
        assert str(tmp_path / dst) in done.stdout
    back = DETRForObjectDetection.from_pretrained(tmp_path / "back").state_dict()
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("to", ["onnx", ""])
def test_an_unknown_layout_is_a_wrong_call(tmp_path, to):
    assert CliRunner().invoke(app, ["convert", str(tmp_path), str(tmp_path / "x"), "--to", to]).exit_code == 2


def test_files_in_the_way_are_left_alone_unless_told(tmp_path):
    tiny_model().save_pretrained(tmp_path / "own")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    call = ["convert", str(tmp_path / "own"), str(tmp_path / "there")]
    refused = CliRunner().invoke(app, call)
    assert isinstance(refused.exception, FileExistsError) and [
        path.name for path in (tmp_path / "there").iterdir()
    ] == ["notes.txt"]
    assert CliRunner().invoke(app, [*call, "--overwrite"]).exit_code == 0
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine"
