"""Bipartite matching and the set prediction loss (paper, sections 3.1 and A.2), for all decoder layers in one pass.

The numbers are the original's. What differs on purpose:

- there is one cost tensor for all layers and images, one device-to-host copy, and no loop over layers for the losses;
- the exponentials of the softmax are computed once, for matching, loss and gradient;
- everything is computed in float32, whatever the model's dtype;
- in a distributed run the normalisers (objects, and class weights) are summed over all processes, so that the mean of
  the processes' losses and gradients is that of one process with the whole batch. The original normalises the class
  term per process; transformers divides the number of objects by the number of processes twice;
- targets that cannot be meant (labels out of range, boxes that are not normalised) are errors that name the image.

Dimension letters: L layers, B images, Q queries, K classes, N objects (padded to the most of any image), P matches.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.utils import logging

from .box_ops_detr import box_cxcywh_to_xyxy, box_iou, generalized_box_iou

logger = logging.get_logger(__name__)

UNMATCHABLE = 1e6  # cost of a pair whose cost is not finite: taken only when nothing else is left
BOX_TOLERANCE = 1e-2  # normalised boxes may overshoot [0, 1] by rounding


@dataclass
class PackedTargets:
    """The targets of a batch, padded to the image with the most objects.

    Attributes:
        labels: (B, N) int64.
        boxes_cxcywh_norm: (B, N, 4) float32, relative to the unpadded image.
        counts: objects of each image, on the host.
    """

    labels: Tensor
    boxes_cxcywh_norm: Tensor
    counts: list[int]

    @classmethod
    def from_list(cls, targets: list[dict[str, Tensor]], batch_size: int, device: torch.device) -> "PackedTargets":
        """Returns the packed form of one dictionary an image, with `class_labels` (N,) and `boxes` (N, 4).

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
        place = np.concatenate([np.arange(image * most, image * most + n) for image, n in enumerate(counts)])
        place = torch.from_numpy(place).to(device, non_blocking=True)
        labels = torch.cat([target["class_labels"] for target in targets]).to(device, torch.int64)
        boxes = torch.cat([target["boxes"].reshape(-1, 4) for target in targets]).to(device, torch.float32)
        return cls(
            labels=labels.new_zeros(batch_size * most).index_copy_(0, place, labels).view(batch_size, most),
            boxes_cxcywh_norm=boxes.new_full((batch_size * most, 4), 0.5)
            .index_copy_(0, place, boxes)
            .view(batch_size, most, 4),
            counts=counts,
        )

    def faults(self, num_classes: int) -> Tensor:
        """Returns (B, 2) float on the device: 1 for labels out of range, and 1 for boxes that are not normalised."""
        bad_labels = ((self.labels < 0) | (self.labels >= num_classes)).any(dim=1)
        boxes = self.boxes_cxcywh_norm
        inside = (boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)  # False for NaN
        well_formed = inside.all(dim=-1) & (boxes[..., 2:] >= 0).all(dim=-1)
        return torch.stack([bad_labels, ~well_formed.all(dim=1)], dim=1).float()


def _check_form(target: dict[str, Tensor], index: int) -> None:
    missing = {"class_labels", "boxes"} - set(target)
    if missing:
        raise ValueError(f"labels[{index}] has no {sorted(missing)}; it needs class_labels (N,) and boxes (N, 4).")
    labels, boxes = target["class_labels"], target["boxes"]
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels[{index}]['class_labels'] is {labels.dtype}; class labels must be integers (int64).")
    if labels.ndim != 1 or len(labels) != boxes.numel() // 4 or (boxes.numel() and boxes.shape[-1] != 4):
        raise ValueError(
            f"labels[{index}] has class_labels of shape {tuple(labels.shape)} and boxes of shape "
            f"{tuple(boxes.shape)}; expected (N,) and (N, 4) with the same N."
        )


@dataclass
class ClassScores:
    """The softmax of logits (L, B, Q, K + 1) before its division; no gradient flows through it.

    Attributes:
        highest: (L, B, Q, 1), the largest logit of each query.
        exponentials: (L, B, Q, K + 1), exp(logits - highest), float32.
        sums: (L, B, Q, 1), of the exponentials.
        found: (L, B, Q) bool, whether a class is at least as likely as no-object.
    """

    highest: Tensor
    exponentials: Tensor
    sums: Tensor
    found: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor) -> "ClassScores":
        """Returns the scores of `logits`."""
        logits = logits.float()
        no_object = logits[..., -1:]
        highest = logits[..., :-1].amax(dim=-1, keepdim=True)
        found = (highest >= no_object).squeeze(-1)
        highest = torch.maximum(highest, no_object)
        exponentials = (logits - highest).exp_()
        return cls(highest, exponentials, exponentials.sum(dim=-1, keepdim=True), found)


