"""What lies at the borders of a box, for the box head alone: whether a box fits is seen there, between the cells.

A decoder's state says what a query found and about where; the cells that it was mixed from are coarser than the error
of a good box. So the finest map is read at a grid of points in and about every box, by bilinear interpolation
(RoIAlign, He et al., 2017), and what they show moves the box once more. Classes do not read it: states that know their
borders well are alike where two queries found one object, and learn later which of them is the copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_detr import DETRConfig
from .queries_detr import Memory

CHANNELS = 16  # of the map that is read
GRID, REACH = 5, 1.25  # points a side, and how far from the centre the last are, in half sides of the box


class BoxBorders(nn.Module):
    """Says how far boxes should move, from what a grid of points about each shows and from the query's state."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.points = nn.Linear(CHANNELS * GRID**2, config.hidden_dim)
        self.state = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.move = nn.Linear(config.hidden_dim, 4)

    def forward(self, states: Tensor, boxes_cxcywh_norm: Tensor, memory: Memory) -> Tensor:
        """Returns moves (B, Q, 4) in logits, of queries with `states` (B, Q, D) and boxes (B, Q, 4)."""
        points = points_of_boxes(boxes_cxcywh_norm, memory).to(states.dtype)
        return self.move(F.relu(self.points(points) + self.state(states)))


def points_of_boxes(boxes_cxcywh_norm: Tensor, memory: Memory) -> Tensor:
    """Returns what the finest map holds (B, Q, GRID^2 E) at a grid of points about each box (B, Q, 4)."""
    steps = torch.linspace(-REACH, REACH, GRID, device=boxes_cxcywh_norm.device) / 2
    grid = torch.stack([steps.repeat(GRID), steps.repeat_interleave(GRID)], dim=-1)  # x, y
    points = boxes_cxcywh_norm[..., None, :2] + grid * boxes_cxcywh_norm[..., None, 2:]  # (B, Q, GRID^2, 2)
    cell = memory.cells[:, :1, None]
    points = points.clamp(min=cell / 2).clamp(max=1 - cell / 2)  # what lies beyond the picture is not read
    found = interpolated(memory.finest, (points / cell - 0.5).flatten(1, 2))
    return found.unflatten(1, points.shape[1:3]).flatten(2)


def interpolated(features: Tensor, places: Tensor) -> Tensor:
    """Returns features (B, N, E) of maps (B, h, w, E) at places (B, N, 2), x and y in cells, interpolated bilinearly.

    Written out: torch's operator for it has no deterministic gradient on a GPU, and not every runtime has one.
    """
    height, width = features.shape[1:3]
    first = torch.arange(features.shape[0], device=features.device)[:, None] * (height * width)  # of each map's rows
    rows = features.flatten(0, 2)
    low = places.floor()
    x_part, y_part = (places - low).unbind(-1)
    x_low, y_low = low.long().unbind(-1)
    corners = []
    for right, x_weight in ((0, 1 - x_part), (1, x_part)):
        for down, y_weight in ((0, 1 - y_part), (1, y_part)):
            cells = (y_low + down).clamp(0, height - 1) * width + (x_low + right).clamp(0, width - 1)
            corner = rows.index_select(0, (first + cells).flatten()).unflatten(0, cells.shape)
            corners.append((x_weight * y_weight)[..., None] * corner)
    return corners[0] + corners[1] + corners[2] + corners[3]
