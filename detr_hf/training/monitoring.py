"""What is watched during training: the loss by part, and that it stays finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.collecting import image_id_of


class LossParts:
    """Means over a window of the losses of the last decoder layer and of training aids, and of the class error.

    Sums stay on the device, so that adding a batch costs no wait for it. The class error counts each matched object
    once, so that a batch of two objects does not weigh as much as one of fifty, and one without objects does not count
    as wrong.
    """

    NAMES = (
        *("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_mask", "loss_dice"),
        *(f"loss_{part}_{aid}" for aid in ("enc", "dn") for part in ("ce", "bbox", "giou")),
    )

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, parts: Mapping[str, Tensor], labels: Sequence[Mapping[str, Any]]) -> None:
        """Adds a batch: the model's `loss_dict`, and its targets."""
        objects = sum(len(label["class_labels"]) for label in labels)
        for name in self.NAMES:
            if name in parts:
                self._add(name, parts[name], 1.0)
        if "class_error" in parts and objects:
            self._add("class_error", parts["class_error"], float(objects))

    def _add(self, name: str, value: Tensor, weight: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.detach().float() * weight
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def drain(self, accelerator: Any, prefix: str = "") -> dict[str, float]:
        """Returns means since the last call, over all processes; call it in every process."""
        names = (*self.NAMES, "class_error")  # the same in every process, whatever each has seen
        zero = torch.zeros((), device=accelerator.device)
        sums = [torch.as_tensor(self._sums.get(name, zero)).to(accelerator.device) for name in names]
        weights = torch.tensor([self._weights.get(name, 0.0) for name in names], device=accelerator.device)
        total, weight = accelerator.reduce(torch.stack([torch.stack(sums).float(), weights]), reduction="sum").tolist()
        self._sums, self._weights = {}, {}
        return {prefix + name: total[i] / weight[i] for i, name in enumerate(names) if weight[i]}


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
