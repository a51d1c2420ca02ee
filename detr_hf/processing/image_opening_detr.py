"""Opening pictures: a path, encoded bytes or a PIL image becomes one upright PIL image of a known mode.

This half of the reading needs no torch, so that a process that runs an exported model need not load it; the rules are
told in `image_reading_detr`, which turns the result into a tensor.
"""

import io
import logging
import math
import os
from functools import lru_cache
from pathlib import Path

import PIL.Image

logger = logging.getLogger(__name__)

# What a folder is searched for: the endings of the formats of Pillow that hold photographs, and not of documents,
# icons, textures and measurements. A picture that is named itself is opened whatever its ending: its content decides.
# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".ras",
    ".sgi", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on

# A picture of more pixels a byte is refused where it is large as well: photographs have one to ten, a page with little
# on it a hundred. Large is what has more than half of the pixels at which Pillow warns.
BOMB_PIXELS_PER_BYTE = 200

_EXIF_ORIENTATION_TAG = 0x0112
_EXIF_TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_BYTE_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
# Formats whose further frames are no pictures of their own: a phone's preview and depth, layers, sizes.
_ONE_PICTURE_IN_PARTS = {"MPO", "PSD", "ICO", "ICNS"}
_UNCONVERTED_MODES = {"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"}


def opened_image(source: str | os.PathLike | bytes, name: str) -> PIL.Image.Image:
    """Returns the loaded picture of a path or of encoded bytes, as `plain_source` gives them."""
    if isinstance(source, bytes):
        if not source:
            raise ValueError(f"{name} is empty{'' if '0 bytes' in name else ' (0 bytes)'}.")
        return _open(io.BytesIO(source), name)
    path = os.fspath(source)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{name}: no such file. A string is read as a path or as an http(s) URL, not as base64."
        )
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a folder, not an image file. Pass the files in it as a list.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{name} is an empty file (0 bytes).")
    return _open(Path(os.fsdecode(path)), name)


def divides_by_255(do_rescale: bool | None, rescale_factor: float | None) -> bool:
    """Whether an image processor with these settings expects pixels in 0..255."""
    return bool(do_rescale) and rescale_factor is not None and math.isclose(rescale_factor, 1 / 255, rel_tol=1e-3)


def _open(source: Path | io.BytesIO, name: str) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(source)
    except PermissionError as error:
        raise PermissionError(f"{name} may not be read: {error}") from error
    except PIL.UnidentifiedImageError as error:  # whose text is a path, or an object in memory
        raise ValueError(
            f"{name} is not an image that can be read: its content is of no format that is known."
        ) from error
    except Exception as error:  # damaged headers surface as OSError, SyntaxError, struct.error and more
        raise ValueError(f"{name} is not an image that can be read: {error}") from error
    with image:
        refuse_bomb(image, os.path.getsize(source) if isinstance(source, Path) else len(source.getbuffer()), name)
        return _frame(image, name)


def refuse_bomb(image: PIL.Image.Image, size: int, name: str) -> None:
    """Raises a ValueError for a picture, not decoded yet, that `size` bytes blow up to an amount of memory."""
    pixels, most = image.width * image.height, PIL.Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most / 2 and pixels > size * BOMB_PIXELS_PER_BYTE:
        raise ValueError(
            f"{name} has {image.width}x{image.height} pixels in {size} bytes, as a decompression bomb has: it is not "
            f"decoded. If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS (now {most})."
        )


def _frame(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Returns the decoded picture; a lazily opened file that is cut short or damaged fails here, by name.

    Of an animation or a file of several pages it is the one the image stands at, the first after opening.
    """
    try:
        image.load()
        left_out = which_page(image, name)
        if left_out is not None:
            _warn_once(left_out)
            image = image.copy()
    # decoders raise OSError, SyntaxError, struct.error, zlib.error, DecompressionBombError and more
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded, the file is probably cut short or damaged: {error}") from error
    return image


def which_page(image: PIL.Image.Image, name: str) -> str | None:
    """Returns the sentence on the one page or frame that is used of an opened file of several; else None."""
    if image.format in _ONE_PICTURE_IN_PARTS or not getattr(image, "is_animated", False):
        return None
    what, part = ("has several pages", "page") if image.format in ("TIFF", "DCX") else ("is an animation", "frame")
    return f"{name} {what}: one {part} of it is used, number {image.tell() + 1}."


def upright_image(image: PIL.Image.Image, name: str, do_convert_rgb: bool = True) -> tuple[PIL.Image.Image, str]:
    """Returns the picture turned as its EXIF tag says, and the name to use in later errors.

    Its mode is RGB, RGBA or I;16, or its own without `do_convert_rgb`.

    Raises:
        ValueError: a damaged file, or a mode that has no clear meaning as colours.
    """
    file_name = getattr(image, "filename", "")
    if file_name and "(" not in name:
        name = f"{name} ({file_name})"
    image = _frame(image, name)
    transposition = _EXIF_TRANSPOSITIONS.get(_exif_orientation(image))
    if transposition is not None:
        image = image.transpose(transposition)
    if not image.mode.startswith("I;16"):
        image = _byte_image(image, name, do_convert_rgb)
    return image, name


def _byte_image(image: PIL.Image.Image, name: str, do_convert_rgb: bool) -> PIL.Image.Image:
    """Returns the picture in RGB, or RGBA where it has transparency; in its own channels without `do_convert_rgb`."""
    if not do_convert_rgb:
        if image.mode not in _UNCONVERTED_MODES:
            raise ValueError(
                f"{name} has mode {image.mode!r}, whose raw values are not colours. "
                "Use do_convert_rgb=True, or convert it first."
            )
        return image
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has mode {image.mode!r} (32 bits a pixel), for which no range of values is agreed on. "
            "Scale it to 0..255 and convert it to mode 'L' first."
        )
    try:
        if image.has_transparency_data:
            return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if image.mode in _BYTE_MODES:
            return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has mode {image.mode!r}, which Pillow does not convert to RGB: {error}") from error
    raise ValueError(
        f"{name} has mode {image.mode!r}, which has no agreed conversion to RGB. Convert it to 'RGB' first."
    )


def _exif_orientation(image: PIL.Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION_TAG, 1)
    except Exception as error:  # a damaged EXIF block raises half a dozen types, and the picture itself is whole
        logger.debug("EXIF data of a picture could not be read (%s): taken as upright.", error)
        return 1


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    logger.warning(message)
