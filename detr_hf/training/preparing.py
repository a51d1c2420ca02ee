"""From what the user gives to what Trainer needs: splits, and whether data and model mean the same classes."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy

from ..data.detection_data import split_kind
from ..data.preparing.transform import prepare
from ..evaluation.coco import METRIC_NAMES
from ..evaluation.panoptic import QUALITIES
from ..model.timm_body_detr import pixel_statistics
from .monitoring import LossParts
from .starting import transformer_is_trained

logger = logging.getLogger(__name__)


def splits_of_run(
    args: Any, train: Any, validation: Any, data: Any, processor: Any, masks: bool = False
) -> tuple[Any, Any]:
    """Returns what to train and to measure on: the data sets given, and in their place `data`'s splits, prepared.

    Only training is augmented. None stands where there is none. With `masks` targets hold masks, and the processor
    fuses the data's stuff.

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
        if (
            train is None
            and train_name
            and validation is None
            and validation_name
            and "trainval" in train_name.lower()
        ):
            logger.warning(
                "%r is trained on and %r measured on: where the first holds the second, as in Pascal VOC, the numbers "
                "are those of pictures that were learnt. Give splits={'train': ..., 'validation': ...} when loading.",
                *(train_name, validation_name),
            )
        if train is None and train_name:
            if masks:
                check_masks(data[train_name], train_name)
                fuse_stuff(processor, data, data[train_name])
            train = prepare(data[train_name], processor, getattr(args, "augment", "none"), masks)
        if validation is None and validation_name:
            if masks:
                check_masks(data[validation_name], validation_name)
            validation = prepare(data[validation_name], processor, masks=masks)
    sets = validation if isinstance(validation, dict) and validation else {"": validation}
    named = [("training", train), *((f"validation {name}".strip(), rows) for name, rows in sets.items())]
    for what, rows in named:
        if hasattr(rows, "__len__") and len(rows) == 0:
            raise ValueError(f"The {what} set is empty: it has no picture.")
    if args.remove_unused_columns and any(_is_read_with_transform(rows) for _, rows in named):
        raise ValueError(
            "remove_unused_columns=True would take away the columns that rows are made of when they are read "
            "(with_transform). Set remove_unused_columns=False, the default of DETRTrainingArguments."
        )
    if validation is None and args.eval_strategy != "no":
        raise ValueError(
            f"There is no validation split{_splits_there(data)}, and eval_strategy is {args.eval_strategy.value!r}, "
            "the default here. Name a split validation (load_detection_dataset(..., "
            "splits={'validation': ...})), set a part of the training pictures aside (validation_share=0.1), or train "
            "without measuring: eval_strategy='no'."
        )
    return train, validation


def check_masks(rows: Any, split: str) -> None:
    """Makes sure that the objects of a split have masks; crowds, which are not trained on, need none.

    Of a stream, and of rows that are made when they are read, this shows when they are.

    Raises:
        ValueError: some have none; the message counts them and says what to do.
    """
    if isinstance(rows, Dataset) and "objects" in rows.column_names and "panoptic" not in rows.column_names:
        missing, count, names = objects_without_mask(rows)
    elif not hasattr(rows, "column_names") and hasattr(rows, "__getitem__") and len(rows) and "objects" in rows[0]:
        count = len(rows[0]["objects"]["bbox"])
        missing, names = 0 if rows[0]["objects"].get("segmentation") else count, []
    else:
        return
    if not missing:
        return
    alone = "train boxes alone: DETRForObjectDetection (detr-hf train --task detection)"
    if missing == count:
        raise ValueError(
            f"The model has a mask head, and no object of split {split!r} has a segmentation. Read the data with its "
            f"masks (load_detection_dataset(..., masks=True), DigitScenes(masks=True)) if it has any, or {alone}."
        )
    shown = f" (in {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    raise ValueError(
        f"The model has a mask head, and {missing} of {count} objects of split {split!r} have no segmentation{shown}. "
        f"Complete them, learn the boxes alone of those (load_detection_dataset(..., "
        f"allow_missing_masks=True)), or {alone}."
    )


def objects_without_mask(rows: Dataset) -> tuple[int, int, list[str]]:
    """Returns how many objects that are no crowds have no segmentation, of how many, and the names of their pictures.

    Nothing is decoded: Arrow is asked which texts are there.
    """
    missing, count, names = 0, 0, []
    columns = [name for name in ("file_name", "objects") if name in rows.column_names]
    for table in rows.with_format("arrow").select_columns(columns).iter(batch_size=4096):
        objects = table["objects"].combine_chunks()
        lists = {field.name: pc.struct_field(objects, field.name) for field in objects.type}
        owners = pc.list_parent_indices(lists["category"]).to_numpy()
        counted = lacking = np.ones(len(owners), dtype=bool)
        if "iscrowd" in lists:
            counted = pc.list_flatten(lists["iscrowd"]).fill_null(0).to_numpy() == 0
        if "segmentation" in lists:
            lacking = pc.is_null(pc.list_flatten(lists["segmentation"])).to_numpy(zero_copy_only=False)
        lacking = lacking & counted
        if "file_name" in columns:
            names += table["file_name"].take(np.unique(owners[lacking])).to_pylist()
        missing, count = missing + int(lacking.sum()), count + int(counted.sum())
    return missing, count, names


