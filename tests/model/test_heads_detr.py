"""The table of model classes is what the package, transformers and a card say of its model classes."""

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

import detr_hf
from detr_hf.hub.card import task_of
from detr_hf.hub.facts import model_facts
from detr_hf.model import modeling_detr
from detr_hf.model.heads_detr import AUTO_MAP, MODEL_CLASSES

from ..conftest import tiny_model


@pytest.mark.parametrize("head", MODEL_CLASSES, ids=lambda head: head.name)
def test_a_head_is_found_by_its_auto_class_and_its_pipeline(head):
    cls = getattr(modeling_detr, head.name)
    assert getattr(detr_hf, head.name) is cls
    assert AUTO_MAP[head.auto_class] == f"modeling_detr.{head.name}"
    auto_class = getattr(transformers, head.auto_class)
    assert auto_class._model_mapping[detr_hf.DETRConfig] is cls
    assert getattr(modeling_auto, head.names)["detr_hf"] == head.name
    if head.task is not None:
        task = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks[head.task]
        assert auto_class in task["pt"]


def test_every_model_class_has_a_row():
    exported = (getattr(detr_hf, name) for name in detr_hf.__all__)
    models = {one.__name__ for one in exported if isinstance(one, type) and issubclass(one, torch.nn.Module)}
    assert models == {head.name for head in MODEL_CLASSES}


def test_a_card_takes_auto_class_and_task_from_the_table():
    model = tiny_model()
    facts = model_facts(model)
    assert facts["auto_class"] == "AutoModelForObjectDetection" and task_of({"model": facts}) == "object-detection"
    kind = type("Mine", (type(model),), {})
    model.__class__ = kind
    assert model_facts(model)["auto_class"] == facts["auto_class"], "a class of somebody else's detects"
    assert task_of({"model": {"auto_class": "AutoModel"}}) == "object-detection"
