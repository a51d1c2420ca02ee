"""What a line of a YOLO label file says.

    class x y width height                    the box's centre and size as fractions of the picture
    class x y x y x y ...                     a polygon; with four corners also a rotated box
    class x y width height  x y [seen] ...    a box and key points, which are not read

A polygon and key points are both "many numbers". Which of them is meant is what data.yaml says (`kpt_shape`, `task`);
where it says nothing, the lines must agree among themselves, and what could be either is refused.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AnnotationError, LayoutError
from .text import is_no_value, read_lines

# Numbers may exceed the picture by this fraction: tools round to six digits.
FRACTION_SLACK = 0.01
LABEL_LINE = re.compile(r"[^\s,;]+([\s,;]+[-+.\deE]+){4,}\s*$")
KEY_POINTS_NOTE = "key points are not read, only the boxes before them"


def is_label_file(path: Path) -> bool:
    """Whether the first line of a text file is one of a label file: a word and four numbers or more."""
    try:
        return any(map(LABEL_LINE.match, read_lines(path)[:1]))
    except LayoutError:
        return False


@dataclass(frozen=True)
class LineKind:
    """How lines of more than a box are read: as `"polygon"` or `"key points"`, of which a line has `count` numbers."""

    long: str = "polygon"
    count: int | None = None


def kind_from_yaml(content: dict[str, Any], path: object) -> LineKind | None:
    """Returns how data.yaml says that lines are read (`kpt_shape`, `task`), or None.

    Raises:
        LayoutError: `kpt_shape` is not a number of points and 2 or 3.
    """
    shape, task = content.get("kpt_shape"), content.get("task")
    if not is_no_value(shape):
        numbers = [int(value) for value in shape if re.fullmatch(r"\d+", str(value))] if type(shape) is list else []
        if len(numbers) != 2 or numbers[1] not in (2, 3):
            raise LayoutError(
                f"{path}: kpt_shape is {shape!r}, expected the number of key points and 2 or 3: [17, 3]."
            )
        return LineKind("key points", 5 + numbers[0] * numbers[1])
    if task == "pose":
        return LineKind("key points")
    return LineKind() if task in ("detect", "segment", "obb") else None


def parse_numbers(line: str) -> list[float]:
    """Returns the numbers of a line, separated by blanks, tabs or commas; the first is the class.

    Raises:
        AnnotationError: something is no number, or the class no integer from 0.
    """
    words = line.split()
    if "," in line or ";" in line:
        words = [word.strip() for word in re.split("[,;]", line)]
        if any(re.search(r"\s", word) for word in words):
            raise AnnotationError(
                f"{line[:80]!r} has both commas and blanks: decimals are written with a point, as in 0.5"
            )
    try:
        values = [float(word.replace("_", "?")) for word in words]  # Python would read 1_0 as 10
    except ValueError:
        first = "the class is written with its name; expected its number, which is its place in `names`"
        named = re.search(r"[^\W\d_]", words[0]) and not re.fullmatch("(?i)nan|inf", words[0])
        raise AnnotationError(
            f"{line[:80]!r}: {first if named else 'it holds something that is not a number'}"
        ) from None
    if not values[0].is_integer() or not 0 <= values[0] < 2**31:
        raise AnnotationError(f"the class is {words[0][:40]!r}, expected an integer from 0")
    return values


def parse_line(line: str, kind: LineKind, note: Callable[[str, str], None]) -> tuple[int, list[float]]:
    """Returns the class and the four numbers of the box, or those of a polygon.

    `note(code, message)` gets what is passed over.

    Raises:
        AnnotationError: it is no line as described in the module.
    """
    values = parse_numbers(line)
    count = len(values)
    if count == 5:
        return int(values[0]), values[1:]
    if count > 6 and kind.long == "key points":
        if kind.count not in (None, count):
            raise AnnotationError(f"it has {count} numbers; with the kpt_shape of data.yaml it would be {kind.count}")
        note("key-points-not-read", KEY_POINTS_NOTE)
        return int(values[0]), values[1:5]
    if behind := _numbers_behind_a_box(values):
        message = f"{behind} behind the box, as predictions have (confidence, track id), which is not read"
        note("label-number-extra", message)
        return int(values[0]), values[1:5]
    if count < 7 or count % 2 == 0:
        raise AnnotationError(
            f"it has {count} numbers, expected 5 (class, centre, size) or a class and 3 points or more; where key "
            "points follow the boxes, write their kpt_shape into data.yaml"
        )
    return int(values[0]), values[1:]


def _numbers_behind_a_box(values: list[float]) -> str:
    """Returns the confidence and the track id that stand behind a box as text; nothing where there is none."""
    extra = values[5:]
    if len(extra) == 1 and (0 <= extra[0] <= 1 or (extra[0] > 1 and extra[0].is_integer())):
        return f"the number {extra[0]:g} stands"
    if len(extra) == 2 and 0 <= extra[0] <= 1 and extra[1] > 1 and extra[1].is_integer():
        return f"the numbers {extra[0]:g} and {extra[1]:g} stand"
    return ""


def infer_kind(lines: Iterable[list[float]], where: object) -> LineKind:
    """Returns how lines of more than a box are read, judged by the numbers of some of them.

    Key points with their visibility (0, 1 or 2) inside their box, and of one number in all lines, are told by that.

    Raises:
        LayoutError: key points without visibility and polygons both fit, and key points fit better.
    """
    long = [values[1:] for values in lines if len(values) > 6 and not _numbers_behind_a_box(values)]
    if len({len(values) for values in long}) != 1:
        return LineKind()
    count = len(long[0]) + 1
    if (count - 5) % 3 == 0 and all(_points_fit(values, 3) for values in long):
        return LineKind("key points", count)
    if count % 2 and all(_points_fit(values, 2) for values in long) and not all(map(_is_outline, long)):
        points = (count - 5) // 2
        raise LayoutError(
            f"The label files of {where} have lines of {count} numbers, which could be a box and {points} key points "
            f"or a polygon. Say in data.yaml which: `kpt_shape: [{points}, 2]` or `task: segment`."
        )
    return LineKind()


def _points_fit(values: list[float], step: int) -> bool:
    """Whether numbers without their class are a box and key points of `step` numbers that lie in it."""
    x, y, width, height = values[:4]
    if width <= 0 or height <= 0:
        return False
    slack = FRACTION_SLACK
    for start in range(4, len(values), step):
        seen = values[start + 2] if step == 3 else 1
        inside = abs(values[start] - x) <= width / 2 + slack and abs(values[start + 1] - y) <= height / 2 + slack
        if seen not in (0, 1, 2) or (seen and not inside):
            return False
    return True


def _is_outline(values: list[float]) -> bool:
    """Whether points read like a polygon's: the second is no further from the others than they spread; no crossing."""
    points = list(zip(values[0::2], values[1::2], strict=True))
    others = [points[0], *points[2:]]
    lows, highs = (tuple(pick(axis) for axis in zip(*others, strict=True)) for pick in (min, max))
    away = [max(low - value, value - high, 0) for low, value, high in zip(lows, points[1], highs, strict=True)]
    if math.hypot(*away) > math.dist(lows, highs):
        return False
    sides = list(zip(points, [*points[1:], points[0]], strict=True))
    return not any(_cross(*first, *second) for place, first in enumerate(sides) for second in sides[place + 2 :])


def _cross(a: tuple, b: tuple, c: tuple, d: tuple) -> bool:
    """Whether the open stretches a-b and c-d cross."""

    def turn(p: tuple, q: tuple, r: tuple) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0
