"""`DetectionEvaluator`: takes a model's outputs batch by batch, keeps little of them, and gives COCO's numbers at the
end.

What is kept of a detection is 32 bytes and of a picture a line, so memory does not follow the number of pictures in
practice: logits, decoder states and the pictures are gone as soon as a batch is. (Trainer's own evaluation keeps every
output of every batch; a COCO dictionary a detection takes twenty times more.) Detections are the original's: each
query's best class, no threshold, at most a hundred a picture. Masks become run lengths with their batch, those of
queries with a score worth one alone (`segments.py`).

In a distributed run every process takes its share; `gather` joins them, and counts a picture once that a sampler gave
to two processes to make the last batches even.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.predictions_detr import Predictions
from ..processing.post_processing_detr import detections
from ..processing.run_lengths_detr import run_lengths
from .coco import CocoMetrics, evaluate_boxes
from .panoptic import PanopticMetrics
from .results import coco_results
from .segments import SegmentEvaluator, packed, unpacked
from .truth import coco_truth

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # COCO looks at no more in a picture
# `image` is the picture's number in the order of arrival; boxes are x, y, width, height in its pixels; query is -1
# where nobody knows it.
FOUND = np.dtype([("image", "i4"), ("query", "i4"), ("label", "i4"), ("score", "f4"), ("box", "f4", 4)])


class DetectionEvaluator:
    """Collects detections and, where no ground truth is given, the objects of the labels.

    Args:
        id2label: the classes by label, 0..K-1.
        ground_truth: a COCO dictionary whose category ids are labels; it alone knows crowds, which targets leave out.
            Without it the labels that come with the outputs are the truth.
        repeats: whether a picture may come twice and is then counted once, as it does in a distributed run; otherwise
            that is an error.
        segments: what measures masks, where there are any.
    """

    def __init__(
        self,
        id2label: Mapping[int, str],
        ground_truth: Mapping[str, Any] | None = None,
        repeats: bool = False,
        segments: SegmentEvaluator | None = None,
    ):
        self.id2label = {int(label): str(name) for label, name in id2label.items()}
        self.ground_truth = ground_truth
        self.repeats = repeats
        self.segments = segments
        self._images: dict[Any, tuple[int, int]] = {}  # image id -> (height, width), in the order of arrival
        self._found: list[np.ndarray] = []  # rows of FOUND, in which one picture's stand together
        self._truth: dict[Any, dict[str, list[Any]]] = {}  # image id -> its objects
        self._masks: dict[Any, bytes] = {}  # image id -> counts of run lengths of its best detections, or None; packed

    def __len__(self) -> int:
        return len(self._images)

    @torch.no_grad()
    def update(
        self, predictions: Predictions, labels: Sequence[Mapping[str, Any]], pixel_mask: Tensor | None = None
    ) -> None:
        """Adds a batch.

        Args:
            predictions: of the last decoder layer: logits (B, Q, K + 1), boxes (B, Q, 4) and, where `segments` are
                measured, masks (B, Q, h4, w4).
            labels: the batch's targets, with `image_id` and `orig_size` (height, width) as the image processor makes
                them. Without `orig_size` boxes are measured in pixels of the resized image, `pixel_mask`'s.
            pixel_mask: (B, H, W), 1 on the image.

        Raises:
            ValueError: outputs are not finite, or an image comes twice.
        """
        sizes_hw = _sizes_hw(labels, pixel_mask)
        found = detections(predictions.logits, predictions.boxes_cxcywh_norm, threshold=None, target_sizes=sizes_hw)
        for index, (label, (height, width)) in enumerate(zip(labels, sizes_hw, strict=True)):
            image_id = image_id_of(label)
            if image_id is None and self.repeats:
                raise ValueError(
                    "The labels have no 'image_id', which tells in a distributed evaluation whether a picture was "
                    "counted already. Use the image processor's labels, or add an id to each."
                )
            image_id = len(self._images) if image_id is None else image_id
            queries = np.arange(len(found[index]["scores"]))
            is_new = self.add(image_id, (height, width), **found[index], queries=queries)
            if is_new and self.ground_truth is None:
                self._truth[image_id] = _objects_of(label, (height, width))
            if is_new and self.segments is not None and predictions.masks is not None:
                self._add_segments(self.segments, image_id, index, predictions, label, pixel_mask)

    def _add_segments(
        self,
        segments: SegmentEvaluator,
        image_id: Any,
        index: int,
        predictions: Predictions,
        label: Mapping[str, Any],
        pixel_mask: Tensor | None,
    ) -> None:
        """Adds the masks of image `index` of a batch, whose boxes were added."""
        logits, masks = predictions.logits[index], predictions.masks[index]
        padded_hw = tuple(masks.shape[-2:] if pixel_mask is None else pixel_mask.shape[-2:])
        image_hw = padded_hw if pixel_mask is None else _shown_hw(pixel_mask[index])
        queries, shown = segments.masks_of(logits, masks, image_hw, padded_hw, self._images[image_id])
        segments.add(image_id, label, segments.panoptic_of(shown))
        found: list[dict[str, Any] | None] = [None] * len(logits)
        for number, query in enumerate(queries.tolist()):
            mask = shown.mask(number)
            found[query] = run_lengths(mask) if mask.any() else None
        self.add_masks(image_id, logits.float().softmax(-1)[:, :-1].amax(-1), found)

    def add_masks(self, image_id: Any, scores: Any, masks: Sequence[Mapping[str, Any] | None]) -> None:
        """Adds the run lengths of a picture's objects, in the order of the scores (N,) that it was added with."""
        found = [masks[number] for number in _best_first(_numpy(scores))]
        while found and found[-1] is None:
            found.pop()
        self._masks[image_id] = packed([mask and mask["counts"] for mask in found])

    def add(
        self, image_id: Any, size_hw: tuple[int, int], scores: Any, labels: Any, boxes: Any, queries: Any = None
    ) -> bool:
        """Adds one picture's scores (N,), labels (N,) and boxes (N, 4), xyxy in its pixels; says whether it is new.

        `queries` (N,) are the numbers of the queries that found them.

        Raises:
            ValueError: the picture has come before, and `repeats` is off.
        """
        image_id = image_id.item() if isinstance(image_id, np.generic) else image_id  # results are written as JSON
        if image_id in self._images:
            if self.repeats:
                return False
            raise ValueError(
                f"Image {image_id!r} comes twice in the evaluation; image ids must be unique within a split."
            )
        scores, labels, boxes = (_numpy(values) for values in (scores, labels, boxes))
        order = _best_first(scores)
        rows = np.empty(len(order), FOUND)
        rows["image"], rows["label"] = len(self._images), labels[order]
        rows["query"] = -1 if queries is None else queries[order]
        rows["score"], rows["box"] = scores[order], boxes[order]
        rows["box"][:, 2:] -= rows["box"][:, :2]
        self._images[image_id] = (int(size_hw[0]), int(size_hw[1]))
        self._found.append(rows)
        return True

    def gather(self) -> None:
        """Joins what all processes have, in each of them; call it in every process."""
        from accelerate.utils import gather_object

        share = (list(self._images.items()), self._found_rows(), self._truth, self._masks)
        self._images, self._found, self._truth, self._masks = {}, [], {}, {}
        for images, rows, truth, masks in gather_object([share]):
            self._truth |= truth
            self._masks = masks | self._masks
            # number in the share -> number here; -1: counted already
            numbers = np.full(len(images), -1, dtype=np.int64)
            for number, (image_id, size_hw) in enumerate(images):
                if image_id not in self._images:
                    numbers[number] = len(self._images)
                    self._images[image_id] = size_hw
            rows["image"] = numbers[rows["image"]]
            self._found.append(rows[rows["image"] >= 0])
        if self.segments is not None:
            self.segments.gather()

    def coco_ground_truth(self) -> dict[str, Any]:
        """Returns the truth as a COCO dictionary; image ids are numbers where they are not integers."""
        if self.ground_truth is not None:
            return dict(self.ground_truth)
        rows = [
            {"image_id": number, "height": height, "width": width, "objects": self._truth.get(image_id, {"bbox": []})}
            for number, (image_id, (height, width)) in zip(self._coco_image_ids(), self._images.items(), strict=True)
        ]
        return coco_truth(rows, self.id2label)

    def coco_detections(self) -> np.ndarray:
        """Returns the detections (N, 7) float64: `coco_ground_truth`'s image id, x, y, width, height, score, label."""
        rows = self._found_rows()
        ids = np.array(self._coco_image_ids(), dtype=np.float64)
        return np.column_stack((ids[rows["image"]], rows["box"], rows["score"], rows["label"]))

    def coco_queries(self) -> np.ndarray | None:
        """Returns the query (N,) that gave each of `coco_detections`; None where nobody knows it."""
        queries = self._found_rows()["query"]
        return queries if len(queries) and queries.min() >= 0 else None

    def results(self, source_category_ids: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Returns COCO results, a dictionary a detection, with the image ids of the data, and its mask if it has one.

        Args:
            source_category_ids: the data's category id by label (`DetectionData.source_category_ids`); by default the
                label itself.
        """
        return coco_results(self.coco_detections(), self.image_ids(), source_category_ids, self.coco_masks())

    def coco_masks(self) -> list[dict[str, Any] | None] | None:
        """Returns the run lengths of each of `coco_detections`, None for one without; or None without any."""
        if not self._masks:
            return None
        masks: list[dict[str, Any] | None] = []
        for rows, found in self._of_pictures():
            masks += found + [None] * (len(rows) - len(found))
        return masks

    def _of_pictures(self) -> Iterator[tuple[np.ndarray, list[dict[str, Any] | None]]]:
        """Yields each picture's detections, which stand together, and the run lengths of the first of them."""
        rows = self._found_rows()
        ends = np.bincount(rows["image"], minlength=len(self._images)).cumsum().tolist()
        for (image_id, size_hw), start, end in zip(self._images.items(), [0, *ends], ends, strict=False):
            masks = unpacked(self._masks[image_id]) if image_id in self._masks else []
            yield rows[start:end], [mask and {"size": list(size_hw), "counts": mask} for mask in masks]

    def _with_masks(self) -> Iterator[dict[str, Any]]:
        """Yields the detections that have a mask as COCO results, without boxes."""
        for number, (rows, masks) in zip(self._coco_image_ids(), self._of_pictures(), strict=True):
            for label, score, mask in zip(rows["label"].tolist(), rows["score"].tolist(), masks, strict=False):
                if mask is not None:
                    yield {"image_id": number, "category_id": label, "score": score, "segmentation": mask}

    def compute_masks(self, backend: str | None = None) -> CocoMetrics | None:
        """Returns COCO's numbers of masks, see `SegmentEvaluator`; None where model or data have none."""
        if self.segments is None or not self._masks:
            return None
        sizes = zip(self._coco_image_ids(), self._images.items(), strict=True)
        images = {
            image_id: {"id": number, "height": height, "width": width} for number, (image_id, (height, width)) in sizes
        }
        return self.segments.compute_masks(images, self._with_masks(), backend)

    def compute_panoptic(self) -> PanopticMetrics | None:
        """Returns the panoptic quality; None where it is not measured."""
        return None if self.segments is None else self.segments.compute_panoptic()

    def image_ids(self) -> dict[int, Any]:
        """Returns the data's image id by the one that `coco_ground_truth` and `coco_detections` have for it."""
        return dict(zip(self._coco_image_ids(), self._images, strict=True))

    def compute(self, backend: str | None = None) -> CocoMetrics:
        """Returns COCO's numbers of all that was added.

        Raises:
            ValueError: no picture was added, or one that the ground truth does not know.
        """
        self.check()
        return evaluate_boxes(self.coco_ground_truth(), self.coco_detections(), backend)

    def check(self) -> None:
        """Raises a ValueError where no picture was added, and warns where some of the ground truth were not."""
        if not self._images:
            raise ValueError("There is nothing to evaluate: no picture was added.")
        of_all = len(self._images if self.ground_truth is None else self.ground_truth["images"])
        if len(self._images) < of_all:
            logger.warning("Only %d of the %d pictures of the ground truth were evaluated.", len(self._images), of_all)

    def _found_rows(self) -> np.ndarray:
        return np.concatenate([np.empty(0, FOUND), *self._found])

    def _coco_image_ids(self) -> list[int]:
        if all(isinstance(image_id, int) for image_id in self._images):
            return list(self._images)
        return list(range(len(self._images)))


def _best_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]


