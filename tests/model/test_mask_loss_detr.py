"""The losses of masks: their gradient is torch's own, and little is kept for it. Their values: beside the parity."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_hf.model.mask_loss_detr import PIXELS_AT_ONCE, mask_losses

SIZES = [((64, 80), (64, 80)), ((61, 83), (40, 83)), ((64, 80), (33, 21))]  # of the canvas, of the image on it


def as_written(logits: Tensor, wanted: Tensor, padded_hw: tuple[int, int], counted_hw: tuple[int, int]) -> Tensor:
    height, width = counted_hw
    x = F.interpolate(logits[:, None].double(), size=padded_hw, mode="bilinear")[:, 0, :height, :width].flatten(1)
    t = wanted[:, :height, :width].flatten(1).double()
    p = x.sigmoid()
    focal = (0.75 - 0.5 * t) * (p + t - 2 * p * t) ** 2 * F.binary_cross_entropy_with_logits(x, t, reduction="none")
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return torch.stack([focal.mean(1).sum(), dice.sum()])


@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["unsure", "certain"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_losses_and_gradients_are_those_of_their_definition(sizes, scale, monkeypatch):
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 2 * sizes[1][0] * sizes[1][1])  # two masks at once
    generator = torch.Generator().manual_seed(0)
    height, width = sizes[0]
    logits = torch.randn(5, -(-height // 4), -(-width // 4), generator=generator) * scale
    wanted = torch.rand(5, height, width, generator=generator) > 0.7
    wanted[0], wanted[1] = False, False
    wanted[1, 3, 4] = True
    kept = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 5.0)):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t
        ):
            seen = mask_losses(ours, wanted, *sizes)
        expected = as_written(theirs, wanted, *sizes)
        torch.testing.assert_close(seen.double(), expected, rtol=1e-5, atol=1e-6)
        (seen * torch.tensor(weights)).sum().backward()
        (expected * torch.tensor(weights)).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))
    assert max(kept) == 2 * logits.numel()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mask_losses(logits, wanted, *sizes), seen.detach())


def test_no_mask_at_all_has_a_loss_and_a_gradient_of_zero():
    logits = torch.randn(0, 16, 20, requires_grad=True)
    sums = mask_losses(logits, torch.zeros(0, 64, 80, dtype=torch.bool), (64, 80), (64, 80))
    sums.sum().backward()
    assert sums.tolist() == [0, 0] and logits.grad.shape == logits.shape


def test_without_a_mask_losses_and_gradients_are_none():
    logits = torch.zeros(0, 8, 8, requires_grad=True)
    losses = mask_losses(logits, torch.zeros(0, 32, 32, dtype=torch.bool), (32, 32), (32, 32))
    losses.sum().backward()
    assert losses.tolist() == [0, 0] and logits.grad.shape == (0, 8, 8)
