"""Images laid out in a grid, with captions, drawn with Pillow alone."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .lettering import Line

CAPTION_PX = 14
LETTERS_PX = 10


def tile_grid(
    tiles: Sequence[Image.Image],
    cell_wh: tuple[int, int],
    columns: int,
    captions: Sequence[str] | None = None,
    gap: int = 0,
) -> Image.Image:
    """Returns one image of all tiles, row by row, each in the upper left corner of its cell on white.

    Args:
        tiles: images that fit into a cell.
        cell_wh: width and height of a cell in pixels.
        columns: cells in a row; fewer where there are fewer tiles.
        captions: a text for each tile, in a line of `CAPTION_PX` above its cell. One that is wider than its cell goes
            on over the next.
        gap: white pixels between cells.

    Raises:
        ValueError: there are no tiles, or not as many captions as tiles.
    """
    if not tiles:
        raise ValueError("There are no tiles to lay out in a grid.")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"There are {len(captions)} captions for {len(tiles)} tiles: expected one each.")
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    caption_px = 0 if captions is None else CAPTION_PX
    step_x, step_y = cell_wh[0] + gap, cell_wh[1] + caption_px + gap
    grid = Image.new("RGB", (columns * step_x - gap, lines * step_y - gap), "white")
    draw = ImageDraw.Draw(grid)
    for index, (tile, caption) in enumerate(zip(tiles, captions or [""] * len(tiles), strict=True)):
        x, y = index % columns * step_x, index // columns * step_y
        grid.paste(tile, (x, y + caption_px))
        if caption:
            line = Line(caption, LETTERS_PX)
            line.draw(draw, x + 2, y + 1 + LETTERS_PX, "black")
    return grid


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Returns the image in its proportions, as large as a square of `side` pixels allows."""
    scale = side / max(image.size)
    return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
