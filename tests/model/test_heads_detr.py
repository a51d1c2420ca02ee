"""The table of heads is what the package, transformers and a card say of its model classes."""

import pytest
import transformers
from transformers.models.auto import modeling_auto

import detr_hf
from detr_hf.hub.card import task_of
from detr_hf.hub.facts import model_facts
from detr_hf.model import heads_detr, modeling_detr
from detr_hf.model.heads_detr import DETECTION, HEADS, head_of

from ..conftest import tiny_model


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.model)
def test_a_head_is_found_by_its_auto_class_and_its_pipeline(head):
    cls = getattr(modeling_detr, head.model)
    assert getattr(detr_hf, head.model) is cls
    assert heads_detr.AUTO_MAP[head.auto_class] == f"modeling_detr.{head.model}"
    auto_class = getattr(transformers, head.auto_class)
    assert auto_class._model_mapping[detr_hf.DETRConfig] is cls
    assert getattr(modeling_auto, head.names)["detr_hf"] == head.model
    if head.task is not None:
        task = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks[head.task]
        assert auto_class in task["pt"]


def test_every_model_class_has_a_row():
    assert {head.auto_class for head in HEADS} == set(heads_detr.AUTO_MAP) - {"AutoConfig"}


def test_a_card_takes_class_and_task_from_the_table():
    model = tiny_model()
    facts = model_facts(model)
    assert facts["auto_class"] == "AutoModelForObjectDetection" and task_of({"model": facts}) == "object-detection"
    kind = type("Mine", (type(model),), {})
    model.__class__ = kind
    assert model_facts(model)["auto_class"] == facts["auto_class"], "a class of somebody else's detects"
    assert head_of("DETRModel").auto_class == "AutoModel"
    assert task_of({"model": {"auto_class": "AutoModel"}}) == DETECTION.task
