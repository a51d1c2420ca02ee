"""Where the drawings of many pictures go: none over another, over a picture, or over a file of the user's."""

import logging
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ...visualize.saving import is_marked
from ...whole_files import file_identity
from ..sources.searching import one_line
from ..sources.video import FILM_SUFFIXES, is_marked_film

logger = logging.getLogger(__name__)

KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
NAMES_SHOWN = 3
# Task -> what its drawings are called; `visualize/saving.py` knows these words.
DRAWING_OF = {"detection": "boxes", "instance": "masks", "panoptic": "panoptic", "semantic": "semantic"}


def drawing_paths(
    pictures: Mapping[Path, Path], folder: Path, other: Path | None = None, what: str = DRAWING_OF["detection"]
) -> dict[Path, Path]:
    """Returns where each picture's drawing goes: `NAME_boxes.SUFFIX` in the folder, below where it was found.

    A film's is an MP4.

    Where the name is taken (by a drawing of this run, `other` that it writes, or a file that is no drawing of this
    package) it gets `_2`, `_3` and so on, which is logged. Drawings of an earlier run are written over.

    Args:
        pictures: path by path below the folder that it was found in.
        folder: of the drawings.
        other: another file that will be written.
        what: stands in the names in place of `boxes`.
    """
    taken = set() if other is None else {_name_anywhere(other)}
    given = {identity for path in pictures if (identity := file_identity(path)) is not None}

    def is_free(target: Path) -> bool:
        if _name_anywhere(target) in taken:
            return False
        return not os.path.lexists(target) or (is_drawn(target) and file_identity(target) not in given)

    targets: dict[Path, Path] = {}
    numbered, numbers = [], {}
    for path, relative in pictures.items():
        ending = relative.suffix.lower()
        suffix = relative.suffix if ending in KEPT_SUFFIXES else ".mp4" if ending in FILM_SUFFIXES else ".png"
        target = first = folder / relative.with_name(f"{relative.stem}_{what}{suffix}")
        number = numbers.get(first, 1)
        while not is_free(target):
            number += 1
            target = first.with_name(f"{relative.stem}_{what}_{number}{suffix}")
        if target != first:
            numbers[first] = number
            numbered.append(one_line(f"{target} of {path}"))
        taken.add(_name_anywhere(target))
        targets[path] = target
    if numbered:
        shown = ", ".join(numbered[:NAMES_SHOWN]) + ", ..." * (len(numbered) > NAMES_SHOWN)
        logger.warning("The name of %d drawings is taken, they get a number: %s.", len(numbered), shown)
    return targets


def is_drawn(path: Path) -> bool:
    """Whether a file is a drawing or a film that this package wrote, by the mark in it."""
    return is_marked_film(path) or is_marked(path)


def _name_anywhere(path: Path) -> str:
    """Returns the path as systems compare it that tell neither cases nor forms of a letter apart."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()
