"""Focal loss and dice loss of matched masks, at the size of the images that go into the network.

Focal: T.-Y. Lin et al., 2017, with alpha 0.25 and gamma 2; dice: F. Milletari et al., 2016, with 1 added above and
below. Both as in the original, in float32; masks go through in groups, and a group's maps are computed anew in the
backward pass instead of being kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ALPHA = 0.25
PIXELS_AT_ONCE = 1 << 21


def mask_losses(logits: Tensor, wanted: Tensor, padded_hw: tuple[int, int], counted_hw: tuple[int, int]) -> Tensor:
    """Returns (2,): the sum over an image's masks of the focal loss's mean over pixels, and that of the dice loss.

    Args:
        logits: (n, h4, w4), in the frame of the padded input.
        wanted: (n, H', W') bool, from the upper left corner; what lies beyond is no mask.
        padded_hw: size of the padded input.
        counted_hw: height and width, from the upper left corner, of the pixels that count.
    """
    size = max(1, PIXELS_AT_ONCE // (padded_hw[0] * padded_hw[1]))
    sums = logits.new_zeros(2, dtype=torch.float32)
    for group, mask in zip(logits.split(size), wanted.split(size), strict=True):
        if torch.is_grad_enabled() and group.requires_grad:
            sums = sums + checkpoint(_losses, group, mask, padded_hw, counted_hw, use_reentrant=False)
        else:
            sums = sums + _losses(group, mask, padded_hw, counted_hw)
    return sums


def _losses(logits: Tensor, wanted: Tensor, padded_hw: tuple[int, int], counted_hw: tuple[int, int]) -> Tensor:
    height, width = counted_hw
    full = F.interpolate(logits[:, None].float(), size=padded_hw, mode="bilinear", align_corners=False)[:, 0]
    x = full[:, :height, :width].flatten(1)
    beyond = (0, max(width - wanted.shape[2], 0), 0, max(height - wanted.shape[1], 0))
    t = F.pad(wanted[:, :height, :width], beyond).flatten(1).to(x.dtype)
    p = x.sigmoid()
    wrong = p + t - 2 * p * t  # 1 - p where t is 1, p elsewhere
    weight = (1 - ALPHA) + (2 * ALPHA - 1) * t
    focal = weight * wrong.square() * F.binary_cross_entropy_with_logits(x, t, reduction="none")
    dice = 1 - (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)
    return torch.stack([focal.mean(dim=1).sum(), dice.sum()])
