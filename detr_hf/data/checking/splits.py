"""What makes a split, or all of them, of no use for training: no pictures, no objects, or crowds for objects.

Loading asks it too, and refuses.
"""

import numpy as np

from ..detection_data import split_kind
from ..readers.recognising import ReadData
from ..readers.records import JudgedSplit

# Share of objects that are crowds from which they can hardly be meant (COCO has 1 in 100), of all and of a class.
CROWDS, CROWDS_OF_CLASS = 0.1, 0.5
SHOWN_CLASSES = 8


def check_splits(read: ReadData, judged: dict[str, JudgedSplit]) -> None:
    """Logs splits without images or objects, and objects that are left out as crowds."""
    counts = {name: objects_per_image(split) for name, split in judged.items()}
    learnt = [name for name, count in counts.items() if count.sum()]
    for name, split in judged.items():
        if not len(counts[name]):
            read.log.add("no-images", "error", "the split has no images", split=name)
        elif not counts[name].sum() and "categories-missing" not in read.log.counts:
            _tell_of_no_objects(read, split, learnt)
        _check_crowds(read, split)


def check_shared_files(read: ReadData, judged: dict[str, JudgedSplit]) -> None:
    """Logs pictures whose file is listed in an earlier split too; `check` compares what is in the files."""
    seen: dict[str, str] = {}
    if "splits-overlap" in read.log.counts:  # said of the splits as a whole
        return
    for name, split in judged.items():
        records = split.records
        for row, path in enumerate(records.paths):
            if path is not None and seen.setdefault(path, name) != name:
                message = f"the same file is in split {seen[path]!r}: a score measured on it means nothing"
                read.log.add("image-in-two-splits", "warning", message, **records.place(row))


def objects_per_image(split: JudgedSplit) -> np.ndarray:
    """Returns how many objects that are no crowds each image that can be used has `(images,)`."""
    rows, crowd = np.array(split.records.rows, dtype=np.int64), np.array(split.records.iscrowd, dtype=bool)
    return np.bincount(rows[split.used & ~crowd], minlength=len(split.records.image_ids))[split.images]


def _tell_of_no_objects(read: ReadData, split: JudgedSplit, learnt: list[str]) -> None:
    name, place = split.records.name, split.records.labels_from
    message = "no image of the split has an object that can be used"
    if place:
        message += f"; labels were looked for in {place}"
    if split_kind(name) == "test":
        read.log.add("no-objects-in-test", "warning", message, split=name)
        return
    if learnt:
        message += f". Correct it, or read the others alone: splits={learnt}"
    read.log.add("no-objects", "error", message, split=name)


def _check_crowds(read: ReadData, split: JudgedSplit) -> None:
    """Logs how many objects are crowds; more than a few are a tool's way to write masks, and are never learnt."""
    used, crowd = split.used, np.array(split.records.iscrowd, dtype=bool)
    crowds, total = int((used & crowd).sum()), int(used.sum())
    if not crowds:
        return
    names = read.categories.names
    by_class = np.bincount(split.indices[used & crowd], minlength=len(names))
    shares = by_class / np.maximum(np.bincount(split.indices[used], minlength=len(names)), 1)
    lost = [names[index] for index in np.flatnonzero(shares > CROWDS_OF_CLASS)]
    message = f"{crowds} of {total} objects are marked as crowds (iscrowd is 1), which are left out of training"
    severity = "info"
    if lost or crowds >= CROWDS * total:
        severity = "warning"
        of_classes = f", most of {', '.join(lost[:SHOWN_CLASSES])}{', ...' * (len(lost) > SHOWN_CLASSES)}" * bool(lost)
        message += f"{of_classes}; single objects have iscrowd 0 (CVAT writes 1 for brush masks)"
    read.log.add("objects-crowd", severity, message, split=split.records.name)
