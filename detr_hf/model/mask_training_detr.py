"""How a segmentation model learns: masks of matched queries and their losses, on a detector that may be frozen.

The assignment is the detector's own, of the last layer: masks have no part in its costs. While training, the head runs
on matched queries alone: the others' masks would carry no gradient. A frozen detector runs as in inference, where the
original leaves its dropout on.
"""

import torch
from torch import Tensor, nn

from .matcher_detr import PackedTargets
from .outputs_detr import Decoded
from .predictions_detr import Predictions
from .pretrained_detr import MASK_PARTS
from .segmentation_detr import masks_above, masks_of_queries, place_masks


class FreezesDetector:
    """What a segmentation model does whose detector may be frozen; comes before the detector among its bases."""

    def freeze(self) -> None:
        """Sets `requires_grad` as the configuration says: with `freeze_detector` the mask head alone learns.

        Raises:
            ValueError: the detector would be frozen with rows of its class head that were never trained.
        """
        super().freeze()
        if self.config.freeze_detector:
            self._refuse_new_classes()
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith(MASK_PARTS))

    def _refuse_new_classes(self) -> None:
        if self.new_classes:
            shown = ", ".join(self.new_classes[:8]) + (", ..." if len(self.new_classes) > 8 else "")
            raise ValueError(
                f"The detector is to be frozen, and {self.name_or_path} does not know {len(self.new_classes)} of its "
                f"{self.config.num_labels} classes ({shown}): their scores would stay random. Train the detector on "
                "them first (DETRForObjectDetection) and start from that, or leave freeze_detector out."
            )

    def freeze_detector(self, frozen: bool) -> None:
        """Freezes the detector, or makes it learn again; see `freeze`, with its error."""
        if frozen:
            self._refuse_new_classes()
        elif self.config.freeze_detector:
            self.requires_grad_(True)
        self.config.freeze_detector = frozen
        self.freeze()

    def train(self, mode: bool = True) -> "FreezesDetector":
        """Sets training mode; a detector that is frozen stays in evaluation, without dropout.

        Where it is already it is left alone: its backbone would fold its norms anew for every step.
        """
        if not self.config.freeze_detector:
            return super().train(mode)
        self.training = mode
        for name, child in self.named_children():
            learns = f"{name}.".startswith(MASK_PARTS)
            if learns or not mode or any(module.training for module in child.modules()):
                child.train(mode and learns)
        return self


def train_masks(
    model: nn.Module,
    decoded: Decoded,
    predictions: Predictions,
    labels: list[dict[str, Tensor]],
    padded_hw: tuple[int, int],
    sizes_hw: Tensor,
    threshold: float | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns the mask logits (B, Q, h4, w4), the loss of the matched ones, and its parts.

    In evaluation queries with a score above `threshold` have a mask besides, or all. Objects that their image's
    `has_mask` (N,) says to have none are matched as any other, and neither summed nor counted here.
    """
    if model.training:
        model.mask_head_is_new, model.new_classes = False, ()
    criterion = model.criterion()
    targets = PackedTargets.from_list(labels, len(sizes_hw), predictions.logits.device)
    known = [_known_masks(label, index, padded_hw, sizes_hw.device) for index, label in enumerate(labels)]
    last = Predictions(predictions.logits[-1:].float(), predictions.boxes_cxcywh_norm[-1:].float())
    matches = criterion.matcher(*last[:2], targets)
    num_queries = last.logits.shape[2]
    counts = [min(count, num_queries) for count in targets.counts]
    queries, wanted = [], []
    for query, object_, (masks, has_mask) in zip(
        matches.query[0].split(counts), matches.object[0].split(counts), known, strict=True
    ):
        if has_mask is not None:
            query, object_ = query[has_mask[object_]], object_[has_mask[object_]]
        queries.append(query)
        wanted.append(masks[object_.to(masks.device)].to(object_.device))
    if model.training:
        # of no query at all it runs on one: every weight has a gradient, which distributed training waits for
        chosen = queries if any(map(len, queries)) else [queries[0].new_zeros(1), *queries[1:]]
        masks = masks_of_queries(model, decoded, chosen)
        placed = place_masks(masks, chosen, num_queries)
        masks = [of_image[: len(numbers)] for of_image, numbers in zip(masks, queries, strict=True)]
    else:
        placed = masks_above(model, decoded, predictions, threshold, queries)
        masks = [of_image[numbers] for of_image, numbers in zip(placed, queries, strict=True)]
    count = sum(len(masks) if has_mask is None else has_mask.sum() for masks, has_mask in known)
    finite = torch.stack([of_image.float().sum().isfinite() for of_image in masks])
    rows = torch.cat([sizes_hw, finite[:, None].to(sizes_hw)], dim=1).tolist()  # one copy to the host
    targets.refuse_not_finite({"masks": [row[2] for row in rows]})
    sizes = [tuple(row[:2]) for row in rows]
    return placed, *criterion.loss_masks(masks, wanted, torch.as_tensor(count), padded_hw, sizes)


def _known_masks(
    label: dict[str, Tensor], index: int, padded_hw: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Returns the masks (N, H', W') bool of an image, where they are, and which are known (N,), None for all."""
    masks, has_mask = label.get("masks"), label.get("has_mask")
    if masks is None:
        raise ValueError(
            f"labels[{index}] has no 'masks' but {', '.join(sorted(label))}; a segmentation model needs a mask for "
            "each object: prepare the data with masks=True, or train a DETRForObjectDetection."
        )
    count = len(label["class_labels"])
    if (
        masks.ndim != 3
        or len(masks) != count
        or any(side > most for side, most in zip(masks.shape[1:], padded_hw, strict=True))
    ):
        raise ValueError(
            f"labels[{index}]['masks'] has shape {tuple(masks.shape)}; expected ({count}, H, W) for its {count} "
            f"objects, no larger than the padded input, {padded_hw[0]}x{padded_hw[1]}."
        )
    if has_mask is not None and tuple(has_mask.shape) != (count,):
        raise ValueError(f"labels[{index}]['has_mask'] has shape {tuple(has_mask.shape)}; expected ({count},).")
    return masks.bool(), None if has_mask is None else has_mask.to(device).bool()
