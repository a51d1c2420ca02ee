"""Ground truth and detections side by side, drawn with Pillow alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .boxes import draw_boxes
from .grids import fit_image, tile_grid

GAP_PX = 6


class DrawnObjects(NamedTuple):
    """Objects of one image: `boxes_xyxy_abs (N, 4)` in its pixels, `labels (N,)`, and `scores (N,)` if detected."""

    boxes_xyxy_abs: np.ndarray
    labels: Sequence[int]
    scores: Sequence[float] | None = None


class Comparison(NamedTuple):
    """An image with what is there and what was found; `caption` stands above."""

    image: Image.Image
    truth: DrawnObjects
    found: DrawnObjects
    caption: str = ""


def comparison_grid(
    comparisons: Sequence[Comparison],
    id2label: Mapping[int, str],
    tile: int = 320,
    columns: int = 2,
    font: str | Path | None = None,
) -> Image.Image:
    """Returns one image of all comparisons, each with the ground truth on its left and the detections on its right.

    Args:
        comparisons: what to draw, row by row.
        id2label: class names; the colour of a class is the same on both sides.
        tile: the most pixels that one side of a comparison is wide and high.
        columns: comparisons in a row.
        font: the file of the font for the names; by default one that has their letters is looked for.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not comparisons:
        raise ValueError("There are no pictures to compare.")
    drawn, captions = [], []
    for comparison in comparisons:
        for objects in (comparison.truth, comparison.found):
            drawn.append(_drawn(comparison.image, objects, id2label, tile, font))
        captions += [comparison.caption, ""]  # one above both
    cell_wh = (max(image.width for image in drawn) + GAP_PX, tile + GAP_PX)
    return tile_grid(drawn, cell_wh, 2 * columns, captions)


def _drawn(
    image: Image.Image, objects: DrawnObjects, id2label: Mapping[int, str], tile: int, font: str | Path | None
) -> Image.Image:
    """Returns the image in the size of a tile, resized before it is drawn on, so that lines and letters are sharp."""
    small = fit_image(image, tile)
    ratios = np.array([small.width / image.width, small.height / image.height] * 2)
    boxes = np.asarray(objects.boxes_xyxy_abs, dtype=np.float64).reshape(-1, 4) * ratios
    labels = [int(label) for label in objects.labels]
    names = [id2label.get(label, f"? {label}") for label in labels]
    return draw_boxes(small, boxes, names, labels=labels, scores=objects.scores, font=font)
