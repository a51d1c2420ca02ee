"""`evaluate`: a detector over a split. Pictures are read, detected and forgotten one batch at a time; with masks, too.

A model sees batches padded to their largest image, as the original is measured and as `DETRTrainer` measures; a
`Detector` never pads, and is measured as it will be used. The classes of model and data are matched by name.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..checkpoints.model_classes import load_model
from ..checkpoints.processors import processor_of
from ..data.picture_truth import TRUTH, PictureTruth
from ..errors import LayoutError
from ..model.modeling_detr import DETRForObjectDetection
from ..model.predictions_detr import Predictions
from ..processing.segments_detr import PANOPTIC_THRESHOLD
from .collecting import DetectionEvaluator
from .report import Evaluation
from .segments import SegmentEvaluator
from .truth import coco_truth, ground_truth_of

logger = logging.getLogger(__name__)

LOOKED_AT = 50  # pictures with objects, to see whether data has masks


def labels_by_name(model_id2label: Mapping[int, str], data_id2label: Mapping[int, str]) -> dict[int, int]:
    """Returns the data's label by the model's, matched by class name without regard to case.

    Classes of the model alone are left out.

    Raises:
        ValueError: no class is in both.
    """
    label_of = {str(name).casefold(): int(label) for label, name in data_id2label.items()}
    shared = {
        int(label): label_of[str(name).casefold()]
        for label, name in model_id2label.items()
        if str(name).casefold() in label_of
    }
    if not shared:
        raise ValueError(
            f"Model and data have no class in common: {_some(model_id2label)} and {_some(data_id2label)}. Fine-tune "
            "the model on these classes first, or rename them."
        )
    unknown = [name for label, name in data_id2label.items() if int(label) not in shared.values()]
    if unknown:
        logger.warning(
            "The model does not know %d of the data's classes, whose AP is 0: %s.",
            len(unknown),
            ", ".join(unknown[:10]),
        )
    return shared


def _some(id2label: Mapping[int, str]) -> str:
    names = [str(name) for name in id2label.values()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class FindsObjects(Protocol):
    """What is asked of a detector that is no torch model: `detr_hf.Detector`, also of an exported artefact.

    One whose `task` has masks is asked by `panoptic_threshold` and `masks_from` too.
    """

    id2label: Mapping[int, str]

    def stream(self, images: Iterable[Any], threshold: float) -> Iterator[Any]:
        """Yields the `Detections` of each image, in order."""


OnBatch = Callable[[int, int | None], None]


def evaluate(
    model: DETRForObjectDetection | FindsObjects | str | Path,
    data: Any,
    *,
    split: str | None = None,
    processor: Any = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    num_workers: int = 0,
    device: Any = None,
    on_batch: OnBatch | None = None,
    rule: str = "confident",
    panoptic_threshold: float = PANOPTIC_THRESHOLD,
) -> Evaluation:
    """Returns what a detector reaches on a split: COCO's numbers, AP by class, its mistakes, every detection.

    Where model and data have masks, their AP is measured too; and panoptic quality, where `data` knows things from
    stuff (`is_thing`), with AP of masks being that of things.

    Args:
        model: a model, the folder or Hub id of one, or a `Detector`.
        data: what `load_detection_dataset` returns, or the rows of one split of it.
        split: its name; by default the one for validation, or the only one.
        processor: the model's image processor; by default its checkpoint's.
        threshold: the score from which mistakes are counted; COCO's numbers see every detection.
        batch_size: images at a time.
        num_workers: processes that read them; a `Detector` has threads of its own.
        device: where a model runs that is given by name; by default on a GPU if there is one.
        on_batch: is told, again and again, how many more images are done, and of how many; None for a stream.
        rule: of panoptic segments, as in `post_process_panoptic_segmentation`; "original" is that of published
            figures, which a `Detector` does not have.
        panoptic_threshold: of their scores.

    Raises:
        LayoutError: the split is not there, or which one is meant is not clear.
        TypeError: this is no detector, or no data set.
        ValueError: model and data have no class in common, outputs are not finite, there is no image, or a `Detector`
            is to follow another rule than its own.
    """
    rows = rows_of(data, split)
    detector: Any = _loaded(model, device)
    is_detector = hasattr(detector, "stream")
    if is_detector and rule != "confident":
        raise ValueError(
            f"rule={rule!r} needs a model's own outputs, and a Detector makes its segments by the rule 'confident': "
            "give the model, or the name of its checkpoint."
        )
    id2label = _classes_of(data, rows, detector.id2label if is_detector else detector.config.id2label)
    segments = None
    if _gives_masks(detector) and _has_masks(rows):
        segments = SegmentEvaluator(id2label, things_of(data, rows), rule=rule, panoptic_threshold=panoptic_threshold)
    began = time.perf_counter()
    if is_detector:
        evaluator = _found_by_detector(detector, rows, id2label, segments, on_batch)
    else:
        processor = processor_of(detector) if processor is None else processor
        evaluator = DetectionEvaluator(id2label, ground_truth_of(rows, id2label), segments=segments)
        _find_by_model(detector, processor, rows, evaluator, (batch_size, num_workers), on_batch)
    seconds = time.perf_counter() - began
    evaluator.check()
    return Evaluation.of(
        evaluator.coco_ground_truth(),
        evaluator.coco_detections(),
        threshold,
        image_ids=source_image_ids(rows) or evaluator.image_ids(),
        category_ids=getattr(data, "source_category_ids", None),
        seconds=seconds,
        masks=evaluator.compute_masks(),
        panoptic=evaluator.compute_panoptic(),
        segmentations=evaluator.coco_masks(),
        queries=None if _has_box_queries(detector) else evaluator.coco_queries(),
    )


def _has_box_queries(model: Any) -> bool:
    """Whether the queries of a model or `Detector` are boxes, chosen anew for each picture: places are not theirs."""
    config = getattr(getattr(model, "model", model), "config", None)
    return bool(getattr(config, "box_queries", False))


def rows_of(data: Any, split: str | None = None) -> Any:
    """Returns the rows of the split to evaluate on: the one named, else the one for validation or the only one.

    Raises:
        LayoutError: it is not there, or which one is meant is not clear.
        TypeError: this is no data set.
    """
    if isinstance(data, str | Path):
        raise TypeError(f"data is {str(data)!r}; give what load_detection_dataset({str(data)!r}) returns.")
    if not isinstance(data, Mapping):
        if split is not None:
            raise TypeError(f"data is one split already, a {type(data).__name__}: leave split={split!r} out.")
        return data
    if split is None and len(data) == 1:
        split = next(iter(data))
    elif split is None:
        split = data.split_for("validation") if hasattr(data, "split_for") else "validation"
    if split not in data:
        raise LayoutError(f"There is no split {split!r}; there are {', '.join(map(repr, data))}. Name one: split=...")
    return data[split]


def _loaded(model: Any, device: Any) -> Any:
    """Returns the model or `Detector`, loaded where it is given by name."""
    if isinstance(model, str | Path):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(model).to(device)
    if not hasattr(model, "stream") and not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a DETR, a Detector, or a checkpoint's name.")
    return model


def _length(rows: Any) -> int | None:
    return len(rows) if hasattr(rows, "__len__") else None


def _classes_of(data: Any, rows: Any, otherwise: Mapping[int, str]) -> dict[int, str]:
    """Returns the data's classes by label; those of the model where the data names none."""
    for source in (data, rows):
        if getattr(source, "id2label", None):
            return dict(source.id2label)
    objects = (getattr(rows, "features", None) or {}).get("objects")
    category = objects.get("category") if isinstance(objects, Mapping) else None
    names = getattr(getattr(category, "feature", None), "names", None)
    return dict(otherwise) if names is None else dict(enumerate(names))


