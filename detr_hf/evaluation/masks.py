"""COCO's average precision of masks: `evaluate_masks`, and what it reads masks from.

What differs on purpose from calling a COCO library: run lengths and polygons that would crash it, or fit no picture,
are errors that name them; a truth's segmentation may be the text that rows of `detr_hf.data` have.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.readers.mask_text import segmentation_fault
from ..processing.run_lengths_detr import run_length_counts, run_length_mask, run_lengths
from .coco import CocoMetrics, coco_metrics


def evaluate_masks(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], backend: str | None = None
) -> CocoMetrics:
    """Returns COCO's metrics of `detections` against `ground_truth`, compared by their masks.

    Args:
        ground_truth: a COCO dictionary, `images` (with width and height), `categories` and `annotations`; each has its
            `segmentation`, polygons or run lengths, also as JSON text. `iscrowd` and `area` may be missing (0, and the
            box's).
        detections: COCO results, each `{"image_id", "category_id", "score", "segmentation"}` with run lengths
            `{"size": [height, width], "counts": text or list}`; boxes are not looked at.
        backend: as for `evaluate_boxes`.

    Raises:
        ValueError: a detection has no mask or one that does not fit its picture, an annotation has none, and what
            `evaluate_boxes` refuses.
        ImportError: the backend, or every backend, is missing.
    """
    sizes_hw = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    annotations = [_with_mask(one, sizes_hw) for one in ground_truth["annotations"]]
    found = [
        {**one, "segmentation": plain_mask(one, sizes_hw[one["image_id"]], f"Detection {number}")}
        for number, one in enumerate(detections)
        if one["image_id"] in sizes_hw
    ]
    # one of an image that is not there is refused by whom all are checked by
    return coco_metrics(
        {**ground_truth, "annotations": annotations},
        found if len(found) == len(detections) else detections,
        "segm",
        backend,
    )


def plain_mask(detection: Mapping[str, Any], size_hw: tuple[int, int], name: str) -> dict[str, Any]:
    """Returns a detection's run lengths, compressed to text.

    Raises:
        ValueError: it has none, or some that do not fit its picture; `name` says which detection it is.
    """
    mask = detection.get("segmentation")
    if mask is None:
        raise ValueError(
            f"{name} has {', '.join(map(repr, detection))} and no 'segmentation': masks are asked for, and a result "
            "of a box has none. Give results with masks, or measure boxes (evaluate_boxes)."
        )
    if not isinstance(mask, Mapping):
        raise ValueError(
            f"{name} has segmentation {str(mask)[:60]}; expected a run-length encoding, {{'size': [height, width], "
            "'counts': ...}."
        )
    try:
        run_length_counts(mask, size_hw, name)
    except TypeError as error:
        raise ValueError(str(error)) from error
    counts = mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode()
    if not isinstance(counts, str):
        counts = run_lengths(run_length_mask(mask, size_hw, name))["counts"]
    return {"size": list(size_hw), "counts": counts}


def _with_mask(annotation: Mapping[str, Any], sizes_hw: Mapping[Any, tuple[int, int]]) -> dict[str, Any]:
    """Returns a true object with its segmentation as polygons or run lengths, once a COCO library can take them."""
    name = f"Annotation {annotation.get('id')} of image {annotation['image_id']!r}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, str):
        try:
            segmentation = json.loads(segmentation)
        except ValueError as error:
            raise ValueError(f"{name}: the segmentation is no JSON ({error}).") from error
    if not segmentation:
        raise ValueError(
            f"{name} has no segmentation; expected polygons or run lengths for each object, to compare masks with. "
            "Leave objects without one out, or measure boxes (evaluate_boxes)."
        )
    fault = segmentation_fault(segmentation, *sizes_hw.get(annotation["image_id"], (0, 0)))
    if fault:
        raise ValueError(f"{name}: {fault}.")
    return {**annotation, "segmentation": segmentation}
