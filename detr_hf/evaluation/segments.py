"""`SegmentEvaluator`: what is true and found of segments, picture by picture, beside a `DetectionEvaluator`'s boxes.

A picture's masks become run lengths as soon as its batch is done, and its panoptic segments a few numbers; maps are
kept of none. Truth comes at the size of the data (`PictureTruth`), with crowds. Where classes are known to be things
or stuff, AP of masks is that of things, as COCO has it, and panoptic quality is measured besides.
"""

import logging
import pickle
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.picture_truth import TRUTH, PictureTruth
from ..processing.mask_annotations_detr import resize_masks
from ..processing.mask_post_processing_detr import RULES, check_thresholds, images_of
from ..processing.run_lengths_detr import run_length_counts, run_lengths
from ..processing.segments_detr import (
    MASK_THRESHOLD,
    OVERLAP_THRESHOLD,
    PANOPTIC_THRESHOLD,
    ImageMasks,
    panoptic,
    panoptic_as_published,
)
from .coco import CocoMetrics, coco_metrics
from .panoptic import PanopticEvaluator, PanopticMetrics

logger = logging.getLogger(__name__)

MASKS_FROM = 0.01  # queries whose score is not above it get no mask; see `SegmentEvaluator`


def packed(value: Any) -> bytes:
    """Returns what is kept of a picture as compressed bytes, a tenth of the memory of lists and dictionaries."""
    return zlib.compress(pickle.dumps(value), 1)


def unpacked(kept: bytes) -> Any:
    """Returns what this process, or another of the run, has packed."""
    return pickle.loads(zlib.decompress(kept))