def source_image_ids(rows: Any) -> dict[int, Any] | None:
    """Returns the source's image ids by the rows', where those are numbers that the reader gave."""
    if "source_image_id" not in (getattr(rows, "column_names", None) or []) or not hasattr(rows, "__len__"):
        return None
    plain = rows.with_format(None)
    return dict(zip(plain["image_id"], plain["source_image_id"], strict=True))


def things_of(data: Any, rows: Any) -> list[bool] | None:
    """Returns by label whether a class is countable; None where neither the data nor the rows of a split know."""
    for source in (data, rows, getattr(rows, "rows", None)):
        is_thing = getattr(source, "is_thing", None)
        if is_thing is not None:
            return list(is_thing)
    return None


def _gives_masks(model: Any) -> bool:
    return bool(getattr(model, "has_mask_head", False)) or getattr(model, "task", None) in ("instance", "panoptic")


def _has_masks(rows: Any) -> bool:
    """Whether rows have masks, by the first of them that have objects; those of a stream may have."""
    if not hasattr(rows, "__len__"):
        return True
    truths = map(PictureTruth.of, without_pictures(rows))
    known = list(islice((truth for truth in truths if truth.objects["bbox"]), LOOKED_AT))
    if known and not any(truth.has_masks for truth in known):
        logger.warning("The data has no masks: boxes alone are measured. (Load it with masks=True.)")
    return any(truth.has_masks for truth in known)