def fuse_stuff(processor: Any, data: Any, rows: Any) -> None:
    """Sets the processor's `label_ids_to_fuse` to the stuff classes of the data, of which a picture has one segment.

    That is none where all are things. Data that does not know things from stuff leaves it as it is.
    """
    known = data if hasattr(data, "is_thing") else rows
    if not hasattr(known, "is_thing") or not hasattr(processor, "label_ids_to_fuse"):
        return
    stuff = [label for label, is_thing in enumerate(known.is_thing or ()) if not is_thing]
    if stuff != processor.label_ids_to_fuse:
        names = ", ".join(str(known.id2label[label]) for label in stuff)
        logger.info("The image processor fuses the segments of %s (label_ids_to_fuse).", names or "no class")
        processor.label_ids_to_fuse = stuff


def _is_read_with_transform(rows: Any) -> bool:
    return isinstance(rows, Dataset) and rows.format["type"] == "custom"


def _splits_there(data: Any) -> str:
    return f" (there are {', '.join(map(repr, data))})" if isinstance(data, Mapping) and data else ""


def nothing_to_train_on(data: Any) -> str:
    """Returns the words for a run without training data, with the splits that there are."""
    rename = " Name one when loading: load_detection_dataset(..., splits={'train': 'its name'})." if data else ""
    return (
        f"There is nothing to train on: give data with a train split{_splits_there(data)}, or train_dataset.{rename}"
    )


def check_metric(
    args: Any, sets: Any, compute_metrics: Any, with_masks: bool = False, is_panoptic: bool = False
) -> None:
    """Makes sure that what the best checkpoint is chosen by will be measured; without it the first evaluation fails.

    It may be written in any case, as `"PQ"`.

    Args:
        args: the arguments; their `metric_for_best_model` is brought into the case of the log.
        sets: what is evaluated on: one set, or several by name.
        compute_metrics: the user's function.
        with_masks, is_panoptic: whether the model gives masks, and the data tells things from stuff.

    Raises:
        ValueError: it will not; the message says what will.
    """
    wanted = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if IntervalStrategy(args.eval_strategy) == IntervalStrategy.NO or compute_metrics is not None:
        return  # a function of the user's may measure anything
    measured = ["loss", *LossParts.NAMES, "class_error"]
    if not args.prediction_loss_only:
        boxes = [name.lower() for name in METRIC_NAMES]
        masks = [f"mask_{name}" for name in boxes] if with_masks else []
        qualities = [f"{name}{of}".lower() for of in ("", "_th", "_st") for name in QUALITIES]
        measured = [*boxes, *masks, *(qualities if with_masks and is_panoptic else []), *measured]
    names = sets if isinstance(sets, dict) else {}
    known = {*measured, "runtime", *(f"{name}_{metric}" for name in names for metric in measured)}
    meant = {name.casefold(): name for name in known} | {name: name for name in known}
    if wanted in meant or wanted.casefold() in meant:
        args.metric_for_best_model = meant.get(wanted) or meant[wanted.casefold()]
        args.greater_is_better = args.greater_is_better and not args.metric_for_best_model.endswith("loss")
        return
    of_sets = f", each also of one set, as '{next(iter(names))}_{measured[0]}'" if names else ""
    only = " (prediction_loss_only=True)" if args.prediction_loss_only else ""
    if wanted.casefold().endswith(("pq", "sq", "rq", "_th", "_st")) and not is_panoptic:
        only += "; the data does not tell things from stuff, which panoptic quality needs (COCO: task='panoptic')"
    raise ValueError(
        f"metric_for_best_model is {args.metric_for_best_model!r}, and an evaluation measures only "
        f"{', '.join(measured)}{of_sets}{only}. Take {measured[0]!r}, or give compute_metrics, which measures it."
    )


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


def check_pixels(model: Any, processor: Any) -> None:
    """Warns where pictures get another mean or deviation than the backbone of a new model was trained with."""
    config = getattr(model, "config", None)
    if processor is None or not getattr(config, "backbone_weights", None) or transformer_is_trained(model):
        return
    known = pixel_statistics(config)
    ours = [list(getattr(processor, name, None) or ()) for name in ("image_mean", "image_std")]
    if known and all(ours) and not all(np.allclose(a, b, atol=1e-3) for a, b in zip(known, ours, strict=True)):
        logger.warning(
            "The image processor has mean %s and deviation %s, and the backbone's weights were trained with %s and "
            "%s: set them, or leave processing_class out.",
            *(*ours, *known),
        )
