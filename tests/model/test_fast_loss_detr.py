"""The matching cost and the cross-entropy in few passes are the paper's formulas and torch's function."""

import pytest
import torch
import torch.nn.functional as F

from detr_hf.model.box_ops_detr import box_cxcywh_to_xyxy, generalized_box_iou
from detr_hf.model.fast_loss_detr import UNMATCHABLE, ClassScores, matching_cost

WEIGHTS = (1.0, 5.0, 2.0)


def case(dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    """Logits, boxes, labels and wanted boxes of 3 layers, 2 images, 9 queries, 4 classes, 5 objects."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 9, 5, generator=generator, dtype=dtype) * 4
    boxes = torch.rand(3, 2, 9, 4, generator=generator) * 0.6
    wanted = torch.rand(2, 5, 4, generator=generator) * 0.6
    boxes[0, :, 0] = wanted[:, 0]  # the same box, one of no size, one far away
    wanted[0, 1, 2:] = 0
    wanted[1, 1, :2] += 5
    return logits, boxes, torch.randint(4, (2, 5), generator=generator), wanted


def cost_by_the_paper(logits, boxes, labels, wanted) -> torch.Tensor:
    """Returns eq. 1 with the terms of eq. 4: (B, N, L, Q)."""
    probabilities = logits.softmax(-1)  # (L, B, Q, K + 1)
    of_label = torch.stack([probabilities[:, image][..., labels[image]] for image in range(2)])  # (B, L, Q, N)
    of_label = of_label.permute(0, 3, 1, 2)
    predicted = boxes.transpose(0, 1)[:, None]  # (B, 1, L, Q, 4)
    wanted = wanted[:, :, None, None]  # (B, N, 1, 1, 4)
    distance = (predicted - wanted).abs().sum(-1)
    overlap = generalized_box_iou(box_cxcywh_to_xyxy(predicted), box_cxcywh_to_xyxy(wanted))
    return -WEIGHTS[0] * of_label + WEIGHTS[1] * distance - WEIGHTS[2] * overlap


def test_the_matching_cost_is_the_formula():
    logits, boxes, labels, wanted = case()
    cost, scores = matching_cost(logits, boxes, labels, wanted, WEIGHTS)
    torch.testing.assert_close(cost, cost_by_the_paper(logits, boxes, labels, wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.exponentials / scores.sums, logits.softmax(-1))
    assert torch.equal(scores.found, logits.argmax(-1) != 4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_is_the_last_choice(broken):
    logits, boxes, labels, wanted = case()
    boxes[1, 0, 3, 0] = broken
    cost, _ = matching_cost(logits, boxes, labels, wanted, WEIGHTS)
    assert cost.isfinite().all() and (cost[0, :, 1, 3] == UNMATCHABLE).all()


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_the_cross_entropy_is_torchs(scale):
    logits = (case()[0] * scale).requires_grad_()
    classes = torch.randint(5, logits.shape[:3], generator=torch.Generator().manual_seed(1))
    found = ClassScores.of(logits).cross_entropy(logits, classes)
    expected = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(classes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(0, 1, expected.numel()).view_as(expected)
    gradients = [torch.autograd.grad((value * weights).sum(), logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
