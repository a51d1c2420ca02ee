"""`load_detection_dataset`: COCO, YOLO, Pascal VOC and `datasets`, from a path or a Hub id, as one schema.

Different on purpose from `datasets.load_dataset`: classes are always 0..K-1 with the mapping logged and kept, a fault
in the annotations is refused by name before training, and a layout that can be read in two ways is an error.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetInfo, Features, Image as ImageFeature, IterableDataset, concatenate_datasets

from ..errors import AnnotationError, did_you_mean
from .checking.mask_checks import check_segment_pictures
from .checking.picture_checks import check_pictures
from .checking.splits import check_shared_files, check_splits
from .detection_data import DetectionData
from .findings import left_out_for
from .read_options import ReadOptions
from .readers.hf_streams import peek_box_format, stream_split
from .readers.recognising import ReadData, has_hf_files, judge, read_source
from .readers.records import JudgedSplit, build_table
from .readers.shares import set_aside

logger = logging.getLogger(__name__)

SHOWN_CLASSES = 12


def load_detection_dataset(
    path_or_id: Any,
    splits: str | Iterable[str] | Mapping[str, str] | None = None,
    *,
    format: str | None = None,
    task: str | None = None,
    image_root: str | Path | Mapping[str, str | Path] | None = None,
    box_format: str | None = None,
    id2label: Mapping[Any, str] | Iterable[str] | None = None,
    stuff: Iterable[str | int] | None = None,
    masks: bool = True,
    allow_missing_masks: bool = False,
    validation_share: float | None = None,
    validation_seed: int = 0,
    streaming: bool = False,
    on_fault: str = "raise",
    **load_options: Any,
) -> DetectionData:
    """Returns a data set as `DetectionData`: splits with one schema (see `detection_data.py`) and the label map.

    Args:
        path_or_id: a folder, a COCO JSON file, a YOLO data.yaml, a Hub id, or a `datasets` object.
        splits: the splits to read (all by default); a dict renames: `{"train": "train2017"}`.
        format: `"coco"`, `"yolo"`, `"voc"` or `"hf"`, where a folder could be several.
        task: `"detection"` (taken when panoptic annotations are there too), `"instance"`, which is detection with a
            mask for each object, or `"panoptic"`; for COCO and `datasets`, and `"instance"` for YOLO.
        image_root: the folder that the annotations' file names start from, where it is not found by itself; a dict
            gives it by split.
        box_format: of COCO and `objects` boxes: `"xywh"` (default), `"xyxy"`, `"cxcywh"`, or one of them with
            `"_norm"`.
        id2label: class names by the id in the data (a list: from 0), where the data does not name them; of VOC, whose
            ids are names, which classes there are and their order.
        stuff: which classes of panoptic data are stuff, by name or id, where the data does not say (`isthing`).
        masks: keep the segmentations (as text, decoded when used). Without, a faulty one is a warning.
        allow_missing_masks: an object without a segmentation is none that a segmentation model refuses: its box is
            learnt alone.
        validation_share: set this part of the training pictures aside as the split `validation`; the same ones each
            time, drawn with `validation_seed`.
        streaming: for `datasets`: read nothing before it is iterated.
        on_fault: `"raise"`, or `"drop"` to leave out what is faulty, with a warning: an object, a picture (every one
            is opened to see), or a mask, whose box stays. `findings.CODES` says what is left out for what; faults of
            the data set as a whole are refused all the same.
        load_options: go to `datasets.load_dataset` (a configuration's `name`, `revision`, `token`, ...).

    Raises:
        LayoutError: it is no known data set, or could be read in two ways; the message lists what was looked for.
        AnnotationError: annotations are faulty; the message counts them and names the first.
    """
    options = ReadOptions(
        splits=splits,
        format=format,
        task=task,
        image_root=image_root,
        box_format=box_format,
        id2label=id2label,
        stuff=stuff,
        masks=masks,
        allow_missing_masks=allow_missing_masks,
        validation_share=validation_share,
        validation_seed=validation_seed,
        on_fault=on_fault,
        streaming=streaming,
        load_options=load_options,
    )
    local = Path(str(path_or_id))
    if load_options and local.exists() and format != "hf" and not (local.is_dir() and has_hf_files(local)):
        known = [one.name for one in fields(ReadOptions)]
        raise TypeError(
            f"Unknown options for a local data set: {', '.join(load_options)}; there are {', '.join(known)}."
            + did_you_mean(next(iter(load_options)), known)
        )
    read = read_source(path_or_id, options)
    if validation_share is not None:
        set_aside(read, validation_share, validation_seed)
    judged = judge(read)
    if on_fault == "drop":
        check_pictures(read, judged)
        check_segment_pictures(read, judged)
        read.log.tolerate()
    else:
        check_shared_files(read, judged)
    check_splits(read, judged)
    _refuse_faults(read, on_fault)
    built: dict[str, Any] = {name: build_split(split, read) for name, split in judged.items()}
    for name, split in read.hf_splits.items():
        if isinstance(split, IterableDataset):
            if box_format is None:
                peek_box_format(split, read.box_format, f"split {name!r} of {read.source}", task)
            built[name] = stream_split(name, split, read.categories, read.box_format, options)
    data = DetectionData(built, read.categories, read.format, read.source, read.log, read.box_format)
    _log_what_was_read(data)
    return data


def _refuse_faults(read: ReadData, on_fault: str) -> None:
    errors = read.log.of("error")
    if not errors:
        return
    if on_fault == "drop":
        advice = " Leaving out single objects or pictures does not cure them."
    else:
        curable = all(left_out_for(code) for code in errors)
        advice = " Correct them, or pass on_fault='drop' to leave them out." if curable else ""
    raise AnnotationError(
        f"{read.source} has {sum(errors.values())} faults that training would suffer from.{advice} `detr-hf check` "
        "lists all.\n" + "\n".join(read.log.lines("error"))
    )


def build_split(split: JudgedSplit, read: ReadData) -> Dataset:
    """Returns the `datasets.Dataset` of a judged split; pictures of a `datasets` source stay where they are."""
    table = build_table(split, read.categories, read.options.boxes_alone)
    features = Features.from_arrow_schema(table.schema)
    built = Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid.uuid4().hex)
    if split.records.name not in read.hf_splits:
        return built
    names = {"image": "image"}
    if split.records.panoptic_column:
        names[split.records.panoptic_column] = "panoptic"
    pictures = read.hf_splits[split.records.name].select_columns(list(names)).rename_columns(names)
    for name in names.values():
        pictures = pictures.cast_column(name, ImageFeature())
    if not split.images.all():
        pictures = pictures.select(np.flatnonzero(split.images))
    joined = concatenate_datasets([pictures, built.remove_columns(list(names.values()))], axis=1)
    return joined.select_columns(list(features))


def _log_what_was_read(data: DetectionData) -> None:
    logger.info("%r", data)
    level = logging.WARNING if data.categories.changed and data.format != "voc" else logging.INFO
    lines = data.mapping_text().splitlines()
    if len(lines) > SHOWN_CLASSES:
        lines[SHOWN_CLASSES:] = [f"... and {len(lines) - SHOWN_CLASSES} more: DetectionData.mapping_text() shows all"]
    logger.log(level, "Class ids of %s (index <- id in the data: name):\n%s", data.source, "\n".join(lines))
    for severity, level in (("warning", logging.WARNING), ("info", logging.INFO)):
        found = data.findings.lines(severity)
        if found:
            logger.log(level, "Findings in %s:\n%s", data.source, "\n".join(found))
