"""COCO's run lengths of masks, in NumPy alone: `{"size": [H, W], "counts": ...}`, column by column, background first.

`counts` is a list of lengths, or a text in base 32 that pycocotools and every other tool decodes: six bits a character
from '0' on, the sixth saying that more follow; from the fourth length on it is the difference to the one two before.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_LONGEST = 7  # characters of one length: 35 bits, more pixels than any picture has


def run_lengths(mask: Any) -> dict[str, Any]:
    """Returns the run lengths of a mask (H, W), compressed to text."""
    mask = np.asarray(mask, dtype=bool)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0] if flat.size and not flat[0] else [0, 0]  # the first run is of background, perhaps of no length
    counts = np.diff(np.concatenate([first, edges, [flat.size]]))
    values = counts.copy()
    values[3:] -= counts[1:-2]
    return {"size": [int(side) for side in mask.shape], "counts": _compress(values)}


def run_length_mask(encoded: Mapping[str, Any], image_hw: tuple[int, int], name: str = "The mask") -> np.ndarray:
    """Returns the mask (H, W) bool of run lengths, compressed or not; arguments and errors as `run_length_counts`."""
    counts = run_length_counts(encoded, image_hw, name)
    height, width = image_hw
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def run_length_counts(encoded: Mapping[str, Any], image_hw: tuple[int, int], name: str = "The mask") -> np.ndarray:
    """Returns the lengths (n,) of the runs, background and mask by turns, column by column.

    Raises:
        ValueError, TypeError: they are malformed, or not of this size; `name` says whose they are.
    """
    size = encoded.get("size")
    if not isinstance(size, (list, tuple, np.ndarray)) or list(size) != list(image_hw):
        raise ValueError(f"{name} has run lengths of size {size!r} in an image of (height, width) {tuple(image_hw)}.")
    counts = encoded.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = _uncompress(counts.encode() if isinstance(counts, str) else counts, name).tolist()
    elif not isinstance(counts, (list, tuple)) or not all(
        isinstance(count, (int, np.integer)) and not isinstance(count, bool) for count in counts
    ):
        raise TypeError(
            f"{name} has run-length counts of type {type(counts).__name__}: expected a list of integers or a string."
        )
    height, width = image_hw
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"{name} has run-length counts that do not fit its size: they must be at least 0 and sum to "
            f"{height * width} (height x width), their sum is {sum(counts)}."
        )
    return np.array(counts, dtype=np.int64)


def _compress(values: np.ndarray) -> str:
    characters = np.zeros((len(values), _LONGEST + 1), dtype=np.uint8)
    used = np.zeros(characters.shape, dtype=bool)
    more = np.ones(len(values), dtype=bool)
    for place in range(characters.shape[1]):
        bits = values & 0x1F
        values = values >> 5
        goes_on = values != np.where(bits & 0x10, -1, 0)
        characters[:, place] = (bits | goes_on * 0x20) + 48
        used[:, place] = more
        more = more & goes_on
        if not more.any():
            break
    return characters[used].tobytes().decode()


def _uncompress(text: bytes, name: str) -> np.ndarray:
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    foreign = np.flatnonzero((digits < 0) | (digits >= 64))
    ends = np.flatnonzero((digits & 0x20) == 0)
    lengths = np.diff(np.concatenate([[-1], ends]))
    whole = len(ends) == 0 or ends[-1] == len(digits) - 1
    if len(foreign) or not whole or (len(digits) and not len(ends)) or (lengths > _LONGEST).any():
        position = foreign[0] if len(foreign) else len(digits)
        raise ValueError(f"{name} has compressed run lengths that cannot be read (at character {position}).")
    starts = ends + 1 - lengths
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 0x1F) << (5 * places), starts) if len(starts) else digits
    negative = (digits[ends] & 0x10) != 0
    values = values - (negative.astype(np.int64) << (5 * lengths))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
