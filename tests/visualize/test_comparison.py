"""Side by side: each side shows its own objects, in the same colours, whatever the picture's size."""

import numpy as np
import pytest
from PIL import Image

from detr_hf.visualize.colors import class_color
from detr_hf.visualize.comparison import GAP_PX, Comparison, DrawnObjects, comparison_grid
from detr_hf.visualize.grids import CAPTION_PX

NAMES = {0: "cat", 1: "dog"}
NOTHING = DrawnObjects(np.zeros((0, 4)), [], [])


def one_box(label, scores=None, scale=1.0):
    return DrawnObjects(np.array([[20.0, 60.0, 80.0, 120.0]]) * scale, [label], scores)


def colors(picture):
    return {tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()}


def sides(grid, tile):
    left = grid.crop((0, CAPTION_PX, tile, CAPTION_PX + tile))
    return left, grid.crop((tile + GAP_PX, CAPTION_PX, 2 * tile + GAP_PX, CAPTION_PX + tile))


def test_truth_is_left_and_detections_are_right():
    image = Image.new("RGB", (160, 160), (90, 90, 90))
    comparison = Comparison(image, one_box(0), one_box(1, [0.9]), "a.png")
    left, right = sides(comparison_grid([comparison], NAMES, tile=160), 160)
    assert class_color(0) in colors(left) and class_color(1) not in colors(left)
    assert class_color(1) in colors(right) and class_color(0) not in colors(right)


def test_boxes_follow_the_picture_to_its_size_in_the_grid():
    small, large = (Image.new("RGB", (side, side), (90, 90, 90)) for side in (160, 640))
    grids = [
        np.asarray(comparison_grid([Comparison(image, one_box(0, scale=scale), NOTHING)], NAMES, tile=160))
        for image, scale in ((small, 1.0), (large, 4.0))
    ]
    assert np.array_equal(*grids)


def test_a_grid_has_all_pictures_and_leaves_the_given_ones_alone():
    images = [Image.new("RGB", size, (90, 90, 90)) for size in ((200, 100), (100, 200), (50, 50))]
    before = [image.tobytes() for image in images]
    grid = comparison_grid([Comparison(image, one_box(0), one_box(0, [0.5])) for image in images], NAMES, tile=100)
    assert grid.size == (2 * (200 + 2 * GAP_PX), 2 * (100 + CAPTION_PX + GAP_PX))
    assert [image.tobytes() for image in images] == before
    assert grid.getpixel((40, 40 + CAPTION_PX)) == (90, 90, 90) and grid.getpixel((5, 90 + CAPTION_PX)) == (
        255,
        255,
        255,
    )


def test_nothing_to_compare_is_said():
    with pytest.raises(ValueError, match="no pictures"):
        comparison_grid([], NAMES)
