"""What a model with masks gives of a picture beside boxes, by task, and how it is kept: small, for 100,000 pictures.

A mask is kept as COCO's run lengths, a map of the whole picture as compressed bytes. A picture of 640x480 with ten
objects takes some 20 kB, where the arrays would take 4 MB. Nothing here imports torch.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..processing.run_lengths_detr import run_length_counts, run_lengths
from ..processing.segments_detr import MASK_THRESHOLD, OVERLAP_THRESHOLD, ImageMasks, panoptic, semantic

# What a model is asked for; each holds what the ones before it hold, but semantic, which has boxes and classes of
# pixels.
TASKS = ("detection", "instance", "panoptic", "semantic")


def chosen_task(task: str | None, has_masks: bool, model: str) -> str:
    """Returns the task to do with a model: the one asked for, else all that it can.

    Raises:
        ValueError: there is no such task, or the model has no masks for it.
    """
    if task is None:
        return "panoptic" if has_masks else "detection"
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    if task != "detection" and not has_masks:
        raise ValueError(
            f"{model} has no masks, so there is no {task} segmentation: take a checkpoint with a mask head, or the "
            "task detection. A detector learns masks by training: detr-hf train --task panoptic, DETRForSegmentation."
        )
    return task


def segmented(
    masks: ImageMasks, task: str, threshold: float, fused_labels: set[int], masks_from: float | None = None
) -> dict[str, Any]:
    """Returns what a task gives of a picture beside boxes: `segmentations`, `panoptic` and `semantic`, as it holds.

    Args:
        masks: of the queries whose boxes are kept, in their order; for semantic of all queries.
        task: of `TASKS`.
        threshold: of the scores of panoptic segments.
        fused_labels: the classes of which a picture has one panoptic segment at most.
        masks_from: queries that do not score more have an empty mask.
    """
    if task == "semantic":
        return {"semantic": semantic(masks, with_scores=False)[0]}
    found: dict[str, Any] = {}
    wanted = masks.best()[0] > (-1.0 if masks_from is None else masks_from)
    empty = run_lengths(np.zeros(masks.target_hw, dtype=bool))
    found["segmentations"] = [
        run_lengths(masks.mask(query, MASK_THRESHOLD)) if wanted[query] else empty for query in range(len(wanted))
    ]
    if task == "panoptic":
        found["panoptic"] = panoptic(masks, threshold, MASK_THRESHOLD, OVERLAP_THRESHOLD, fused_labels)
    return found


class MaskCrop(NamedTuple):
    """The part of a mask that has pixels: its left upper corner in the picture, and the pixels (h, w) bool."""

    x0: int
    y0: int
    pixels: np.ndarray


def mask_crop(segmentation: Mapping[str, Any]) -> MaskCrop:
    """Returns the part of a mask that has pixels, made without the rest; one without any has a crop of no size."""
    height = segmentation["size"][0]
    ends = run_length_counts(segmentation, segmentation["size"]).cumsum()
    starts, ends = ends[:-1:2], ends[1::2]  # of the mask's own runs, which lie column by column
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return MaskCrop(0, 0, np.zeros((0, 0), dtype=bool))
    x0, x1 = int(starts[0] // height), int((ends[-1] - 1) // height + 1)
    bounds = np.stack([starts, ends], axis=1).ravel() - x0 * height
    lengths = np.diff(bounds, prepend=0, append=(x1 - x0) * height)
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(x1 - x0, height)
    rows = np.flatnonzero(columns.any(axis=0))
    y0, y1 = int(rows[0]), int(rows[-1] + 1)
    return MaskCrop(x0, y0, np.ascontiguousarray(columns[:, y0:y1].T))


class SegmentMap:
    """A picture that is divided into segments.

    `segmentation` is an (H, W) int32 map of ids. Each entry of `segments_info` has its `id` in it, its `label_id` and
    `name`, and its `area` in pixels. In a panoptic map 0 is nothing, and entries have `score` and `was_fused` too; in
    a semantic map every pixel has a class, whose label is its id.
    """

    def __init__(self, segmentation: np.ndarray, segments_info: Sequence[Mapping[str, Any]]):
        ids = np.asarray(segmentation)
        self.size_hw: tuple[int, int] = ids.shape
        self.segments_info = [dict(segment) for segment in segments_info]
        ids = ids.astype(np.min_scalar_type(ids.max(initial=0)))
        self._dtype, self._packed = ids.dtype, zlib.compress(ids.tobytes(), 1)

    @classmethod
    def of_panoptic(cls, found: Mapping[str, Any], name_of: Callable[[int], str]) -> "SegmentMap":
        """Returns the map of what `post_process_panoptic_segmentation` gives, with names."""
        segments = [{**segment, "name": name_of(segment["label_id"])} for segment in found["segments_info"]]
        return cls(found["segmentation"], segments)

    @classmethod
    def of_classes(cls, labels: np.ndarray, name_of: Callable[[int], str]) -> "SegmentMap":
        """Returns the map of the class of each pixel (H, W), a segment for each class that is there."""
        areas = np.bincount(labels.ravel())
        found = [(int(label), int(areas[label])) for label in np.flatnonzero(areas)]
        return cls(labels, [{"id": n, "label_id": n, "name": name_of(n), "area": area} for n, area in found])

    @property
    def segmentation(self) -> np.ndarray:
        """The map (H, W) int32 of ids."""
        return np.frombuffer(zlib.decompress(self._packed), self._dtype).reshape(self.size_hw).astype(np.int32)

    def plain(self, digits: int | None = None) -> list[dict[str, Any]]:
        """Returns the segments ready for JSON, each with the run lengths of its pixels; scores rounded or not."""
        ids = self.segmentation
        segments = []
        for segment in self.segments_info:
            one = {"name": segment["name"], "label": segment["label_id"]}
            if "score" in segment:
                score = segment["score"]
                one |= {"score": score if digits is None else round(score, digits)}
                one |= {"was_fused": segment["was_fused"]}
            segments.append({**one, "area": segment["area"], "segmentation": run_lengths(ids == segment["id"])})
        return segments

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"SegmentMap({len(self.segments_info)} segments, {width}x{height} px)"
