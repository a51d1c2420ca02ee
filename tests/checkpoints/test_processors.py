"""Which image processor goes with a model, and that falling back on DETR's own is said."""

import logging

import pytest

from detr_hf import DETRForObjectDetection, DETRImageProcessor
from detr_hf.checkpoints.processors import image_processor_for
from tests.conftest import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detr_hf"), "propagate", True)
    return caplog


def test_it_is_the_checkpoints(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    DETRImageProcessor(size=SIZE).save_pretrained(tmp_path)
    assert dict(image_processor_for(DETRForObjectDetection.from_pretrained(tmp_path)).size) == SIZE
    assert "DETR's own" not in warnings.text


def test_where_there_is_none_the_originals_is_taken_and_said(tmp_path, warnings):
    tiny_model().save_pretrained(tmp_path)
    for model, reason in (
        (DETRForObjectDetection.from_pretrained(tmp_path), f"{tmp_path} has none that can be read"),
        (tiny_model(), "the model was loaded from no checkpoint"),
    ):
        warnings.clear()
        assert image_processor_for(model).size["shortest_edge"] == 800
        assert reason in warnings.text
