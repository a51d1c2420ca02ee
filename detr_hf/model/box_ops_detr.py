"""Box geometry: format conversions, IoU and generalised IoU.

Boxes are tensors whose last dimension has four entries. `cxcywh` is centre x, centre y, width, height; `xyxy` is left,
top, right, bottom. Unlike the original and transformers, nothing here compares all pairs: every function broadcasts,
so that a caller who needs pairs inserts a dimension and one who needs matched boxes does not pay for the rest.
Ill-formed boxes are never an assertion: NaN goes in, NaN comes out.
"""

import torch
from torch import Tensor


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Returns the same boxes as left, top, right, bottom; shape (..., 4)."""
    center, size = boxes_cxcywh.split(2, dim=-1)
    return torch.cat([center - 0.5 * size, center + 0.5 * size], dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Returns the same boxes as centre x, centre y, width, height; shape (..., 4)."""
    top_left, bottom_right = boxes_xyxy.split(2, dim=-1)
    return torch.cat([0.5 * (top_left + bottom_right), bottom_right - top_left], dim=-1)


def box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Returns intersection over union and union area of boxes that broadcast against each other.

    Args:
        boxes1_xyxy, boxes2_xyxy: shapes (..., 4), broadcastable; any unit, the same for both.

    Returns:
        `iou` and `union`, of the broadcast shape without the last dimension. `iou` of two empty boxes is 0.
    """
    return _iou(boxes1_xyxy.unbind(-1), boxes2_xyxy.unbind(-1))


def generalized_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Returns the generalised IoU in [-1, 1] (Rezatofighi et al., 2019) of boxes that broadcast against each other.

    Args:
        boxes1_xyxy, boxes2_xyxy: shapes (..., 4), broadcastable; any unit, the same for both.
    """
    sides1, sides2 = boxes1_xyxy.unbind(-1), boxes2_xyxy.unbind(-1)
    iou, union = _iou(sides1, sides2)
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = sides1, sides2
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    hull = hull_width * hull_height
    return iou - (hull - union) / hull.clamp(min=torch.finfo(hull.dtype).tiny)


def _iou(sides1: tuple[Tensor, ...], sides2: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    # left, top, right and bottom apart: several times faster than (..., 4) on a CPU
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = sides1, sides2
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = width * height
    area1, area2 = (right1 - left1) * (bottom1 - top1), (right2 - left2) * (bottom2 - top2)
    union = area1 + area2 - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny), union
