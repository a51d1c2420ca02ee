"""From what the user gives to what Trainer needs: splits, and whether data and model mean the same classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Splits:
    """The data sets of a run, prepared; None where there is none."""

    train: Any = None
    validation: Any = None


def splits_of_run(args: Any, given: Splits, data: Mapping[str, Any] | None, processor: Any) -> Splits:
    """Returns the splits to train and measure on: those `given`, and in their place the prepared ones of `data`.

    Raises:
        ValueError: there is nothing to train or evaluate on.
    """
    splits = given
    if data is not None:
        prepared = prepare_splits(data, processor, getattr(args, "augment", "none"))
        splits = Splits(
            prepared.train if given.train is None else given.train,
            prepared.validation if given.validation is None else given.validation,
        )
    check_splits(args, splits.train, splits.validation)
    return splits


def prepare_splits(data: Mapping[str, Any], processor: Any, augment: str) -> Splits:
    """Returns the train and validation splits of `load_detection_dataset`'s data as rows of tensors.

    Only training is augmented.
    """
    from ..data.prepare.transform import prepare

    if not isinstance(data, Mapping):
        raise TypeError(
            f"data is a {type(data).__name__}; expected what load_detection_dataset returns, or a dictionary with "
            "'train' and 'validation'. Prepared data sets go to train_dataset and eval_dataset, a collator to "
            "data_collator."
        )
    train, validation = split_named(data, "train"), split_named(data, "validation")
    return Splits(
        train=prepare(data[train], processor, augment=augment) if train else None,
        validation=prepare(data[validation], processor) if validation else None,
    )


def split_named(data: Mapping[str, Any], kind: str) -> str | None:
    """Returns the name of the split for `kind` ('train', 'validation' or 'test'), or None.

    Raises:
        LayoutError: several could be meant.
    """
    from ..data.detection_data import split_kind

    if kind in data:
        return kind
    named = [name for name in data if split_kind(name) == kind]
    if len(named) > 1 and hasattr(data, "split_for"):
        return data.split_for(kind)  # says what to do
    return named[0] if named else None


def check_classes(model: Any, id2label: Mapping[int, str] | None) -> None:
    """Makes sure that label i means the same to model and data; a model without class names takes the data's.

    Raises:
        ValueError: their number or order differs.
    """
    if id2label is None or not hasattr(getattr(model, "config", None), "id2label"):
        return
    ours = {int(label): str(name) for label, name in model.config.id2label.items()}
    theirs = {int(label): str(name) for label, name in id2label.items()}
    fix = "Load it with from_pretrained(..., id2label=data.id2label), or build DETRConfig(id2label=data.id2label)."
    if len(ours) != len(theirs):
        raise ValueError(f"The model has {len(ours)} classes and the data {len(theirs)}. {fix}")
    if all(name == f"LABEL_{label}" for label, name in ours.items()):
        model.config.id2label = theirs
        model.config.label2id = {name: label for label, name in theirs.items()}
        return
    different = [label for label in theirs if ours.get(label, "").casefold() != theirs[label].casefold()]
    if different:
        label = different[0]
        raise ValueError(f"Class {label} is {ours.get(label)!r} to the model and {theirs[label]!r} in the data. {fix}")


def check_splits(args: Any, train: Any, validation: Any) -> None:
    """Raises before Trainer does, in words of the data, where a split is missing or empty.

    Raises:
        ValueError: there is nothing to train or evaluate on.
    """
    if train is not None and hasattr(train, "__len__") and len(train) == 0:
        raise ValueError("The training set is empty: it has no picture.")
    if validation is not None and hasattr(validation, "__len__") and len(validation) == 0:
        raise ValueError("The validation set is empty: it has no picture.")
    if validation is None and args.eval_strategy != "no":
        raise ValueError(
            f"There is no validation split, and eval_strategy is {args.eval_strategy.value!r}, the default here. Give "
            "eval_dataset, name a split validation (load_detection_dataset(..., splits={'validation': ...})), or "
            "train without measuring: eval_strategy='no'."
        )
