"""Box geometry: numbers worked out by hand, what holds for any boxes, and torchvision's functions beside them."""

import pytest
import torch
import torchvision

from detr_hf.model.box_ops_detr import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    logit_of_boxes,
)


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    """Returns well-formed xyxy boxes `(count, 4)` in [0, 2]."""
    first, second = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([first, first + second], dim=-1)


def test_formats():
    xyxy, cxcywh = torch.tensor([[10.0, 20.0, 50.0, 100.0]]), torch.tensor([[30.0, 60.0, 40.0, 80.0]])
    assert torch.equal(box_cxcywh_to_xyxy(cxcywh), xyxy) and torch.equal(box_xyxy_to_cxcywh(xyxy), cxcywh)
    boxes = some_boxes(6).reshape(2, 3, 4)
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(
        box_xyxy_to_cxcywh(boxes[0]), torchvision.ops.box_convert(boxes[0], "xyxy", "cxcywh"), atol=1e-12, rtol=0
    )


def test_logits_stay_away_from_the_edges():
    found = logit_of_boxes(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sigmoid(), torch.tensor([1e-4, 0.25, 0.5, 1 - 1e-4]))
    torch.testing.assert_close(logit_of_boxes(torch.ones(1), edge=0.2).sigmoid(), torch.tensor([0.8]))


def test_pairs_are_torchvision_s():
    boxes1, boxes2 = some_boxes(7), some_boxes(5, seed=1)
    iou, union = box_iou(boxes1[:, None], boxes2)
    assert 0 < (iou > 0).sum() < iou.numel(), "some meet, some do not"
    torch.testing.assert_close(iou, torchvision.ops.box_iou(boxes1, boxes2))
    area1, area2 = torchvision.ops.box_area(boxes1), torchvision.ops.box_area(boxes2)
    torch.testing.assert_close(union * (1 + iou), area1[:, None] + area2)
    giou = generalized_box_iou(boxes1[:, None], boxes2)
    torch.testing.assert_close(giou, torchvision.ops.generalized_box_iou(boxes1, boxes2))
    torch.testing.assert_close(generalized_box_iou(boxes1[:5], boxes2), giou[:5].diagonal())


@pytest.mark.parametrize("apart", [(3.0, 0.0), (0.0, 3.0), (-3.0, 0.0), (0.0, -3.0), (3.0, 3.0)])
def test_boxes_that_do_not_meet(apart):
    """Unit boxes at a distance: no intersection, a union of 2, and a hull that grows with the gap."""
    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    other = box + torch.tensor([*apart, *apart])
    iou, union = box_iou(box, other)
    assert (iou.item(), union.item()) == (0.0, 2.0)
    hull = (1 + abs(apart[0])) * (1 + abs(apart[1]))
    assert generalized_box_iou(box, other).item() == pytest.approx(2 / hull - 1)


def test_empty_boxes_are_numbers_and_nan_stays_nan():
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert box_iou(point, point)[0].item() == 0 and generalized_box_iou(point, point).isfinite()
    assert generalized_box_iou(point, torch.full((4,), torch.nan)).isnan()
