"""Which splits a run takes, and what it says where there is none."""

from types import SimpleNamespace

import pytest

from detr_hf.data.detection_data import split_kind
from detr_hf.training.preparing import nothing_to_train_on, splits_of_run

from .scenes import Scenes

NAMES = {
    "train": (
        "train",
        "training",
        "trainval",
        "train2017",
        "trainval2007",
        "train_set",
        "Train-v2",
        "trainset",
        "train1",
    ),
    "validation": ("val", "valid", "validate", "validation_set", "val2017", "dev", "development", "val-v1.2"),
    "test": ("test", "testing", "test_set", "test2017"),
    None: ("test-dev2017", "trains", "contest", "all", "minival", "train_val_test"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_what_a_splits_name_says(kind, name):
    assert split_kind(name) == kind


def splits(eval_strategy="no", **data):
    args = SimpleNamespace(eval_strategy=eval_strategy, remove_unused_columns=False, augment="none")
    return splits_of_run(args, None, None, data, None)


def test_trainval_is_trained_on_and_said_to_hold_the_validation_split(caplog):
    train, validation = splits(trainval=Scenes(3), test=Scenes(2))
    assert len(train) == 3 and validation is None and not caplog.text
    train, validation = splits(trainval=Scenes(3), val=Scenes(2))
    assert (len(train), len(validation)) == (3, 2) and "'trainval' is trained on and 'val' measured on" in caplog.text
    assert len(splits(trainval=Scenes(3), train=Scenes(1), val=Scenes(2))[0]) == 1


def test_without_a_train_split_those_that_there_are_are_named():
    text = nothing_to_train_on({"everything": 1, "test": 1})
    assert "(there are 'everything', 'test')" in text and "splits={'train': 'its name'}" in text
    assert nothing_to_train_on(None).endswith("or train_dataset.")
