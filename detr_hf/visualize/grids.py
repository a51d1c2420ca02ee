"""Pictures laid out in a grid with captions, drawn with Pillow alone: truth beside prediction, examples, maps."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from .lettering import BUNDLED, Font, Line, fitting_line, font_file

if TYPE_CHECKING:
    from ..inference.results import Detections

SIDE_PX, GAP_PX = 320, 6
CAPTION_PX = 14
LETTERS_PX = 10


def grid(
    cells: Sequence["Image.Image | Detections | None"],
    columns: int | None = None,
    *,
    heads: Sequence[str] = (),
    captions: Sequence[str] | None = None,
    side: int = SIDE_PX,
    gap: int = GAP_PX,
    font: Font | None = None,
) -> Image.Image:
    """Returns one image of all cells, row by row, each in the upper left corner of its cell on white.

    >>> grid([draw_boxes(photo, boxes, names, side=320), detector(photo)], heads=("truth", "found"))

    Args:
        cells: images, made smaller where they are larger than `side`; `Detections`, drawn in that size, so that lines
            and letters are sharp; None leaves a cell empty.
        columns: cells in a row, fewer where there are fewer cells; by default as many as there are `heads`, else about
            as many as rows.
        heads: a text above each column.
        captions: a text above each cell. It is cut where the next cell in the row has one, and goes on where not.
        side: the most pixels that a picture is wide and high.
        gap: white pixels between cells.
        font: for all texts, as in `draw_boxes`.

    Raises:
        ValueError: there are no cells, not as many captions as cells, or not as many heads as columns.
    """
    if not cells:
        raise ValueError("There are no pictures to lay out in a grid.")
    if captions is not None and len(captions) != len(cells):
        raise ValueError(f"There are {len(captions)} captions for {len(cells)} cells: expected one each.")
    if columns is not None and (columns < 1 or (heads and len(heads) != columns)):
        raise ValueError(f"There are {len(heads)} heads for {columns} columns: expected one each, and a column.")
    columns = len(heads) or min(columns or ceil(sqrt(len(cells))), len(cells))
    images = [_shown(cell, side, font) for cell in cells]
    file, texts = font_file(font), list(captions or [""] * len(cells))
    # Where the next cell of the row has a caption too, or there is none, a caption has its own cell alone.
    alone = [not (place + 1) % columns or any(texts[place + 1 : place + 2]) for place in range(len(texts))]
    needed = [Line(text, LETTERS_PX, font=file).length + 4 for text, own in zip(texts, alone, strict=True) if own]
    width = max(max(image.width for image in images), min(ceil(max(needed, default=0)), side))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    caption_px = CAPTION_PX if any(texts) else 0
    heights = [caption_px + max(image.height for image in row) for row in rows]
    top = CAPTION_PX if any(heads) else 0
    sheet = Image.new("RGB", (columns * (width + gap) - gap, top + sum(heights) + gap * (len(rows) - 1)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        _write(draw, head, (column * (width + gap), 0), width, file)
    y = top
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, image in enumerate(row):
            place = number * columns + column
            x = column * (width + gap)
            sheet.paste(image, (x, y + caption_px))
            following = texts[place + 1 : place + columns - column]
            span = next((more for more, text in enumerate(following, start=1) if text), columns - column)
            _write(draw, texts[place], (x, y), span * (width + gap) - gap, file)
        y += height + gap
    return sheet


def _shown(cell: "Image.Image | Detections | None", side: int, font: Font | None) -> Image.Image:
    if cell is None:
        return Image.new("RGB", (1, 1), "white")
    if not isinstance(cell, Image.Image):
        return cell.draw(font, side=side)
    return fit_image(cell, side) if max(cell.size) > side else cell


def _write(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], room: int, file: str = BUNDLED) -> None:
    if text:
        line = fitting_line(text, room - 4, LETTERS_PX, font=file)
        line.draw(draw, corner[0] + 2, corner[1] + 1 + LETTERS_PX, "black")


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Returns the image in its proportions, as large as a square of `side` pixels allows."""
    scale = side / max(image.size)
    return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
