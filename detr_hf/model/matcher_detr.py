"""Bipartite matching of queries and objects (paper, section 3.1), for all decoder layers in one pass.

What differs on purpose from the original: there is one cost tensor for all layers and images and one device-to-host
copy, and targets that cannot be meant (labels out of range, boxes that are not normalised) and predictions that are
not finite are errors that name the image.

Dimension letters: L layers, B images, Q queries, K classes, N objects (padded to the most of any image), P matches.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.utils import logging

from .fast_loss_detr import ClassScores, matching_cost

logger = logging.get_logger(__name__)

BOX_TOLERANCE = 1e-2  # normalised boxes may overshoot [0, 1] by rounding
NAMED_IMAGES = 3  # so many of a batch are named in an error
ADVICE = "If the pictures are sound, lower the learning rate or lengthen the warm-up."


class NonFiniteError(FloatingPointError, ValueError):
    """What the model answers is NaN or infinite, and so its loss; the message names the images."""


@dataclass
class PackedTargets:
    """The targets of a batch, padded to the image with the most objects.

    Attributes:
        labels: (B, N) int64.
        boxes_cxcywh_norm: (B, N, 4) float32, relative to the unpadded image.
        counts: objects of each image, on the host.
        given: what they were made of, for the names in errors.
    """

    labels: Tensor
    boxes_cxcywh_norm: Tensor
    counts: list[int]
    given: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    @classmethod
    def from_list(cls, targets: list[dict[str, Tensor]], batch_size: int, device: torch.device) -> "PackedTargets":
        """Returns the packed form of one dictionary an image, with `class_labels` (N,) and `boxes` (N, 4).

        Errors name an image by its place in the list, or by `place_in_batch` where an image stands there more than
        once, and by its `image_id` where there is one.

        Raises:
            ValueError: for what is not of that form.
        """
        if len(targets) != batch_size:
            raise ValueError(
                f"labels has {len(targets)} entries for a batch of {batch_size} images; give one dictionary an image."
            )
        for index, target in enumerate(targets):
            _check_form(target, index)
        counts = [len(target["class_labels"]) for target in targets]
        most = max(counts)
        # one copy to the device for all images, then to each object's place
        flat = np.concatenate([np.arange(image * most, image * most + n) for image, n in enumerate(counts)])
        place = torch.from_numpy(flat).to(device, non_blocking=True)
        labels = torch.cat([target["class_labels"] for target in targets]).to(device, torch.int64)
        boxes = torch.cat([target["boxes"].reshape(-1, 4) for target in targets]).to(device, torch.float32)
        return cls(
            labels=labels.new_zeros(batch_size * most).index_copy_(0, place, labels).view(batch_size, most),
            boxes_cxcywh_norm=boxes.new_full((batch_size * most, 4), 0.5)
            .index_copy_(0, place, boxes)
            .view(batch_size, most, 4),
            counts=counts,
            given=targets,
        )

    def faults(self, num_classes: int) -> Tensor:
        """Returns (B, 2) float on the device: 1 for labels out of range, and 1 for boxes that are not normalised."""
        bad_labels = ((self.labels < 0) | (self.labels >= num_classes)).any(dim=1)
        boxes = self.boxes_cxcywh_norm
        inside = (boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)  # False for NaN
        well_formed = inside.all(dim=-1) & (boxes[..., 2:] >= 0).all(dim=-1)
        return torch.stack([bad_labels, ~well_formed.all(dim=1)], dim=1).float()

    def names(self, images: Iterable[int]) -> str:
        """Returns what to call images in an error."""
        names = list(dict.fromkeys(map(self._name, images)))
        more = f" and {len(names) - NAMED_IMAGES} more" if len(names) > NAMED_IMAGES else ""
        return f"{', '.join(names[:NAMED_IMAGES])}{more} of the batch"

    def _name(self, image: int) -> str:
        target = self.given[image] if self.given else {}
        image_id = target.get("image_id")
        if isinstance(image_id, Tensor):
            image_id = image_id.flatten().tolist()
            image_id = image_id[0] if len(image_id) == 1 else image_id
        return f"image {target.get('place_in_batch', image)}" + ("" if image_id is None else f" (image_id {image_id})")

    def refuse_faults(self, faults: Tensor, num_classes: int) -> None:
        """Raises a ValueError for what `faults` found, with the image, the object and its value."""
        if not faults.any():
            return
        bad_labels, bad_boxes = (column.nonzero().flatten().tolist() for column in faults.unbind(dim=1))
        if bad_labels:
            labels = self.given[bad_labels[0]]["class_labels"].tolist() if self.given else []
            number = next((n for n, label in enumerate(labels) if not 0 <= label < num_classes), None)
            example = "" if number is None else f" (object {number} of the first: {labels[number]})"
            raise ValueError(
                f"class_labels of {self.names(bad_labels)} are not in 0..{num_classes - 1}{example}. The model has "
                f"{num_classes} classes (id2label), and {num_classes} is its no-object class; remap the category ids "
                "of the data."
            )
        boxes = self.boxes_cxcywh_norm[bad_boxes[0]]
        number = next(n for n, box in enumerate(boxes.tolist()) if not _is_normalised(box))
        box = boxes[number].tolist()
        raise ValueError(
            f"boxes of {self.names(bad_boxes)} are not normalised (object {number} of the first: "
            f"{[round(value, 4) for value in box]}, {_what_is_wrong(box)}): expected finite cxcywh in [0, 1], "
            "relative to the image. Divide pixel coordinates by width and height, or let the image processor convert "
            "the annotations."
        )

    def refuse_not_finite(self, what: Mapping[str, Iterable[bool]]) -> None:
        """Raises a NonFiniteError where a thing that the model answers is not finite for some image.

        Args:
            what: for each thing, which images have it finite.
        """
        broken = {name: [image for image, fine in enumerate(finite) if not fine] for name, finite in what.items()}
        broken = {name: images for name, images in broken.items() if images}
        if broken:
            images = sorted(set().union(*broken.values()))
            raise NonFiniteError(
                f"The loss is not finite: the {' and '.join(broken)} that the model gives for {self.names(images)} "
                f"are NaN or infinite. {ADVICE} float16 overflows where bfloat16 does not."
            )


def _is_normalised(box: Sequence[float]) -> bool:
    inside = all(-BOX_TOLERANCE <= value <= 1 + BOX_TOLERANCE for value in box)
    return inside and box[2] >= 0 and box[3] >= 0


def _what_is_wrong(box: Sequence[float]) -> str:
    if not all(map(math.isfinite, box)):
        return "which is not finite"
    return "whose width or height is negative" if min(box[2:]) < 0 else "which is not in [0, 1]"


def _check_form(target: dict[str, Tensor], index: int) -> None:
    if not isinstance(target, Mapping):
        raise ValueError(f"labels[{index}] is of {type(target)}; give one dictionary an image.")
    missing = {"class_labels", "boxes"} - set(target)
    if missing:
        raise ValueError(f"labels[{index}] has no {sorted(missing)}; it needs class_labels (N,) and boxes (N, 4).")
    labels, boxes = target["class_labels"], target["boxes"]
    for name, value in (("class_labels", labels), ("boxes", boxes)):
        if not isinstance(value, Tensor):
            raise ValueError(f"labels[{index}]['{name}'] is of {type(value)}; give a tensor.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels[{index}]['class_labels'] is {labels.dtype}; class labels must be integers (int64).")
    if labels.ndim != 1 or len(labels) != boxes.numel() // 4 or (boxes.numel() and boxes.shape[-1] != 4):
        raise ValueError(
            f"labels[{index}] has class_labels of shape {tuple(labels.shape)} and boxes of shape "
            f"{tuple(boxes.shape)}; expected (N,) and (N, 4) with the same N."
        )


@dataclass
class Matches:
    """The matched pairs of all layers: (L, P) index tensors on the device of the predictions, P pairs in every layer.

    Attributes:
        image, query, object: which query of which image has which object.
        prediction: where the query is in predictions flattened to (L * B * Q, ...).
        target: where the object is in targets flattened to (B * N, ...).
        scores: the softmax that matching has computed, for the loss to use again.
    """

    image: Tensor
    query: Tensor
    object: Tensor
    prediction: Tensor
    target: Tensor
    scores: "ClassScores"

    @classmethod
    def of(cls, query: np.ndarray, object_: np.ndarray, targets: PackedTargets, scores: "ClassScores") -> "Matches":
        """Returns the pairs of `query` and `object_` (L, P), the images' one after the other."""
        num_layers, batch_size, num_queries, _ = scores.exponentials.shape
        matched = [min(count, num_queries) for count in targets.counts]
        image = np.broadcast_to(np.repeat(np.arange(batch_size), matched), query.shape)
        prediction = (np.arange(num_layers)[:, None] * batch_size + image) * num_queries + query
        pairs = np.stack([image, query, object_, prediction, image * targets.labels.shape[1] + object_])
        places = torch.from_numpy(pairs).to(scores.sums.device, non_blocking=True)
        return cls(places[0], places[1], places[2], places[3], places[4], scores)


