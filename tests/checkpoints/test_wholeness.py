"""A checkpoint that is not whole, or holds more than the model has, is refused on every road; what is new is named."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DetrModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    pipeline,
)

from detr_hf import Detector, DETRForObjectDetection, DETRModel
from tests.checkpoints.foreign import narrow_model, save_original, their_resnet

from ..conftest import tiny_config, tiny_model

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


@pytest.mark.parametrize("changes", [{"id2label": ["x"]}, {"num_queries": 3}, {"num_labels": 9}])
def test_an_adapter_is_not_fitted_to_other_classes(folders, tmp_path, changes):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folders["own"])}))
    with pytest.raises(ValueError, match=rf"is an adapter.*{next(iter(changes))} cannot be given"):
        DETRForObjectDetection.from_pretrained(tmp_path, **changes)


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


OTHERS = {
    "conditional": (ConditionalDetrForObjectDetection, ConditionalDetrConfig),
    "yolos": (YolosForObjectDetection, YolosConfig),
    "rt_detr": (RTDetrForObjectDetection, RTDetrConfig),
    "dab": (DabDetrForObjectDetection, DabDetrConfig),
}


def of_another_kind(kind: str) -> torch.nn.Module:
    """Returns a small random model that is a relative of DETR."""
    cls, config = OTHERS[kind]
    resnet = their_resnet(hidden_sizes=[8, 8, 16, 16], embedding_size=8, layer_type="basic")
    layers = {"decoder_layers": 1, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32, "num_queries": 7}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    detr = {"encoder_layers": 1, "backbone_config": resnet, **layers, **heads}
    small = {
        "conditional": {"d_model": 32, **detr},
        "dab": {"hidden_size": 32, **detr},
        "yolos": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64},
        "rt_detr": {
            "d_model": 32,
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [8, 16, 16],
            "backbone_config": RTDetrResNetConfig(
                depths=[1] * 4,
                hidden_sizes=[8, 8, 16, 16],
                embedding_size=8,
                out_features=["stage2", "stage3", "stage4"],
            ),
            **layers,
            **heads,
        },
    }
    return cls(config(**small[kind]))


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_detrs_relatives_are_refused_whatever_they_call_themselves(folders, tmp_path, kind):
    """As they are, with config.json of transformers' DETR or of ours beside them, as a file, and as a state dict."""
    other = of_another_kind(kind)
    other.save_pretrained(tmp_path / "itself")
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    for name in ("own", "theirs"):
        shutil.copytree(tmp_path / "itself", tmp_path / name)
        shutil.copyfile(folders[name] / "config.json", tmp_path / name / "config.json")
    for place in ("itself", "own", "theirs", "weights.pth"):
        with pytest.raises(ValueError, match=r"not of a DETR|no DETR has|not a whole DETR|no plain ResNet|lacks"):
            DETRForObjectDetection.from_pretrained(tmp_path / place)
    with pytest.raises((ValueError, RuntimeError), match=r"beyond what|lacks|ignore_mismatched_sizes"):
        DETRForObjectDetection.from_pretrained(None, config=tiny_config(), state_dict=other.state_dict())


ROADS = {
    "class": lambda path, **options: DETRForObjectDetection.from_pretrained(path, **options),
    "base": lambda path, **options: DETRModel.from_pretrained(path, **options),
    "auto": lambda path, **options: AutoModelForObjectDetection.from_pretrained(path, **options),
    "detector": lambda path, **options: Detector.from_pretrained(path, device="cpu", **options).model,
    "pipeline": lambda path, **options: (
        pipeline("object-detection", str(path), image_processor=object(), model_kwargs=options).model
    ),
}


@pytest.mark.parametrize("road", ROADS)
def test_a_missing_shard_is_named_on_every_road(tmp_path, road):
    tiny_model().save_pretrained(tmp_path, max_shard_size="10MB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises((OSError, ValueError), match=rf"names the shard '{shard.name}', which is missing"):
        ROADS[road](tmp_path)


@pytest.mark.parametrize("road", ROADS)
def test_which_file_is_read_can_be_said_on_every_road(tmp_path, road):
    model = narrow_model()
    model.save_pretrained(tmp_path, variant="half")
    narrow_model(seed=1).save_pretrained(tmp_path)
    assert torch.equal(ROADS[road](tmp_path, variant="half").query_embed.weight, model.query_embed.weight)
    with pytest.raises((OSError, ValueError), match=r"expected (model\.x\.safetensors|pytorch_model\.half\.bin)"):
        ROADS[road](tmp_path, variant="x")
    with pytest.raises((OSError, ValueError), match=r"expected pytorch_model\.half\.bin"):
        ROADS[road](tmp_path, variant="half", use_safetensors=False)


@pytest.mark.parametrize("road", ["class", "base", "auto", "detector"])
def test_a_subfolder_is_found_on_every_road(tmp_path, road):
    model = narrow_model()
    model.save_pretrained(tmp_path / "deep" / "er")
    assert torch.equal(ROADS[road](tmp_path, subfolder="deep/er").query_embed.weight, model.query_embed.weight)


def test_what_strict_false_leaves_out_is_counted(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    state_dict = {name: value for name, value in tiny_model().state_dict().items() if "bbox" not in name}
    with caplog.at_level(logging.WARNING):
        tiny_model().load_state_dict(state_dict | {"x": torch.zeros(1)}, strict=False)
    assert "217 of 223 tensors are loaded, 6 stay as they were" in caplog.text and "1 of the state dict" in caplog.text
