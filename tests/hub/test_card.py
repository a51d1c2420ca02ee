"""A card says what its facts say, nothing else, and nothing that a page would run; the shipped ones are rendered."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from detr_hf import DETRConfig, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints.coco_names import id2label_for
from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.evaluation.coco import CocoMetrics
from detr_hf.evaluation.panoptic import PanopticMetrics
from detr_hf.hub.card import METRICS, cell, render_card
from detr_hf.hub.facts import facts_of, model_facts
from model_cards.render import FOLDER, render_all

from ..conftest import tiny_config
from .actions import thin_model
from .server import card_faults

ORIGINALS = {
    "detr-r50": (42.0, 62.4),
    "detr-r50-dc5": (43.3, 63.1),
    "detr-r101": (43.5, 63.8),
    "detr-r101-dc5": (44.9, 64.7),
    "detr-r50-panoptic": (38.8, 31.1, 43.4),
    "detr-r50-panoptic-first": (38.7, 31.4, 44.0),
    "detr-r50-dc5-panoptic": (40.2, 31.9, 44.6),
    "detr-r101-panoptic": (40.1, 33.0, 45.1),
}


render_once = functools.cache(render_all)


def facts_for(name: str) -> dict:
    return json.loads((FOLDER / "facts" / f"{name}.json").read_text(encoding="utf-8"))


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_the_shipped_cards_are_what_their_facts_render_to(path):
    """After a change: python model_cards/render.py"""
    rendered = render_once()
    assert set(rendered) == set(FOLDER.glob("*.md"))
    assert path.read_text(encoding="utf-8") == rendered[path]
    assert card_faults(rendered[path], "model") == []


def test_the_default_checkpoint_and_the_eight_originals_have_cards():
    own = {embedded_model_path().name, "detr-digits-panoptic"}
    assert {path.stem for path in FOLDER.glob("*.md")} == {*ORIGINALS, *own}


@pytest.mark.parametrize("name", ORIGINALS)
def test_published_numbers_are_marked_as_published_and_where(name):
    card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert "## Score (published)" in card and "detr_hf did not measure them" in card
    assert "## Score\n" not in card
    numbers = tuple(
        float(found) for found in re.findall(r"^\| (?:box|mask|PQ)[^|]*\| ([\d.]+) \|$", card, re.MULTILINE)
    )
    assert numbers == ORIGINALS[name]
    for result in metadata_of(card)["model-index"][0]["results"]:
        assert result["source"]["url"].startswith("https://github.com/facebookresearch/detr")
        for metric in result["metrics"]:
            assert metric["name"].endswith("(published)")
    published = {metric["value"] for metric in metadata_of(card)["model-index"][0]["results"][0]["metrics"]}
    assert published <= {round(number / 100, 4) for number in ORIGINALS[name]}


@pytest.mark.parametrize("name", ["detr-r50-dc5", pytest.param("detr-r101-panoptic", marks=pytest.mark.slow)])
def test_what_the_originals_are_is_what_would_be_built(name):
    facts = facts_for(name)["model"]
    has_masks = "panoptic" in name
    id2label = id2label_for(250 if has_masks else 91)
    with torch.device("meta"):
        model = (DETRForSegmentation if has_masks else DETRForObjectDetection)(
            DETRConfig(backbone=facts["backbone"], dilation=facts["dilation"], id2label=id2label)
        )
    built = model_facts(model)
    built["labels"] = [label for label in built["labels"] if label != "N/A"]
    assert facts == built


@pytest.mark.parametrize("name", [name for name in ORIGINALS if "panoptic" in name])
def test_the_cards_of_panoptic_checkpoints_say_how_to_get_masks(name):
    card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert "detections.masks, detections.panoptic" in card and "| stuff | one segment of each" in card
    assert "`DETRForSegmentation`" in card and not re.search("mask head (is not|out)", card)
    assert metadata_of(card)["pipeline_tag"] == "image-segmentation"


def test_masks_and_segments_have_their_numbers_and_their_task():
    coco = CocoMetrics(dict.fromkeys(METRICS, 0.25), {}, 3, "hotcoco")
    masks = replace(coco, summary=dict.fromkeys(METRICS, 0.125))
    qualities = {f"{name}{suffix}": 0.5 for name in ("PQ", "SQ", "RQ") for suffix in ("", "_th", "_st")}
    row = {"PQ": float("nan"), "SQ": 0.75, "RQ": 0.25}
    evaluation = SimpleNamespace(coco=coco, masks=masks, panoptic=PanopticMetrics(qualities, {"a|b": row}, 3))
    model = DETRForSegmentation(tiny_config(backbone="test_resnet"))
    facts = facts_of(model, "name", DETRImageProcessor(label_ids_to_fuse=[2]), evaluation)
    card = render_card(json.loads(json.dumps({**facts, "repo_id": "me/name"})))
    assert "| boxes | 0.250 |" in card and "| masks | 0.125 |" in card and "| stuff | 0.500 | 0.500 | 0.500 |" in card
    assert "| a\\|b | – | 0.750 | 0.250 |" in card and "| stuff | one segment of each in a picture: owl |" in card
    assert "detections.masks" in card and "AutoModelForImageSegmentation.from_pretrained" in card
    metadata = metadata_of(card)
    measured = {
        metric["name"]: (metric["type"], metric["value"])
        for metric in metadata["model-index"][0]["results"][0]["metrics"]
    }
    assert measured["mask AP"] == ("mean_average_precision", 0.125) and measured["PQ"] == ("panoptic_quality", 0.5)
    assert metadata["pipeline_tag"] == "image-segmentation" and card_faults(card, "model") == []


def test_the_card_of_the_default_checkpoint_is_of_the_shipped_model():
    facts = facts_for("detr-digits")
    model = DETRForObjectDetection.from_pretrained(embedded_model_path())
    assert facts["model"] == {**model_facts(model), "backbone_text": facts["model"]["backbone_text"]}
    size = (embedded_model_path() / "model.safetensors").stat().st_size
    assert facts["megabytes"] == round(size / 1e6, 1)


def test_the_thresholds_with_the_best_f1_are_named_by_class():
    cut = {"score": 0.35, "f1": 0.5, "precision": 0.6, "recall": 0.4}
    row = {"AP": 0.1, "AP50": 0.2, "objects": 3}
    facts = facts_of(thin_model(), "name")
    facts["evaluation"] = {"AP": 0.1, "dataset": "x", "type": "x", "num_images": 1, "per_class": {"a": row, "b": row}}
    without = render_card(facts)
    facts["evaluation"]["thresholds"] = {"of_all": cut, "per_class": {"a": cut, "b": None}}
    card = render_card(facts)
    assert "best at `threshold=0.35`: 0.500, with precision 0.600 and recall 0.400." in card
    assert "| a | 3 | 0.100 | 0.200 | 0.500 | 0.35 |\n| b | 3 | 0.100 | 0.200 | – | – |\n" in card
    assert "at threshold |\n|---|---|---|---|---|---|\n| a " in card and card_faults(card, "model") == []
    assert "| AP50 |\n|---|---|---|---|\n| a | 3 |" in without and "threshold |" not in without


def test_names_from_data_stay_text():
    """Class and data set names come from files of others, and a card is shown as a page."""
    bad = "<script>alert(1)</script>| [x](javascript:y)\n# big `q`"
    facts = facts_of(thin_model(id2label={0: bad, 1: "b"}, label2id={bad: 0, "b": 1}), "name")
    row = {"AP": 0.1, "AP50": 0.2, "objects": 3}
    facts["evaluation"] = {"AP": 0.1, "dataset": bad, "type": bad, "num_images": 1, "per_class": {bad: row}}
    facts["data"] = {"name": bad, "splits": {"train": 3}}
    card = render_card(facts)
    text = card.split("---\n", 2)[2]
    assert "<script" not in text and "\n# big" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert card.count(cell(bad)) == 4
    assert card_faults(card, "model") == []
    assert metadata_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == bad


def test_a_card_without_numbers_says_that_nothing_was_measured():
    card = render_card(facts_of(thin_model(), "name"))
    assert "It was not measured." in card and "model-index" not in metadata_of(card)
    assert "The owner has not stated one." in card


def test_facts_without_a_model_are_refused():
    with pytest.raises(ValueError, match="need model"):
        render_card({"name": "a"})


def test_the_folder_of_the_cards_is_complete():
    assert Path(FOLDER, "facts").is_dir()
    assert {path.stem for path in Path(FOLDER, "facts").glob("*.json")} == {path.stem for path in FOLDER.glob("*.md")}
