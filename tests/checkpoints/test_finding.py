"""A name of nothing is refused at once and with what helps; the shipped checkpoint has a name."""

import shutil
import time

import pytest
from huggingface_hub import constants

from detr_hf import Detector, DETRForObjectDetection, reaching
from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.checkpoints.finding import local_path
from detr_hf.checkpoints.loading import prepare_loading
from detr_hf.checkpoints.model_classes import has_mask_head, load_model
from detr_hf.checkpoints.processors import processor_of
from detr_hf.errors import HubError


@pytest.fixture
def no_hub(monkeypatch):
    """A client that is not set offline, whose Hub nobody listens for."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    yield
    reaching._asked.clear()


@pytest.mark.parametrize(
    "load", [Detector.from_pretrained, DETRForObjectDetection.from_pretrained, load_model, processor_of, has_mask_head]
)
def test_without_a_network_one_sentence_says_all_that_helps(no_hub, load, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    began = time.perf_counter()
    with pytest.raises(HubError) as caught:
        load("facebook/detr-resnet50")
    assert time.perf_counter() - began < 10
    for word in (
        "'facebook/detr-resnet50' is no folder or file here",
        f"the Hugging Face cache ({tmp_path / 'cache'})",
        "http://127.0.0.1:9 was not reached",
        "HF_ENDPOINT names a mirror",
        "`hf auth login` or HF_TOKEN",
        "detr-digits",
        "Did you mean facebook/detr-resnet-50?",
    ):
        assert word in str(caught.value)
    assert caught.value.__suppress_context__, "the tracebacks of the client are noise"
    assert "Retrying" not in caplog.text


def test_what_is_cached_is_loaded_though_the_hub_is_not_reached(no_hub, tmp_path, monkeypatch, caplog):
    snapshot = tmp_path / "models--someone--detr" / "snapshots" / ("a" * 40)
    shutil.copytree(embedded_model_path(), snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    detector = Detector.from_pretrained("someone/detr", cache_dir=tmp_path)
    assert detector.model.name_or_path == "someone/detr" and "Retrying" not in caplog.text


def test_the_shipped_checkpoint_has_a_name_unless_something_here_is_called_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert local_path("detr-digits") == embedded_model_path() == prepare_loading("detr-digits", None, {})[0]
    assert "No model is named" not in caplog.text
    assert len(Detector.from_pretrained("detr-digits").id2label) == 10
    assert "No model is named" not in caplog.text
    Detector.from_pretrained()
    assert "No model is named: detr-digits, which comes with detr_hf, finds handwritten digits" in caplog.text
    (tmp_path / "detr-digits").mkdir()
    assert local_path("detr-digits").resolve() == tmp_path / "detr-digits"
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model("detr-digits")


def test_the_nearest_checkpoint_is_named(tmp_path):
    shutil.copytree(embedded_model_path(), tmp_path / "out_cards")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*out_cards\?"):
        local_path(tmp_path / "out_cadrs")
