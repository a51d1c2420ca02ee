"""A name of nothing is refused at once and with what helps; the shipped checkpoint has a name."""

import json
import shutil
import time

import pytest
from huggingface_hub import constants

from detr_hf import (
    Detector,
    DETRConfig,
    DETRForObjectDetection,
    DETRImageProcessor,
    DETRImageProcessorPil,
    inspect_model,
    reaching,
)
from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.checkpoints.finding import local_path, nearest, refuse_no_checkpoint
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


LOADING = (
    Detector.from_pretrained,
    DETRForObjectDetection.from_pretrained,
    DETRConfig.from_pretrained,
    DETRImageProcessor.from_pretrained,
    load_model,
    processor_of,
    has_mask_head,
    inspect_model,
    refuse_no_checkpoint,
)


@pytest.mark.parametrize("load", LOADING)
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
    (snapshot / "config.json").unlink()  # who has asked for the image processor alone has no more
    processor = DETRImageProcessorPil.from_pretrained("someone/detr", cache_dir=tmp_path)
    assert processor.size == detector.image_processor.size and "Retrying" not in caplog.text
    with pytest.raises(HubError, match="is not in the Hugging Face cache"):
        DETRConfig.from_pretrained("someone/detr2", cache_dir=tmp_path)


def test_the_shipped_checkpoint_has_a_name_unless_something_here_is_called_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert local_path("detr-digits") == embedded_model_path() == prepare_loading("detr-digits", None, {})[0]
    assert "No model is named" not in caplog.text
    assert len(Detector.from_pretrained("detr-digits").id2label) == 10
    own = DETRImageProcessor.from_pretrained(embedded_model_path())
    assert DETRConfig.from_pretrained("detr-digits").nheads == 4
    for kind in (DETRImageProcessor, DETRImageProcessorPil):
        assert kind.from_pretrained(pretrained_model_name_or_path="detr-digits").size == own.size
    assert "No model is named" not in caplog.text
    Detector.from_pretrained()
    assert "No model is named: detr-digits, which comes with detr_hf, finds handwritten digits" in caplog.text
    (tmp_path / "detr-digits").mkdir()
    assert local_path("detr-digits").resolve() == tmp_path / "detr-digits"
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model("detr-digits")


def test_an_adapter_over_the_shipped_checkpoint_finds_it_by_its_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "detr-digits"}))
    arguments = {"subfolder": "", "adapter_kwargs": {"token": "t"}}
    assert prepare_loading(tmp_path, None, arguments) == (embedded_model_path(), None, None)
    assert arguments == {"adapter_kwargs": {"token": "t", "_adapter_model_path": tmp_path}}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "The name of a model is empty"),
        ("empty", r"empty has no config\.json.*Did you mean empty/run\?"),
        ("a.png", "a.png is a picture, where the name of a model is expected"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("empty", "empty/run", "adapter"):
        (tmp_path / path).mkdir()
    for path in ("a.png", "empty/run/config.json", "adapter/adapter_config.json"):
        (tmp_path / path).touch()
    for load in (Detector.from_pretrained, DETRForObjectDetection.from_pretrained, load_model, refuse_no_checkpoint):
        with pytest.raises((OSError, ValueError), match=said):
            load(name)
    for fine in ("adapter", "detr-digits"):
        refuse_no_checkpoint(fine)


def test_the_nearest_checkpoint_is_named(tmp_path):
    assert nearest("facebook/detr-resnet-50") == ""  # it is none that was mistyped
    assert nearest("detr_hf/assets/detr-digits") == " Did you mean detr-digits?"
    shutil.copytree(embedded_model_path(), tmp_path / "out_cards")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*out_cards\?"):
        local_path(tmp_path / "out_cadrs")
