"""Boxes with names and scores on an image, drawn with Pillow alone.

Sizes follow the image and the boxes: lines and letters that suit 4000 pixels would hide a thumbnail. A class has the
same colour in every image. A label stays inside the image, is moved off the labels drawn before it where there is
room, and is written in black or white, whichever reads better on its ground. The time grows with the number of boxes,
not with its square: how much of a place is taken is counted by pixels.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .lettering import BUNDLED, Line, fitting_line
from .masks import paint_mask

# Twelve colours that neighbours in a list of classes can be told apart by, on photographs; more classes get generated
# ones.
PALETTE = (
    (230, 40, 40),
    (30, 110, 230),
    (250, 190, 20),
    (20, 160, 80),
    (160, 50, 200),
    (255, 120, 20),
    (10, 190, 200),
    (235, 60, 150),
    (130, 200, 30),
    (120, 80, 40),
    (90, 90, 235),
    (0, 110, 110),
)
GOLDEN_ANGLE = 0.381966  # of a turn: steps of it never come back to a hue

LEAST_WHITE_CONTRAST = 4.0
SMALLEST_FONT_PX = 9


class Span(NamedTuple):
    """A rectangle in pixels; the right and the lower edge are outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    def overlap(self, other: "Span") -> int:
        """Returns the area in common, in pixels."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0) * max(height, 0)


class Taken:
    """The pixels of an image of `size` (width, height) that labels stand on, and how many on each."""

    def __init__(self, size: tuple[int, int]):
        self._labels_on = np.zeros((size[1], size[0]), dtype=np.uint16)

    def add(self, span: Span) -> None:
        """Takes a place."""
        self._labels_on[span.y0 : span.y1, span.x0 : span.x1] += 1

    def overlap(self, span: Span) -> int:
        """Returns the sum of the areas in common with each label, in pixels."""
        return int(self._labels_on[span.y0 : span.y1, span.x0 : span.x1].sum())


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a class, the same in every image and every process."""
    if 0 <= label < len(PALETTE):
        return PALETTE[label]
    hue = (label * GOLDEN_ANGLE) % 1.0
    lightness = (0.45, 0.6, 0.35)[label % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.85))


