"""One self-contained SVG of an image and of what is in it: sharp at any size, names under the pointer, no script.

Nothing is asked from outside: the image lies in the file, and names are in the fonts of whoever looks at it. A name
that would cover another waits until its object is under the pointer or has the focus. Of objects and their names the
best come first, so that whoever hides all those below a score sees what a drawing of the others alone would show.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any
from unicodedata import category, east_asian_width

import numpy as np
from PIL import Image

from .boxes import MOST_HEIGHTS, MOST_WIDTH
from .colors import class_color, class_dashes, hex_color, rim_color, text_color
from .lettering import LEFT_TO_RIGHT, Line
from .masks import Mask, placed_mask
from .outlines import path_data
from .placing import Span, Taken, best_first, label_place, refuse_names, segment_place, span_in
from .saving import DRAWING_MARK

MAX_SIDE = 1280
LEAST_SHOWN_PX = 480  # of the longer side: a thumbnail is shown larger
LETTERS = 1 / 44  # of the longer side: 9 px on a phone that shows 390
JPEG_QUALITY = 88
MOST_PNG_PIXELS = 300_000  # up to here an image is tried without loss too, and the smaller of both is taken
# Heights and widths of letters in parts of their size; `textLength` makes any font keep to them.
BASE_LINE, GROUND = 0.95, 1.3
WIDE, NARROW, MARGIN = 1.0, 0.62, 0.25
# Characters without ink, which XML refuses or which would turn the text around them.
WITHOUT_INK = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

STRETCHED = 'preserveAspectRatio="none"'
STYLE = """
.detr-hf{max-width:100%;height:auto;font-family:system-ui,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
.detr-hf .object{outline:none}
.detr-hf .rim,.detr-hf .line,.detr-hf .mask{vector-effect:non-scaling-stroke}
.detr-hf .rim{fill:none;pointer-events:all;stroke-opacity:.7;stroke-width:4}
.detr-hf .line{fill:none;stroke-width:2}
.detr-hf .mask{fill-opacity:.4;fill-rule:evenodd;stroke-width:1.5}
.detr-hf .segment .mask{fill-opacity:.55;stroke:#fff}
.detr-hf .label{visibility:hidden;pointer-events:none;stroke:none}
.detr-hf .names .label,.detr-hf .object:hover .label,.detr-hf .object:focus .label{visibility:visible}
.detr-hf .object:hover .line,.detr-hf .object:focus .line{stroke-width:3}
.detr-hf .object:hover .rim,.detr-hf .object:focus .rim{stroke-opacity:.9;stroke-width:6}
.detr-hf .objects:hover .object:not(:hover,:focus){opacity:.3}
.detr-hf .objects:focus-within .object:not(:hover,:focus){opacity:.3}
.detr-hf .objects:hover~.names .label,.detr-hf .objects:focus-within~.names .label{visibility:hidden}
"""
PAGE = """<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{mark}">
<title>{title}</title>
<style>
:root{{color-scheme:light dark}}
body{{margin:0;min-height:100vh;display:grid;place-items:center}}
svg{{max-height:100vh}}
</style>
</head>
<body>
{svg}</body>
</html>
"""


@dataclass(frozen=True)
class Shape:
    """One object: its box xyxy in pixels, name, class number, score if it has one, and the path of its mask.

    A segment has the pixels (h, w) bool in its box too, into which its name is written.
    """

    box: tuple[float, float, float, float]
    name: str
    label: int
    score: float | None = None
    path: str = ""
    segment: np.ndarray | None = None

    @property
    def kind(self) -> str:
        """The classes of its group."""
        return "object" if self.segment is None else "object segment"


def objects_svg(
    image: Image.Image,
    boxes_xyxy_abs: np.ndarray,
    names: Sequence[str],
    *,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    masks: Sequence[Mask | None] | None = None,
    size_hw: tuple[int, int] | None = None,
    **layout: Any,
) -> str:
    """Returns one SVG of the image with its objects, each a `<g class="object">` that the pointer and Tab reach.

    A group has `data-index` (the number here), `data-score` and `data-label`; `data-x0` and so on are the box.

    Args:
        image: of any mode; the picture, perhaps made smaller.
        boxes_xyxy_abs: (N, 4), in pixels of the picture.
        names: N texts; what is no text in XML is spelled by its number.
        labels: N class numbers, which choose the colours.
        scores: N numbers in [0, 1].
        masks: N masks, as in `draw_boxes`, of the picture.
        size_hw: the picture's, if it is not the image's.
        **layout: `title`, `caption`, `max_side` and `shown_names` of `svg_of`.
    """
    height, width = size_hw or image.size[::-1]
    step = max(1, max(width, height) // layout.get("max_side", MAX_SIDE))
    shapes = []
    for index, (left, top, right, bottom) in enumerate(
        np.asarray(boxes_xyxy_abs, dtype=np.float64).reshape(-1, 4).tolist()
    ):
        x0, y0, pixels = placed_mask(None if masks is None else masks[index], (width, height))
        path = path_data(pixels, (x0, y0), step)
        score = None if scores is None else float(scores[index])
        shapes.append(Shape((left, top, right, bottom), str(names[index]), int(labels[index]), score, path))
    return svg_of(image, shapes, (height, width), **layout)


def segments_svg(
    image: Image.Image,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    **layout: Any,
) -> str:
    """Returns one SVG of the image with its segments, as `objects_svg` does; `data-index` is the number of a segment.

    Args:
        image: of any mode; the picture, perhaps made smaller.
        ids: (H, W) of the picture. Where an id is no segment's, nothing is drawn.
        segments: `id`, `label_id`, `name`, and `score` where there is one, of each.
        **layout: as in `objects_svg`.
    """
    step = max(1, max(ids.shape) // layout.get("max_side", MAX_SIDE))
    shapes = []
    for segment in segments:
        x0, y0, pixels = placed_mask(ids == segment["id"], ids.shape[::-1])
        box = (x0, y0, x0 + pixels.shape[1], y0 + pixels.shape[0])
        path = path_data(pixels, (x0, y0), step)
        name, label = str(segment["name"]), int(segment["label_id"])
        shapes.append(Shape(box, name, label, segment.get("score"), path, pixels))
    return svg_of(image, shapes, ids.shape, **layout)


def svg_of(
    image: Image.Image,
    shapes: Sequence[Shape],
    size_hw: tuple[int, int],
    *,
    title: str = "",
    caption: str = "",
    max_side: int = MAX_SIDE,
    shown_names: str = "clear",
) -> str:
    """Returns the SVG of shapes on an image, in pixels of the picture of `size_hw`.

    Args:
        image: the picture, perhaps smaller.
        shapes: in any order; those that cover others lie under them.
        size_hw: the picture's.
        title: what the whole is called where it is read aloud.
        caption: a line of text in the lower left corner.
        max_side: the image in the file has no more pixels on a side.
        shown_names: "clear" has those that would cover a better object's wait for the pointer or the focus, "none" has
            all wait, and "all" none.
    """
    refuse_names(shown_names)
    height, width = size_hw
    scale = max(min(max(width, height), max_side), LEAST_SHOWN_PX) / max(width, height)
    shown = (max(round(width * scale), 1), max(round(height * scale), 1))
    labels = _labels(shapes, scale, shown, shown_names)
    areas = [(shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1]) for shape in shapes]
    body = [_group(index, shapes[index], labels[index][0]) for index in np.argsort(areas, kind="stable")[::-1]]
    # What stands there always is here again, above the lines and masks of all others; it gives way to the pointer.
    names = [
        f'<g data-of="{index}" fill="{hex_color(class_color(shapes[index].label))}">{label}</g>'
        for index, (label, is_named) in enumerate(labels)
        if is_named
    ]
    if caption:
        text = _Text(caption, shown, is_whole=True)
        corner = Span(0, shown[1] - text.height, text.width, shown[1])
        names.append(f'<g fill="#000" class="caption">{text.svg(corner, scale, (0, 0, 0))}</g>')
    box = f'viewBox="0 0 {width} {height}" width="{shown[0]}" height="{shown[1]}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="detr-hf" role="group" {box}'
    return "\n".join(
        [
            f'{head} aria-label="{_escaped(title or "picture")}">',
            f"<desc>{DRAWING_MARK}</desc>",
            f"<style>{STYLE}</style>",
            f'<image width="{width}" height="{height}" {STRETCHED} href="{_data_uri(image, max_side)}"/>',
            '<g class="objects">',
            *body,
            "</g>",
            '<g class="names" aria-hidden="true">',
            *names,
            "</g>",
            "</svg>\n",
        ]
    )


def html_page(svg: str, title: str) -> str:
    """Returns a whole HTML file that shows the SVG and asks for nothing outside it."""
    return PAGE.format(mark=DRAWING_MARK, title=_escaped(title), svg=svg)


def _group(index: int, shape: Shape, label: str) -> str:
    """Returns one object: its title, box, mask and label, in this order from below."""
    edges = [f"{edge:g}" for edge in np.round(shape.box, 2).tolist()]
    score = "" if shape.score is None else f"{shape.score:.2f}"
    said = " ".join(part for part in (_escaped(shape.name), score) if part)
    color, rim = hex_color(class_color(shape.label)), hex_color(rim_color(class_color(shape.label)))
    data = {"index": index, "label": shape.label, **dict(zip(("x0", "y0", "x1", "y1"), edges, strict=True))}
    data |= {} if shape.score is None else {"score": round(shape.score, 6)}
    attributes = " ".join(f'data-{name}="{value}"' for name, value in data.items())
    x0, y0, x1, y1 = shape.box
    rectangle = f'x="{edges[0]}" y="{edges[1]}" width="{max(x1 - x0, 0):.4g}" height="{max(y1 - y0, 0):.4g}"'
    parts = [f"<title>{said}\n[{', '.join(edges)}]</title>"]
    if shape.path:
        parts.append(f'<path class="mask" d="{shape.path}"/>')
    if shape.segment is None:
        dashes = " ".join(str(2 * length) for length in class_dashes(shape.label))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts += [f'<rect class="rim" stroke="{rim}" {rectangle}/>', f'<rect class="line"{dashed} {rectangle}/>']
    head = f'<g class="{shape.kind}" tabindex="0" role="img" aria-label="{said}" {attributes} fill="{color}"'
    return f'{head} stroke="{color}">{"".join(parts)}{label}</g>'


def _labels(shapes: Sequence[Shape], scale: float, shown: tuple[int, int], shown_names: str) -> list[tuple[str, bool]]:
    """Returns for each shape its label, and whether it stands there always: it is in the way of no better one's."""
    taken, labels = Taken(shown), [("", False)] * len(shapes)
    label_px = round(GROUND * LETTERS * max(shown))
    for index in best_first([shape.box for shape in shapes], [shape.score or 0.0 for shape in shapes]):
        shape = shapes[index]
        span = span_in([edge * scale for edge in shape.box], shown)
        if span is None or (shape.segment is not None and not shape.path):
            continue
        text = _Text(shape.name, shown, shape.score)
        place = _place(shape, text, span, taken, shown)
        is_named = shown_names == "all" or (shown_names == "clear" and taken.is_clear(place))
        if is_named:
            taken.add(place)
        taken.add_object(span, label_px)  # only worse ones' names give way to it, see above
        labels[index] = (text.svg(place, scale, class_color(shape.label)), is_named)
    return labels


def _place(shape: Shape, text: "_Text", span: Span, taken: Taken, shown: tuple[int, int]) -> Span:
    """Returns where a label stands: in its segment if there is room, else beside its object."""
    size = (text.width, text.height)
    if shape.segment is not None:
        pixels = Image.fromarray(shape.segment).resize((span.x1 - span.x0, span.y1 - span.y0))
        return segment_place(np.asarray(pixels), size, span, taken, shown)
    return label_place(*size, span, taken, shown)


class _Text:
    """A line of text on a ground of `width` and `height` shown pixels, cut to what the picture has room for."""

    def __init__(self, text: str, shown: tuple[int, int], score: float | None = None, is_whole: bool = False):
        self.px = max(shown) * LETTERS
        after = "" if score is None else f"{LEFT_TO_RIGHT}  {score:.2f}"
        room = min(shown[0] - 2 * MARGIN * self.px, max(MOST_WIDTH * shown[0], MOST_HEIGHTS * self.px))
        room = shown[0] - 2 * MARGIN * self.px if is_whole else room
        whole = text = _spelled(text)
        while text and self._width(text + "…" * (text != whole) + after) > room:
            text = text[:-1]
        self.text = text + "…" * (text != whole) + after
        self.length = self._width(self.text)
        self.width, self.height = round(self.length + 2 * MARGIN * self.px), round(GROUND * self.px)

    def _width(self, text: str) -> float:
        return sum(_letter_width(letter) for letter in text) * self.px

    def svg(self, ground: Span, scale: float, color: tuple[int, int, int]) -> str:
        """Returns the label at its place, in pixels of the picture."""
        x0, y0 = ground.x0 / scale, ground.y0 / scale
        px = self.px / scale
        ink = "#fff" if text_color(color) == (255, 255, 255) else "#000"
        ground_size = f'width="{self.width / scale:.4g}" height="{self.height / scale:.4g}"'
        at = f'x="{x0 + MARGIN * px:.6g}" y="{y0 + BASE_LINE * px:.6g}" font-size="{px:.4g}"'
        fit = f'textLength="{self.length / scale:.4g}" lengthAdjust="spacingAndGlyphs"'
        text = f'<text {at} {fit} fill="{ink}" xml:space="preserve">{escape(self.text)}</text>'
        return f'<g class="label"><rect x="{x0:.6g}" y="{y0:.6g}" {ground_size}/>{text}</g>'


def _letter_width(letter: str) -> float:
    """Returns how wide a letter is, in parts of its size: of ASCII as Pillow has it, else by its kind."""
    if letter.isascii():
        return _ASCII_WIDTHS.setdefault(letter, Line(letter, 100).length / 100 or 0.25)
    if category(letter)[0] == "M" or category(letter) == "Cf":
        return 0.0
    return WIDE if east_asian_width(letter) in "WF" else NARROW


_ASCII_WIDTHS: dict[str, float] = {" ": 0.25}


def _spelled(text: str) -> str:
    """Returns the text with white space as one space, and what has no ink by its number."""
    return WITHOUT_INK.sub(lambda found: f"[{ord(found[0]):X}]", " ".join(text.split()))


def _escaped(text: str) -> str:
    return escape(_spelled(text))


def _data_uri(image: Image.Image, max_side: int) -> str:
    """Returns the image, made smaller where it is too large, as a `data:` address."""
    image = image.convert("RGB") if image.mode != "RGB" else image.copy()
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    kinds = {"jpeg": {"quality": JPEG_QUALITY, "optimize": True}}
    if image.width * image.height <= MOST_PNG_PIXELS:
        kinds["png"] = {"optimize": True}
    encoded = {}
    for kind, options in kinds.items():
        with BytesIO() as file:
            image.save(file, kind, **options)
            encoded[kind] = file.getvalue()
    kind = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:image/{kind};base64,{b64encode(encoded[kind]).decode()}"
