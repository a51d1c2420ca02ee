"""Where each object query finds its boxes, over many pictures: the DETR paper's figure 7."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .grids import grid
from .saving import save_drawing

if TYPE_CHECKING:
    from ..inference.detector import Detector

SMALL = 1 / 16  # of the picture's area
SMALL_COLOR, WIDE_COLOR, HIGH_COLOR = (20, 150, 70), (225, 40, 40), (40, 90, 230)  # as in the paper
FRAME_COLOR = (190, 190, 190)
SUPERSAMPLED = 3


def query_slots(detector: "Detector", pictures: Iterable[Any], batch_size: int = 8) -> "QuerySlots":
    """Returns every box that each object query gives for the pictures, whatever its score.

    Learned queries keep to places and sizes of their own. Box queries are chosen anew from each picture, the most
    promising first: their numbers are ranks, and say nothing of places. Masks
    are not made.

    Raises:
        ValueError: no picture, one that cannot be read, or a detector that does not tell which query found what.
    """
    pictures = [pictures] if isinstance(pictures, str | os.PathLike | bytes) else pictures
    of_pictures = []
    for found in detector.stream(pictures, 0.0, batch_size, masks_from=1.0):
        if found.queries is None:
            raise ValueError(f"{detector!r} does not tell which query found an object.")
        height, width = found.size_hw
        of_pictures.append((found.queries, found.boxes / np.array([width, height] * 2, dtype=np.float32)))
    if not of_pictures:
        raise ValueError("There are no pictures to ask the queries about.")
    count = 1 + max(int(queries.max(initial=-1)) for queries, _ in of_pictures)
    boxes = np.full((count, len(of_pictures), 4), np.nan, dtype=np.float32)
    for place, (queries, boxes_xyxy_norm) in enumerate(of_pictures):
        boxes[queries, place] = boxes_xyxy_norm
    return QuerySlots(boxes)


@dataclass(eq=False, repr=False)
class QuerySlots:
    """The boxes of every query: `boxes_xyxy_norm (Q, P, 4)` of P pictures, in parts of each and cut at its edges.

    A query that a picture had no use for has NaN there.
    """

    boxes_xyxy_norm: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """The centres (Q, P, 2) of the boxes as x, y."""
        return (self.boxes_xyxy_norm[..., :2] + self.boxes_xyxy_norm[..., 2:]) / 2

    def draw(self, *, tile: int = 120, columns: int = 10) -> Image.Image:
        """Returns a square for each query with a point at the centre of each of its boxes.

        Green are boxes smaller than a sixteenth of the picture, red larger ones that are wide, blue those that are
        high.
        """
        captions = [f"query {query}" for query in range(len(self.boxes_xyxy_norm))]
        tiles = [_square(boxes, tile) for boxes in self.boxes_xyxy_norm]
        return grid(tiles, columns, captions=captions, side=tile)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Returns `path` after writing the drawing there, whole; the ending decides the format."""
        return save_drawing(self.draw(**options), path)

    def __repr__(self) -> str:
        queries, pictures = self.boxes_xyxy_norm.shape[:2]
        return f"QuerySlots({queries} queries, {pictures} pictures)"


def _square(boxes_xyxy_norm: np.ndarray, side: int) -> Image.Image:
    """Returns the square of one query, drawn larger and shrunk, so that points are round."""
    size = side * SUPERSAMPLED
    square = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(square)
    radius = max(1.0, size / 70)
    for x0, y0, x1, y1 in boxes_xyxy_norm[np.isfinite(boxes_xyxy_norm).all(axis=-1)]:
        wide, high = x1 - x0, y1 - y0
        color = SMALL_COLOR if wide * high < SMALL else WIDE_COLOR if wide >= high else HIGH_COLOR
        x, y = (x0 + x1) / 2 * size, (y0 + y1) / 2 * size
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    draw.rectangle((0, 0, size - 1, size - 1), outline=FRAME_COLOR, width=SUPERSAMPLED)
    return square.resize((side, side), Image.Resampling.BOX)
