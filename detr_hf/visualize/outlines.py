"""The outlines of masks as lines and as SVG paths: closed, with their holes, and no more corners than show."""

import numpy as np

# Of a shown pixel: how far a simplified line may run beside the edges of the mask's pixels: stairs become a slope.
TOLERANCE = 1.0


def outlines(pixels: np.ndarray) -> list[np.ndarray]:
    """Returns the closed lines (n, 2) int of x, y along the edges of a mask (h, w) bool, holes by lines of their own.

    Filled by the rule "evenodd" they are the mask to the pixel.
    """
    padded = np.pad(np.asarray(pixels, dtype=bool), 1)
    upper, lower = padded[:-1], padded[1:]
    odd = upper[:, :-1] ^ upper[:, 1:] ^ lower[:, :-1] ^ lower[:, 1:]
    crossing = (upper[:, :-1] == lower[:, 1:]) & (upper[:, 1:] == lower[:, :-1]) & (upper[:, :-1] != upper[:, 1:])
    ys, xs = np.nonzero(odd | crossing)
    # Where two of four pixels touch by their corners two lines have one, so that it counts twice.
    twice = np.repeat(np.arange(len(ys)), 1 + crossing[ys, xs])
    ys, xs = ys[twice], xs[twice]
    # Of the corners in a row each two follow each other along it; of those in a column too.
    in_columns = np.lexsort((ys, xs))
    below = np.empty(len(ys), dtype=np.int64)
    below[in_columns[0::2]], below[in_columns[1::2]] = in_columns[1::2], in_columns[0::2]
    partners, points = below.tolist(), np.stack([xs, ys], axis=1)
    seen, lines = [False] * len(ys), []
    for start in range(len(ys)):
        line, at = [], start
        while not seen[at]:
            beside = at ^ 1
            seen[at] = seen[beside] = True
            line += [at, beside]
            at = partners[beside]
        if line:
            lines.append(points[line])
    return lines


def simplified(line: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Returns the points of a closed line (n, 2) that it needs to stay within `tolerance` of all (Douglas-Peucker)."""
    closed = np.concatenate([line, line[:1]]).astype(np.float64)
    far = int(np.argmax(((closed - closed[0]) ** 2).sum(axis=1)))
    keep = {0, far}
    parts = [(0, far), (far, len(line))]
    while parts:
        start, end = parts.pop()
        if end - start < 2:
            continue
        offsets, (along_x, along_y) = closed[start + 1 : end] - closed[start], closed[end] - closed[start]
        away = np.abs(offsets[:, 0] * along_y - offsets[:, 1] * along_x) / max(np.hypot(along_x, along_y), 1e-9)
        furthest = int(np.argmax(away))
        if away[furthest] > tolerance:
            middle = start + 1 + furthest
            keep.add(middle)
            parts += [(start, middle), (middle, end)]
    return line[sorted(keep)] if len(keep) > 2 else line


def path_data(pixels: np.ndarray, corner: tuple[int, int] = (0, 0), step: int = 1) -> str:
    """Returns a mask as the `d` of an SVG path, to be filled by "evenodd"; empty where the mask is.

    Args:
        pixels: (h, w) bool.
        corner: x and y of the left upper pixel.
        step: every so manieth pixel is looked at, where they are shown so much smaller.
    """
    parts = []
    for line in outlines(pixels[::step, ::step]):
        points = simplified(line) * step
        points[:, 0] = np.minimum(points[:, 0], pixels.shape[1]) + corner[0]
        points[:, 1] = np.minimum(points[:, 1], pixels.shape[0]) + corner[1]
        moves = np.diff(points, axis=0).tolist()
        parts.append(f"M{points[0, 0]} {points[0, 1]}l{' '.join(f'{x} {y}' for x, y in moves)}z")
    return "".join(parts)
