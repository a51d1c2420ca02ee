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


def logit_of_boxes(boxes_norm: Tensor, edge: float = 1e-4) -> Tensor:
    """Returns the logits of numbers in [0, 1], those nearer to 0 or 1 than `edge` taken as that far; float32."""
    return torch.logit(boxes_norm.float().clamp(edge, 1 - edge))


def box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Returns intersection over union and union area of boxes that broadcast against each other.

    Args:
        boxes1_xyxy, boxes2_xyxy: shapes (..., 4), broadcastable; any unit, the same for both.

    Returns:
        `iou` and `union`, of the broadcast shape without the last dimension. `iou` of two empty boxes is 0.
    """
    intersection, union, _ = _overlap(boxes1_xyxy, boxes2_xyxy)
    return intersection / union, union


def generalized_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Returns the generalised IoU in [-1, 1] (Rezatofighi et al., 2019) of boxes that broadcast against each other.

    Args:
        boxes1_xyxy, boxes2_xyxy: shapes (..., 4), broadcastable; any unit, the same for both.
    """
    intersection, union, hull = _overlap(boxes1_xyxy, boxes2_xyxy)
    return intersection / union + union / hull - 1  # IoU - (hull - union) / hull


def _overlap(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the areas of intersection, union and hull; the last two are not 0, so that they divide."""
    left1, top1, right1, bottom1 = boxes1_xyxy.unbind(-1)  # planar: several times faster than (..., 4) on a CPU
    left2, top2, right2, bottom2 = boxes2_xyxy.unbind(-1)
    width1, height1, width2, height2 = right1 - left1, bottom1 - top1, right2 - left2, bottom2 - top2
    shared_width = torch.minimum(right1, right2) - torch.maximum(left1, left2)  # negative where there is a gap
    shared_height = torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)
    intersection = shared_width.clamp(min=0) * shared_height.clamp(min=0)
    union = width1 * height1 + width2 * height2 - intersection
    hull = (width1 + width2 - shared_width) * (height1 + height2 - shared_height)
    tiny = torch.finfo(hull.dtype).tiny
    return intersection, union.clamp(min=tiny), hull.clamp(min=tiny)
