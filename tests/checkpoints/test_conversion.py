"""`convert` writes model and processor in either format, and never half."""

import json

import pytest
from transformers import AutoImageProcessor, AutoModelForObjectDetection, DetrImageProcessor

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints import conversion
from detr_hf.checkpoints.conversion import convert
from detr_hf.checkpoints.model_classes import load_model
from tests.checkpoints.foreign import (
    NARROW,
    assert_same_outputs,
    assert_same_tensors,
    narrow_model,
    original_args,
    save_original,
    their_detr,
    their_table_transformer,
)
from tests.conftest import small_files, tiny_config, tiny_model


@pytest.mark.parametrize("make", [their_detr, their_table_transformer])
def test_transformers_to_ours_and_back(tmp_path, make):
    theirs = make()
    theirs.save_pretrained(tmp_path / "a")
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        tmp_path / "a"
    )
    assert convert(tmp_path / "a", tmp_path / "b") == tmp_path / "b"
    ours = AutoModelForObjectDetection.from_pretrained(tmp_path / "b")
    assert type(ours) is DETRForObjectDetection
    assert_same_outputs(ours, theirs)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "b")
    assert type(processor) is DETRImageProcessor
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 96}
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor.resize_rule == "transformers"

    convert(tmp_path / "b", tmp_path / "c", to="transformers")
    back = AutoModelForObjectDetection.from_pretrained(tmp_path / "c")
    assert type(back) is type(theirs)
    assert_same_tensors(back.state_dict(), theirs.state_dict())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c")
    assert type(processor) is DetrImageProcessor
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 96}
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


def test_an_original_file_gets_the_default_processor(tmp_path):
    model = narrow_model()
    path = save_original(model, tmp_path / "detr.pth", original_args(model.config))
    convert(path, tmp_path / "new" / "folder")
    assert_same_tensors(
        DETRForObjectDetection.from_pretrained(tmp_path / "new" / "folder").state_dict(), model.state_dict()
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "new" / "folder")
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.resize_rule == "original"


def test_loading_arguments_are_passed_on(tmp_path):
    narrow_model().save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", id2label={0: "yak"})
    assert DETRForObjectDetection.from_pretrained(tmp_path / "b").config.id2label == {0: "yak"}


def test_masks_and_what_is_fused_are_kept(tmp_path):
    model = DETRForSegmentation(tiny_config(backbone_kwargs=NARROW))
    model.save_pretrained(tmp_path / "a")
    DETRImageProcessor(label_ids_to_fuse=[2]).save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b")
    assert_same_tensors(load_model(tmp_path / "b").state_dict(), model.state_dict())
    assert DETRImageProcessor.from_pretrained(tmp_path / "b").label_ids_to_fuse == [2]


def test_a_folder_with_files_is_kept(tmp_path):
    narrow_model().save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    (tmp_path / "b" / "pytorch_model.bin").write_text("an older model")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(tmp_path / "a", tmp_path / "b")
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == ["notes.txt", "pytorch_model.bin"]
    convert(tmp_path / "a", tmp_path / "b", overwrite=True)
    files = {file.name for file in (tmp_path / "b").iterdir()}
    assert "pytorch_model.bin" not in files
    assert {"notes.txt", "config.json", "model.safetensors", "preprocessor_config.json"} <= files


def test_an_empty_folder_will_do(tmp_path):
    narrow_model().save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    convert(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "config.json").is_file()


def test_wrong_destinations(tmp_path):
    narrow_model().save_pretrained(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        convert(tmp_path / "a", tmp_path / "file")
    with pytest.raises(ValueError, match="source itself"):
        convert(tmp_path / "a", tmp_path / "a", overwrite=True)
    with pytest.raises(ValueError, match="'onnx'"):
        convert(tmp_path / "a", tmp_path / "b", to="onnx")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "nothing.pth", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_a_refusal_leaves_nothing_behind(tmp_path):
    tiny_model(backbone="test_efficientnet").save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="carry an activation"):
        convert(tmp_path / "a", tmp_path / "b", to="transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_while_writing_keeps_the_old_model(tmp_path, monkeypatch):
    narrow_model(seed=1).save_pretrained(tmp_path / "b")
    before = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    narrow_model().save_pretrained(tmp_path / "a")

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(DETRImageProcessor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path / "a", tmp_path / "b", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("to", ["detr_hf", "transformers"])
def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, to):
    narrow_model(backbone="test_resnet", backbone_kwargs=None).save_pretrained(tmp_path / "a")
    with small_files(1 << 12), pytest.raises(OSError, match=rf"{tmp_path}/.* cannot be written: .*File too large"):
        convert(tmp_path / "a", tmp_path / "b", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_formats_are_those_of_the_config(tmp_path):
    narrow_model(backbone="test_resnet", backbone_kwargs=None).save_pretrained(tmp_path / "a")
    types = {}
    for to in conversion.FORMATS:
        convert(tmp_path / "a", tmp_path / to, to=to)
        types[to] = json.loads((tmp_path / to / "config.json").read_text())["model_type"]
    assert types == {"detr_hf": "detr_hf", "transformers": "detr"}
