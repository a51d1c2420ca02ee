"""A share of the training pictures, set aside for validation: the same pictures each time, whatever their order."""

from array import array

import numpy as np

from ...errors import LayoutError
from ..detection_data import split_kind
from .recognising import ReadData
from .records import SplitRecords

PICTURE_COLUMNS = ("image_ids", "file_names", "paths", "widths", "heights")
OBJECT_COLUMNS = ("object_ids", "category_ids", "areas", "iscrowd", "segmentations")


def set_aside(read: ReadData, share: float, seed: int = 0) -> None:
    """Moves a share of the pictures of the training split, or of the only one, to a new split `validation`.

    The draw depends on the names and the seed. A file that is listed twice goes one way.

    Raises:
        LayoutError: there is a validation split, no training split, or too little to share; or the data is streamed.
    """
    present = [name for name in read.splits if split_kind(name) == "validation"]
    if present:
        raise LayoutError(
            f"{read.source} has the validation split {present[0]!r}, and validation_share={share:g} asks for another. "
            "Leave that option out, or say which splits to read: splits=['train']."
        )
    training = [name for name in read.splits if split_kind(name) == "train"] or list(read.splits)
    if len(training) != 1:
        raise LayoutError(
            f"Which split of {read.source} validation_share={share:g} is of cannot be told: there are "
            f"{', '.join(map(repr, read.splits))}. Name one, as in splits={{'train': {training[0]!r}}}."
        )
    name = training[0]
    if name not in read.records:
        raise LayoutError(f"{read.source} is streamed: how many pictures validation_share={share:g} is is not known.")
    records = read.records[name]
    # rows without a path (of `datasets`) are told apart by their place
    keys = np.array([path or f"row {row:09d}" for row, path in enumerate(records.paths)], dtype=object)
    unique, key_of_row = np.unique(keys.astype(str), return_inverse=True)
    count = round(share * len(unique))
    if not 0 < count < len(unique):
        raise LayoutError(
            f"validation_share={share:g} of {len(unique)} pictures is {count}: something must remain on both sides."
        )
    drawn = np.random.default_rng(seed).permutation(len(unique))[:count]
    aside = np.isin(key_of_row, drawn)
    read.records = {**read.records, name: part(records, ~aside), "validation": part(records, aside)}
    if name in read.hf_splits:
        rows = read.hf_splits[name]
        read.hf_splits[name] = rows.select(np.flatnonzero(~aside))
        read.hf_splits["validation"] = rows.select(np.flatnonzero(aside))
    read.records[name].log = records.log
    message = f"{aside.sum()} of {len(aside)} pictures of split {name!r} are set aside as 'validation' (seed {seed})"
    read.log.add("validation-share", "info", message)


def part(records: SplitRecords, chosen: np.ndarray) -> SplitRecords:
    """Returns the chosen pictures `(images,)` bool and their objects, with a log of its own."""
    rows = np.array(records.rows, dtype=np.int64)
    objects = np.flatnonzero(chosen[rows]) if len(rows) else rows
    pictures = np.flatnonzero(chosen)
    taken = SplitRecords(records.name, keep_masks=records.keep_masks, labels_from=records.labels_from)
    for columns, indices in ((PICTURE_COLUMNS, pictures.tolist()), (OBJECT_COLUMNS, objects.tolist())):
        for column in columns:
            values = getattr(records, column)
            picked = (values[index] for index in indices)
            setattr(taken, column, array(values.typecode, picked) if isinstance(values, array) else list(picked))
    new_row = np.cumsum(chosen) - 1
    taken.rows = array("q", new_row[rows[objects]].tolist())
    taken.boxes = array("d", records.boxes_array()[objects].reshape(-1).tolist())
    taken.unusable = {int(new_row[row]) for row in records.unusable if chosen[row]}
    if records.panoptic_paths is not None:
        taken.panoptic_paths = [records.panoptic_paths[index] for index in pictures]
        taken.panoptic_column = records.panoptic_column
    return taken
