"""`load_detection_dataset`: COCO, YOLO, Pascal VOC and `datasets`, from a path or a Hub id, as one schema.

Different on purpose from `datasets.load_dataset`: classes are always 0..K-1 with the mapping logged and kept, a fault
in the annotations is refused by name before training, and a layout that can be read in two ways is an error.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetInfo, Features, Image as ImageFeature, IterableDataset, concatenate_datasets

from ..errors import AnnotationError
from .detection_data import DetectionData
from .findings import FindingLog
from .readers.hf_objects import peek_box_format, stream_split
from .readers.recognising import ReadData, ReadOptions, has_hf_files, judge, read_source
from .readers.records import JudgedSplit, build_table

logger = logging.getLogger(__name__)

# Faults that leaving out single annotations or images does not cure.
WHOLE_FAULTS = (
    "categories-missing",
    "category-conflict",
    "category-name-duplicate",
    "boxes-look-xyxy",
    "boxes-look-normalised",
)

SHOWN_CLASSES = 12


def load_detection_dataset(
    path_or_id: Any,
    splits: str | Iterable[str] | Mapping[str, str] | None = None,
    *,
    format: str | None = None,
    task: str | None = None,
    image_root: str | Path | None = None,
    box_format: str | None = None,
    id2label: Mapping[Any, str] | None = None,
    masks: bool = True,
    streaming: bool = False,
    on_fault: str = "raise",
    **load_options: Any,
) -> DetectionData:
    """Returns a data set as `DetectionData`: splits with one schema (see `detection_data.py`) and the label map.

    Args:
        path_or_id: a folder, a COCO JSON file, a YOLO data.yaml, a Hub id, or a `datasets` object.
        splits: the splits to read (all by default); a dict renames: `{"train": "train2017"}`.
        format: `"coco"`, `"yolo"`, `"voc"` or `"hf"`, where a folder could be several.
        task: `"detection"` (taken when both are there) or `"panoptic"`, for COCO.
        image_root: the folder that the annotations' file names start from, where it is not found by itself.
        box_format: of COCO and `objects` boxes: `"xywh"` (default), `"xyxy"`, `"cxcywh"`, or one of them with
            `"_norm"`.
        id2label: class names by the id in the data, where the data does not name them.
        masks: keep the segmentations (as text, decoded when used).
        streaming: for `datasets`: read nothing before it is iterated.
        on_fault: `"raise"`, or `"drop"` to leave faulty annotations and images out with a warning.
        load_options: go to `datasets.load_dataset` (a configuration's `name`, `revision`, `token`, ...).

    Raises:
        LayoutError: it is no known data set, or could be read in two ways; the message lists what was looked for.
        AnnotationError: annotations are faulty; the message counts them and names the first.
    """
    if on_fault not in ("raise", "drop"):
        raise ValueError(f"on_fault is {on_fault!r}; expected 'raise' or 'drop'.")
    if splits is not None and not isinstance(splits, str | Mapping):
        splits = list(splits)
    local = Path(str(path_or_id))
    if load_options and local.exists() and format != "hf" and not (local.is_dir() and has_hf_files(local)):
        raise TypeError(f"Unknown options for a local data set: {', '.join(load_options)}.")
    root = Path(image_root) if image_root is not None else None
    names = dict(id2label) if id2label else None
    options = ReadOptions(splits, format, task, root, box_format, names, masks, streaming, load_options)
    read = read_source(path_or_id, options)
    judged = judge(read)
    _refuse_faults(read, on_fault)
    built: dict[str, Any] = {name: build_split(split, read) for name, split in judged.items()}
    for name, split in read.hf_splits.items():
        if isinstance(split, IterableDataset):
            if box_format is None:
                peek_box_format(split, read.box_format, f"split {name!r} of {read.source}")
            built[name] = stream_split(name, split, read.categories, read.box_format, masks)
    data = DetectionData(built, read.categories, read.format, read.source, read.log, read.box_format)
    _log_what_was_read(data)
    return data


def _refuse_faults(read: ReadData, on_fault: str) -> None:
    errors = read.log.of("error")
    whole = [code for code in errors if code in WHOLE_FAULTS]
    if not errors or (on_fault == "drop" and not whole):
        return
    log = read.log
    if on_fault == "drop":
        log = FindingLog()
        for finding in read.log:
            if finding.code in whole:
                log.add(finding.code, "error", finding.message, split=finding.split)
    advice = "" if whole else " Correct them, or pass on_fault='drop' to leave them out."
    raise AnnotationError(
        f"{read.source} has {sum(log.of('error').values())} faults that training would suffer from.{advice} "
        f"`detr-hf check` lists all.\n" + "\n".join(log.lines("error"))
    )


def build_split(split: JudgedSplit, read: ReadData) -> Dataset:
    """Returns the `datasets.Dataset` of a judged split; pictures of a `datasets` source stay where they are."""
    table = build_table(split, read.categories)
    features = Features.from_arrow_schema(table.schema)
    built = Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid.uuid4().hex)
    if split.records.name not in read.hf_splits:
        return built
    pictures = read.hf_splits[split.records.name].select_columns("image").cast_column("image", ImageFeature())
    if not split.images.all():
        pictures = pictures.select(np.flatnonzero(split.images))
    joined = concatenate_datasets([pictures, built.remove_columns("image")], axis=1)
    return joined.select_columns(list(features))


def _log_what_was_read(data: DetectionData) -> None:
    logger.info("%r", data)
    level = logging.WARNING if data.categories.changed and data.format != "voc" else logging.INFO
    lines = data.mapping_text().splitlines()
    if len(lines) > SHOWN_CLASSES:
        lines[SHOWN_CLASSES:] = [f"... and {len(lines) - SHOWN_CLASSES} more: DetectionData.mapping_text() shows all"]
    logger.log(level, "Class ids of %s (index <- id in the data: name):\n%s", data.source, "\n".join(lines))
    tolerated = data.findings.lines("warning") + data.findings.lines("error")
    if tolerated:
        logger.warning("Findings in %s:\n%s", data.source, "\n".join(tolerated))
