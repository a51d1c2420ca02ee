"""Reading pictures: whatever a person calls an image becomes one upright (H, W, C) tensor.

Accepted are paths, URLs, encoded bytes, opened files, PIL images of any byte mode, 16-bit greyscale, arrays and torch
tensors in either channel order, and several of these (`image_sources_detr`). Image processors, `Detector` and the
pipeline read through here, so a picture gives the same pixels by whichever road it comes. What differs from
transformers on purpose:

- grey, palette, 1-bit, CMYK, YCbCr, HSV and alpha become RGB by default; alpha is laid on white. COCO itself holds
  grey JPEGs;
- the EXIF orientation is applied to opened PIL images as well as to paths. Annotation boxes and `target_sizes`
  therefore refer to the upright image;
- a file is recognised by its content; a string is a path, or a URL that says so, and never bare base64;
- pixels that would silently become nonsense (0..1 floats rescaled twice, NaN, 16-bit values, a layout that cannot be
  told) are scaled by a stated rule or refused, and every refusal names the image by its place in the batch and by its
  file.

An array in BGR order, as OpenCV reads it, cannot be told from RGB: convert it first.
"""

import os
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_utils import ChannelDimension

from .image_opening_detr import opened_image, upright_image
from .image_sources_detr import as_array, is_array, pictures_in, plain_source

_OWN_CHANNELS = ", or pass do_convert_rgb=False, input_data_format and a mean and std of that length."
CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA: what an array without a stated layout may hold


def read_images(
    images: Any,
    *,
    do_convert_rgb: bool = True,
    expects_0_255: bool = True,
    input_data_format: str | ChannelDimension | None = None,
) -> list[Tensor]:
    """Returns one (H, W, C) tensor per image, uint8 in 0..255 or float32.

    Args:
        images: one image or a list of images, see the module's docstring.
        do_convert_rgb: give C = 3 whatever the picture holds; otherwise its own channels are kept.
        expects_0_255: the pixels will be divided by 255 later, so floats must be in 0..255.
        input_data_format: "channels_first" or "channels_last" for arrays and tensors; needed only where the shape does
            not tell, as in (3, 60, 3).

    Raises:
        ValueError: no image, or a picture that cannot be decoded or whose pixels have no clear meaning.
        TypeError: something that is not an image.
        FileNotFoundError: a path that does not exist.
    """
    is_told = input_data_format is not None and str(input_data_format) != "none"
    input_data_format = ChannelDimension(input_data_format) if is_told else None
    pixels = [
        read_image(
            image,
            f"image {index}",
            do_convert_rgb=do_convert_rgb,
            expects_0_255=expects_0_255,
            input_data_format=input_data_format,
        )
        for index, image in enumerate(pictures_in(images))
    ]
    if not pixels:
        raise ValueError("There are no images: expected at least one, got an empty list.")
    return pixels


def read_image(
    image: Any,
    name: str,
    *,
    do_convert_rgb: bool = True,
    expects_0_255: bool = True,
    input_data_format: ChannelDimension | None = None,
    takes_options: bool = True,
) -> Tensor:
    """Returns the (H, W, C) pixels of one picture, as `read_images` does, with a name for errors.

    `takes_options` says that the caller takes the options of an image processor, so that errors may advise them.
    """
    image, name = plain_source(image, name)
    if isinstance(image, (str, os.PathLike, bytes)):
        image = opened_image(image, name)
    if isinstance(image, PIL.Image.Image):
        pixels = _pil_pixels(image, name, do_convert_rgb)
    elif is_array(image):
        pixels = _channels_last(_as_tensor(image, name), input_data_format, name, takes_options)
    else:
        kind = "None" if image is None else f"a {type(image).__name__}"
        raise TypeError(
            f"{name} is {kind}, not an image. Expected a path, a URL, bytes, an opened file, a PIL image, a numpy "
            "array or a torch tensor."
        )
    if 0 in pixels.shape[:2]:
        raise ValueError(f"{name} has height {pixels.shape[0]} and width {pixels.shape[1]}: both must be at least 1.")
    pixels = _in_byte_range(pixels, name, expects_0_255, takes_options)
    return _to_rgb(pixels, name, expects_0_255) if do_convert_rgb else pixels


def _pil_pixels(image: PIL.Image.Image, name: str, do_convert_rgb: bool) -> Tensor:
    """Returns (H, W, C) pixels of the upright picture: uint8, or 16-bit greyscale still to be scaled."""
    image, name = upright_image(image, name, do_convert_rgb)
    pixels = _as_tensor(np.array(image), name)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _as_tensor(image: Any, name: str) -> Tensor:
    if isinstance(image, Tensor):
        return image.detach().as_subclass(Tensor)  # what a subclass does of its own is not asked for here
    image = as_array(image, name)
    if image.dtype.kind not in "buif":
        raise TypeError(f"{name} is an array of dtype {image.dtype}: expected booleans, integers or floats.")
    if image.dtype.itemsize > 8 or not image.dtype.isnative:
        image = image.astype(np.float64 if image.dtype.kind == "f" else image.dtype.newbyteorder("="))
    if not image.flags.writeable or any(stride < 0 for stride in image.strides):
        image = image.copy()  # torch can share neither read-only memory nor negative strides
    return torch.from_numpy(image)


