"""`check`: looks at every annotation and every picture of a data set before training, and names what is wrong.

The pictures are `picture_checks`' part; here are the classes, counts and sizes that training would suffer from.
"""

import time
from dataclasses import fields
from itertools import islice, pairwise
from typing import Any

import numpy as np
from datasets import IterableDataset

from ...errors import LayoutError, did_you_mean
from ..detection_data import Categories, DetectionData, split_kind
from ..findings import FindingLog
from ..read_options import ReadOptions
from ..readers.hf_objects import read_hf
from ..readers.recognising import ReadData, judge, read_source
from ..readers.records import JudgedSplit
from ..readers.shares import set_aside
from .mask_checks import check_masks, check_segment_pictures
from .object_sizes import DEFAULT_QUERIES, STRIDE, ModelSide, check_object_sizes, fitting_size
from .picture_checks import check_pictures
from .report import CheckReport, SplitSummary
from .splits import check_splits, objects_per_image

IMBALANCE = 20


def check(
    data: Any,
    model_config: Any = None,
    *,
    num_queries: int | None = None,
    size: tuple[int, int] | None = None,
    pictures: bool = True,
    workers: int | None = None,
    **read_options: Any,
) -> CheckReport:
    """Returns everything that is wrong or odd with a data set.

    Args:
        data: what `load_detection_dataset` takes, or the `DetectionData` it gave.
        model_config: a DETRConfig: its number of queries and its stride are what objects are compared with.
        num_queries: instead of the configuration's; 100 without either.
        size: shortest and longest side that pictures are resized to, by default (800, 1333).
        pictures: open and decode the pictures; without, only annotations and names are looked at.
        workers: threads, by default the number of cores.
        read_options: as for `load_detection_dataset`: `splits`, `format`, `task`, `image_root`, `box_format`,
            `id2label`, `stuff`, `masks`, `allow_missing_masks`, `validation_share`, `validation_seed`, `on_fault`.

    A data set that is not recognised is an error in the report, with the code `layout`. With `on_fault="drop"` what
    would be left out is a warning, and the report is of what remains.

    Raises:
        LayoutError: the data is streamed.
    """
    started = time.perf_counter()
    side = model_side(model_config, num_queries, size)
    try:
        options = _options(read_options)
        if isinstance(data, DetectionData) and read_options:
            raise TypeError(f"The data is loaded already: {', '.join(read_options)} is for load_detection_dataset.")
        read = read_loaded(data) if isinstance(data, DetectionData) else read_source(data, options)
        if any(isinstance(split, IterableDataset) for split in read.hf_splits.values()):
            raise LayoutError("A stream cannot be checked as a whole; load the data without streaming.")
        if options.validation_share is not None:
            set_aside(read, options.validation_share, options.validation_seed)
        judged = judge(read)
    except LayoutError as error:
        if isinstance(data, DetectionData):
            raise
        log = FindingLog()
        log.add("layout", "error", str(error))
        return CheckReport(str(data), None, {}, log, seconds=time.perf_counter() - started)
    if pictures:
        check_pictures(read, judged, workers)
        check_segment_pictures(read, judged, workers)
    check_masks(read, judged)
    if options.on_fault == "drop":
        read.log.tolerate()
    else:
        for split in judged.values():
            split.images[:] = True  # counted as listed; the errors say which of them cannot be used
    check_splits(read, judged)
    check_classes(read, judged)
    for split in judged.values():
        check_counts(split, read, side)
    sizes = check_object_sizes(read, judged, side)
    if isinstance(data, DetectionData):
        read.log.take_over(data.findings)
    summaries = {name: summarise(split, read.categories) for name, split in judged.items()}
    mapping = data.mapping if isinstance(data, DetectionData) else read.categories.index_of
    id2label = dict(enumerate(read.categories.names))
    seconds = time.perf_counter() - started
    return CheckReport(read.source, read.format, summaries, read.log, id2label, dict(mapping), seconds, side, sizes)


