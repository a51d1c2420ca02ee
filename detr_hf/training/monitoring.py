"""What is watched during training: the loss by part, and that it stays finite."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.collecting import image_id_of

MASK_LOSSES = ("loss_mask", "loss_dice")


class LossParts:
    """Means over a window of the losses of the last decoder layer and of training aids, and of the class error.

    Sums stay on the device, so that adding a batch costs no wait for it. The class error counts each matched object
    once, so that a batch of two objects does not weigh as much as one of fifty, and one without objects does not count
    as wrong.

    Args:
        as_one_batch: whether the means are those of one batch of all that was added, however it was divided: each loss
            weighs what it was divided by (that of classes the weights of all queries, those of masks the objects with
            one, others the number of objects), the cardinality's error the pictures; and `loss`, the total, is among
            them. Otherwise each batch counts once, as each counts for one step of training.
    """

    NAMES = (
        *("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", *MASK_LOSSES),
        *(f"loss_{part}_{aid}" for aid in ("enc", "dn") for part in ("ce", "bbox", "giou")),
    )
    # what the total is the sum of: that of every layer's class loss, of masks, and of all other losses
    TOTALS = ("loss of classes", "loss of masks", "loss of objects")

    def __init__(self, as_one_batch: bool = False) -> None:
        self.as_one_batch = as_one_batch
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(
        self,
        parts: Mapping[str, Tensor],
        labels: Sequence[Mapping[str, Any]],
        loss: Tensor | None = None,
        divisors: tuple[float, float, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            parts: the model's `loss_dict`.
            labels: the batch's targets.
            loss: the total, and
            divisors: what each kind was divided by, see `loss_divisors`, where all is one batch. A loss that is not
                DETR's has none; then its parts count by pictures, and there is no total.
            weights: of each part in the total.
        """
        objects, pictures = sum(len(label["class_labels"]) for label in labels), float(len(labels))
        classes, others, matched = divisors or (pictures, pictures, objects)
        masks = float(
            sum(
                int(label["has_mask"].sum()) if "has_mask" in label else len(label["class_labels"]) for label in labels
            )
        )
        for name in self.NAMES:
            if name in parts:
                weight = classes if name.startswith("loss_ce") else others if name.startswith("loss") else pictures
                weight = masks if divisors and name in MASK_LOSSES else weight
                self._add(name, parts[name], weight if self.as_one_batch else 1.0)
        if "class_error" in parts and matched:
            self._add("class_error", parts["class_error"], float(matched))
        if self.as_one_batch and divisors and loss is not None:
            weights = weights or {}
            ce = [value for name, value in parts.items() if re.fullmatch(r"loss_ce(_\d+)?", name)]
            of_classes = sum(ce) * weights.get("loss_ce", 1.0)
            of_masks = sum(parts[name] * weights.get(name, 1.0) for name in MASK_LOSSES if name in parts)
            totals = ((of_classes, classes), (of_masks, masks), (loss - of_classes - of_masks, others))
            for name, (value, weight) in zip(self.TOTALS, totals, strict=True):
                self._add(name, torch.as_tensor(value), weight)

    def _add(self, name: str, value: Tensor, weight: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.detach().float() * weight
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def drain(self, accelerator: Any, prefix: str = "") -> dict[str, float]:
        """Returns means since the last call, over all processes; call it in every process."""
        names = (*self.NAMES, "class_error", *self.TOTALS)  # the same in every process, whatever each has seen
        sums = [torch.as_tensor(self._sums.get(name, 0.0)).to(accelerator.device) for name in names]
        weights = torch.tensor([self._weights.get(name, 0.0) for name in names], device=accelerator.device)
        total, weight = accelerator.reduce(torch.stack([torch.stack(sums).float(), weights]), reduction="sum").tolist()
        self._sums, self._weights = {}, {}
        means = {name: total[i] / weight[i] for i, name in enumerate(names) if weight[i]}
        of_all = [means.pop(name) for name in self.TOTALS if name in means]
        if of_all:
            means["loss"] = sum(of_all)
        return {prefix + name: value for name, value in means.items()}


def loss_divisors(labels: Sequence[Mapping[str, Any]], num_queries: int, criterion: Any) -> tuple[float, float, float]:
    """Returns what a `SetCriterion` divides a batch's losses by: those of classes by the weights of the queries, other
    losses by the number of objects, and the error of classes by that of matched objects.

    Where classes have weights and a picture has more objects than queries, those that get one are taken to weigh as
    all do in the mean.
    """
    weights = getattr(criterion, "class_weights", None)
    matched = weight = objects = 0.0
    for label in labels:
        count = len(label["class_labels"])
        with_query = min(count, num_queries)
        of_all = count if weights is None else sum(weights[index] for index in label["class_labels"].tolist())
        objects, matched = objects + count, matched + with_query
        weight += of_all * with_query / max(count, 1)
    return weight + criterion.eos_coef * (len(labels) * num_queries - matched), objects, matched


def describe_batch(inputs: Mapping[str, Any], file_names: Mapping[Any, str]) -> str:
    """Returns the names of a batch's pictures, and which of them hold values that are not finite."""
    pixel_values = inputs["pixel_values"]
    lines = []
    for index, label in enumerate(inputs.get("labels", [{}] * len(pixel_values))):
        image_id = image_id_of(label)
        name = f"image_id {image_id}" if image_id is not None else f"number {index} of the batch"
        if image_id in file_names:
            name = f"{file_names[image_id]} ({name})"
        faults = [] if bool(torch.isfinite(pixel_values[index]).all()) else ["pixels that are not finite"]
        if "boxes" in label and not bool(torch.isfinite(label["boxes"]).all()):
            faults.append("boxes that are not finite")
        lines.append(name + (f" has {' and '.join(faults)}" if faults else ""))
    return "; ".join(lines)


def describe_parts(parts: Mapping[str, Tensor]) -> str:
    """Returns the parts of a loss, as text."""
    shown = (name for name in LossParts.NAMES if name in parts and name.startswith("loss"))
    return ", ".join(f"{name} {float(parts[name].detach()):.4g}" for name in shown)
