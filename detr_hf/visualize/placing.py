"""Where names stand on a picture: beside their objects, inside the picture, and not over better objects' names.

The time grows with the number of objects, not with its square: how much of a place is taken is counted by pixels.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Which names stand on a picture: those that cover no better one, all of them, or none.
SHOWN_NAMES = ("clear", "all", "none")
SMALL_OBJECT = 3.0  # of a label's height: whoever covers the middle of an object so high hides it

# Places for a name are looked for in steps, of which a segment has no more than this many in a row.
MOST_STEPS = 128
# Of the text's size: how much room around it is looked for, the most first.
ROOMS = (4.0, 3.0, 2.2, 1.6, 1.2, 1.0)


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


def span_in(box: Sequence[float], size: tuple[int, int]) -> Span | None:
    """Returns the pixels of a box that lie in an image of `size` (width, height); None where there are none."""
    width, height = size
    x0, y0, x1, y1 = box
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or x1 < x0 or y1 < y0:
        return None
    x0, y0 = max(round(x0), 0), max(round(y0), 0)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return Span(x0, y0, max(min(round(x1), width), x0 + 1), max(min(round(y1), height), y0 + 1))


class Taken:
    """The pixels of an image of `size` (width, height) that labels stand on, and the middles of small objects."""

    def __init__(self, size: tuple[int, int]):
        self._labels_on = np.zeros((size[1], size[0]), dtype=np.uint16)
        self._middles_on = np.zeros((size[1], size[0]), dtype=np.uint16)

    def add(self, span: Span) -> None:
        """Takes a place."""
        self._labels_on[span.y0 : span.y1, span.x0 : span.x1] += 1

    def add_object(self, span: Span, label_px: int) -> None:
        """Marks the middle of an object that labels of this height would hide."""
        if min(span.x1 - span.x0, span.y1 - span.y0) <= SMALL_OBJECT * label_px:
            self._middles_on[(span.y0 + span.y1) // 2, (span.x0 + span.x1) // 2] += 1

    def overlap(self, span: Span) -> int:
        """Returns the sum of the areas in common with each label, in pixels."""
        return int(self._labels_on[span.y0 : span.y1, span.x0 : span.x1].sum())

    def hidden(self, span: Span) -> int:
        """Returns how many small objects a label here would hide."""
        return int(self._middles_on[span.y0 : span.y1, span.x0 : span.x1].sum())

    def is_clear(self, span: Span) -> bool:
        """Whether a label here covers no other and hides no small object."""
        return not self.overlap(span) and not self.hidden(span)


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
    best, least = span, None
    for x, y in candidates:
        x0 = min(max(x, 0), max(size[0] - width, 0))
        y0 = min(max(y, 0), max(size[1] - height, 0))
        place = Span(x0, y0, x0 + width, y0 + height)
        # Over another label is worst; being pushed over the object itself is worse than a later candidate.
        faults = (taken.overlap(place), taken.hidden(place), place.overlap(span) > 0)
        if least is None or faults < least:
            best, least = place, faults
        if faults == (0, 0, False):
            break
    return best


def segment_place(mask: np.ndarray, label: tuple[int, int], span: Span, taken: Taken, size: tuple[int, int]) -> Span:
    """Returns the place for a label (width, height): in a segment of these pixels (h, w) of `span`, else beside it."""
    corner = inside_place(mask, label)
    if corner is None:
        return label_place(*label, span, taken, size)
    x0, y0 = span.x0 + corner[0], span.y0 + corner[1]
    return Span(x0, y0, x0 + label[0], y0 + label[1])


def inside_place(mask: np.ndarray, size: tuple[int, int]) -> tuple[int, int] | None:
    """Returns x and y of a rectangle of `size` (width, height) inside the mask (h, w), with most room around it.

    None where it is nowhere inside. Of several places that have as much room the one in their middle is taken.
    """
    step = max(1, max(mask.shape) // MOST_STEPS)
    cells = mask[: mask.shape[0] // step * step, : mask.shape[1] // step * step]
    cells = cells.reshape(cells.shape[0] // step, step, -1, step).all(axis=(1, 3))
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), dtype=np.int64)
    np.cumsum(np.cumsum(cells, axis=0, dtype=np.int64), axis=1, out=sums[1:, 1:])
    for room in ROOMS:
        # the same margin on all sides
        margin = (room - 1) * size[1]
        wide, high = (int(np.ceil((side + margin) / step)) for side in size)
        if wide > cells.shape[1] or high > cells.shape[0]:
            continue
        inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
        ys, xs = np.nonzero(inside == wide * high)
        if len(xs):
            best = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
            x = xs[best] * step + (wide * step - size[0]) // 2
            y = ys[best] * step + (high * step - size[1]) // 2
            return int(x), int(y)
    return None


def best_first(boxes: Iterable[Sequence[float]], scores: Sequence[float] | None) -> list[int]:
    """Returns the numbers of objects by score, the best first, and of equal ones (as of all without) the largest."""
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    return sorted(range(len(areas)), key=lambda index: (0.0 if scores is None else -scores[index], -areas[index]))


def refuse_names(names: str) -> None:
    """Raises a ValueError where `labels=` says none of `SHOWN_NAMES`."""
    if names not in SHOWN_NAMES:
        raise ValueError(f"labels must be one of {', '.join(SHOWN_NAMES)}, got {names!r}.")
