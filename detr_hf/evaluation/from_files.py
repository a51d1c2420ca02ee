"""Results that others wrote, measured on a data set with its own ids: COCO results, and COCO panoptic PNGs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..data.picture_truth import PictureTruth
from ..processing.mask_annotations_detr import read_panoptic_png
from ..processing.run_lengths_detr import run_length_mask
from .masks import plain_mask
from .panoptic import PanopticMetrics
from .report import Evaluation
from .results import read_json, read_results, results_array
from .running import labels_by_name, rows_of, source_image_ids, things_of, without_pictures
from .segments import SegmentEvaluator
from .truth import ground_truth_of


def evaluate_results(
    path: str | Path, data: Any, *, split: str | None = None, threshold: float = 0.5, masks: bool = False
) -> Evaluation:
    """Returns what the detections of a COCO results file, whose ids are the source's, reach on a split.

    AP of masks is measured where the file and the data have some (of things, where `data` knows them from stuff), by
    the results with a `segmentation`; a result without a box has that of its mask.

    Args:
        path: the file.
        data: what `load_detection_dataset` returns.
        split, threshold: as for `evaluate`.
        masks: whether it is an error where they are not measured.

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
    if any("segmentation" in result for result in results):
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


def _boxed(result: dict[str, Any], mask: Mapping[str, Any] | None) -> dict[str, Any]:
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
    """Returns the panoptic quality of COCO panoptic results on a split.

    Image and category ids are the source's. Where the results list their own categories or images, as those of
    `detr-hf predict` do, classes go by name, and an image whose id means another file there is found by its file name.

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
    results = PanopticResults.read(Path(path), data)
    sources = source_image_ids(rows) or {}
    segments = SegmentEvaluator(data.id2label, things)
    for row in without_pictures(rows):
        image_id, truth = sources.get(row["image_id"], row["image_id"]), PictureTruth.of(row)
        segments.add_panoptic(image_id, results.take(image_id, truth), truth)
    if results.by_image:
        raise ValueError(
            f"{results.json_path} has predictions for {len(results.by_image)} images that the data does not have, for "
            f"example {next(iter(results.by_image))!r}. Is it the right split?"
        )
    metrics = segments.compute_panoptic()
    if metrics is None:
        raise ValueError(f"The data has no picture that {path} could be compared with.")
    return metrics


@dataclass
class PanopticResults:
    """Predicted segments on disk, of pictures that were not yet taken.

    Attributes:
        json_path, folder: where they are.
        by_image: the annotations by the results' image id.
        labels: the data's label by the results' category id; None for a class that the data lacks.
        file_names, ids_by_name: of the results' images, where they list them.
    """

    json_path: Path
    folder: Path
    by_image: dict[Any, Mapping[str, Any]]
    labels: Mapping[Any, int | None]
    file_names: Mapping[Any, str]
    ids_by_name: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, data: Any) -> "PanopticResults":
        """Returns the results at a path, see `evaluate_panoptic_results`."""
        json_path, folder = panoptic_files(path)
        content = read_json(json_path)
        whole = content if isinstance(content, Mapping) else {"annotations": content}
        by_image: dict[Any, Mapping[str, Any]] = {}
        for number, annotation in enumerate(whole["annotations"]):
            missing = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
            if missing:
                raise ValueError(f"Annotation {number} of {json_path} has no {' and no '.join(missing)}.")
            if annotation["image_id"] in by_image:
                raise ValueError(f"{json_path}: image {annotation['image_id']!r} has two predictions; expected one.")
            by_image[annotation["image_id"]] = annotation
        labels: Mapping[Any, int | None] = data.mapping
        if whole.get("categories"):
            names = {category["id"]: category["name"] for category in whole["categories"]}
            shared = labels_by_name(names, data.id2label)
            labels = {category: shared.get(category) for category in names}
        files = {one["id"]: PurePath(one["file_name"]).name for one in whole.get("images") or () if "file_name" in one}
        return cls(json_path, folder, by_image, labels, files, {name: image_id for image_id, name in files.items()})

    def take(self, image_id: Any, truth: PictureTruth) -> dict[str, Any]:
        """Returns the segments of one of the data's pictures, by label; those of a class that it lacks are void."""
        name = PurePath(truth.name).name
        if self.file_names.get(image_id, name) != name or image_id not in self.by_image:
            image_id = self.ids_by_name.get(name, image_id)
        if image_id not in self.by_image:
            raise ValueError(f"{self.json_path} has no prediction for image {image_id!r} ({truth.name}).")
        annotation = self.by_image.pop(image_id)
        ids = read_panoptic_png(self.folder, annotation["file_name"], truth.size_hw, f"image {image_id!r}")
        listed: list[dict[str, Any]] = []
        foreign: list[Any] = []
        for segment in annotation["segments_info"]:
            if segment.get("category_id") not in self.labels:
                known = ", ".join(map(str, list(self.labels)[:20]))
                raise ValueError(
                    f"the prediction for image {image_id!r} has a segment of category {segment.get('category_id')!r}; "
                    f"the categories are {known}."
                )
            label = self.labels[segment["category_id"]]
            (foreign if label is None else listed).append({**segment, "label_id": label})
        if foreign:
            ids = np.where(np.isin(ids, [one["id"] for one in foreign]), 0, ids)
        return {"segmentation": ids, "segments_info": listed}


def panoptic_files(path: Path) -> tuple[Path, Path]:
    """Returns the JSON of panoptic results and the folder of their PNGs.

    Raises:
        ValueError: there is no JSON, or several could be meant.
    """
    if path.is_dir():
        found = sorted(path.glob("panoptic.json")) or sorted(path.glob("*.json"))
        found = found or sorted(path.parent.glob(f"{path.name}.json"))
        if len(found) != 1:
            there = ", ".join(one.name for one in found[:5]) or "none"
            raise ValueError(f"{path} should hold one JSON of panoptic annotations with its PNGs; there is {there}.")
        path, beside = found[0], path  # a run of `detr-hf predict` has panoptic.json among others
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
