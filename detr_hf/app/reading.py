"""Reads what a visitor gives, once, within limits; every fault is told with the visitor's own name of the file."""

import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from ..export.processing import read_pixels
from ..inference.showing import shown_pixels
from ..processing.image_opening_detr import which_page

MB = 1_000_000  # bytes
# Said here and, before anything is sent, in the browser.
TOO_MANY_BYTES = "{name} has {size} MB, and this page takes {most} MB at most (--max-mb)."
LONGEST_NAME = 80
# The folders of a path that begins at the root of a disk, as errors quote it.
FOLDERS = re.compile(r"(?<![\w:/.])(?:/|[A-Za-z]:\\)(?:[^\s/\\'\":]+[/\\])+")
IN_BATCH = re.compile(r"\bimage 0\b(?: \([^)]*\))?")


@dataclass(frozen=True)
class Limits:
    """What a picture may have at most: megabytes as a file, and megapixels when it is opened."""

    max_mb: float = 20
    max_megapixels: float = 100

    def __post_init__(self) -> None:
        for name, most in (
            ("max_mb (--max-mb)", self.max_mb),
            ("max_megapixels (--max-megapixels)", self.max_megapixels),
        ):
            if not most > 0:
                raise ValueError(f"{name} must be more than 0, got {most}.")

    def refuse_bytes(self, size: int, name: str) -> None:
        """Raises a ValueError for a file of too many bytes."""
        if size > self.max_mb * MB:
            raise ValueError(TOO_MANY_BYTES.format(name=name, size=f"{size / MB:.1f}", most=f"{self.max_mb:g}"))

    def refuse_pixels(self, size: tuple[int, int], name: str) -> None:
        """Raises a ValueError for a picture of too many pixels, which is not decoded yet."""
        width, height = size
        if width * height > self.max_megapixels * 1e6:
            raise ValueError(
                f"{name} has {width}x{height} pixels, {width * height / 1e6:.1f} megapixels, and this page takes "
                f"{self.max_megapixels:g} at most (--max-megapixels)."
            )


@dataclass(frozen=True)
class Picture:
    """A visitor's picture: its name, its bytes as they came, upright pixels (H, W, 3), and what was left out."""

    name: str
    content: bytes
    pixels: np.ndarray
    note: str = ""

    @property
    def source(self) -> np.ndarray | bytes:
        """What a detector reads the same pixels from: them, where they can be taken for nothing else."""
        is_plain = self.pixels.dtype == np.uint8 and min(self.pixels.shape[:2]) > 4
        return self.pixels if is_plain else self.content

    def shown(self, most_px: int) -> Image.Image:
        """Returns the image made smaller by a whole number, so that its longer side has `most_px` at least."""
        image = Image.fromarray(shown_pixels(self.pixels))
        return image.reduce(max(1, max(image.size) // most_px))


def own_name(given: str | None) -> str:
    """Returns a file's name as its owner knows it: without folders and signs that do not print, not too long."""
    last = PureWindowsPath(PurePosixPath(given or "").name).name
    name = "".join(letter if letter.isprintable() else "?" for letter in last).strip() or "picture"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 12]}...{name[-9:]}"


def read_picture(path: Path, name: str, limits: Limits) -> Picture:
    """Returns the picture in a file, decoded once.

    Raises:
        ValueError: it is over a limit, no picture, cut short, damaged or empty; with `name`, not the path.
        OSError: the file is gone or may not be read.
    """
    limits.refuse_bytes(path.stat().st_size, name)
    return decoded(path.read_bytes(), name, limits)


def decoded(content: bytes, name: str, limits: Limits) -> Picture:
    """Returns the picture in a file's bytes, as `read_picture` does."""
    note = ""
    try:
        with Image.open(io.BytesIO(content)) as header:
            size, note = header.size, which_page(header, name) or ""
    except Exception:  # the reader below says what it is
        size = (0, 0)
    limits.refuse_pixels(size, name)
    pixels = read_pixels(content, name, takes_options=False)
    return Picture(name, content, pixels, note)


def shown_error(error: Exception, name: str, known_as: dict[str, str] | None = None) -> str:
    """Returns what a visitor reads of an error: their file's name, and no folder of this machine.

    `known_as` maps texts such as a model's path to what the page calls it.
    """
    message = IN_BATCH.sub(lambda _: name, str(error))
    for text, shown in (known_as or {}).items():
        message = message.replace(text, shown)
    message = FOLDERS.sub("", message)
    return message if name in message else f"{name}: {message}"