def _channels_last(
    pixels: Tensor, input_data_format: ChannelDimension | None, name: str, takes_options: bool
) -> Tensor:
    shape = tuple(pixels.shape)
    if pixels.ndim == 4 and len(pixels) == 1:  # a batch of one in a list
        pixels, shape = pixels[0], shape[1:]
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim != 3:
        raise ValueError(
            f"{name} has shape {shape}: expected (height, width), (height, width, C) or (C, height, width)."
        )
    if input_data_format is None:
        candidates = [axis for axis in (0, 2) if shape[axis] in CHANNEL_COUNTS]
        if not candidates:
            raise ValueError(
                f"{name} has shape {shape}, in which neither the first nor the last dimension is a number of channels "
                f"{CHANNEL_COUNTS}. Pick the channels to use" + (_OWN_CHANNELS if takes_options else ".")
            )
        if len(candidates) == 2:
            raise ValueError(
                f"{name} has shape {shape}, which can be read as channels first and as channels last. "
                + (
                    'Say which: input_data_format="channels_last" (or "channels_first").'
                    if takes_options
                    else "Make it a PIL image, which has no such doubt: PIL.Image.fromarray(pixels)."
                )
            )
        input_data_format = ChannelDimension.FIRST if candidates == [0] else ChannelDimension.LAST
    return pixels.permute(1, 2, 0) if input_data_format == ChannelDimension.FIRST else pixels


def _in_byte_range(pixels: Tensor, name: str, expects_0_255: bool, takes_options: bool) -> Tensor:
    """Returns uint8 pixels in 0..255, or float32 pixels once it is clear what range they are in.

    Booleans become 0 and 255. Sixteen bits are scaled from 0..65535, as the dtype says.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        pixels = pixels.to(torch.int32)
        if 0 < pixels.max() <= 255:
            raise ValueError(
                f"{name} is uint16 with no value above 255, so its range is unclear. "
                "Convert it to uint8 if it holds 0..255, or scale it to the full 0..65535."
            )
        return ((pixels + 128) // 257).to(torch.uint8)
    if not pixels.is_floating_point():
        if pixels.is_complex():
            raise TypeError(f"{name} has dtype {pixels.dtype}: expected booleans, integers or floats.")
        pixels = pixels.to(torch.int64)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 255:
            raise ValueError(
                f"{name} holds integers from {low} to {high}: expected 0..255. Scale it to that range first."
            )
        return pixels.to(torch.uint8)
    pixels = pixels.to(torch.float32)
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{name} holds pixels that are not finite (NaN or infinity). Remove them before processing.")
    if expects_0_255:
        _check_float_range(float(pixels.min()), float(pixels.max()), name, takes_options)
    return pixels


def _check_float_range(low: float, high: float, name: str, takes_options: bool) -> None:
    """Raises for floats that dividing by 255 would ruin; one grey level outside 0..255 is interpolation, and fine."""
    if low >= 0 and high <= 1 and high > 0:
        raise ValueError(
            f"{name} holds floats from {low:.4g} to {high:.4g}, which dividing by 255 would turn almost black. "
            + ("Pass do_rescale=False if they are in 0..1 already, or m" if takes_options else "M")
            + "ultiply them by 255."
        )
    if low < -1 or high > 256 or (low < 0 and high <= 1):
        raise ValueError(
            f"{name} holds floats from {low:.4g} to {high:.4g}: expected 0..255. If it is normalised already, "
            + (
                "pass do_rescale=False and do_normalize=False."
                if takes_options
                else "undo that first: multiply by the std, add the mean, multiply by 255."
            )
        )


def _to_rgb(pixels: Tensor, name: str, expects_0_255: bool) -> Tensor:
    """Returns (H, W, 3) pixels; alpha is laid on a white background."""
    channels = pixels.shape[-1]
    if channels == 3:
        return pixels
    if channels == 1:
        return pixels.expand(-1, -1, 3)
    if channels != 4:
        raise ValueError(
            f"{name} has {channels} channels: expected 1, 3 or 4. Pick three of them, or pass do_convert_rgb=False "
            "and a mean and std of that length."
        )
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    white = 255.0 if expects_0_255 or pixels.dtype == torch.uint8 else 1.0
    if (alpha == white).all():
        return colour
    blended = white + (colour.to(torch.float32) - white) * (alpha.to(torch.float32) / white)
    return blended.round().to(torch.uint8) if pixels.dtype == torch.uint8 else blended
