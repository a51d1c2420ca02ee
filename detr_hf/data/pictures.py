"""The one door to pictures in `data`: headers for sizes, pixels for training, and what a check sees of them.

EXIF orientation, different on purpose from the usual "always rotate": boxes are in the frame that the annotation
file's `width` and `height` describe. A picture is rotated when only its rotated size is the recorded one, left as
stored when only its stored size is, and rotated (as every viewer does) when both fit or no size is recorded.

Files that are cut, garbled or hostile make Pillow raise a dozen kinds of exceptions; any means that it is no picture.
"""

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import PictureError
from ..processing.image_opening_detr import refuse_bomb
from ..processing.image_reading_detr import read_images
from ..processing.mask_annotations_detr import measure_segments, read_segment_ids

ORIENTATION_TAG = 0x0112
QUARTER_TURNS = {5, 6, 7, 8}


class Header(NamedTuple):
    """Size as stored, and the EXIF orientation (1: upright)."""

    width: int
    height: int
    orientation: int

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Returns width and height as a viewer shows the picture."""
        return (self.height, self.width) if self.orientation in QUARTER_TURNS else (self.width, self.height)

    def has_size(self, recorded_wh: tuple[int, int]) -> bool:
        """Whether annotations for a picture of this width and height can be for this one, as stored or as shown."""
        return recorded_wh in ((self.width, self.height), self.upright_wh)


def header_of(image: Image.Image) -> Header:
    """Returns the header of an opened picture; nothing is decoded."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a garbled EXIF block is no reason to refuse the pixels
        orientation = 1
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return Header(image.width, image.height, orientation if valid else 1)


def open_undecoded(source: Any, name: str) -> Image.Image:
    """Returns the undecoded picture of a path, bytes, a `{"path", "bytes"}` row of `datasets.Image`, or a PIL picture.

    Raises:
        PictureError: the file is missing or no picture.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise PictureError(f"{name}: the row has neither a path nor bytes.")
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        refuse_bomb(image, len(source) if isinstance(source, bytes) else os.path.getsize(source), "it")
        return image
    except FileNotFoundError:
        raise PictureError(f"{name}: there is no file {source}.") from None
    except Exception as error:
        raise PictureError(f"{name}: cannot be opened as a picture ({type(error).__name__}: {error}).") from error


def read_header(source: Any, name: str) -> Header:
    """Returns the header of a picture on disk or in memory.

    Raises:
        PictureError: the file is missing or no picture.
    """
    image = open_undecoded(source, name)
    header = header_of(image)
    if isinstance(source, str | Path):
        image.close()
    return header


def upright_size(source: Any, name: str) -> tuple[int, int]:
    """Returns width and height as a viewer shows the picture; 0 x 0 where it cannot be read, which a check reports."""
    try:
        return read_header(source, name).upright_wh
    except PictureError:
        return 0, 0


def keeps_stored_frame(header: Header, recorded_wh: tuple[int, int] | None) -> bool:
    """Whether annotations of `recorded_wh` are in the frame of the stored, unrotated pixels."""
    if header.orientation == 1 or recorded_wh is None:
        return header.orientation == 1
    return recorded_wh == (header.width, header.height) != header.upright_wh


def load_pixels(source: Any, name: str, recorded_wh: tuple[int, int] | None = None) -> Tensor:
    """Returns the decoded picture as RGB `(3, H, W)` uint8, in the frame of its annotations.

    Raises:
        PictureError: it cannot be decoded, or its size is not `recorded_wh`.
    """
    image = open_undecoded(source, name)
    header = header_of(image)
    try:
        image.load()
        if keeps_stored_frame(header, recorded_wh):
            image.getexif().pop(ORIENTATION_TAG, None)
        pixels = read_images(image)[0].permute(2, 0, 1)
    except Exception as error:
        raise PictureError(f"{name}: cannot be decoded ({type(error).__name__}: {error}).") from error
    size_wh = (pixels.shape[2], pixels.shape[1])
    if recorded_wh is not None and size_wh != tuple(recorded_wh):
        raise PictureError(
            f"{name}: the picture is {size_wh[0]}x{size_wh[1]} (width x height) and its annotations say "
            f"{recorded_wh[0]}x{recorded_wh[1]}. Correct the annotation file, or put the right picture there."
        )
    return pixels.contiguous()


@dataclass(frozen=True)
class SeenPicture:
    """What was seen of a picture: its header and content's digest, or the error that opening it gave."""

    header: Header | None = None
    digest: bytes | None = None
    error: str | None = None


def inspect_picture(source: Any) -> SeenPicture:
    """Returns what opening, decoding and hashing one picture, a path or encoded bytes, shows."""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        return SeenPicture(error=f"cannot be read: {error}")
    try:
        image = Image.open(BytesIO(content))
        refuse_bomb(image, len(content), "it")
        header = header_of(image)
        # A JPEG's draft is decoded at 1/8 and in grey, from all of its bytes.
        image.draft("L", (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    except Exception as error:
        return SeenPicture(
            error=f"cannot be decoded: {type(error).__name__}: {error}" if content else "is an empty file"
        )
    return SeenPicture(header, hashlib.blake2b(content, digest_size=16).digest())


def inspect_segments(source: Any) -> tuple[tuple[int, int], dict[int, np.ndarray]] | str:
    """Returns (width, height) of a segment picture, a path or encoded bytes, and the boxes xyxy of its ids (see
    `read_segment_ids`), or what is wrong."""
    name = "the segment picture" if isinstance(source, bytes) else str(source)
    try:
        image = open_undecoded(source, name)
        ids = read_segment_ids(image, (image.height, image.width), name, "it")
    except ValueError as error:
        return str(error)
    found, _, boxes = measure_segments(ids)
    return (ids.shape[1], ids.shape[0]), dict(zip(found.tolist(), boxes, strict=True))