def without_pictures(rows: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a split that is read whole, those of `datasets` without their pictures."""
    if getattr(rows, "features", None):
        rows = undecoded(rows.remove_columns([name for name in ("image",) if name in rows.column_names]))
    return (rows[number] for number in range(len(rows)))


@torch.no_grad()
def _find_by_model(
    model: Any,
    processor: Any,
    rows: Any,
    evaluator: DetectionEvaluator,
    loading: tuple[int, int],
    on_batch: OnBatch | None,
) -> None:
    """Adds what a model with `logits` and `pred_boxes` finds; `loading` is batch size and workers."""
    from ..data.preparing.collate import DetectionCollator
    from ..data.preparing.transform import prepare

    id2label, segments = evaluator.id2label, evaluator.segments
    to_data = labels_by_name(model.config.id2label, id2label)
    columns = sorted(to_data)
    batch_size, workers = loading
    prepared = prepare(rows, processor, truth=segments is not None)
    batches = DataLoader(prepared, batch_size, num_workers=workers, collate_fn=DetectionCollator(id2label=id2label))
    asked = {}
    if getattr(model, "has_mask_head", False):  # with 1, of no query
        asked["mask_score_threshold"] = 1.0 if segments is None else segments.masks_from
    with evaluating(model):
        for batch in batches:
            outputs = model(
                pixel_values=batch["pixel_values"].to(model.device, model.dtype),
                pixel_mask=batch["pixel_mask"].to(model.device),
                **asked,
            )
            logits = with_classes_of_data(
                outputs.logits.float(), columns, [to_data[label] for label in columns], len(id2label)
            )
            found = Predictions(logits, outputs.pred_boxes.float(), None if segments is None else outputs.pred_masks)
            evaluator.update(found, batch["labels"], batch["pixel_mask"])
            if on_batch is not None:
                on_batch(len(batch["labels"]), _length(rows))


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model does not train; afterwards it does what it did."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _found_by_detector(
    detector: FindsObjects,
    rows: Iterable[Any],
    id2label: Mapping[int, str],
    segments: SegmentEvaluator | None,
    on_batch: OnBatch | None,
) -> DetectionEvaluator:
    """Returns the detections of a `Detector`, which tells of each query its best class alone."""
    to_data = labels_by_name(detector.id2label, id2label)
    seen: list[dict[str, Any]] = []  # the rows without their pictures
    truths: dict[Any, PictureTruth] = {}  # of those that were read and are not yet done
    evaluator = DetectionEvaluator(id2label, segments=segments)
    pictures = pictures_of(rows, seen, None if segments is None else truths)
    asked = {}
    if segments is not None:
        asked = {"panoptic_threshold": segments.panoptic_threshold, "masks_from": segments.masks_from}
    for number, found in enumerate(detector.stream(pictures, threshold=0.0, **asked)):
        image_id = seen[number]["image_id"]
        labels = np.array([to_data.get(int(label), -1) for label in found.labels])
        known = labels >= 0
        scores = found.scores[known]
        queries = getattr(found, "queries", None)
        queries = None if queries is None else queries[known]
        evaluator.add(image_id, found.size_hw, scores, labels[known], found.boxes[known], queries)
        if segments is not None:
            segments.add(image_id, {TRUTH: truths.pop(image_id)}, _with_labels_of_data(found.panoptic, to_data))
            masks = [found.segmentations[index] for index in np.flatnonzero(known)]
            evaluator.add_masks(image_id, scores, segments.worth(scores, masks))
        if on_batch is not None:
            on_batch(1, _length(rows))
    evaluator.ground_truth = coco_truth(seen, id2label)
    return evaluator


def _with_labels_of_data(found: Any, to_data: Mapping[int, int]) -> dict[str, Any] | None:
    """Returns panoptic segments by the data's labels; those of the model's other classes are left out."""
    if found is None:
        return None
    kept = [one for one in found.segments_info if one["label_id"] in to_data]
    ids = found.segmentation
    ids = np.where(np.isin(ids, [one["id"] for one in kept]), ids, 0)
    return {"segmentation": ids, "segments_info": [{**one, "label_id": to_data[one["label_id"]]} for one in kept]}


def pictures_of(rows: Any, seen: list[dict[str, Any]], truths: dict[Any, PictureTruth] | None) -> Iterator[np.ndarray]:
    """Yields the image (H, W, 3) of each row, in the frame of its annotations; the rest of the row goes to `seen`."""
    from ..data.pictures import load_pixels

    if getattr(rows, "features", None):
        rows = undecoded(rows)
    # by number where that can be, as a map-style data set may have no end
    for row in (rows[number] for number in range(len(rows))) if hasattr(rows, "__len__") else rows:
        objects = {name: values for name, values in row["objects"].items() if name != "segmentation"}
        seen.append({name: row[name] for name in ("image_id", "width", "height")} | {"objects": objects})
        if truths is not None:
            truths[row["image_id"]] = PictureTruth.of(row)
        name = str(row.get("file_name") or f"image {row['image_id']}")
        yield load_pixels(row["image"], name, (row["width"], row["height"])).permute(1, 2, 0).numpy()


def undecoded(rows: Any) -> Any:
    """Returns rows of `datasets` whose pictures are paths or bytes still."""
    from datasets import Image

    rows = rows.with_format(None)
    for column in {"image", "panoptic"} & set(rows.features):
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def with_classes_of_data(logits: torch.Tensor, columns: list[int], labels: list[int], num_labels: int) -> torch.Tensor:
    """Returns log-probabilities (B, Q, K + 1) of the data's classes; the model's others count as no object."""
    probabilities = logits.softmax(-1)
    result = probabilities.new_zeros(*logits.shape[:-1], num_labels + 1)
    result[..., labels] = probabilities[..., columns]
    result[..., -1] = (1 - result[..., :-1].sum(-1)).clamp(min=0)
    return result.clamp(min=torch.finfo(result.dtype).tiny).log()
