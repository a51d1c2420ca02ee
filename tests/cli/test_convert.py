"""`detr-hf convert`: there and back gives the same tensors."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints.coco_names import id2label_for
from detr_hf.checkpoints.model_classes import load_model
from detr_hf.cli.main import app

from ..checkpoints.foreign import original_state_dict
from ..conftest import tiny_config, tiny_model


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


@pytest.mark.slow
def test_a_panoptic_file_keeps_its_masks_and_its_stuff_through_transformers_format(tmp_path: Path):
    model = DETRForSegmentation(tiny_config(backbone="test_resnet", id2label=id2label_for(250), nheads=8))
    args = Namespace(backbone="test_resnet", nheads=8)
    torch.save({"model": original_state_dict(model), "args": args}, tmp_path / "panoptic.pth")
    for src, dst, to in (
        ("panoptic.pth", "own", "detr_hf"),
        ("own", "theirs", "transformers"),
        ("theirs", "back", ""),
    ):
        options = ["--to", to] if to else []
        done = CliRunner().invoke(app, ["convert", str(tmp_path / src), str(tmp_path / dst), *options])
        assert done.exit_code == 0, done.exception
    assert '"DetrForSegmentation"' in (tmp_path / "theirs" / "config.json").read_text()
    back = load_model(tmp_path / "back")
    assert type(back) is DETRForSegmentation and not back.mask_head_is_new
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert DETRImageProcessor.from_pretrained(tmp_path / "back").label_ids_to_fuse[:2] == [92, 93]


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