def _options(given: dict[str, Any]) -> ReadOptions:
    known = [field.name for field in fields(ReadOptions) if field.name not in ("streaming", "load_options")]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(
            f"Unknown options {', '.join(unknown)}; there are {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    return ReadOptions(**given)


def model_side(model_config: Any, num_queries: int | None, size: tuple[int, int] | None) -> ModelSide:
    """Returns the numbers of a model that matter to a check, the original's where nothing is given."""
    queries = num_queries or getattr(model_config, "num_queries", None) or DEFAULT_QUERIES
    levels = getattr(model_config, "num_feature_levels", 1)  # each halves the cells of the finest
    stride = STRIDE >> (levels - 1) if levels > 1 or not getattr(model_config, "dilation", False) else STRIDE // 2
    shortest, longest = size or (800, 1333)
    return ModelSide(queries, stride, shortest, longest)


def fitting_shortest_edge(data: DetectionData, model_config: Any) -> int | None:
    """Returns the shortest side at which a new model should see a data set's pictures (`fitting_size`); None where
    that cannot be told, as of a stream."""
    if any(isinstance(split, IterableDataset) for split in data.splits.values()):
        return None
    return fitting_size(judge(read_loaded(data)), model_side(model_config, None, None).stride)


def read_loaded(data: DetectionData) -> ReadData:
    """Returns loaded data as records again."""
    records = {}
    for name, split in data.splits.items():
        if isinstance(split, IterableDataset):
            raise LayoutError(f"{data!r} is streamed and cannot be checked as a whole; load it without streaming.")
        records[name] = read_hf(name, split)
    names = data.categories.names
    categories = Categories(names, list(range(len(names))), data.is_thing)
    explicit = data.box_format is not None
    return ReadData(data.source, data.format, categories, records, FindingLog(), "xywh", explicit, dict(data.splits))


def check_classes(read: ReadData, judged: dict[str, JudgedSplit]) -> None:
    """Logs gaps in ids, classes without objects, classes that only validation has, and balance."""
    categories = read.categories
    ids = [value for value in categories.source_ids if isinstance(value, int)]
    if ids and categories.changed:
        between = (value for low, high in pairwise(sorted(ids)) for value in range(low + 1, high))
        gaps = list(islice(between, 9))  # an id may be enormous
        shown = f", with gaps at {', '.join(map(str, gaps[:8]))}{', ...' if len(gaps) > 8 else ''}" if gaps else ""
        message = f"the category ids are {min(ids)} to {max(ids)}{shown}; they become 0 to {len(ids) - 1}"
        read.log.add("category-ids-remapped", "info", message)
    if not judged or not categories.names:
        return
    counts = {name: class_counts(split, categories) for name, split in judged.items()}
    total = np.sum(list(counts.values()), axis=0)
    training = [name for name in judged if split_kind(name) == "train"] or list(judged)[:1]
    trained = np.sum([counts[name] for name in training], axis=0)
    for index, name in enumerate(categories.names):
        if total[index] and not trained[index]:
            where = ", ".join(split for split in judged if counts[split][index])
            read.log.add(
                "class-not-in-training",
                "warning",
                f"class {name!r} has {total[index]} objects in {where} and none in {training[0]}",
            )
    empty = [name for name, count in zip(categories.names, total, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:12]) + (", ..." if len(empty) > 12 else "")
        read.log.add(
            "class-without-objects", "info", f"{len(empty)} of {len(categories.names)} classes have no object: {shown}"
        )
    present = np.flatnonzero(trained)
    if len(present) > 1:
        most, least = present[trained[present].argmax()], present[trained[present].argmin()]
        if trained[most] >= IMBALANCE * trained[least]:
            message = (
                f"class {categories.names[most]!r} has {trained[most]} objects and {categories.names[least]!r} has "
                f"{trained[least]}"
            )
            read.log.add("class-imbalance", "info", message, split=training[0])


def class_counts(split: JudgedSplit, categories: Categories) -> np.ndarray:
    """Returns how many objects that are no crowds each class has `(K,)`."""
    crowd = np.array(split.records.iscrowd, dtype=bool)
    return np.bincount(split.indices[split.used & ~crowd], minlength=len(categories.names))


def check_counts(split: JudgedSplit, read: ReadData, side: ModelSide) -> None:
    """Logs images without objects, and images with more objects than queries."""
    counts = objects_per_image(split)
    empty = int((counts == 0).sum())
    if empty:
        message = f"{empty} of {len(counts)} images have no object: they teach what background is"
        read.log.add("images-without-objects", "info", message, split=split.records.name)
    rows = np.flatnonzero(split.images)
    for index in np.flatnonzero(counts > side.num_queries).tolist():
        message = (
            f"{counts[index]} objects and the model has {side.num_queries} queries: the rest is never learnt; raise "
            "num_queries"
        )
        read.log.add("more-objects-than-queries", "warning", message, **split.records.place(int(rows[index])))


def summarise(split: JudgedSplit, categories: Categories) -> SplitSummary:
    """Returns the counts of a split."""
    counts = objects_per_image(split)
    classes = class_counts(split, categories).tolist()
    crowd = np.array(split.records.iscrowd, dtype=bool)
    spread = (int(counts.min()), float(np.median(counts)), int(counts.max())) if len(counts) else (0, 0.0, 0)
    return SplitSummary(
        images=len(counts),
        objects=int(counts.sum()),
        crowds=int((split.used & crowd).sum()),
        empty_images=int((counts == 0).sum()),
        classes=dict(zip(categories.names, classes, strict=True)),
        per_image=spread,
    )
