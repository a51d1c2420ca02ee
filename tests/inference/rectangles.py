"""A segmentation model whose answers are known: each query sees one rectangle of the image, wherever padding ends."""

from collections.abc import Sequence

import numpy as np
import torch

from detr_hf.model.outputs_detr import DETRSegmentationOutput
from detr_hf.model.segmentation_detr import NO_MASK, image_sizes_hw

from ..conftest import tiny_config


class Rectangles(torch.nn.Module):
    """Answers with `objects`, (label, score, (x0, y0, x1, y1) in fractions of the image), the same for each image.

    Only queries above the score that is asked for get a mask; `asked` remembers these scores. A rectangle without an
    area gives a mask without a pixel.
    """

    has_mask_head = True
    name_or_path = "rectangles"

    def __init__(
        self, objects: Sequence[tuple[int, float, tuple[float, float, float, float]]], mask_head_is_new=False
    ):
        super().__init__()
        self.objects = objects
        self.mask_head_is_new = mask_head_is_new
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = tiny_config(id2label={0: "cat", 1: "dog", 2: "grass", 3: "sky"}, num_queries=len(objects))
        self.asked: list[float | None] = []

    def forward(self, pixel_values, pixel_mask=None, mask_score_threshold=None):
        self.asked.append(mask_score_threshold)
        sizes, padded = image_sizes_hw(pixel_values, pixel_mask), tuple(pixel_values.shape[-2:])
        logits = torch.stack([self._logits(label, score) for label, score, _ in self.objects])
        corners = torch.tensor([corners for *_, corners in self.objects])
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        count = len(pixel_values)
        return DETRSegmentationOutput(
            logits=logits.expand(count, -1, -1),
            pred_boxes=boxes.expand(count, -1, -1),
            pred_masks=torch.stack([self._masks(size, padded, mask_score_threshold) for size in sizes.tolist()]),
            image_sizes_hw=sizes,
            padded_sizes_hw=sizes.new_tensor(padded).expand_as(sizes),
        )

    def _logits(self, label: int, score: float) -> torch.Tensor:
        probabilities = torch.zeros(self.config.num_labels + 1)
        probabilities[label], probabilities[-1] = score, 1 - score
        return probabilities.log().clamp(min=-30)

    def _masks(self, size_hw, padded_hw, least: float | None) -> torch.Tensor:
        """Returns (Q, h4, w4), whose zero is on the edges of the rectangles, to the fraction of a cell."""
        steps = [(torch.arange(-(-side // 4)) + 0.5) * side / -(-side // 4) for side in padded_hw]
        masks = []
        for _, score, (x0, y0, x1, y1) in self.objects:
            distances = [
                torch.minimum(step - low * side, high * side - step)
                for step, side, low, high in ((steps[0], size_hw[0], y0, y1), (steps[1], size_hw[1], x0, x1))
            ]
            mask = torch.minimum(distances[0][:, None], distances[1][None]) * 8
            masks.append(mask if least is None or score > least else torch.full_like(mask, NO_MASK))
        return torch.stack(masks)


def rectangle(size_hw: tuple[int, int], corners: tuple[float, ...]) -> np.ndarray:
    """Returns the mask (H, W) bool of a rectangle in fractions of a picture."""
    ys, xs = ((torch.arange(side) + 0.5) / side for side in size_hw)
    x0, y0, x1, y1 = corners
    return (((ys > y0) & (ys < y1))[:, None] & ((xs > x0) & (xs < x1))[None]).numpy()
