"""Masks on an image: a translucent fill and a line along the inner edge, drawn with Pillow and NumPy.

Each mask costs what its own part of the image costs, however large the image is.
"""

import numpy as np
from PIL import Image

# A mask of an image: x and y of its left upper pixel and its pixels (h, w) bool; or all (H, W) of the image's.
Crop = tuple[int, int, np.ndarray]
Mask = Crop | np.ndarray
FILL = 102  # of 255: how much of the colour lies over the image
LINE = 255


def paint_mask(
    image: Image.Image, corner: tuple[int, int], pixels: np.ndarray, color: tuple[int, int, int], line_px: int
) -> None:
    """Paints a mask on an image in RGB.

    Args:
        image: is changed.
        corner: x and y of the mask's left upper pixel in the image; all of the mask lies inside.
        pixels: (h, w) bool.
        color: RGB.
        line_px: how wide the line along its edge is.
    """
    if not pixels.size:
        return
    height, width = pixels.shape
    opacity = pixels * np.uint8(LINE)
    opacity -= inner(pixels, line_px) * np.uint8(LINE - FILL)
    image.paste(color, (*corner, corner[0] + width, corner[1] + height), Image.fromarray(opacity))


def placed_mask(mask: Mask | None, size: tuple[int, int]) -> Crop:
    """Returns the part of a mask that has pixels, in an image of `size` (width, height); of no size without any.

    Raises:
        ValueError: it is of the whole image, and of another size; or a part that does not lie in it.
    """
    if mask is None:
        return 0, 0, np.zeros((0, 0), dtype=bool)
    if not isinstance(mask, tuple):
        pixels = np.asarray(mask) != 0
        if pixels.shape != size[::-1]:
            raise ValueError(f"A mask has (height, width) {pixels.shape}, the image has {size[::-1]}.")
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return 0, 0, np.zeros((0, 0), dtype=bool)
        return int(columns[0]), int(rows[0]), pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x0, y0, pixels = mask
    height, width = pixels.shape
    if min(x0, y0) < 0 or x0 + width > size[0] or y0 + height > size[1]:
        raise ValueError(f"A mask of {width}x{height} pixels at ({x0}, {y0}) does not lie in the image of {size}.")
    return x0, y0, pixels


def resized_mask(crop: Crop, size: tuple[int, int], new: tuple[int, int]) -> Crop:
    """Returns the part of a mask of an image of `size` (width, height) in the same image of size `new`."""
    x0, y0, pixels = crop
    if not pixels.size:
        return crop
    wide, high = new[0] / size[0], new[1] / size[1]
    left, upper = int(x0 * wide), int(y0 * high)
    right = max(round((x0 + pixels.shape[1]) * wide), left + 1)
    lower = max(round((y0 + pixels.shape[0]) * high), upper + 1)
    image = Image.fromarray(pixels).resize((right - left, lower - upper), Image.Resampling.NEAREST)
    return left, upper, np.asarray(image)


def inner(pixels: np.ndarray, line_px: int) -> np.ndarray:
    """Returns the pixels (h, w) bool of a mask that are further than `line_px` from all that is not of it.

    What lies outside of the array is not.
    """
    for _ in range(line_px):
        inside = np.zeros_like(pixels)
        inside[1:-1] = pixels[:-2] & pixels[1:-1] & pixels[2:]
        inside[:, 1:-1] &= pixels[:, :-2] & pixels[:, 2:]
        inside[:, :1] = inside[:, -1:] = False
        pixels = inside
    return pixels
