"""The one grid: every picture whole in its cell, texts above, and nothing outside."""

import numpy as np
import pytest
from PIL import Image

from detr_hf.inference.results import Detections
from detr_hf.visualize.boxes import draw_boxes
from detr_hf.visualize.colors import class_color
from detr_hf.visualize.grids import CAPTION_PX, fit_image, grid

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255)]


def tiles(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=False)]


def extent(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_every_picture_is_whole_in_the_corner_of_its_cell():
    sizes = [(30, 20), (10, 20), (30, 5), (30, 12), (1, 1)]
    sheet = grid(tiles(*sizes), 2, gap=4)
    assert sheet.size == (2 * 30 + 4, 20 + 12 + 1 + 2 * 4)
    corners = [(0, 0), (34, 0), (0, 24), (34, 24), (0, 40)]
    for colour, (x, y), (width, height) in zip(COLOURS, corners, sizes, strict=True):
        assert extent(sheet, colour) == (x, y, x + width, y + height)
    assert {colour for _, colour in sheet.getcolors()} == {*COLOURS, (255, 255, 255)}


def test_truth_is_beside_what_was_found_in_one_colour_and_in_the_size_of_the_cell():
    image = Image.new("RGB", (640, 640), (90, 90, 90))
    found = Detections([[80, 240, 320, 480]], [0.9], [1], ["dog"], size_hw=(640, 640), source=image)
    truth = draw_boxes(image, found.boxes, found.names, labels=found.labels, side=160)
    sheet = grid([truth, found, None, found], heads=("truth", "found"), side=160)
    assert sheet.size == (2 * 160 + 6, CAPTION_PX + 2 * 160 + 6)
    for place, there in (((20, 100), True), ((186, 100), True), ((20, 266), False), ((186, 266), True)):
        colour = class_color(1) if there else (255, 255, 255)
        assert sheet.getpixel((place[0], place[1] + CAPTION_PX)) == colour
    assert (np.asarray(sheet)[:CAPTION_PX] < 128).any(axis=(0, 2)).nonzero()[0].max() > 166


def test_captions_are_written_above_on_no_picture_and_not_over_each_other():
    def dark(sheet: Image.Image, row: int) -> np.ndarray:
        return np.flatnonzero((np.asarray(sheet)[row : row + CAPTION_PX] < 128).all(axis=2).any(axis=0))

    plain = grid(tiles((60, 20), (60, 20)), 1)
    sheet = grid(tiles((60, 20), (60, 20)), 1, captions=["gjpqy", ""])
    assert sheet.height == plain.height + 2 * CAPTION_PX
    assert len(dark(sheet, 0)) and not len(dark(sheet, CAPTION_PX + 26))
    pixels = np.asarray(sheet)
    for index, top in enumerate((CAPTION_PX, 26 + 2 * CAPTION_PX)):
        assert (pixels[top : top + 20] == COLOURS[index]).all()
    long = "a caption that is longer than a cell"
    goes_on = grid(tiles((60, 20), (60, 20), (60, 20)), 3, captions=[long, "", ""], side=60)
    cut = grid(tiles((60, 20), (60, 20), (60, 20)), 3, captions=[long, "b", ""], side=60)
    assert goes_on.size == cut.size and dark(goes_on, 0).max() > 120
    assert not ((dark(cut, 0) >= 60) & (dark(cut, 0) < 66)).any()
    assert grid(tiles((60, 20), (60, 20)), 2, captions=[long, "b"]).width > 2 * 150  # the cells become wider
    assert grid(tiles((60, 20), (60, 20)), 2, captions=["b", long]).width > 2 * 150  # also for the last in a row
    ends = grid(tiles((60, 20), (60, 20), (60, 20)), 3, captions=[long * 5, "", "b"], side=60)
    assert dark(ends, 0)[dark(ends, 0) < 134].max() < 126 and dark(ends, 0).max() > 134


def test_fewer_pictures_than_columns_make_a_narrow_grid_and_most_grids_are_square():
    assert grid(tiles((8, 8)), 5, gap=3).size == (8, 8)
    assert grid(tiles(*[(8, 8)] * 5), gap=0).size == (24, 16)
    assert grid(tiles((80, 40)), side=20).size == (20, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": []}, "no pictures"),
        ({"captions": ["one"]}, "1 captions for 2 cells"),
        ({"columns": 2, "heads": ["a"]}, "1 heads for 2 columns"),
        ({"columns": 0}, "0 columns"),
    ],
)
def test_nothing_and_uneven_texts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        grid(**{"cells": tiles((8, 8), (8, 8))} | options)


@pytest.mark.parametrize(
    ("size", "fitted"), [((200, 100), (50, 25)), ((100, 200), (25, 50)), ((5, 5), (50, 50)), ((1000, 1), (50, 1))]
)
def test_an_image_fits_into_a_square_in_its_proportions(size: tuple[int, int], fitted: tuple[int, int]):
    assert fit_image(Image.new("RGB", size), 50).size == fitted


def test_the_package_is_a_face():
    from detr_hf import visualize

    names = {"grid", "draw_boxes", "draw_segments", "draw_training", "objects_svg", "segments_svg"}
    names |= {"Attention", "attention", "QuerySlots", "query_slots", "Block", "Row", "architecture_svg"}
    assert set(visualize.__all__) == names
    assert all(getattr(visualize, name).__name__ == name for name in names)
