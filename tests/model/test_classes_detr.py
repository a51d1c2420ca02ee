"""Whatever a user writes for classes and their weights has one normal form, or is refused with the way out."""

import json
import logging
from enum import Enum, IntEnum
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detr_hf import DETRConfig
from detr_hf.model.classes_detr import normal_class_weights, normal_labels

from ..conftest import tiny_config

Animal = IntEnum("Animal", {"CAT": 0, "DOG": 1})
Spelt = Enum("Spelt", {"CAT": "cat", "DOG": "dog"})


@pytest.mark.parametrize(
    "labels",
    [
        {np.int64(0): "cat", np.int32(1): "dog"},
        {0.0: "cat", "1": "dog"},
        np.array(["cat", "dog"]),
        {Animal.CAT: "cat", Animal.DOG: "dog"},
        [Spelt.CAT, Spelt.DOG],
        Spelt,
        SimpleNamespace(names=["cat", "dog"]),  # datasets.ClassLabel
        {torch.tensor(1): "dog", torch.tensor(0): "cat"},
    ],
)
def test_labels_of_every_kind_have_one_form(labels, tmp_path):
    config = tiny_config(id2label=labels)
    assert config.id2label == {0: "cat", 1: "dog"} and config.label2id == {"cat": 0, "dog": 1}
    config.save_pretrained(tmp_path)
    assert DETRConfig.from_pretrained(tmp_path).id2label == config.id2label
    assert DETRConfig.from_pretrained(tmp_path, id2label=labels).label2id == config.label2id


def test_an_enum_of_numbers_names_its_members():
    assert normal_labels(Animal) == {0: "CAT", 1: "DOG"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"id2label": {0: "cat", "0": "dog"}}, ValueError, "class 0 twice: 'cat' and 'dog'"),
        ({"id2label": {0: "cat", 0.5: "dog"}}, ValueError, "indices"),
        ({"id2label": {0: "cat", 10**12: "dog"}}, ValueError, r"2 ids from 0 to 1000000000000 and lacks \[1, 2\]"),
        ({"id2label": {-1: "cat", 0: "dog"}}, ValueError, r"from -1 to 0 and lacks \[1, 2\]"),
        ({"id2label": {"cat", "dog"}}, TypeError, "a list of names"),
        ({"id2label": ["cat", float("nan") and None]}, ValueError, r"no name to class \[1\]"),
        ({"id2label": ["cat"], "label2id": {"dog": 0}}, ValueError, "label2id disagrees"),
        ({"id2label": None, "num_labels": 2.5}, ValueError, "num_labels is 2.5; expected a whole number"),
        ({"id2label": None, "num_labels": "3"}, ValueError, "num_labels is '3'; expected a whole number"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_config(**arguments)


@pytest.mark.parametrize("number", [3, 3.0, np.int64(3), np.float32(3)])
def test_a_number_of_classes_may_be_numpys(number):
    assert tiny_config(id2label=None, num_labels=number).num_labels == 3


def test_label2id_alone_names_the_classes():
    assert tiny_config(id2label=None, label2id={"cat": 1, "dog": 0}).id2label == {0: "dog", 1: "cat"}


def test_a_name_of_several_classes_is_said_but_that_of_unused_ids(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        tiny_config(id2label=["cat", "N/A", "N/A", "ox", "cat"])
    assert [record.message for record in caplog.records if "'cat' to the classes [0, 4]" in record.message]
    assert "N/A" not in caplog.text


@pytest.mark.parametrize(
    "weights",
    [
        {"dog": 3},
        {1: 3.0},
        {"1": np.float32(3)},
        {np.int64(1): torch.tensor(3.0)},
        {Animal.DOG: 3},
    ],
)
def test_class_weights_are_kept_by_name(weights, tmp_path):
    config = tiny_config(class_weights=weights)
    assert config.class_weights == {"dog": 3.0} and config.class_weight_values() == (1.0, 3.0, 1.0)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["class_weights"] == {"dog": 3.0}
    assert DETRConfig.from_pretrained(tmp_path).class_weights == {"dog": 3.0}
    assert DETRConfig.from_pretrained(tmp_path, class_weights={"owl": 2}).class_weights == {"owl": 2.0}


@pytest.mark.parametrize("weights", [[1, 3, 0.5], (1, 3, 0.5), np.array([1, 3, 0.5]), torch.tensor([1, 3, 0.5])])
def test_class_weights_of_all_may_be_a_list(weights):
    assert tiny_config(class_weights=weights).class_weight_values() == (1.0, 3.0, 0.5)


@pytest.mark.parametrize("weights", [None, {}])
def test_no_class_weights_are_none(weights):
    assert tiny_config(class_weights=weights).class_weight_values() is None


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"dgo": 2}, ValueError, "names 'dgo', which is no class; the nearest is 'dog'.*eos_coef"),
        ({3: 2}, ValueError, "names 3, which is no class"),
        ([1, 2], ValueError, "2 weights for 3 classes"),
        ({"dog": -1}, ValueError, r"class_weights\['dog'\] must be a finite number"),
        ({"dog": float("nan")}, ValueError, "must be a finite number"),
        ({"dog": "much"}, ValueError, "must be a finite number"),
        ({"dog": True}, ValueError, "must be a finite number"),
        ({"dog": 2, 1: 3}, ValueError, "gives 'dog' both 2.0 and 3.0"),
        ([0, 0, 0], ValueError, "All class_weights are 0"),
        (2.0, TypeError, "a mapping of class to weight, or a list of K weights"),
        ("dog", TypeError, "a mapping of class to weight"),
    ],
)
def test_class_weights_that_cannot_weigh_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        tiny_config(class_weights=weights)


def test_a_name_goes_before_an_index():
    assert normal_class_weights({"1": 2}, {0: "1", 1: "0"}) == {"1": 2.0}


@pytest.mark.parametrize("changes", [{"id2label": ["owl", "dog"]}, {"label2id": {"dog": 0, "owl": 1}}])
def test_weights_of_classes_that_go_are_left_out_of_a_loaded_configuration(tmp_path, changes):
    tiny_config(class_weights={"cat": 2, "dog": 3}).save_pretrained(tmp_path)
    assert DETRConfig.from_pretrained(tmp_path, **changes).class_weights == {"dog": 3.0}
    assert DETRConfig.from_pretrained(tmp_path, num_labels=5).class_weights is None
