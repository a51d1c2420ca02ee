"""Draws the rooms of the package and the arrows between them: python docs/draw_rooms.py

The rooms and arrows are those that `tests/test_architecture.py` allows, and the sentence of a room is the first of its
own docstring, so that the picture cannot say anything else than the tests. An arrow is left out where a longer way
leads to the same room; each box lists everything that its room may import.
"""

import ast
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
WIDTH, HEIGHT, GAP, LEVEL = 244, 108, 24, 172
TRAVELLING = ("model", "processing")
STYLE = """<style>
  text { font-family: Helvetica, Arial, sans-serif; fill: #1d2733 }
  .name { font-size: 15px; font-weight: bold } .what { font-size: 11px } .may { font-size: 10px; fill: #5b6875 }
  .stays { fill: #eef3f8; stroke: #7b8ea3 } .travels { fill: #fdf1d8; stroke: #c08a1e }
  .arrow { fill: none; stroke: #7b8ea3; stroke-width: 1.3; marker-end: url(#head) }
</style>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
  <path d="M0 0 8 4 0 8z" fill="#7b8ea3" />
</marker>"""


def arrows() -> dict[str, tuple[str, ...]]:
    """Returns what each room may import, as the tests have it."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARROWS":
            return ast.literal_eval(node.value)
    raise ValueError("tests/test_architecture.py has no ARROWS.")


def sentence(room: str) -> str:
    """Returns the first sentence of a room's docstring."""
    text = (ROOT / "detr_hf" / room / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)).partition("\n\n")[0].replace("\n", " ").replace("`", "")


def levels(allowed: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Returns how far below the roof each room lies: one below the lowest that may import it."""
    found: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((level(above) for above in allowed if room in allowed[above]), default=-1)
        return found[room]

    for room in allowed:
        level(room)
    return found


def shortest(allowed: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Returns the arrows that no longer way replaces."""

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(below) for below in allowed[room]))

    return [
        (room, below)
        for room, targets in allowed.items()
        for below in targets
        if not any(below in reached(other) for other in targets if other != below)
    ]


def places(allowed: dict[str, tuple[str, ...]]) -> tuple[dict[str, tuple[float, float]], int, int]:
    """Returns the upper left corner of each box, and width and height of the picture.

    In a row, the rooms stand in the order of what leads to them, so that few arrows cross.
    """
    depth, drawn = levels(allowed), shortest(allowed)
    rows = [[room for room in allowed if depth[room] == level] for level in range(max(depth.values()) + 1)]
    width = max(map(len, rows)) * (WIDTH + GAP) + GAP
    corners: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        above = {room: [corners[other][0] for other, below in drawn if below == room] for room in row}
        row.sort(key=lambda room: sum(above[room]) / max(1, len(above[room])))
        indent = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        for number, room in enumerate(row):
            corners[room] = (indent + number * (WIDTH + GAP), GAP + level * LEVEL)
    return corners, width, len(rows) * LEVEL


def box(room: str, x: float, y: float, may: tuple[str, ...]) -> str:
    """Returns a room's box: its name, its sentence, and what it may import."""
    kind = "travels" if room in TRAVELLING else "stays"
    lines = [f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" />']
    lines.append(f'<text class="name" x="{x + 10:g}" y="{y + 20:g}">{room}/</text>')
    texts = [("what", line) for line in textwrap.wrap(sentence(room), 40)[:4]]
    listed = f"may import {', '.join(may)}" if may else "imports no other room"
    texts += [("may", line) for line in textwrap.wrap(listed, 42)]
    for number, (name, line) in enumerate(texts):
        lines.append(f'<text class="{name}" x="{x + 10:g}" y="{y + 36 + 13 * number:g}">{escape(line)}</text>')
    return "\n".join(lines)


def drawing() -> str:
    """Returns the picture as SVG."""
    allowed = arrows()
    corners, width, height = places(allowed)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">', STYLE]
    lines.append(f'<rect width="{width}" height="{height}" fill="#ffffff" />')
    for room, below in shortest(allowed):
        (x1, y1), (x2, y2) = corners[room], corners[below]
        start, end = (x1 + WIDTH / 2, y1 + HEIGHT), (x2 + WIDTH / 2, y2 - 2)
        bend = (end[1] - start[1]) / 2
        lines.append(
            f'<path class="arrow" d="M{start[0]:g} {start[1]:g} C{start[0]:g} {start[1] + bend:g} '
            f'{end[0]:g} {end[1] - bend:g} {end[0]:g} {end[1]:g}" />'
        )
    lines += [box(room, *corner, allowed[room]) for room, corner in corners.items()]
    note = (
        "Yellow: these travel to the Hub with every checkpoint. "
        "Every room may import errors, lazy_names, reaching, version and whole_files."
    )
    lines.append(f'<text class="may" x="{GAP}" y="{height - 16}">{note}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing(), encoding="utf-8")