class SegmentEvaluator:
    """Collects masks for their AP, and compares panoptic segments.

    Of a picture's queries those with a score above `MASKS_FROM` get a mask; one without a pixel is no instance. On
    100 digit scenes mask AP is 0.0008 below that of all queries (0.6757); from 0.05 on it was 0.0027 below.

    Args:
        id2label: the classes by label, 0..K-1.
        is_thing: by label, whether a class is countable; without it there is no panoptic quality.
        repeats: as for `DetectionEvaluator`.
        rule: of panoptic segments, see `post_process_panoptic_segmentation`: `"confident"`, or `"original"`.
        panoptic_threshold: the score from which a query contests pixels.
    """

    def __init__(
        self,
        id2label: Mapping[int, str],
        is_thing: Sequence[bool] | None = None,
        repeats: bool = False,
        rule: str = "confident",
        panoptic_threshold: float = PANOPTIC_THRESHOLD,
    ):
        check_thresholds(panoptic_threshold=panoptic_threshold)
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; there are {' and '.join(map(repr, RULES))}.")
        self.id2label = {int(label): str(name) for label, name in id2label.items()}
        if is_thing is not None and len(is_thing) != len(self.id2label):
            raise ValueError(
                f"is_thing has {len(is_thing)} values for {len(self.id2label)} classes; expected one each."
            )
        self.is_thing = None if is_thing is None else dict(zip(sorted(self.id2label), is_thing, strict=True))
        self.rule, self.panoptic_threshold = rule, panoptic_threshold
        self._panoptic = None if is_thing is None else PanopticEvaluator(self.categories(), repeats)
        self._truth: dict[Any, bytes] = {}  # image id -> its objects, packed
        self._left_out = {"without a mask": 0, "odd": 0, "of the resized target": 0}

    @property
    def masks_from(self) -> float:
        """The score above which a query's mask is needed."""
        return MASKS_FROM if self._panoptic is None else min(MASKS_FROM, self.panoptic_threshold)

    def categories(self) -> list[dict[str, Any]]:
        """Returns the classes as COCO lists them; ids are labels."""
        things = self.is_thing or {}
        return [
            {"id": label, "name": name, "isthing": int(things.get(label, True))}
            for label, name in self.id2label.items()
        ]

    def masks_of(
        self, logits: Tensor, masks: Tensor, image_hw: tuple[int, int], padded_hw: tuple[int, int], size_hw: Any
    ) -> tuple[np.ndarray, ImageMasks]:
        """Returns which of an image's queries (n,) get a mask, and those masks at the picture's size.

        `logits` is (Q, K + 1), `masks` (Q, h4, w4) in the frame of the padded input.
        """
        scores = logits.float().softmax(-1)[:, :-1].amax(-1)
        kept = (scores > self.masks_from).nonzero()[:, 0]
        frame = {"image_sizes_hw": [image_hw], "padded_sizes_hw": [padded_hw]}
        found = images_of({"logits": logits[None, kept], "pred_masks": masks[None, kept], **frame}, [size_hw])
        return kept.cpu().numpy(), next(found)

    def worth(self, scores: np.ndarray, masks: Sequence[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Returns the run lengths that count: of detections above `masks_from`, and that have a pixel."""
        return [
            mask if score > self.masks_from and mask and len(run_length_counts(mask, mask["size"])) > 1 else None
            for score, mask in zip(scores.tolist(), masks, strict=True)
        ]

    def panoptic_of(self, masks: ImageMasks) -> dict[str, Any] | None:
        """Returns an image's panoptic segments by label; None where panoptic quality is not measured."""
        if self._panoptic is None:
            return None
        stuff = {label for label, countable in self.is_thing.items() if not countable}
        if self.rule == "original":
            return panoptic_as_published(masks, self.panoptic_threshold, stuff)
        return panoptic(masks, self.panoptic_threshold, MASK_THRESHOLD, OVERLAP_THRESHOLD, stuff)

    def add(self, image_id: Any, label: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
        """Adds a picture: what is true of it, and its panoptic segments `found`, by label.

        `label` has the `PictureTruth`; without one its masks, which were resized, are taken.
        """
        truth = label.get(TRUTH)
        if truth is None:
            self._truth[image_id] = packed(self._of_target(label))
        else:
            self.add_truth(image_id, truth)
            if self._panoptic is not None and found is not None:
                self.add_panoptic(image_id, found, truth)

    def add_panoptic(self, image_id: Any, found: Mapping[str, Any], truth: PictureTruth) -> None:
        """Compares a picture's panoptic segments, whose `label_id` is the data's label."""
        real, odd = truth.segments()
        self._left_out["odd"] += odd
        listed = [{**one, "category_id": one["label_id"]} for one in found["segments_info"]]
        self._panoptic.add(image_id, {**found, "segments_info": listed}, real)

    def add_truth(self, image_id: Any, truth: PictureTruth) -> None:
        """Adds the true objects of a picture, for AP of masks."""
        kept, objects = [], truth.objects
        crowds = objects.get("iscrowd") or [0] * len(objects["bbox"])
        areas = objects.get("area") or [None] * len(objects["bbox"])
        for index, mask in enumerate(truth.run_lengths()):
            area = areas[index]
            one = {"category_id": int(objects["category"][index]), "bbox": list(objects["bbox"][index])}
            one |= {
                "iscrowd": int(crowds[index] or 0),
                "segmentation": mask,
                **({} if area is None else {"area": area}),
            }
            kept.append(one if mask is not None else self._ignored(one))
        self._truth[image_id] = packed(kept)

    def _ignored(self, one: dict[str, Any]) -> dict[str, Any]:
        """Returns an object without a mask as a crowd that fills its box: what is found there is not wrong."""
        self._left_out["without a mask"] += 1
        x, y, width, height = one["bbox"]
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        return {**one, "iscrowd": 1, "segmentation": [outline]}

    def _of_target(self, label: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns a target's objects, whose masks were resized, at the size of its picture."""
        if "masks" not in label or "orig_size" not in label:
            return []
        self._left_out["of the resized target"] += 1
        inside, size_hw = ([int(side) for side in label[name]] for name in ("size", "orig_size"))
        masks = resize_masks(label["masks"][:, : inside[0], : inside[1]].cpu(), tuple(size_hw)).numpy()
        boxes = label["boxes"].float().cpu() * torch.tensor([size_hw[1], size_hw[0]] * 2)
        boxes[:, :2] -= boxes[:, 2:] / 2
        rows = zip(label["class_labels"].tolist(), boxes.tolist(), masks, strict=True)
        return [
            {"category_id": category, "bbox": box, "iscrowd": 0, "area": float(mask.sum())}
            | {"segmentation": run_lengths(mask)}
            for category, box, mask in rows
        ]

    def gather(self) -> None:
        """Joins what all processes have, in each of them; call it in every process."""
        from accelerate.utils import gather_object

        shares = gather_object([(self._truth, self._left_out)])
        self._truth = {image_id: objects for truth, _ in shares for image_id, objects in truth.items()}
        self._left_out = {kind: sum(left_out[kind] for _, left_out in shares) for kind in self._left_out}
        if self._panoptic is not None:
            self._panoptic.gather()

    def compute_masks(
        self,
        images: Mapping[Any, Mapping[str, Any]],
        detections: Iterable[Mapping[str, Any]],
        backend: str | None = None,
    ) -> CocoMetrics | None:
        """Returns COCO's numbers of masks; None where the data has none.

        Args:
            images: id, height and width of each picture as COCO lists them, by the data's image id.
            detections: results with masks, whose image ids are those of COCO.
            backend: as for `evaluate_boxes`.
        """
        counted = {label for label in self.id2label if self.is_thing is None or self.is_thing[label]}
        annotations = [
            {"id": number, "image_id": images[image_id]["id"], **one}
            for image_id in images
            if image_id in self._truth
            for number, one in enumerate(unpacked(self._truth[image_id]), start=1)
            if one["category_id"] in counted
        ]
        if all(one["iscrowd"] for one in annotations):
            logger.warning("The data has no masks to measure AP by: that of boxes alone is told.")
            return None
        self._say_what_was_left_out()
        truth = {
            "images": list(images.values()),
            "categories": [one for one in self.categories() if one["id"] in counted],
            "annotations": annotations,
        }
        # one at a time: dictionaries of all would take more memory than all else
        return coco_metrics(truth, (one for one in detections if one["category_id"] in counted), "segm", backend)

    def compute_panoptic(self) -> PanopticMetrics | None:
        """Returns the panoptic quality; None where it is not measured."""
        self._say_what_was_left_out()
        return self._panoptic.compute() if self._panoptic is not None and len(self._panoptic) else None

    def _say_what_was_left_out(self) -> None:
        said = {
            "without a mask": "%d true objects have no mask: they are no objects here, and what is found in their "
            "boxes is not wrong.",
            "odd": "%d true segments were left out: listed without a pixel in their picture, or drawn and not listed "
            "(void). `detr-hf check` names them.",
            "of the resized target": "The truth of %d pictures is the mask of their resized targets, since rows of "
            "the data are not at hand: give rows that `prepare` made.",
        }
        for kind, count in self._left_out.items():
            if count:
                logger.warning(said[kind], count)
        self._left_out = dict.fromkeys(self._left_out, 0)
