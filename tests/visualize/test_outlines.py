"""Outlines of masks: the mask to the pixel, and simplified never far from it."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detr_hf.visualize.outlines import outlines, path_data, simplified

RNG = np.random.default_rng(0)
RING = np.zeros((40, 50), dtype=bool)
RING[5:35, 5:45], RING[15:25, 15:30] = True, False
MASKS = {
    "nothing": np.zeros((4, 5), dtype=bool),
    "no size": np.zeros((0, 0), dtype=bool),
    "a pixel": np.ones((1, 1), dtype=bool),
    "everything": np.ones((7, 9), dtype=bool),
    "with a hole": RING,
    "touching by corners": np.indices((6, 7)).sum(axis=0) % 2 == 0,
    "noise": RNG.random((60, 70)) < 0.5,
    "a disc": ((np.indices((80, 90)) - 40) ** 2).sum(axis=0) < 30**2,
}


def filled(lines: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres have an odd number of edges on their left."""
    height, width = size_hw
    crossings = np.zeros((height, width + 1), dtype=int)
    for line in lines:
        for (x, y0), (other, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
            if y0 != y1:
                assert x == other, "edges of pixels run along rows and columns"
                crossings[min(y0, y1) : max(y0, y1), x] += 1
    return crossings.cumsum(axis=1)[:, :width] % 2 == 1


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_outlines_are_the_mask_to_the_pixel(mask):
    assert np.array_equal(filled(outlines(mask), mask.shape), mask)


def test_a_simplified_line_keeps_corners_and_stays_near():
    for mask, most in ((RING, 4), (MASKS["everything"], 4), (MASKS["a disc"], 60)):
        for line in outlines(mask):
            points = simplified(line)
            assert len(points) <= most and len(points) >= 3
            assert {tuple(point) for point in points} <= {tuple(point) for point in line}
    (circle,) = outlines(MASKS["a disc"])
    drawn = Image.new("1", (90, 80))
    ImageDraw.Draw(drawn).polygon([tuple(point) for point in simplified(circle).tolist()], fill=1)
    assert len(simplified(circle)) < len(circle) / 3
    assert (np.asarray(drawn) != MASKS["a disc"]).sum() < 0.04 * MASKS["a disc"].sum()


def test_a_path_is_where_the_mask_is_and_shrinks_with_the_picture():
    assert path_data(RING, (100, 200)) == "M105 205l40 0 0 30 -40 0zM115 215l15 0 0 10 -15 0z"
    assert path_data(MASKS["nothing"]) == path_data(MASKS["no size"]) == ""
    whole, coarse = path_data(MASKS["noise"]), path_data(MASKS["noise"], step=4)
    assert len(coarse) < len(whole) / 8
    start = [int(number) for number in re.match(r"M(\d+) (\d+)", coarse).groups()]
    assert start[0] % 4 == start[1] % 4 == 0
