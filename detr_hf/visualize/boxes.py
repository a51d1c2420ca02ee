"""Boxes with names and scores on an image, drawn with Pillow alone.

Sizes follow the image and the boxes: lines and letters that suit 4000 pixels would hide a thumbnail. A class has the
same colour and line in every image. A label stays inside the image, is moved off the labels drawn before it where
there is room and left out where there is none, and is written in black or white, whichever reads better on its ground.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .colors import Color, class_color, class_dashes, rim_color, text_color
from .grids import fit_image
from .lettering import Font, Line, fitting_line, font_file
from .masks import Mask, paint_mask, placed_mask, resized_mask
from .placing import Span, Taken, best_first, label_place, refuse_names, span_in

SMALLEST_FONT_PX = 9
# A label is cut where it is wider than this part of the image, and than so many letters' heights.
MOST_WIDTH, MOST_HEIGHTS = 0.4, 14


def draw_boxes(
    image: Image.Image,
    boxes_xyxy_abs: np.ndarray,
    names: Sequence[str],
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    scores: Sequence[float] | np.ndarray | None = None,
    masks: Sequence[Mask | None] | None = None,
    font: Font | None = None,
    shown_names: str = "clear",
    side: int | None = None,
) -> Image.Image:
    """Returns a copy of `image` in RGB with a box and a label for each object, and its mask under them.

    Args:
        image: of any mode.
        boxes_xyxy_abs: (N, 4), in pixels of `image`; cut at its edges, and left out where nothing of it is inside.
        names: N texts in any script, see `lettering.py`.
        labels: N class numbers that choose the colours; by default each different name gets the next colour.
        scores: N numbers in [0, 1], written after the name. The best is drawn last, on top.
        masks: N masks, each (H, W) bool of the image's size, or the x and y of its left upper pixel in it and its
            pixels (h, w) bool; None for an object without one.
        font: for the names, a file or an `ImageFont` loaded from one; by default one that has their letters is sought.
        shown_names: "clear" leaves out those that would cover a better object's (a larger one's, without scores) or
            hide a small object; "all" and "none".
        side: before it is drawn on, the image is made as large as a square of so many pixels allows.

    Raises:
        ValueError: when the lengths differ, a coordinate is not finite, or a mask has another size than the image.
        OSError: `font` is not the file of a font.
    """
    refuse_names(shown_names)
    boxes = np.asarray(boxes_xyxy_abs, dtype=np.float64).reshape(-1, 4)
    if labels is None:
        order = {name: position for position, name in enumerate(dict.fromkeys(names))}
        labels = [order[name] for name in names]
    lengths = {len(each) for each in (boxes, names, labels, scores, masks) if each is not None}
    if len(lengths) > 1:
        raise ValueError(
            f"boxes, names, labels, scores and masks must be of one length, got lengths {sorted(lengths)}."
        )
    if not np.isfinite(boxes).all():
        raise ValueError("A box has a coordinate that is not a finite number, so it cannot be drawn.")
    crops = [placed_mask(mask, image.size) for mask in masks or ()]
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    if side is not None:
        drawn = fit_image(drawn, side)
        boxes = boxes * ([drawn.width / image.width, drawn.height / image.height] * 2)
        crops = [resized_mask(crop, image.size, drawn.size) for crop in crops]
    best = best_first(boxes.tolist(), None if scores is None else [float(score) for score in scores])
    for i in reversed(best) if crops else ():
        x0, y0, pixels = crops[i]
        paint_mask(drawn, (x0, y0), pixels, class_color(int(labels[i])), min(line_width(drawn.size), 2))
    draw = ImageDraw.Draw(drawn)
    shown = [(i, span) for i in best if (span := span_in(boxes[i], drawn.size)) is not None]
    for i, span in reversed(shown):
        _draw_outline(draw, span, int(labels[i]), drawn.size)
    if shown_names == "none":
        return drawn
    # The best object's label takes its place first, so that it is the others that give way.
    taken, file, px = Taken(drawn.size), font_file(font), font_px(drawn.size)
    for _, span in shown:
        taken.add_object(span, px)
    for rank, (i, span) in enumerate(shown):
        line = _fitting_line(names[i], int(labels[i]), None if scores is None else float(scores[i]), drawn.size, file)
        label = Label.of(line, px)
        place = label_place(label.width, label.height, span, taken, drawn.size)
        if rank == 0 or shown_names == "all" or taken.is_clear(place):
            taken.add(place)
            label.write(draw, (place.x0, place.y0), class_color(int(labels[i])))
    return drawn


def line_width(size: tuple[int, int]) -> int:
    """Returns the width of a line for an image of `size` (width, height): 1 px for a thumbnail, 12 for 4000 px."""
    return max(1, round(0.003 * max(size)))


def font_px(size: tuple[int, int]) -> int:
    """Returns the height of letters for an image of `size` (width, height): 9 px for a thumbnail, 63 for 4000 px."""
    return max(round(7 + 0.014 * max(size)), SMALLEST_FONT_PX)


def label_room(size: tuple[int, int]) -> float:
    """Returns how long a text may be in an image of `size` (width, height), in pixels."""
    return min(size[0] - 4, max(MOST_WIDTH * size[0], MOST_HEIGHTS * font_px(size)))


def _draw_outline(draw: ImageDraw.ImageDraw, span: Span, label: int, size: tuple[int, int]) -> None:
    """Draws the box's line, on larger images with a rim outside, so that it shows on a ground of its colour."""
    shortest = min(span.x1 - span.x0, span.y1 - span.y0)
    width = max(1, min(line_width(size), shortest // 4))
    color = class_color(label)
    outer = (span.x0, span.y0, span.x1 - 1, span.y1 - 1)
    if width > 1:
        draw.rectangle((outer[0] - 1, outer[1] - 1, outer[2] + 1, outer[3] + 1), outline=rim_color(color), width=1)
    draw.rectangle(outer, outline=color, width=width)
    if class_dashes(label):
        _draw_gaps(draw, span, width, class_dashes(label), rim_color(color))


def _draw_gaps(draw: ImageDraw.ImageDraw, span: Span, width: int, dashes: tuple[int, ...], color: Color) -> None:
    """Draws the gaps of a dashed line in its second tone."""
    for horizontal in (True, False):
        start, end = (span.x0, span.x1) if horizontal else (span.y0, span.y1)
        at, turn = start, 0
        while at < end:
            length = dashes[turn % len(dashes)] * width
            if turn % 2:
                last = min(at + length, end) - 1
                for edge in (span.y0, span.y1 - width) if horizontal else (span.x0, span.x1 - width):
                    box = (at, edge, last, edge + width - 1) if horizontal else (edge, at, edge + width - 1, last)
                    draw.rectangle(box, fill=color)
            at, turn = at + length, turn + 1


class Label(NamedTuple):
    """A line of text on a ground of `width` and `height` pixels; the text starts at `text_xy` in it."""

    line: Line
    width: int
    height: int
    text_xy: tuple[float, float]

    @classmethod
    def of(cls, line: Line, px: int) -> "Label":
        """Returns the label of a line whose letters have `px` pixels."""
        left, top, right, bottom = line.bbox()
        # The height of a tall and a low letter, whatever the text, so that neighbouring labels align.
        line_top, line_bottom = _line_height(px)
        top, bottom = min(top, line_top), max(bottom, line_bottom)
        margin = max(1, round((bottom - top) * 0.18))
        width, height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
        return cls(line, width, height, (margin - left, margin - top))

    def write(self, draw: ImageDraw.ImageDraw, corner: tuple[int, int], color: Color) -> None:
        """Draws the ground in `color` with its left upper pixel at `corner`, and the text on it."""
        x, y = corner
        draw.rectangle((x, y, x + self.width - 1, y + self.height - 1), fill=color)
        self.line.draw(draw, x + self.text_xy[0], y + self.text_xy[1], text_color(color))


@lru_cache
def _line_height(px: int) -> tuple[float, float]:
    """Returns top and bottom of a line, from its base line."""
    _, top, _, bottom = Line("Ag0", px).bbox()
    return top, bottom


def _fitting_line(name: str, label: int, score: float | None, size: tuple[int, int], file: str) -> Line:
    """Returns the fullest text that has room: name and score, else the name's beginning and score, else no score."""
    px, room = font_px(size), label_room(size)
    after = "" if score is None else f"  {score:.2f}"
    line = Line(name, px, label, file, after=after)
    if line.length <= room:
        return line
    least = Line(after, px, font=file).length + 3 * px
    return fitting_line(name, room, px, label, file, after if least <= room else "")
