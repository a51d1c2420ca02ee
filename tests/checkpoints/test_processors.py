"""Which image processor goes with a model, and that falling back on DETR's own is said."""

import logging
import shutil

import pytest

from detr_hf import DETRForObjectDetection, DETRImageProcessor
from detr_hf.checkpoints.processors import processor_of
from detr_hf.checkpoints.weight_files import Hub
from tests.conftest import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detr_hf"), "propagate", True)
    return caplog


def test_it_is_the_checkpoints(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    DETRImageProcessor(size=SIZE).save_pretrained(tmp_path)
    assert dict(processor_of(DETRForObjectDetection.from_pretrained(tmp_path)).size) == SIZE
    assert "DETR's own" not in warnings.text


def test_where_there_is_none_the_originals_is_taken_and_said(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    for model, reason in (
        (DETRForObjectDetection.from_pretrained(tmp_path), f"{tmp_path} has none that can be read"),
        (tiny_model(), "the model was loaded from no checkpoint"),
    ):
        warnings.clear()
        assert processor_of(model).size["shortest_edge"] == 800
        assert reason in warnings.text


def test_a_named_checkpoint_and_the_model_loaded_from_it_agree(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    DETRImageProcessor(size=SIZE).save_pretrained(tmp_path)
    assert dict(processor_of(tmp_path).size) == dict(processor_of(str(tmp_path)).size) == SIZE
    assert "DETR's own" not in warnings.text


def test_named_weights_without_a_processor_get_the_originals_and_it_is_said(tmp_path, warnings):
    weights = tmp_path / "detr.pth"
    weights.touch()
    assert processor_of(weights).size["shortest_edge"] == 800
    assert f"{weights} holds weights alone" in warnings.text
    assert processor_of(str(tmp_path)).size["shortest_edge"] == 800
    assert f"{tmp_path} has none that can be read" in warnings.text


def test_a_processor_that_is_there_and_cannot_be_read_is_an_error_where_it_was_named(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    model = DETRForObjectDetection.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises((OSError, ValueError), match="preprocessor_config"):
        processor_of(tmp_path)
    assert processor_of(model).size["shortest_edge"] == 800  # the model is at hand, and the warning says what is wrong
    assert f"{tmp_path} has none that can be read" in warnings.text and "preprocessor_config" in warnings.text


def test_a_named_checkpoint_that_does_not_exist_is_an_error_and_a_model_that_outlived_it_is_none(tmp_path, warnings):
    with pytest.raises(OSError, match="gone"):
        processor_of(tmp_path / "gone")
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    model = DETRForObjectDetection.from_pretrained(folder)
    shutil.rmtree(folder)
    assert processor_of(model).size["shortest_edge"] == 800
    assert f"{folder} has none that can be read" in warnings.text


def test_a_hub_id_gets_its_own_or_the_originals_and_an_unknown_one_is_an_error(tmp_path, warnings):
    repository, commit = tmp_path / "models--me--detr", "0" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    hub = Hub(revision="main", cache_dir=tmp_path, local_files_only=True)
    assert processor_of("me/detr", hub).size["shortest_edge"] == 800
    assert "me/detr has none that can be read" in warnings.text
    DETRImageProcessor(size=SIZE).save_pretrained(snapshot)
    assert dict(processor_of("me/detr", hub).size) == SIZE
    with pytest.raises(OSError, match="'me/other' is no folder or file here"):
        processor_of("me/other", hub)
