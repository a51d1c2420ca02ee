"""A checkpoint that is not whole, or holds more than the model has, is refused on every road; what is new is named."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection, DetrModel

from detr_hf import Detector, DETRForObjectDetection, DETRModel
from tests.checkpoints.foreign import save_original

from ..conftest import tiny_model

OWN_PARTS = [
    "class_embed.weight",
    "class_embed.bias",
    "bbox_embed.",
    "input_proj.weight",
    "query_embed",
    "transformer.decoder.norm.bias",
    "transformer.encoder.layers.1.self_attn.k_proj.weight",
    "backbone.0.body.layer4.1",
    "backbone.0.body.bn1.running_var",
]
THEIR_PARTS = [
    "class_labels_classifier",
    "bbox_predictor",
    "input_projection",
    "query_position_embeddings",
    "layernorm",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root, model = tmp_path_factory.mktemp("whole"), tiny_model()
    model.save_pretrained(root / "own")
    model.to_transformers().save_pretrained(root / "theirs")
    return {name: root / name for name in ("own", "theirs")}


def changed(folder: Path, target: Path, drop: str | None = None, add: str | None = None) -> Path:
    """Returns a copy of a folder without the tensors that have `drop` in their name, or with one named `add`."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if drop is None or drop not in name}
    assert drop is None or len(kept) < len(tensors), f"no tensor is called {drop}"
    save_file(kept | ({add: torch.zeros(2)} if add else {}), target / "model.safetensors", metadata={"format": "pt"})
    return target


def load_detector(path: Path) -> object:
    return Detector.from_pretrained(path, device="cpu")


def load_by_auto_class(path: Path) -> object:
    return AutoModelForObjectDetection.from_pretrained(path)


def load_with_other_classes(path: Path) -> object:
    return DETRForObjectDetection.from_pretrained(path, id2label={0: "cat", 1: "tapir"})


@pytest.mark.parametrize("part", OWN_PARTS)
def test_our_own_checkpoint_without_a_part_is_refused(folders, tmp_path, part):
    cut = changed(folders["own"], tmp_path / "cut", drop=part)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors .*not whole"):
        DETRForObjectDetection.from_pretrained(cut)


@pytest.mark.parametrize("part", THEIR_PARTS)
def test_a_checkpoint_of_transformers_without_a_part_is_refused(folders, tmp_path, part):
    cut = changed(folders["theirs"], tmp_path / "cut", drop=part)
    with pytest.raises(ValueError, match=r"lacks|no class head|has no"):
        DETRForObjectDetection.from_pretrained(cut)


def test_an_original_checkpoint_without_a_part_is_refused(tmp_path):
    path = save_original(tiny_model(), tmp_path / "detr.pth")
    content = torch.load(path, weights_only=True)
    content["model"] = {name: value for name, value in content["model"].items() if "bbox_embed" not in name}
    torch.save(content, path)
    with pytest.raises(ValueError, match="lacks 6 tensors"):
        DETRForObjectDetection.from_pretrained(path)


@pytest.mark.parametrize("load", [load_detector, load_by_auto_class, load_with_other_classes])
def test_it_is_refused_on_every_road(folders, tmp_path, load):
    for name in ("own",) if load is load_by_auto_class else ("own", "theirs"):  # theirs would load as their class
        with pytest.raises(ValueError, match=r"lacks \d+ tensors"):
            load(changed(folders[name], tmp_path / name, drop="bbox_"))


def test_in_a_subfolder_and_under_a_variant(folders, tmp_path):
    cut = changed(folders["own"], tmp_path / "deep" / "cut", drop="bbox_embed")
    with pytest.raises(ValueError, match="lacks 6 tensors"):
        DETRForObjectDetection.from_pretrained(tmp_path / "deep", subfolder="cut")
    (cut / "model.safetensors").rename(cut / "model.half.safetensors")
    with pytest.raises(ValueError, match="lacks 6 tensors"):
        DETRForObjectDetection.from_pretrained(cut, variant="half")


@pytest.mark.parametrize(
    ("name", "extra"), [("own", "transformer.extra.weight"), ("theirs", "model.ca_content.weight")]
)
def test_what_no_part_of_the_model_takes_is_refused(folders, tmp_path, name, extra):
    with pytest.raises(ValueError, match=r"extra\.weight|ca_content"):
        DETRForObjectDetection.from_pretrained(changed(folders[name], tmp_path / "more", add=extra))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_heads_on_a_base_model_are_new_and_named(folders, tmp_path, caplog, kind):
    cls = DETRModel if kind == "ours" else DetrModel
    cls.from_pretrained(folders["own" if kind == "ours" else "theirs"]).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        _, info = DETRForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"class_embed", "bbox_embed"}


def test_options_that_the_checkpoint_was_not_trained_with_are_new(folders):
    model = DETRForObjectDetection.from_pretrained(folders["own"], num_denoising=4, reference_points=True)
    assert hasattr(model, "training_aids") and model.refpoint_embed.weight.eq(0).all()


def test_an_adapter_over_a_foreign_base_is_refused(folders, tmp_path):
    """transformers would load the base by names that no layer here has, and leave it random."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folders["theirs"])}))
    with pytest.raises(ValueError, match=r"adapter over .*theirs.*detr-hf convert"):
        DETRForObjectDetection.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["own", "theirs"])
def test_the_checkpoints_own_number_of_classes_changes_nothing(folders, name):
    model = DETRForObjectDetection.from_pretrained(folders[name], num_labels=3)
    expected = DETRForObjectDetection.from_pretrained(folders[name])
    assert model.config.id2label == expected.config.id2label
    assert torch.equal(model.class_embed.weight, expected.class_embed.weight)


@pytest.mark.parametrize("name", ["own", "theirs"])
@pytest.mark.parametrize("labels", [{"0": "cat", "1": "dog", "2": "owl"}, ["cat", "dog", "owl"]])
def test_labels_are_read_in_one_way_on_every_road(folders, name, labels):
    model = DETRForObjectDetection.from_pretrained(folders[name], id2label=labels)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "owl": 2}


def test_which_files_of_a_foreign_folder_are_read_can_be_said(folders, tmp_path):
    shutil.copytree(folders["theirs"], tmp_path / "them")
    weights = tmp_path / "them" / "model.safetensors"
    expected = DETRForObjectDetection.from_pretrained(tmp_path / "them").class_embed.weight
    torch.save(load_file(weights), tmp_path / "them" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="fp16"):
        DETRForObjectDetection.from_pretrained(tmp_path / "them", variant="fp16")
    weights.rename(tmp_path / "them" / "model.fp16.safetensors")
    for options in ({"variant": "fp16"}, {"use_safetensors": False}, {}):
        assert torch.equal(
            DETRForObjectDetection.from_pretrained(tmp_path / "them", **options).class_embed.weight, expected
        )
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors"):
        DETRForObjectDetection.from_pretrained(tmp_path / "them", use_safetensors=True)