def _numpy(values: Any) -> np.ndarray:
    return values.float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float32)


def _sizes_hw(labels: Sequence[Mapping[str, Any]], pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """Returns (height, width) of each image: the original's, or else of the part that `pixel_mask` shows."""
    if all("orig_size" in label for label in labels):
        sizes = (torch.as_tensor(label["orig_size"]).flatten().tolist() for label in labels)
        return [(int(height), int(width)) for height, width in sizes]
    if pixel_mask is None:
        raise ValueError(
            "The labels have no 'orig_size' (height, width) and the batch no pixel_mask, so boxes have no scale. The "
            "image processor makes both from annotations."
        )
    return [_shown_hw(mask) for mask in pixel_mask]


def _shown_hw(mask: Tensor) -> tuple[int, int]:
    """Returns (height, width) of what a mask (H, W) shows."""
    return int(mask.bool().any(dim=1).sum()), int(mask.bool().any(dim=0).sum())


def image_id_of(label: Mapping[str, Any]) -> Any:
    """Returns the id of a target's picture, as a number or string; None where there is none."""
    image_id = label.get("image_id")
    return int(image_id) if isinstance(image_id, Tensor) else image_id


def _objects_of(label: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, list[Any]]:
    """Returns one picture's objects in pixels of `size_hw`, as a row in the schema of `detr_hf.data` has them."""
    height, width = size_hw
    boxes = label["boxes"].float().cpu().numpy().reshape(-1, 4)
    boxes = boxes * np.array([width, height, width, height], dtype=np.float32)
    areas = boxes[:, 2] * boxes[:, 3]
    if "area" in label and "size" in label:  # in pixels of the resized picture
        resized_h, resized_w = torch.as_tensor(label["size"]).flatten().tolist()
        areas = label["area"].float().cpu().numpy() * (height * width / (resized_h * resized_w))
    return {
        "category": label["class_labels"].tolist(),
        "bbox": np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1).tolist(),
        "area": areas.tolist(),
        "iscrowd": label["iscrowd"].tolist() if "iscrowd" in label else [],
    }
