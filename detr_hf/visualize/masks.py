"""Masks on an image: a translucent fill and a line along the inner edge, drawn with Pillow and NumPy.

Each mask costs what its own part of the image costs, however large the image is.
"""

import numpy as np
from PIL import Image

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