@dataclass(frozen=True)
class HungarianMatcher:
    """Finds the assignment of queries to objects with the least cost (paper, eq. 1), one to one.

    Args:
        cost_class, cost_bbox, cost_giou: weights of minus the class probability, the L1 distance and minus the
            generalised IoU.

    >>> import torch
    >>> from detr_hf.model import HungarianMatcher, PackedTargets
    >>> labels = [{"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 2)}]
    >>> targets = PackedTargets.from_list(labels, batch_size=1, device=torch.device("cpu"))
    >>> logits, pred_boxes = torch.randn(6, 1, 100, 4), torch.rand(6, 1, 100, 4)  # 6 layers, 3 classes + no-object
    >>> matches = HungarianMatcher()(logits, pred_boxes, targets)
    >>> matches.query.shape  # two pairs in each layer
    torch.Size([6, 2])
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0

    def __post_init__(self) -> None:
        if not (self.cost_class or self.cost_bbox or self.cost_giou):
            raise ValueError(
                "All costs of the matcher are 0; at least one of cost_class, cost_bbox, cost_giou must be positive."
            )

    @torch.no_grad()
    def __call__(self, logits: Tensor, pred_boxes: Tensor, targets: PackedTargets) -> Matches:
        """Returns the matched pairs of every layer and image.

        Args:
            logits: (L, B, Q, K + 1), the last class is no-object.
            pred_boxes: (L, B, Q, 4), cxcywh, normalised.
            targets: the objects. An image with more objects than queries leaves the costliest objects without a query,
                and says so.

        Raises:
            ValueError: for labels outside [0, K), boxes that are not normalised and predictions that are not finite,
                naming the images; the last is a `NonFiniteError`.
        """
        num_classes = logits.shape[-1] - 1
        weights = (self.cost_class, self.cost_bbox, self.cost_giou)
        labels = targets.labels.clamp(
            0, num_classes - 1
        )  # one out of range is reported below, and must not crash here
        cost, scores = matching_cost(logits, pred_boxes, labels, targets.boxes_cxcywh_norm, weights)  # (B, N, L, Q)
        # a sum is finite where all of it is, and needs no memory of its own; (2, B)
        finite = torch.stack([values.float().sum(dim=(0, 2, 3)).isfinite() for values in (logits, pred_boxes)])
        faults = targets.faults(num_classes)
        on_host = torch.cat(
            [cost.flatten(), finite.flatten(), faults.flatten()]
        ).cpu()  # the one host sync of the loss
        finite, faults = on_host[cost.numel() :].split([finite.numel(), faults.numel()])
        targets.refuse_faults(faults.view(-1, 2), num_classes)
        targets.refuse_not_finite(dict(zip(("class logits", "boxes"), finite.view(2, -1).tolist(), strict=True)))
        query, object_ = _assign(on_host[: cost.numel()].view(cost.shape), targets.counts)
        return Matches.of(query, object_, targets, scores)


def _assign(cost: Tensor, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the queries and the objects of the cheapest pairs, (L, P) each, image after image."""
    _, _, num_layers, num_queries = cost.shape
    costs = cost.numpy()
    query, object_ = np.empty((2, num_layers, sum(min(count, num_queries) for count in counts)), dtype=np.int64)
    end = 0
    for image, count in enumerate(counts):
        if count > num_queries:
            logger.warning_once(
                f"An image has {count} objects and the model {num_queries} queries: {count - num_queries} "
                "objects get no query and are not learnt. Raise num_queries."
            )
        start, end = end, end + min(count, num_queries)
        for layer in range(num_layers if count else 0):
            object_[layer, start:end], query[layer, start:end] = linear_sum_assignment(costs[image, :count, layer])
    return query, object_
