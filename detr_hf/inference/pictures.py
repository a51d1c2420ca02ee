"""What a source is: one picture or several, and the file that it came from. Nothing is opened here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def path_of(source: Any) -> Path | None:
    """Returns the file that a source names or was opened from; None for pictures that live in memory alone."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return None
    if isinstance(source, str | Path):
        return Path(source)
    filename = getattr(source, "filename", "") if isinstance(source, Image.Image) else ""
    return Path(filename) if filename else None


def is_single_picture(images: Any) -> bool:
    """Whether `images` is one picture, as opposed to a list, an iterator or a 4-D batch of them."""
    if isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image):
        return True
    if isinstance(images, np.ndarray) or type(images).__module__ == "torch":
        return images.ndim != 4
    if not isinstance(images, Iterable):
        raise TypeError(
            "Expected a picture (path, bytes, PIL image, array, tensor) or a list of pictures, "
            f"got {type(images).__name__}."
        )
    return False