@dataclass
class Matches:
    """The matched pairs of all layers: (L, P) index tensors on the device of the predictions, P pairs in every layer.

    Attributes:
        image, query, object: which query of which image has which object.
        prediction: where the query is in predictions flattened to (L * B * Q, ...).
        target: where the object is in targets flattened to (B * N, ...).
    """

    image: Tensor
    query: Tensor
    object: Tensor
    prediction: Tensor
    target: Tensor


class HungarianMatcher(nn.Module):
    """Finds the assignment of queries to objects with the least cost (paper, eq. 1), one to one.

    Args:
        cost_class, cost_bbox, cost_giou: weights of minus the class probability, the L1 distance and minus the
            generalised IoU.
    """

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        super().__init__()
        if not (cost_class or cost_bbox or cost_giou):
            raise ValueError(
                "All costs of the matcher are 0; at least one of cost_class, cost_bbox, cost_giou must be positive."
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    @torch.no_grad()
    def forward(
        self, logits: Tensor, pred_boxes: Tensor, targets: PackedTargets, scores: ClassScores | None = None
    ) -> Matches:
        """Returns the matched pairs of every layer and image.

        Args:
            logits: (L, B, Q, K + 1), the last class is no-object.
            pred_boxes: (L, B, Q, 4), cxcywh, normalised.
            targets: the objects. An image with more objects than queries leaves the costliest objects without a query,
                and says so.
            scores: those of the logits, where the caller has them.

        Raises:
            ValueError: for labels outside [0, K) or boxes that are not normalised, naming the images.
        """
        cost = self.cost(scores or ClassScores.of(logits), pred_boxes, targets)
        faults = targets.faults(num_classes=logits.shape[-1] - 1)
        on_host = torch.cat([cost.flatten(), faults.flatten()]).cpu()  # the one host sync of the loss
        _refuse_faults(on_host[cost.numel() :].view_as(faults), num_classes=logits.shape[-1] - 1)
        return self._assign(on_host[: cost.numel()].view(cost.shape), targets.counts, logits.device)

    @torch.no_grad()
    def cost(self, scores: ClassScores, pred_boxes: Tensor, targets: PackedTargets) -> Tensor:
        """Returns the finite cost (B, N, L, Q) of giving each object of an image to each of its queries.

        The objects come before layers and queries, so that whatever combines a coordinate of an object with those of
        all queries runs along one piece of memory.
        """
        # a label out of range is reported after the copy; here it must only not crash the device
        labels = targets.labels.clamp(0, scores.exponentials.shape[-1] - 1)
        images = torch.arange(len(labels), device=labels.device)[:, None]
        cost = scores.exponentials.permute(1, 3, 0, 2)[images, labels]  # (B, N, L, Q)
        cost.mul_((-self.cost_class / scores.sums).permute(1, 3, 0, 2))
        center, size = _planar(pred_boxes.float()).transpose(1, 2)[:, :, None].split(2)  # (2, B, 1, L, Q)
        wanted_center, wanted_size = _planar(targets.boxes_cxcywh_norm)[..., None, None].split(2)  # (2, B, N, 1, 1)
        half, wanted_half = size / 2, wanted_size / 2
        # the L1 distance and the generalised IoU are both of these two, (2, B, N, L, Q) for x and y
        apart, differ = (center - wanted_center).abs_(), (half - wanted_half).abs_()
        for between_centers, between_halves in zip(apart, differ, strict=True):
            cost.add_(between_centers, alpha=self.cost_bbox).add_(between_halves, alpha=2 * self.cost_bbox)
        # two intervals share h1 + h2 - max(|c1 - c2|, |h1 - h2|), and their hull has h1 + h2 + that maximum
        longest = torch.maximum(apart, differ, out=apart)
        together = torch.add(half, wanted_half, out=differ)
        hull_width, hull_height = together + longest
        shared_width, shared_height = together.sub_(longest).clamp_(min=0)
        intersection, hull = shared_width.mul_(shared_height), hull_width.mul_(hull_height)
        tiny = torch.finfo(hull.dtype).tiny
        union = torch.add(_area(size), _area(wanted_size), out=shared_height).sub_(intersection).clamp_(min=tiny)
        # minus the generalised IoU, which is IoU + union / hull - 1
        cost.addcdiv_(intersection, union, value=-self.cost_giou)
        cost.addcdiv_(union, hull.clamp_(min=tiny), value=-self.cost_giou).add_(self.cost_giou)
        return cost.nan_to_num_(UNMATCHABLE, UNMATCHABLE, UNMATCHABLE)

    @staticmethod
    def _assign(cost: Tensor, counts: list[int], device: torch.device) -> Matches:
        batch_size, most, num_layers, num_queries = cost.shape
        costs = cost.numpy()
        matched = [min(count, num_queries) for count in counts]
        query, object_ = np.empty((2, num_layers, sum(matched)), dtype=np.int64)
        end = 0
        for image, count in enumerate(counts):
            if count > num_queries:
                logger.warning_once(
                    f"An image has {count} objects and the model {num_queries} queries: {count - num_queries} "
                    "objects get no query and are not learnt. Raise num_queries."
                )
            start, end = end, end + matched[image]
            for layer in range(num_layers if count else 0):
                object_[layer, start:end], query[layer, start:end] = linear_sum_assignment(costs[image, :count, layer])
        image = np.broadcast_to(np.repeat(np.arange(batch_size), matched), query.shape)
        prediction = (np.arange(num_layers)[:, None] * batch_size + image) * num_queries + query
        pairs = np.stack([image, query, object_, prediction, image * most + object_])
        return Matches(*torch.from_numpy(pairs).to(device, non_blocking=True))


def _planar(boxes: Tensor) -> Tensor:
    """Returns boxes (..., 4) as (4, ...), with each coordinate in one piece of memory."""
    return boxes.movedim(-1, 0).contiguous()


def _planar_generalized_iou(boxes1_cxcywh: Tensor, boxes2_cxcywh: Tensor) -> Tensor:
    """Returns `generalized_box_iou` of planar boxes (4, ...) that broadcast, both directions in one operation."""
    center1, size1, center2, size2 = *boxes1_cxcywh.split(2), *boxes2_cxcywh.split(2)  # (2, ...)
    half1, half2 = size1 / 2, size2 / 2
    shared = torch.minimum(center1 + half1, center2 + half2).sub_(torch.maximum(center1 - half1, center2 - half2))
    hull_width, hull_height = (size1 + size2).sub_(shared)  # a gap between the boxes is a negative `shared`
    shared_width, shared_height = shared.clamp(min=0)
    intersection, hull = shared_width * shared_height, hull_width * hull_height
    tiny = torch.finfo(hull.dtype).tiny
    union = (_area(size1) + _area(size2)).sub_(intersection).clamp(min=tiny)
    # IoU - (hull - union) / hull
    return (intersection / union).add_(union / hull.clamp(min=tiny)).sub_(1)


def _area(size: Tensor) -> Tensor:
    width, height = size
    return width * height


def _refuse_faults(faults: Tensor, num_classes: int) -> None:
    if not faults.any():
        return
    bad_labels, bad_boxes = (column.nonzero().flatten().tolist() for column in faults.unbind(dim=1))
    if bad_labels:
        raise ValueError(
            f"class_labels of image {bad_labels} of the batch are not in 0..{num_classes - 1}. The model has "
            f"{num_classes} classes (id2label), and {num_classes} is its no-object class; remap the category ids of "
            "the data."
        )
    raise ValueError(
        f"boxes of image {bad_boxes} of the batch are not normalised: expected finite cxcywh in [0, 1], relative to "
        "the image. Divide pixel coordinates by width and height, or let the image processor convert the "
        "annotations."
    )


class SetCriterion(nn.Module):
    """The loss of DETR: cross-entropy, L1 and generalised IoU of the matched pairs, for every decoder layer.

    Args:
        matcher: assigns queries to objects, anew for every layer.
        weights: weight of each loss in the total, by name: `loss_ce`, `loss_bbox`, `loss_giou`.
        eos_coef: weight of the no-object class in the cross-entropy.
        iou_label_power: p in the wanted probability IoU^p of a matched query's class, the rest being no-object's; with
            0 it is 1, the original's.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        eos_coef: float = 0.1,
        iou_label_power: float = 0.0,
    ):
        super().__init__()
        self.matcher = matcher
        self.weights = weights
        self.eos_coef = eos_coef
        self.iou_label_power = iou_label_power

    def forward(
        self, logits: Tensor, pred_boxes: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted total and its parts.

        Args:
            logits: (L, B, Q, K + 1), the last layer last.
            pred_boxes: (L, B, Q, 4), cxcywh, normalised by the unpadded image.
            targets: for each image `class_labels` (N,) and `boxes` (N, 4) in the same format.

        Returns:
            The total, and the unweighted parts: `loss_ce`, `loss_bbox`, `loss_giou` and `cardinality_error` of the
                last layer, the same
            with a suffix `_0`, `_1`, ... of the earlier ones, and `class_error` (percent of the matched objects whose
            class is wrong, last layer). The two errors are for logging: they carry no gradient and no weight.
        """
        logits, pred_boxes = logits.float(), pred_boxes.float()
        packed = PackedTargets.from_list(targets, logits.shape[1], logits.device)
        scores = ClassScores.of(logits)
        matches = self.matcher(logits, pred_boxes, packed, scores)
        num_objects, class_weight = self._normalisers(packed.counts, logits)

        wanted_labels = packed.labels.flatten()[matches.target]  # (L, P)
        boxes = self._matched_boxes(pred_boxes, packed, matches)
        class_loss = self._class_loss(logits, scores, wanted_labels, matches)
        if self.iou_label_power:
            matched = logits.flatten(0, 2)[matches.prediction]  # (L, P, K + 1)
            pairs = (planar.movedim(0, -1) for planar in boxes)
            class_loss = class_loss + self._softening(matched, wanted_labels, *pairs).sum(dim=1)
        parts = {"loss_ce": class_loss / class_weight}
        parts |= {name: value / num_objects for name, value in self._box_losses(*boxes).items()}
        total = sum(self.weights[name] * value.sum() for name, value in parts.items())
        parts["cardinality_error"] = _cardinality_error(scores.found, packed.counts)
        losses = _name_by_layer(parts)
        losses["class_error"] = _class_error(logits, wanted_labels, matches)
        return total, losses

    def _normalisers(self, counts: list[int], logits: Tensor) -> Tensor:
        """Returns the number of objects and the sum of class weights: those of the whole batch, per process.

        Every layer matches the same number of pairs, so both are known before the predictions are.
        """
        _, batch_size, num_queries, _ = logits.shape
        matched = sum(min(count, num_queries) for count in counts)
        weight = matched + self.eos_coef * (batch_size * num_queries - matched)
        sums = torch.tensor([sum(counts), weight], dtype=torch.float32)
        return share_of_sums(sums.to(logits.device, non_blocking=True))

    def known_assignment(
        self, logits: Tensor, pred_boxes: Tensor, classes: Tensor, boxes_cxcywh_norm: Tensor, valid: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted total and the parts of the last layer, for queries that know their object: no matching.

        Args:
            logits: (L, B, M, K + 1).
            pred_boxes: (L, B, M, 4), cxcywh, normalised.
            classes: (B, M) int64; K, no-object, for a query that should find nothing.
            boxes_cxcywh_norm: (B, M, 4), read where there is an object.
            valid: (B, M) bool; a query that is not valid is left out.
        """
        logits, pred_boxes = logits.float(), pred_boxes.float()
        positive = valid & (classes != logits.shape[-1] - 1)
        weight = torch.where(positive, 1.0, self.eos_coef) * valid
        num_objects, class_weight = share_of_sums(torch.stack([positive.sum(), weight.sum()]).float())
        entropy = F.cross_entropy(
            logits.flatten(0, 2), classes.expand(len(logits), -1, -1).flatten(), reduction="none"
        ).view(logits.shape[:3])
        if self.iou_label_power:
            labels = classes.expand_as(entropy)
            entropy = entropy + self._softening(logits, labels, pred_boxes, boxes_cxcywh_norm) * positive
        distance = (pred_boxes - boxes_cxcywh_norm).abs().sum(dim=-1)
        overlap = generalized_box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(boxes_cxcywh_norm))
        parts = {
            "loss_ce": (entropy * weight).sum(dim=(1, 2)) / class_weight,
            "loss_bbox": (distance * positive).sum(dim=(1, 2)) / num_objects,
            "loss_giou": ((1 - overlap) * positive).sum(dim=(1, 2)) / num_objects,
        }
        total = sum(self.weights[name] * value.sum() for name, value in parts.items())
        return total, {name: value[-1] for name, value in parts.items()}

    def _class_loss(self, logits: Tensor, scores: ClassScores, wanted_labels: Tensor, matches: Matches) -> Tensor:
        """Returns the summed weighted cross-entropy (L,)."""
        # the class that each query should predict: no-object where it is not matched
        classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        weight = torch.full(logits.shape[:3], self.eos_coef, device=logits.device)
        classes.view(-1)[matches.prediction] = wanted_labels
        weight.view(-1)[matches.prediction] = 1.0
        return (_CrossEntropy.apply(logits, scores, classes) * weight).sum(dim=(1, 2))

    def _softening(self, logits: Tensor, labels: Tensor, pred_boxes: Tensor, wanted_boxes: Tensor) -> Tensor:
        """Returns what `iou_label_power` adds to the cross-entropy (...) of queries (..., K + 1) with their objects.

        With a wanted probability q of the label, and 1 - q of no-object, it is that with q = 1 plus (1 - q) times what
        the label's logit has over no-object's.
        """
        with torch.no_grad():
            iou, _ = box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(wanted_boxes))
        over_no_object = logits.gather(-1, labels[..., None]).squeeze(-1) - logits[..., -1]
        return (1 - iou**self.iou_label_power) * over_no_object

    @staticmethod
    def _matched_boxes(pred_boxes: Tensor, targets: PackedTargets, matches: Matches) -> tuple[Tensor, Tensor]:
        """Returns predicted and wanted boxes of the matched pairs, planar: (4, L, P) each."""
        predicted, wanted = (
            _planar(boxes.reshape(-1, 4).index_select(0, index.flatten())).unflatten(1, index.shape)  # (4, L, P)
            for boxes, index in (
                (pred_boxes, matches.prediction),
                (targets.boxes_cxcywh_norm, matches.target),
            )
        )
        return predicted, wanted

    @staticmethod
    def _box_losses(predicted: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Returns the summed L1 and (1 - GIoU) of matched pairs of planar boxes (4, L, P), each (L,)."""
        return {
            "loss_bbox": (predicted - wanted).abs().sum(dim=(0, 2)),
            "loss_giou": (1 - _planar_generalized_iou(predicted, wanted)).sum(dim=1),
        }


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy (L, B, Q) of logits (L, B, Q, K + 1) whose scores are known.

    Its gradient, the softmax minus 1 at the wanted class, is written into one new tensor.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, scores: ClassScores, classes: Tensor) -> Tensor:
        classes = classes[..., None]
        entropy = scores.sums.log() - (logits.gather(-1, classes) - scores.highest)
        ctx.save_for_backward(scores.exponentials, scores.sums, entropy, classes)
        return entropy.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        exponentials, sums, entropy, classes = ctx.saved_tensors
        gradient = gradient[..., None]
        return (exponentials * (gradient / sums)).scatter_(-1, classes, gradient * entropy.neg().expm1()), None, None


def share_of_sums(sums: Tensor) -> Tensor:
    """Returns what this process divides its losses by: `sums` (n,) over all processes, divided by their number.

    The mean of the processes' losses and gradients then is that of one process with the whole batch. The first sum
    counts objects and is at least 1; the others only must not be 0.
    """
    world_size = 1
    # Without gradients a process may well be alone here (an evaluation on rank 0), and must not wait for the others.
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        sums = sums.clone()
        dist.all_reduce(sums)
        world_size = dist.get_world_size()
    first, others = sums[:1].clamp(min=1.0), sums[1:].clamp(min=torch.finfo(sums.dtype).tiny)
    return torch.cat([first, others]) / world_size


@torch.no_grad()
def _cardinality_error(found: Tensor, counts: list[int]) -> Tensor:
    """Returns (L,): the mean over images of the difference between predicted and true number of objects."""
    wanted = torch.tensor(counts).to(found.device, non_blocking=True)
    return (found.sum(dim=-1) - wanted).abs().float().mean(dim=-1)


@torch.no_grad()
def _class_error(logits: Tensor, wanted_labels: Tensor, matches: Matches) -> Tensor:
    """Returns the percentage of the last layer's matched queries whose likeliest class is wrong.

    100 without any object, as in the original.
    """
    right = logits.flatten(0, 2)[matches.prediction[-1]].argmax(dim=-1) == wanted_labels[-1]  # (P,)
    return 100 - 100 * right.sum() / max(len(right), 1)


def _name_by_layer(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    losses = {}
    for name, values in parts.items():
        *earlier, last = values.unbind(0)
        losses[name] = last
        losses.update({f"{name}_{layer}": value for layer, value in enumerate(earlier)})
    return losses


__all__ = ["HungarianMatcher", "Matches", "PackedTargets", "SetCriterion", "share_of_sums"]
