"""The paper's figure 2 as SVG: backbone, encoder, decoder and heads one below the other, each with its numbers.

It is narrow and its letters are large, so that it can be read at the width of a phone and on paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from textwrap import wrap

from .saving import DRAWING_MARK

WIDTH = 480
LEFT, RIGHT, INSET = 16, 452, 12
LETTERS_AT = 200
TITLE, FIGURES, ROW, SMALL, FOOT, ARROW = 23, 18, 19, 15, 9, 30  # heights
LETTERS_IN_LINE, LETTERS_IN_TITLE = 70, 44
LARGEST_STACK, SHIFT = 3, 5
COLORS = {  # ground and border of a box
    "image": ("#f4f4f4", "#777777"),
    "backbone": ("#e6f0fb", "#2f6db3"),
    "projection": ("#f4f4f4", "#777777"),
    "encoder": ("#e9f5e6", "#3c8a3f"),
    "decoder": ("#fdf0dc", "#b86e00"),
    "heads": ("#f9e6ec", "#b03a5b"),
}
QUERY_COLORS = ("#d64550", "#e08a1e", "#3c8a3f", "#2f6db3", "#8a4fb3")
STYLE = """
  text { font-family: system-ui, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-size: 13px; fill: #1a1a1a }
  .title { font-size: 16px; font-weight: 700 }
  .head { font-size: 14px; font-weight: 700 }
  .small { font-size: 11.5px; fill: #4a4a4a }
  .number { text-anchor: end; font-weight: 600 }
  .arrow { stroke: #555555; stroke-width: 2; fill: none }
"""


@dataclass(frozen=True)
class Row:
    """One line of a box: a step, the letters of its shape, their numbers, and a sign: "queries", "waves" or ""."""

    name: str
    letters: str
    numbers: str
    sign: str = ""


@dataclass(frozen=True)
class Block:
    """One box: its kind (of `COLORS`), title, figures, files and rows, and how many layers it stands for."""

    kind: str
    title: str
    figures: str
    files: str
    rows: Sequence[Row]
    layers: int = 1


def architecture_svg(title: str, blocks: Sequence[Block], notes: Sequence[str]) -> str:
    """Returns the drawing as one SVG file that asks for nothing outside it."""
    body: list[str] = []
    y: float = 30
    for line in wrap(title, LETTERS_IN_TITLE):
        body.append(_text(LEFT, y, line, "title"))
        y += 20
    y -= 4
    for number, block in enumerate(blocks):
        if number:
            body.append(f'<path class="arrow" d="M240 {y + 2} V{y + ARROW - 8}"/>')
            body.append(f'<path fill="#555555" d="M233 {y + ARROW - 10} h14 l-7 9 z"/>')
            y += ARROW
        drawn, y = _box(block, y)
        body += drawn
    y += 22
    for note in notes:
        for line in wrap(note, LETTERS_IN_LINE):
            body.append(_text(LEFT, y, line, "small"))
            y += SMALL
        y += 4
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    )
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            f"<desc>{DRAWING_MARK}</desc>",
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _box(block: Block, y: float) -> tuple[list[str], float]:
    """Returns a box whose upper edge is at `y`, and where the lower edge is of it and those behind it."""
    ground, border = COLORS[block.kind]
    rows, head = list(block.rows), Row(block.title, "", "")
    if len(rows) == 1 and rows[0].name in ("", block.title):  # what it has stands beside its name
        head = replace(rows.pop(), name=block.title)
    files = wrap(block.files, LETTERS_IN_LINE - 4)
    figures = [block.figures] if block.figures else []
    height = TITLE + FIGURES * len(figures) + ROW * len(rows) + SMALL * len(files) + FOOT
    behind = min(block.layers, LARGEST_STACK) - 1
    drawn = [
        f'<rect x="{LEFT + SHIFT * shift}" y="{y + SHIFT * shift}" width="{RIGHT - LEFT}" height="{height}" rx="8" '
        f'fill="{ground}" stroke="{border}" stroke-width="1.5"/>'
        for shift in range(behind, -1, -1)
    ]
    at = y + TITLE - 4
    drawn += _row(head, at, "head")
    for line in figures:
        at += FIGURES
        drawn.append(_text(LEFT + INSET, at, line))
    for row in rows:
        at += ROW
        drawn += _row(row, at)
    for line in files:
        at += SMALL + 1
        drawn.append(_text(LEFT + INSET, at, line, "small"))
    return drawn, y + height + SHIFT * behind


def _row(row: Row, y: float, kind: str = "") -> list[str]:
    x, sign = LEFT + INSET, []
    if row.sign == "queries":
        for number, color in enumerate(QUERY_COLORS):
            sign.append(f'<rect x="{x + 9 * number}" y="{y - 9}" width="7" height="10" fill="{color}"/>')
        x += 9 * len(QUERY_COLORS) + 4
    elif row.sign == "waves":
        sign.append(f'<circle cx="{x + 7}" cy="{y - 4}" r="7" fill="#ffffff" stroke="#1a1a1a"/>')
        sign.append(f'<path fill="none" stroke="#1a1a1a" d="M{x + 2} {y - 4} q2.5 -7 5 0 t5 0"/>')
        x += 20
    return [
        *sign,
        _text(x, y, row.name, kind),
        _text(LETTERS_AT, y, row.letters, "small"),
        _text(RIGHT - INSET, y, row.numbers, "number"),
    ]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{of_kind}>{escape(text)}</text>' if text else ""
