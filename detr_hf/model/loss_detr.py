"""The set prediction loss (paper, sections 3.1 and A.2), for all decoder layers in one pass: a method a loss.

The numbers are the original's. What differs on purpose:

- classes may have weights, as in torch's `cross_entropy(weight=...)`; the original has that of no-object alone;
- there is no loop over layers, and everything is computed in float32, whatever the model's dtype;
- in a distributed run the normalisers (objects, and class weights) are summed over all processes, so that the mean of
  the processes' losses and gradients is that of one process with the whole batch. The original normalises the class
  term per process; transformers divides the number of objects by the number of processes twice.

Dimension letters: L layers, B images, Q queries, K classes, N objects (padded to the most of any image), P matches.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .box_ops_detr import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
from .mask_loss_detr import mask_losses
from .matcher_detr import HungarianMatcher, Matches, PackedTargets
from .predictions_detr import Predictions


@dataclass
class KnownObjects:
    """What each of M queries or encoder tokens should give, where that needs no matching.

    Attributes:
        classes: (B, M) int64, K for one that should find nothing.
        boxes_cxcywh_norm: (B, M, 4), read where there is an object.
        valid: (B, M) bool; the rest is left out.
    """

    classes: Tensor
    boxes_cxcywh_norm: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SetCriterion:
    """The loss of DETR: cross-entropy, L1 and generalised IoU of the matched pairs, for every decoder layer.

    Args:
        matcher: assigns queries to objects, anew for every layer.
        weights: weight of each loss in the total, by name: `loss_ce`, `loss_bbox`, `loss_giou`.
        eos_coef: weight of the no-object class in the cross-entropy.
        class_weights: one for each of the K classes, else 1; with eos_coef the `weight` of torch's cross_entropy:
            every query counts with the weight of the class that it should give, and the loss is divided by their sum.
        iou_label_power: p in the wanted probability IoU^p of a matched query's class, the rest being no-object's; with
            0 it is 1, the original's.
        focal_gamma: p in the weight eos_coef * (1 - probability of no-object)^p of a query without an object. Above 0
            the cross-entropy is divided by the number of objects, not by the sum of the weights.
        mask_loss_on_padding: count pixels outside of the images in the losses of masks, as the original does.

    >>> import torch
    >>> from detr_hf.model import HungarianMatcher, SetCriterion
    >>> criterion = SetCriterion(HungarianMatcher(), {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0})
    >>> logits, pred_boxes = torch.randn(2, 1, 100, 4), torch.rand(2, 1, 100, 4)  # 2 layers, 3 classes + no-object
    >>> labels = [{"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    >>> loss, parts = criterion(logits, pred_boxes, labels)
    >>> loss.shape, sorted(name for name in parts if name.startswith("loss"))
    (torch.Size([]), ['loss_bbox', 'loss_bbox_0', 'loss_ce', 'loss_ce_0', 'loss_giou', 'loss_giou_0'])
    """

    matcher: HungarianMatcher
    weights: dict[str, float]
    eos_coef: float = 0.1
    iou_label_power: float = 0.0
    class_weights: tuple[float, ...] | None = None
    focal_gamma: float = 0.0
    mask_loss_on_padding: bool = False

    def __call__(
        self, logits: Tensor, pred_boxes: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted total, and the unweighted parts by name.

        The parts are `loss_ce`, `loss_bbox`, `loss_giou` and `cardinality_error` of the last layer, the same with a
        suffix `_0`, `_1`, ... of the earlier ones, and `class_error` (percent of the matched objects whose class is
        wrong, last layer). The two errors are for logging: they carry no gradient and no weight.

        Args:
            logits: (L, B, Q, K + 1), the last layer last.
            pred_boxes: (L, B, Q, 4), cxcywh, normalised by the unpadded image.
            targets: for each image `class_labels` (N,) and `boxes` (N, 4) in the same format.
        """
        predictions = Predictions(logits.float(), pred_boxes.float())
        packed = PackedTargets.from_list(targets, logits.shape[1], logits.device)
        matches = self.matcher(predictions.logits, predictions.boxes_cxcywh_norm, packed)
        num_objects, class_weight = self._normalisers(packed, matches, logits)

        parts = self.loss_labels(predictions, packed, matches, class_weight)
        parts |= self.loss_boxes(predictions, packed, matches, num_objects)
        total: Any = sum(self.weights[name] * value.sum() for name, value in parts.items())
        parts["cardinality_error"] = _cardinality_error(matches.scores.found, packed.counts)
        losses = _name_by_layer(parts)
        losses["class_error"] = _class_error(predictions.logits, packed.labels, matches)
        return total, losses

    def loss_labels(
        self, predictions: Predictions, targets: PackedTargets, matches: Matches, class_weight: Tensor
    ) -> dict[str, Tensor]:
        """Returns `loss_ce` (L,): the weighted cross-entropy of all queries, over the sum of their weights."""
        logits = predictions.logits
        labels = targets.labels.flatten()[matches.target]  # (L, P)
        # the class that each query should predict: no-object where it is not matched
        classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        weight = self._weight_of_no_object(logits)
        classes.view(-1)[matches.prediction] = labels
        weight.view(-1)[matches.prediction] = 1.0 if self.class_weights is None else self._weights_of(labels, logits)
        loss = (matches.scores.cross_entropy(logits, classes) * weight).sum(dim=(1, 2))
        if self.iou_label_power:
            boxes = _matched_boxes(predictions, targets, matches)
            softening = self._softening(logits.flatten(0, 2)[matches.prediction], labels, *boxes)
            if self.class_weights is not None:
                softening = softening * self._weights_of(labels, logits)
            loss = loss + softening.sum(dim=1)
        return {"loss_ce": loss / class_weight}

    def loss_boxes(
        self, predictions: Predictions, targets: PackedTargets, matches: Matches, num_objects: Tensor
    ) -> dict[str, Tensor]:
        """Returns `loss_bbox` and `loss_giou` (L,): L1 and 1 - GIoU of matched pairs, over the number of objects."""
        predicted, wanted = _matched_boxes(predictions, targets, matches)  # (L, P, 4) each
        overlap = generalized_box_iou(box_cxcywh_to_xyxy(predicted), box_cxcywh_to_xyxy(wanted))
        return {
            "loss_bbox": (predicted - wanted).abs().sum(dim=(1, 2)) / num_objects,
            "loss_giou": (1 - overlap).sum(dim=1) / num_objects,
        }

    def loss_masks(
        self,
        masks: list[Tensor],
        wanted: list[Tensor],
        count: Tensor,
        padded_hw: tuple[int, int],
        sizes_hw: list[tuple[int, int]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted total, `loss_mask` and `loss_dice`, over the number of objects that have a mask.

        Args:
            masks: for each image the mask logits (P, h4, w4) of its matched queries, in the last layer.
            wanted: the masks (P, H', W') bool of their objects.
            count: the number of this process's objects that have a mask, those without a query too.
            padded_hw: size of the padded input, in whose frame they are.
            sizes_hw: of each image in it; what is outside counts with `mask_loss_on_padding` only.
        """
        sums = torch.zeros(2, device=masks[0].device)
        for logits, mask, size_hw in zip(masks, wanted, sizes_hw, strict=True):
            sums = sums + mask_losses(logits, mask, padded_hw, padded_hw if self.mask_loss_on_padding else size_hw)
        focal, dice = sums / share_of_sums(count.to(sums.device, torch.float32, non_blocking=True)[None])
        parts = {"loss_mask": focal, "loss_dice": dice}
        return sum(self.weights[name] * value for name, value in parts.items()), parts

    def _normalisers(self, targets: PackedTargets, matches: Matches, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the number of objects, and the queries' weights summed (L or 1,): of the whole batch, per process.

        Every layer matches the same number of pairs, so that both are known before the predictions are, unless classes
        have weights and some object gets no query.
        """
        _, batch_size, num_queries, _ = logits.shape
        matched = sum(min(count, num_queries) for count in targets.counts)
        weight = matched + self.eos_coef * (batch_size * num_queries - matched)
        sums = torch.tensor([sum(targets.counts), weight], dtype=torch.float32).to(logits.device, non_blocking=True)
        if self.class_weights is not None:
            labels = targets.labels.flatten()[matches.target]
            beyond_1 = (self._weights_of(labels, logits) - 1).sum(dim=1)  # (L,)
            sums = torch.cat([sums[:1], sums[1:] + beyond_1])
        shares = share_of_sums(sums)
        return shares[0], shares[:1] if self.focal_gamma else shares[1:]

    @torch.no_grad()
    def _weight_of_no_object(self, logits: Tensor) -> Tensor:
        """Returns the weight (...) of queries (..., K + 1) as far as they have no object."""
        if not self.focal_gamma:
            return torch.full(logits.shape[:-1], self.eos_coef, device=logits.device)
        return self.eos_coef * (1 - logits.softmax(dim=-1)[..., -1]) ** self.focal_gamma

    def _weights_of(self, classes: Tensor, logits: Tensor) -> Tensor:
        """Returns the weight of each of `classes`, K being no-object."""
        num_classes = logits.shape[-1] - 1
        if len(self.class_weights) != num_classes:
            raise ValueError(f"class_weights has {len(self.class_weights)} weights for {num_classes} classes.")
        weights = torch.tensor([*self.class_weights, self.eos_coef], dtype=torch.float32)
        return weights.to(logits.device, non_blocking=True)[classes]

    def known_assignment(self, predictions: Predictions, known: KnownObjects) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted total and the parts of the last layer, for queries that know their object: no matching.

        Args:
            predictions: of L layers, (L, B, M, ...).
            known: what the M queries of each image should give.
        """
        logits, pred_boxes = predictions.logits.float(), predictions.boxes_cxcywh_norm.float()
        positive = known.valid & (known.classes != logits.shape[-1] - 1)
        of_object = 1.0 if self.class_weights is None else self._weights_of(known.classes, logits)
        weight = torch.where(positive, of_object, self._weight_of_no_object(logits)) * known.valid  # (L, B, M)
        num_objects, class_weight = share_of_sums(torch.stack([positive.sum(), weight[-1].sum()]).float())
        class_weight = num_objects if self.focal_gamma else class_weight
        classes = known.classes.expand(len(logits), -1, -1)
        entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(classes)
        if self.iou_label_power:
            entropy = entropy + self._softening(logits, classes, pred_boxes, known.boxes_cxcywh_norm) * positive
        distance = (pred_boxes - known.boxes_cxcywh_norm).abs().sum(dim=-1)
        overlap = generalized_box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(known.boxes_cxcywh_norm))
        parts = {
            "loss_ce": (entropy * weight).sum(dim=(1, 2)) / class_weight,
            "loss_bbox": (distance * positive).sum(dim=(1, 2)) / num_objects,
            "loss_giou": ((1 - overlap) * positive).sum(dim=(1, 2)) / num_objects,
        }
        total = sum(self.weights[name] * value.sum() for name, value in parts.items())
        return total, {name: value[-1] for name, value in parts.items()}

    def _softening(self, logits: Tensor, labels: Tensor, pred_boxes: Tensor, wanted_boxes: Tensor) -> Tensor:
        """Returns what `iou_label_power` adds to the cross-entropy (...) of queries (..., K + 1) with their objects.

        With a wanted probability q of the label, and 1 - q of no-object, it is that with q = 1 plus (1 - q) times what
        the label's logit has over no-object's.
        """
        with torch.no_grad():
            iou, _ = box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(wanted_boxes))
        over_no_object = logits.gather(-1, labels[..., None]).squeeze(-1) - logits[..., -1]
        return (1 - iou**self.iou_label_power) * over_no_object


def _matched_boxes(predictions: Predictions, targets: PackedTargets, matches: Matches) -> tuple[Tensor, Tensor]:
    """Returns predicted and wanted boxes of the matched pairs, (L, P, 4) each."""
    predicted = predictions.boxes_cxcywh_norm.flatten(0, 2).index_select(0, matches.prediction.flatten())
    wanted = targets.boxes_cxcywh_norm.flatten(0, 1).index_select(0, matches.target.flatten())
    return predicted.view(*matches.prediction.shape, 4), wanted.view(*matches.target.shape, 4)


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
def _class_error(logits: Tensor, labels: Tensor, matches: Matches) -> Tensor:
    """Returns the percentage of the last layer's matched queries whose likeliest class is wrong.

    100 without any object, as in the original.
    """
    likeliest = logits.flatten(0, 2)[matches.prediction[-1]].argmax(dim=-1)  # (P,)
    right = likeliest == labels.flatten()[matches.target[-1]]
    return 100 - 100 * right.sum() / max(len(right), 1)


def _name_by_layer(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    losses = {}
    for name, values in parts.items():
        *earlier, last = values.unbind(0)
        losses[name] = last
        losses.update({f"{name}_{layer}": value for layer, value in enumerate(earlier)})
    return losses
