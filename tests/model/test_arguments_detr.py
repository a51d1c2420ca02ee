"""Arguments of transformers' DETR are taken, passed over with a line in the log, or explained, on every road."""

import logging

import pytest
from transformers import AutoConfig, AutoModelForObjectDetection, pipeline

from detr_hf import DETRConfig, DETRForObjectDetection
from detr_hf.model.arguments_detr import take_foreign

from ..checkpoints.foreign import narrow_model, save_original, their_detr
from ..conftest import tiny_config


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("arguments"), narrow_model()
    model.save_pretrained(root / "own")
    their_detr().save_pretrained(root / "theirs")
    save_original(model, root / "detr.pth")
    return {"own": root / "own", "theirs": root / "theirs", "file": root / "detr.pth"}


def load(path, **arguments):
    return DETRForObjectDetection.from_pretrained(path, **arguments)


ROADS = {
    "config": lambda places, **arguments: tiny_config(**arguments),
    "config of a folder": lambda places, **arguments: DETRConfig.from_pretrained(places["own"], **arguments),
    "AutoConfig": lambda places, **arguments: AutoConfig.from_pretrained(places["own"], **arguments),
    "own folder": lambda places, **arguments: load(places["own"], **arguments),
    "own folder, config": lambda places, **arguments: load(places["own"], config=narrow_model().config, **arguments),
    "their folder": lambda places, **arguments: load(places["theirs"], **arguments),
    "file": lambda places, **arguments: load(places["file"], nheads=4, dilation=False, **arguments),
    "AutoModel": lambda places, **arguments: AutoModelForObjectDetection.from_pretrained(places["own"], **arguments),
    "from_config": lambda places, **arguments: AutoModelForObjectDetection.from_config(
        narrow_model().config, **arguments
    ),
    "pipeline": lambda places, **arguments: pipeline(
        "object-detection", str(places["own"]), image_processor=object(), model_kwargs=arguments
    ),
}


@pytest.mark.parametrize("road", [road for road in ROADS if road != "pipeline"])
def test_what_changes_nothing_is_passed_over(places, road):
    ROADS[road](places, use_pretrained_backbone=False, use_timm_backbone=True, init_std=0.02, encoder_layerdrop=0.0)


@pytest.mark.parametrize("road", ROADS)
def test_an_unknown_argument_names_the_nearest_field(places, road):
    with pytest.raises(ValueError, match=r"no argument 'num_querys'. The nearest one is 'num_queries'"):
        ROADS[road](places, num_querys=50)


@pytest.mark.parametrize("road", ROADS)
def test_what_cannot_be_is_explained(places, road):
    with pytest.raises(ValueError, match="use_timm_backbone=False has no meaning for detr_hf: the backbone always is"):
        ROADS[road](places, use_timm_backbone=False)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"backbone_config": {"model_type": "resnet"}}, "give backbone=<name in timm>"),
        ({"attention_dropout": 0.3}, "dropout is the one probability"),
        ({"decoder_layerdrop": 0.1}, "layers are not dropped"),
        ({"num_classes": 91}, "id2label"),
        ({"lr_backbone": 0}, "train_backbone=False"),
        ({"load_in_8bit": True}, "BitsAndBytesConfig"),
    ],
)
def test_every_one_has_its_own_way_out(argument, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**argument)


@pytest.mark.parametrize("argument", [{"attention_dropout": 0.1}, {"attention_dropout": 0}, {"backbone_config": None}])
def test_a_value_that_says_what_is_so_anyway_is_passed_over(argument):
    assert tiny_config(**argument).to_dict() == tiny_config().to_dict()


def test_what_is_passed_over_is_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert take_foreign({"init_xavier_std": 0.25, "lr": 1}, dropout=0.1) == ({}, {"lr": 1})
    assert "init_xavier_std=0.25 is passed over: first values are drawn as in the original" in caplog.text


def test_pretrained_backbones_have_a_field(places):
    assert tiny_config(use_pretrained_backbone=True).backbone_weights == "imagenet"
    assert load(places["own"], use_pretrained_backbone=True).config.backbone_weights == "imagenet"  # not read


def test_a_models_fields_are_its_configurations():
    with pytest.raises(ValueError, match=r"give DETRConfig num_queries"):
        DETRForObjectDetection(tiny_config(), num_queries=5)


@pytest.mark.parametrize("road", ["own folder, config", "own folder", "their folder", "AutoModel"])
def test_a_field_is_applied_on_every_road(places, road):
    model = ROADS[road](places, dropout=0.25, num_labels=5)
    assert model.config.dropout == 0.25 and model.class_embed.out_features == 6


@pytest.mark.parametrize("place", ["own", "theirs"])
def test_arguments_of_loading_keep_their_meaning(places, place):
    options = {"dtype": "bfloat16", "attn_implementation": "eager", "low_cpu_mem_usage": True}
    model = load(places[place], device_map="cpu", ignore_mismatched_sizes=True, **options)
    assert str(model.dtype) == "torch.bfloat16" and model.config._attn_implementation == "eager"
