"""Focal loss and dice loss of matched masks, at the size of the images that go into the network.

Focal: T.-Y. Lin et al., 2017, with alpha 0.25 and gamma 2; dice: F. Milletari et al., 2016, with 1 added above and
below. Both as in the original, in float32. What differs on purpose: no map of the images' size is kept, for the
gradient is made beside the loss, a few masks at a time, and is as small as the logits are; and what carries it through
the bilinear resize are two matrix products, which on a CPU are faster than torch's own gradient of it, and on a GPU
give the same bits each time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ALPHA = 0.25
PIXELS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 23}  # what the cache, or the device, holds a few maps of


def mask_losses(logits: Tensor, wanted: Tensor, padded_hw: tuple[int, int], counted_hw: tuple[int, int]) -> Tensor:
    """Returns (2,): the sum over an image's masks of the focal loss's mean over pixels, and that of the dice loss.

    Args:
        logits: (n, h4, w4), in the frame of the padded input.
        wanted: (n, H', W') bool, from the upper left corner; what lies beyond is no mask.
        padded_hw: size of the padded input.
        counted_hw: height and width, from the upper left corner, of the pixels that count.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _MaskLosses.apply(logits.float(), wanted, padded_hw, counted_hw)


class _MaskLosses(torch.autograd.Function):
    """`mask_losses`, with the gradient of each of the two sums kept for the backward pass."""

    @staticmethod
    def forward(
        ctx, logits: Tensor, wanted: Tensor, padded_hw: tuple[int, int], counted_hw: tuple[int, int]
    ) -> Tensor:
        height, width = counted_hw
        rows = _resizing(logits.shape[1], padded_hw[0], logits)[:height]  # (H, h4)
        columns = _resizing(logits.shape[2], padded_hw[1], logits)[:width]  # (W, w4)
        beyond = (0, max(width - wanted.shape[2], 0), 0, max(height - wanted.shape[1], 0))
        size = max(1, PIXELS_AT_ONCE.get(logits.device.type, 1 << 18) // (height * width))
        sums, gradients = logits.new_zeros(2), []
        for group, mask in zip(logits.split(size), wanted[:, :height, :width].split(size), strict=True):
            full = F.interpolate(group[:, None], size=padded_hw, mode="bilinear", align_corners=False)[:, 0]
            x = full[:, :height, :width].flatten(1)  # (n, P)
            t = F.pad(mask, beyond).flatten(1).to(x.dtype)
            losses, of_pixels = _losses(x, t, ctx.needs_input_grad[0])
            sums += losses
            if of_pixels is not None:
                gradients.append(rows.T @ of_pixels.view(2, -1, height, width) @ columns)  # (2, n, h4, w4)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients, dim=1) if gradients else logits.new_zeros(2, *logits.shape))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return torch.tensordot(gradient, gradients, dims=1), None, None, None


def _resizing(size: int, wanted: int, like: Tensor) -> Tensor:
    """Returns the matrix (wanted, size) that stretches a line as torch's bilinear resize does."""
    each_cell = torch.eye(size, device=like.device, dtype=like.dtype)
    return F.interpolate(each_cell[None], size=wanted, mode="linear", align_corners=False)[0].T.contiguous()


def _losses(x: Tensor, t: Tensor, with_gradients: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the two losses (2,) summed over masks, and the gradient of each by the logits (2, n, P) if it is wanted.

    Args:
        x: logits (n, P).
        t: (n, P), 0 or 1.
        with_gradients: whether gradients are wanted.
    """
    minus_sign = 1 - 2 * t
    x = x * minus_sign
    surprise = F.softplus(x)  # cross-entropy
    wrong = x.sigmoid_()  # 1 - p where t is 1, p elsewhere
    right = 1 - wrong
    weight = ((1 - ALPHA) + (2 * ALPHA - 1) * t) * wrong.square() / x.shape[1]
    focal = (weight * surprise).sum()
    shared = 2 * (t * right).sum(dim=1, keepdim=True) + 1  # (n, 1)
    both = shared + wrong.sum(dim=1, keepdim=True)  # the sums of p and t, and 1
    losses = torch.stack([focal, (1 - shared / both).sum()])
    if not with_gradients:
        return losses, None
    of_focal = (2 * right).mul_(surprise).add_(wrong).mul_(weight).mul_(minus_sign)
    of_dice = (shared / both.square() - t * (2 / both)).mul_(wrong).mul_(right)
    return losses, torch.stack([of_focal, of_dice])
