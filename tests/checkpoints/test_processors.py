"""Which image processor goes with a model, and that falling back on DETR's own is said."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import DetrConfig

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints.coco_names import id2label_for
from detr_hf.checkpoints.conversion import processor_for_transformers
from detr_hf.checkpoints.finding import Hub
from detr_hf.checkpoints.processors import processor_of
from tests.conftest import tiny_config, tiny_model

from .foreign import NARROW, original_state_dict

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


def test_mean_and_deviation_are_those_of_the_backbones_weights(warnings):
    for backbone, mean in (("resnet18", 0.485), ("tf_efficientnet_lite0", 0.5)):
        model = tiny_model(backbone=backbone)
        assert processor_of(model).image_mean[0] == 0.485  # weights from nothing
        model.config.backbone_weights = "imagenet"
        warnings.clear()
        processor = processor_of(model)
        assert processor.image_mean[0] == mean
        assert f"mean {processor.image_mean}" in warnings.text


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


# --- stuff of COCO's panoptic checkpoints ---

STUFF = [label for label in range(92, 201) if id2label_for(250)[label] != "N/A"]


def with_masks(**changes) -> DETRForSegmentation:
    return DETRForSegmentation(tiny_config(backbone_kwargs=NARROW, **changes))


def own_folder(root: Path) -> Path:
    tiny_config(id2label=id2label_for(250), architectures=["DETRForSegmentation"]).save_pretrained(root)
    return root


def hub_folder(root: Path, **names) -> Path:
    """As the Hub's: transformers' files, and a processor that knows nothing of stuff."""
    names = names or {"id2label": id2label_for(250)}
    DetrConfig(architectures=["DetrForSegmentation"], **names).save_pretrained(root)
    processor_for_transformers(DETRImageProcessor(size=SIZE)).save_pretrained(root)
    return root


def hub_folder_without_names(root: Path) -> Path:
    return hub_folder(root, num_labels=250)


def original_file(root: Path) -> Path:
    torch.save({"model": original_state_dict(model_of_coco(root))}, root / "detr.pth")
    return root / "detr.pth"


def model_of_coco(root: Path) -> DETRForSegmentation:
    return with_masks(id2label=id2label_for(250))


COCO = [own_folder, hub_folder, hub_folder_without_names, original_file, model_of_coco]


@pytest.mark.parametrize("checkpoint", COCO, ids=lambda make: make.__name__)
def test_stuff_of_coco_is_known_and_it_is_said(checkpoint, tmp_path, warnings):
    processor = processor_of(checkpoint(tmp_path))
    assert processor.label_ids_to_fuse == STUFF and len(STUFF) == 53
    assert "92 to 200" in warnings.text
    assert DETRImageProcessor().label_ids_to_fuse == []  # of one processor, not of the class


def says_none(root: Path) -> Path:
    DETRImageProcessor(label_ids_to_fuse=[]).save_pretrained(own_folder(root))
    return root


def of_others(root: Path) -> DETRForSegmentation:
    return with_masks(id2label={label: f"kind {label}" for label in range(250)})


@pytest.mark.parametrize(
    "checkpoint",
    [says_none, of_others, lambda root: tiny_model(id2label=id2label_for(250), backbone_kwargs=NARROW)],
    ids=["a file that says none", "other classes", "a detector"],
)
def test_nothing_is_fused_that_a_file_forbids_or_that_is_not_coco(checkpoint, tmp_path, warnings):
    assert processor_of(checkpoint(tmp_path)).label_ids_to_fuse == []
    assert "92 to 200" not in warnings.text


def test_what_is_fused_goes_through_transformers_file(tmp_path, warnings):
    processor_for_transformers(DETRImageProcessor(label_ids_to_fuse=[1])).save_pretrained(tmp_path)
    assert DETRImageProcessor.from_pretrained(tmp_path).label_ids_to_fuse == [1]
    assert "transformers keeps label_ids_to_fuse" in warnings.text
