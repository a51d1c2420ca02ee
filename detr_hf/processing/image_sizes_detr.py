"""The size a picture is resized to: DETR's own rule, transformers' variant of it, and fixed sizes; Pillow's resize.

Both rules make the shortest side `shortest_edge` unless the longest would then exceed `longest_edge`. They differ in
the rounding where that cap applies: the original rounds the shortest side first and derives the longest from the
rounded value, which may give 1332 or, for long pictures, a little more than 1333; transformers derives it from the
unrounded value. Other than both, no side is ever below one pixel: 10000 x 3 is a picture.
"""

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

if TYPE_CHECKING:
    from transformers.image_utils import PILImageResampling, SizeDict

RESIZE_RULES = ("original", "transformers")
DEFAULT_SHORTEST_EDGE = 800
DEFAULT_LONGEST_EDGE = 1333


def resized_hw(
    image_hw: tuple[int, int], size: "SizeDict | Mapping[str, int]", rule: str = "original"
) -> tuple[int, int]:
    """Returns the (height, width) that an image of `image_hw` is resized to.

    Args:
        image_hw: (height, width) in pixels.
        size: `shortest_edge` with or without `longest_edge`, or `height` and `width`, or `max_height` and `max_width`;
            or `longest_edge` alone, which then is the longest side, as Table Transformer v1.1 was trained.
        rule: "original" (facebookresearch/detr, datasets/transforms.py) or "transformers"; for `shortest_edge` only.

    Raises:
        ValueError: another combination of keys, or a side that is no whole number from 1 up.
    """
    given = {key: side for key, side in dict(size).items() if side is not None}
    if not all(isinstance(side, numbers.Real) and side > 0 and side == int(side) for side in given.values()):
        raise ValueError(f"size must have positive sides in whole pixels, got {given}.")
    given = {key: int(side) for key, side in given.items()}
    keys = set(given)
    if keys == {"height", "width"}:
        return given["height"], given["width"]
    if keys == {"max_height", "max_width"}:
        scale = min(given["max_height"] / image_hw[0], given["max_width"] / image_hw[1])
        return _at_least_one((int(image_hw[0] * scale), int(image_hw[1] * scale)))
    if keys == {"longest_edge"}:  # transformers refuses it; rounded as MaxResize of microsoft/table-transformer
        scale = given["longest_edge"] / max(image_hw)
        return _at_least_one((round(image_hw[0] * scale), round(image_hw[1] * scale)))
    if keys in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return _shortest_edge_hw(image_hw, given["shortest_edge"], given.get("longest_edge"), rule)
    raise ValueError(
        f"size has the keys {sorted(keys)}. Expected 'shortest_edge' and 'longest_edge' or one of them, or 'height' "
        "and 'width', or 'max_height' and 'max_width'."
    )


def scaled_size(settings: Mapping, shortest: int) -> dict[str, int]:
    """Returns the `size` of an image processor with these settings, in proportion, its shortest side being `shortest`.

    Raises:
        ValueError: it does not resize, or pads to a canvas of one size.
    """
    pad_size = settings.get("pad_size") if settings.get("do_pad", True) else None
    if pad_size or not settings.get("do_resize", True):
        what = f"pads all images to {dict(pad_size)}" if pad_size else "leaves images as they are (do_resize)"
        raise ValueError(f"Images cannot get a shorter side of {shortest} pixels: the image processor {what}.")
    size = {key: int(side) for key, side in dict(settings["size"]).items() if side}
    return {key: max(1, round(side * shortest / min(size.values()))) for key, side in size.items()}


def check_resize_rule(rule: str) -> str:
    """Returns the rule, or raises a ValueError that lists the choices."""
    if rule not in RESIZE_RULES:
        raise ValueError(f"resize_rule must be one of {', '.join(map(repr, RESIZE_RULES))}, got {rule!r}.")
    return rule


def _shortest_edge_hw(image_hw: tuple[int, int], shortest: int, longest: int | None, rule: str) -> tuple[int, int]:
    height, width = image_hw
    small, large = min(image_hw), max(image_hw)
    exact_small: float = shortest
    if longest is not None and large / small * shortest > longest:
        exact_small = longest * small / large
    new_small = round(exact_small)
    if new_small < 1:  # only where the cap applies: the longest side is what decides
        new_small, new_large = 1, longest
    elif new_small == small:  # nothing to do: the short side is right already, and the long one is left alone
        new_large = large
    else:
        new_large = int((new_small if rule == "original" else exact_small) * large / small)
    return _at_least_one((new_large, new_small) if width < height else (new_small, new_large))


def _at_least_one(hw: tuple[int, int]) -> tuple[int, int]:
    return max(1, hw[0]), max(1, hw[1])


def resized_by_pillow(pixels: np.ndarray, hw: tuple[int, int], resample: "PILImageResampling | int") -> np.ndarray:
    """Returns (h, w, C) pixels of the same dtype, from (H, W, C); those of the right size as they are."""
    if pixels.shape[:2] == tuple(hw):
        return pixels
    width_height = (hw[1], hw[0])
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return np.array(PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize(width_height, resample))
    planes = (PIL.Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels.transpose(2, 0, 1))  # modes L and F
    return np.stack([np.array(plane.resize(width_height, resample)) for plane in planes], axis=-1)
