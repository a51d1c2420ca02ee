"""What is wrong with masks, as far as annotations tell it: objects that lack one, stuff that a picture has twice."""

import numpy as np

from ..detection_data import NO_MASK, Categories
from .records import SplitRecords, repeated_rows


def check_masks(records: SplitRecords, kept: np.ndarray, needed: bool, allowed: bool) -> None:
    """Logs the objects without a segmentation where a mask is `needed` for each, or others have one."""
    lacking = [text in (None, NO_MASK) for text in records.segmentations]
    if not records.keep_masks or records.panoptic_paths is not None or not (needed or allowed or not all(lacking)):
        return
    advice = "allow_missing_masks=True trains its box alone"
    message = f"the object has no segmentation: {advice}" if needed and not allowed else ""
    for index in np.flatnonzero(np.array(lacking, dtype=bool) & kept & (np.array(records.iscrowd) == 0)).tolist():
        box_alone = allowed or records.segmentations[index] == NO_MASK
        text = "the object has no segmentation: its box is trained alone" if box_alone else message
        text = text or f"the object has no segmentation, others have: to train masks, {advice}"
        severity = "error" if needed and not box_alone else "info"
        records.fault("mask-missing", text, records.rows[index], records.object_ids[index], severity)


def check_segments(records: SplitRecords, categories: Categories, indices: np.ndarray, kept: np.ndarray) -> None:
    """Logs panoptic segments with the id 0, which `kept (N,)` loses, and stuff that a picture has more than once."""
    for index in [number for number, object_id in enumerate(records.object_ids) if object_id == 0]:
        message = "the segment has the id 0, which in the PNG says that a pixel is of no segment: number them from 1"
        records.fault("segment-id-zero", message, records.rows[index], 0)
        kept[index] = False
    if not categories.is_thing:
        return
    stuff = ~np.array(categories.is_thing) if len(categories.is_thing) else np.zeros(0, dtype=bool)
    usable = np.flatnonzero(kept & (np.array(records.iscrowd) == 0))
    usable = usable[stuff[indices[usable]]]
    rows = np.array(records.rows, dtype=np.float64)[usable]
    for place in repeated_rows(np.column_stack([rows, indices[usable]])):
        index = usable[place]
        message = (
            f"{categories.names[indices[index]]!r} is stuff and has another segment in this picture: what a model "
            "finds of it is one segment, so that neither is matched"
        )
        records.fault("stuff-repeated", message, records.rows[index], records.object_ids[index], "warning")
