"""From what the user gives to what Trainer needs: splits, and whether data and model mean the same classes."""

from collections.abc import Mapping
from typing import Any

from ..data.detection_data import split_kind
from ..data.preparing.transform import prepare


def splits_of_run(args: Any, train: Any, validation: Any, data: Any, processor: Any) -> tuple[Any, Any]:
    """Returns what to train and to measure on: the data sets given, and in their place `data`'s splits, prepared.

    Only training is augmented. None stands where there is none.

    Raises:
        LayoutError: several splits of `data` could be meant.
        TypeError: `data` is not what `load_detection_dataset` returns.
        ValueError: there is nothing to train or evaluate on; Trainer would say it later, and not in words of the data.
    """
    if data is not None:
        if not isinstance(data, Mapping):
            raise TypeError(
                f"data is a {type(data).__name__}; expected what load_detection_dataset returns, or a dictionary with "
                "'train' and 'validation'. Prepared data sets go to train_dataset and eval_dataset, a collator to "
                "data_collator."
            )
        train_name, validation_name = split_named(data, "train"), split_named(data, "validation")
        if train is None and train_name:
            train = prepare(data[train_name], processor, augment=getattr(args, "augment", "none"))
        if validation is None and validation_name:
            validation = prepare(data[validation_name], processor)
    for what, rows in (("training", train), ("validation", validation)):
        if hasattr(rows, "__len__") and len(rows) == 0:
            raise ValueError(f"The {what} set is empty: it has no picture.")
    if validation is None and args.eval_strategy != "no":
        raise ValueError(
            f"There is no validation split, and eval_strategy is {args.eval_strategy.value!r}, the default here. Give "
            "eval_dataset, name a split validation (load_detection_dataset(..., splits={'validation': ...})), set a "
            "part of the training pictures aside (validation_share=0.1), or train without measuring: "
            "eval_strategy='no'."
        )
    return train, validation


def split_named(data: Mapping[str, Any], kind: str) -> str | None:
    """Returns the name of the split for `kind` ('train', 'validation' or 'test'), or None.

    Raises:
        LayoutError: several could be meant.
    """
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
