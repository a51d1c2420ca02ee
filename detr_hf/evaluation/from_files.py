"""Results that others wrote, measured on a data set with its own ids: COCO results, and COCO panoptic PNGs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.picture_truth import PictureTruth
from ..processing.mask_annotations_detr import read_panoptic_png
from ..processing.run_lengths_detr import run_length_mask
from .masks import plain_mask
from .panoptic import PanopticMetrics
from .report import Evaluation
from .results import read_json, read_results, results_array
from .running import rows_of, source_image_ids, things_of, without_pictures
from .segments import SegmentEvaluator
from .truth import ground_truth_of


def evaluate_results(
    path: str | Path, data: Any, *, split: str | None = None, threshold: float = 0.5, masks: bool | None = None
) -> Evaluation:
    """Returns what the detections of a COCO results file, whose ids are the source's, reach on a split.

    AP of masks is measured where the file and the data have some (of things, where `data` knows them from stuff), by
    the results with a `segmentation`; a result without a box has that of its mask.

    Args:
        path: the file.
        data: what `load_detection_dataset` returns.
        split, threshold: as for `evaluate`.
        masks: whether masks must be measured, or must not; by default as file and data have them.

    Raises:
        LayoutError: as for `evaluate`.
        ValueError: it is no results file, it names an image or category that the data does not have, a mask does not
            fit its picture, or masks are asked for where file or data have none.
    """
    rows = rows_of(data, split)
    truth = ground_truth_of(rows, data.id2label)
    if truth is None:
        raise ValueError("a results file can be evaluated on a data set that is read whole, not on a stream")
    sources = source_image_ids(rows) or {image["id"]: image["id"] for image in truth["images"]}
    numbers = {source: image_id for image_id, source in sources.items()}
    sizes_hw = {sources[image["id"]]: (image["height"], image["width"]) for image in truth["images"]}
    results = read_results(path)
    measured = {}
    if masks is not False and any("segmentation" in result for result in results):
        segmentations = _segmentations(results, sizes_hw, str(path))
        results = [_boxed(result, mask) for result, mask in zip(results, segmentations, strict=True)]
        measured["segmentations"] = segmentations
    elif masks:
        raise ValueError(
            f"{path} holds boxes alone, and masks are asked for: its results have no 'segmentation'. Give results "
            "with masks, or measure boxes only."
        )
    found = results_array(results, numbers, data.mapping, str(path))
    if measured:
        measured["masks"] = _measured_masks(data, rows, truth, found, segmentations)
        if masks and measured["masks"] is None:
            raise ValueError(f"{path} has masks, and the data has none to compare them with.")
    return Evaluation.of(truth, found, threshold, image_ids=sources, category_ids=data.source_category_ids, **measured)


def _segmentations(
    results: Sequence[Mapping[str, Any]], sizes_hw: Mapping[Any, tuple[int, int]], source: str
) -> list[dict[str, Any] | None]:
    """Returns the run lengths of each result, None for one without; an unknown image is refused with all results."""
    return [
        plain_mask(result, sizes_hw[result["image_id"]], f"Detection {number} of {source}")
        if "segmentation" in result and result["image_id"] in sizes_hw
        else None
        for number, result in enumerate(results)
    ]


def _boxed(result: Mapping[str, Any], mask: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Returns a result with the box around its mask, where it has no box."""
    if "bbox" in result or mask is None:
        return result
    pixels = run_length_mask(mask, mask["size"])
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return {**result, "bbox": [0, 0, 0, 0]}
    x, y = int(columns[0]), int(rows[0])
    return {**result, "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]}


def _measured_masks(data: Any, rows: Any, truth: Mapping[str, Any], found: np.ndarray, segmentations: list) -> Any:
    segments = SegmentEvaluator(data.id2label, things_of(data, rows))
    for row in without_pictures(rows):
        segments.add_truth(row["image_id"], PictureTruth.of(row))
    results = [
        {"image_id": int(image_id), "category_id": int(label), "score": score, "segmentation": mask}
        for (image_id, *_, score, label), mask in zip(found.tolist(), segmentations, strict=True)
        if mask is not None
    ]
    return segments.compute_masks({image["id"]: image for image in truth["images"]}, results)


def evaluate_panoptic_results(path: str | Path, data: Any, *, split: str | None = None) -> PanopticMetrics:
    """Returns the panoptic quality of COCO panoptic results, whose ids are the source's, on a split.

    Args:
        path: the JSON, a list of annotations or a dictionary that has them (`image_id`, `file_name` and
            `segments_info`), with its PNGs in the folder of its own name or beside it; or a folder that holds both.
        data: what `load_detection_dataset` returns; it must know things from stuff.
        split: as for `evaluate`.

    Raises:
        LayoutError: as for `evaluate`.
        ValueError: these are no panoptic results, the data is not panoptic, a picture has no prediction or two, and
            what `PanopticEvaluator` refuses; pictures are named.
    """
    rows = rows_of(data, split)
    things = things_of(data, rows)
    if things is None:
        raise ValueError(
            f"The data does not tell things from stuff, so that {path} cannot be compared with it: load panoptic "
            "data, of COCO with task='panoptic'."
        )
    json_path, folder = panoptic_files(Path(path))
    by_image = _by_image(json_path)
    sources = source_image_ids(rows) or {}
    segments = SegmentEvaluator(data.id2label, things)
    labels = data.mapping
    for row in without_pictures(rows):
        image_id = sources.get(row["image_id"], row["image_id"])
        if image_id not in by_image:
            raise ValueError(f"{json_path} has no prediction for image {image_id!r} ({row.get('file_name')}).")
        annotation, truth = by_image.pop(image_id), PictureTruth.of(row)
        ids = read_panoptic_png(folder, annotation["file_name"], truth.size_hw, f"image {image_id!r}")
        listed = [_labelled(one, labels, image_id) for one in annotation["segments_info"]]
        segments.add_panoptic(image_id, {"segmentation": ids, "segments_info": listed}, truth)
    if by_image:
        raise ValueError(
            f"{json_path} has predictions for {len(by_image)} images that the data does not have, for example "
            f"{next(iter(by_image))!r}. Is it the right split?"
        )
    return segments.compute_panoptic()


def _labelled(segment: Mapping[str, Any], labels: Mapping[Any, int], image_id: Any) -> dict[str, Any]:
    if segment.get("category_id") not in labels:
        known = ", ".join(map(str, list(labels)[:20]))
        raise ValueError(
            f"the prediction for image {image_id!r} has a segment of category {segment.get('category_id')!r}; the "
            f"categories are {known}."
        )
    return {**segment, "label_id": labels[segment["category_id"]]}


def panoptic_files(path: Path) -> tuple[Path, Path]:
    """Returns the JSON of panoptic results and the folder of their PNGs.

    Raises:
        ValueError: there is no JSON, or several could be meant.
    """
    if path.is_dir():
        found = sorted(path.glob("*.json")) or sorted(path.parent.glob(f"{path.name}.json"))
        if len(found) != 1:
            there = ", ".join(one.name for one in found[:5]) or "none"
            raise ValueError(f"{path} should hold one JSON of panoptic annotations with its PNGs; there is {there}.")
        path, beside = found[0], path
    else:
        beside = path.parent
    own = path.with_suffix("")
    return path, own if own.is_dir() else beside


def kind_of_results(path: str | Path) -> str | None:
    """Returns what results a path holds: `"panoptic"`, `"masks"` or `"boxes"`; None where it is something else."""
    path = Path(path)
    if (path.is_dir() and (path / "config.json").exists()) or not (path.is_dir() or path.suffix.lower() == ".json"):
        return None  # a checkpoint
    try:
        content = read_json(panoptic_files(path)[0])
    except (OSError, ValueError):
        return None
    if isinstance(content, Mapping):
        content = content.get("annotations")
    if not isinstance(content, list) or not all(isinstance(one, Mapping) for one in content):
        return None
    if any("segments_info" in one for one in content):
        return "panoptic"
    return "masks" if any("segmentation" in one for one in content) else "boxes"


def _by_image(path: Path) -> dict[Any, Mapping[str, Any]]:
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, Mapping) else content
    by_image: dict[Any, Mapping[str, Any]] = {}
    for number, annotation in enumerate(annotations):
        missing = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
        if missing:
            raise ValueError(f"Annotation {number} of {path} has no {' and no '.join(missing)}.")
        if annotation["image_id"] in by_image:
            raise ValueError(f"{path}: image {annotation['image_id']!r} has two predictions; expected one.")
        by_image[annotation["image_id"]] = annotation
    return by_image