def text_color(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns white where its contrast ratio (WCAG 2) on `ground` is good, else black, whose ratio then is above 5."""
    white_contrast = 1.05 / (_relative_luminance(ground) + 0.05)
    return (255, 255, 255) if white_contrast >= LEAST_WHITE_CONTRAST else (0, 0, 0)


def draw_boxes(
    image: Image.Image,
    boxes_xyxy_abs: np.ndarray,
    names: Sequence[str],
    *,
    labels: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    masks: Sequence[tuple[int, int, np.ndarray]] | None = None,
    font: str | Path | None = None,
) -> Image.Image:
    """Returns a copy of `image` in RGB with a box and a label for each object, and its mask under them.

    Args:
        image: of any mode.
        boxes_xyxy_abs: (N, 4), in pixels of `image`; cut at its edges, and left out where nothing of it is inside.
        names: N texts in any script, see `lettering.py`.
        labels: N class numbers that choose the colours; by default each different name gets the next colour.
        scores: N numbers in [0, 1], written after the name. The best is drawn last, on top.
        masks: N masks, each the x and y of its left upper pixel in `image` and its pixels (h, w) bool, inside it.
        font: the file of the font for the names; by default one that has their letters is looked for.

    Raises:
        ValueError: when the lengths differ, or a coordinate is not finite.
        OSError: `font` is not the file of a font.
    """
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

    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    for i in range(len(boxes)) if scores is None else np.argsort(scores, kind="stable"):
        if masks is not None:
            x0, y0, pixels = masks[i]
            paint_mask(drawn, (x0, y0), pixels, class_color(int(labels[i])), min(line_width(drawn.size), 2))
    draw = ImageDraw.Draw(drawn)
    shown = [(i, span) for i, box in enumerate(boxes) if (span := inside(box, drawn.size)) is not None]
    if scores is not None:
        shown.sort(key=lambda item: scores[item[0]])
    for i, span in shown:
        _draw_outline(draw, span, class_color(int(labels[i])), drawn.size)
    # The best object's label takes its place first, so that it is the others that give way.
    taken = Taken(drawn.size)
    for i, span in reversed(shown):
        line = _fitting_line(names[i], int(labels[i]), None if scores is None else float(scores[i]), drawn.size, font)
        _draw_label(draw, span, line, class_color(int(labels[i])), taken, drawn.size)
    return drawn


def line_width(size: tuple[int, int]) -> int:
    """Returns the width of a line for an image of `size` (width, height): 1 px for a thumbnail, 12 for 4000 px."""
    return max(1, round(0.003 * max(size)))


def font_px(size: tuple[int, int]) -> int:
    """Returns the height of letters for an image of `size` (width, height): 9 px for a thumbnail, 63 for 4000 px."""
    return max(round(7 + 0.014 * max(size)), SMALLEST_FONT_PX)


def inside(box: np.ndarray, size: tuple[int, int]) -> Span | None:
    """Returns the pixels of a box that lie in the image; None where there are none."""
    width, height = size
    x0, y0, x1, y1 = box
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or x1 < x0 or y1 < y0:
        return None
    x0, y0 = max(round(x0), 0), max(round(y0), 0)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return Span(x0, y0, max(min(round(x1), width), x0 + 1), max(min(round(y1), height), y0 + 1))


def _draw_outline(draw: ImageDraw.ImageDraw, span: Span, color: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Draws the box's line, on larger images with a dark rim outside, so that it shows on a ground of its colour."""
    shortest = min(span.x1 - span.x0, span.y1 - span.y0)
    width = max(1, min(line_width(size), shortest // 4))
    outer = (span.x0, span.y0, span.x1 - 1, span.y1 - 1)
    if width > 1:
        rim = tuple(part // 4 for part in color)
        draw.rectangle((outer[0] - 1, outer[1] - 1, outer[2] + 1, outer[3] + 1), outline=rim, width=1)
    draw.rectangle(outer, outline=color, width=width)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    span: Span,
    line: Line,
    color: tuple[int, int, int],
    taken: Taken,
    size: tuple[int, int],
) -> None:
    """Writes one label and takes its place."""
    label = Label.of(line, font_px(size))
    ground = label_place(label.width, label.height, span, taken, size)
    taken.add(ground)
    label.write(draw, (ground.x0, ground.y0), color)


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

    def write(self, draw: ImageDraw.ImageDraw, corner: tuple[int, int], color: tuple[int, int, int]) -> None:
        """Draws the ground in `color` with its left upper pixel at `corner`, and the text on it."""
        x, y = corner
        draw.rectangle((x, y, x + self.width - 1, y + self.height - 1), fill=color)
        self.line.draw(draw, x + self.text_xy[0], y + self.text_xy[1], text_color(color))


@lru_cache
def _line_height(px: int) -> tuple[float, float]:
    """Returns top and bottom of a line, from its base line."""
    _, top, _, bottom = Line("Ag0", px).bbox()
    return top, bottom


def _fitting_line(name: str, label: int, score: float | None, size: tuple[int, int], font: str | Path | None) -> Line:
    """Returns the fullest text that is no wider than the image: name and score, else the name, else its beginning."""
    px, room, file = font_px(size), size[0] - 4, str(font or BUNDLED)
    if score is not None:
        line = Line(name, px, label, file, after=f"  {score:.2f}")
        if line.length <= room:
            return line
    return fitting_line(name, room, px, label, file)


def label_place(width: int, height: int, span: Span, taken: Taken, size: tuple[int, int]) -> Span:
    """Returns the place for a label of this size: on the box's upper edge if free, else the best of the others."""
    candidates = (
        (span.x0, span.y0 - height),
        (span.x0, span.y1),
        (span.x1 - width, span.y0 - height),
        (span.x1 - width, span.y1),
        (span.x1, span.y0),
        (span.x0 - width, span.y0),
        (span.x0, span.y0),
        (span.x0, span.y1 - height),
    )
    places = []
    for x, y in candidates:
        x0 = min(max(x, 0), max(size[0] - width, 0))
        y0 = min(max(y, 0), max(size[1] - height, 0))
        places.append(Span(x0, y0, x0 + width, y0 + height))
    # Over another label is worst; being pushed over the object itself is worse than a later candidate.
    return min(places, key=lambda place: (taken.overlap(place), place.overlap(span) > 0))


def _relative_luminance(color: tuple[int, int, int]) -> float:
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
