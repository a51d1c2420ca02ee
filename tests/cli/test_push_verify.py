"""`detr-hf push` and `detr-hf verify`, where no Hub is needed; `tests/hub` has the rest."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from detr_hf import DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.cli.main import app
from detr_hf.errors import IntegrityError
from detr_hf.hub.pushing import Publication, lay_out

from ..conftest import tiny_config


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


def test_a_model_with_masks_keeps_them_and_one_whose_mask_head_is_new_stays_here(tmp_path):
    model = DETRForSegmentation(tiny_config(backbone="test_resnet"))
    model.save_pretrained(tmp_path / "model")
    DETRImageProcessor(label_ids_to_fuse=[2]).save_pretrained(tmp_path / "model")
    shown = run("push", str(tmp_path / "model"), "me/masks", "--folder", str(tmp_path / "out"))
    assert shown.exit_code == 0, shown.exception
    facts, card = (
        json.loads((tmp_path / "out" / "facts.json").read_text()),
        (tmp_path / "out" / "README.md").read_text(),
    )
    assert facts["model"]["class"] == "DETRForSegmentation" and "pipeline_tag: image-segmentation" in card
    assert DETRImageProcessor.from_pretrained(tmp_path / "out").label_ids_to_fuse == [2]
    (tmp_path / "new").mkdir()
    model.mask_head_is_new = True
    with pytest.raises(ValueError, match="mask head is new"):
        lay_out(tmp_path / "new", model, "me/masks", Publication())
    assert not list((tmp_path / "new").iterdir())


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
