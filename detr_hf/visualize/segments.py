"""Segments of a whole image: translucent colours that boxes of their classes have too, lines between them, and names.

A name stands where its segment has most room around it. Where the text is larger than the segment it stands beside, as
the label of a box does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .boxes import Label, font_px, label_room, line_width
from .colors import class_color
from .grids import fit_image
from .lettering import Font, fitting_line, font_file
from .masks import placed_mask
from .placing import Span, Taken, refuse_names, segment_place

OPACITY = 140  # of 255
LINE_COLOR = (255, 255, 255)


def draw_segments(
    image: Image.Image,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    *,
    font: Font | None = None,
    shown_names: str = "clear",
    side: int | None = None,
) -> Image.Image:
    """Returns a copy of `image` in RGB with its segments and their names drawn on it.

    Args:
        image: of any mode.
        ids: (H, W), as large as the image. Where an id is no segment's, nothing is drawn.
        segments: `id`, `label_id`, which chooses the colour, and `name` of each.
        font, shown_names, side: as in `draw_boxes`; larger segments' names come first.

    Raises:
        ValueError: the ids are of another size than the image.
    """
    refuse_names(shown_names)
    if ids.shape != image.size[::-1]:
        raise ValueError(f"The segments have (height, width) {ids.shape}, the image has {image.size[::-1]}.")
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    if side is not None:
        drawn = fit_image(drawn, side)
        ids = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(drawn.size, Image.Resampling.NEAREST))
    # By area, the largest first, whose names have room; the smaller ones' give way. 0 is what no segment has.
    segments = sorted(segments, key=lambda segment: -np.count_nonzero(ids == segment["id"]))
    numbers = np.zeros(ids.shape, dtype=np.int32)
    for number, segment in enumerate(segments, start=1):
        numbers[ids == segment["id"]] = number
    class_colors = [class_color(segment["label_id"]) for segment in segments]
    colors = np.array([(0, 0, 0), *class_colors], dtype=np.uint8)
    drawn.paste(Image.fromarray(colors[numbers]), (0, 0), Image.fromarray((numbers > 0) * np.uint8(OPACITY)))
    drawn.paste(LINE_COLOR, (0, 0), Image.fromarray(_borders(numbers, min(line_width(drawn.size), 2))))
    draw, taken = ImageDraw.Draw(drawn), Taken(drawn.size)
    px, file = font_px(drawn.size), font_file(font)
    for number, (segment, color) in enumerate(zip(segments, class_colors, strict=True), start=1):
        x0, y0, pixels = placed_mask(numbers == number, drawn.size)
        if not pixels.size or shown_names == "none":
            continue
        span = Span(x0, y0, x0 + pixels.shape[1], y0 + pixels.shape[0])
        label = Label.of(fitting_line(segment["name"], label_room(drawn.size), px, segment["label_id"], file), px)
        place = segment_place(pixels, (label.width, label.height), span, taken, drawn.size)
        if shown_names == "all" or not taken.overlap(place):
            taken.add(place)
            label.write(draw, (place.x0, place.y0), color)
    return drawn


def _borders(ids: np.ndarray, line_px: int) -> np.ndarray:
    """Returns (H, W) uint8: 255 on the pixels whose neighbour to the right or below is of another segment, else 0."""
    borders = np.zeros(ids.shape, dtype=np.uint8)
    across, down = (ids[:, 1:] != ids[:, :-1]) * np.uint8(255), (ids[1:] != ids[:-1]) * np.uint8(255)
    np.maximum(borders[:, :-1], across, out=borders[:, :-1])
    np.maximum(borders[:-1], down, out=borders[:-1])
    if line_px > 1:
        np.maximum(borders[:, 1:], across, out=borders[:, 1:])
        np.maximum(borders[1:], down, out=borders[1:])
    return borders
