"""The one grid: every tile whole in its cell, captions above, and nothing outside."""

import numpy as np
import pytest
from PIL import Image

from detr_hf.visualize.grids import CAPTION_PX, fit_image, tile_grid

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255)]


def tiles(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=False)]


def extent(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((np.asarray(grid) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_every_tile_is_whole_in_the_corner_of_its_cell():
    sizes = [(30, 20), (10, 20), (30, 5), (30, 20), (1, 1)]
    grid = tile_grid(tiles(*sizes), (30, 20), columns=2, gap=4)
    assert grid.size == (2 * 30 + 4, 3 * 20 + 2 * 4)
    corners = [(0, 0), (34, 0), (0, 24), (34, 24), (0, 48)]
    for colour, (x, y), (width, height) in zip(COLOURS, corners, sizes, strict=True):
        assert extent(grid, colour) == (x, y, x + width, y + height)
    assert {colour for _, colour in grid.getcolors()} == {*COLOURS, (255, 255, 255)}


def test_captions_are_written_above_and_on_no_tile():
    plain = tile_grid(tiles((60, 20), (60, 20)), (60, 20), columns=1)
    grid = tile_grid(tiles((60, 20), (60, 20)), (60, 20), columns=1, captions=["gjpqy", ""])
    assert grid.height == plain.height + 2 * CAPTION_PX
    pixels = np.asarray(grid)
    first, second = (pixels[top : top + CAPTION_PX] for top in (0, 20 + CAPTION_PX))
    assert (first < 128).any() and (second == 255).all()
    for index, top in enumerate((CAPTION_PX, 20 + 2 * CAPTION_PX)):
        assert (pixels[top : top + 20] == COLOURS[index]).all()


def test_fewer_tiles_than_columns_make_a_narrow_grid():
    assert tile_grid(tiles((8, 8)), (10, 10), columns=5, gap=3).size == (10, 10)


def test_nothing_and_uneven_captions_are_refused():
    with pytest.raises(ValueError, match="no tiles"):
        tile_grid([], (10, 10), columns=2)
    with pytest.raises(ValueError, match="1 captions for 2 tiles"):
        tile_grid(tiles((8, 8), (8, 8)), (10, 10), columns=2, captions=["one"])


@pytest.mark.parametrize(
    ("size", "fitted"), [((200, 100), (50, 25)), ((100, 200), (25, 50)), ((5, 5), (50, 50)), ((1000, 1), (50, 1))]
)
def test_an_image_fits_into_a_square_in_its_proportions(size: tuple[int, int], fitted: tuple[int, int]):
    assert fit_image(Image.new("RGB", size), 50).size == fitted


def test_the_package_is_a_face():
    from detr_hf import visualize

    names = {"Comparison", "DrawnObjects", "comparison_grid", "draw_boxes", "draw_segments", "tile_grid"}
    names |= {"Attention", "attention", "QuerySlots", "query_slots", "Block", "Row", "architecture_svg"}
    names |= {"objects_svg", "segments_svg"}
    assert set(visualize.__all__) == names
    assert all(getattr(visualize, name).__name__ == name for name in names)
