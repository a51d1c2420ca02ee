"""A grid of what the model will see: the processor's pixels undone, with the targets decoded back from its labels.

The boxes drawn come from the numbers that the loss reads, not from the annotations: a wrong box format, a flip without
its boxes or a wrong label map shows here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from ...visualize.boxes import draw_boxes
from ...visualize.grids import fit_image, tile_grid
from ..preparing.transform import prepare

MASK_OPACITY = 0.4


def preview(
    rows: Any,
    processor: Any,
    id2label: Mapping[int, str],
    augment: str | Callable | None = "none",
    count: int = 12,
    tile: int = 400,
    seed: int = 0,
    masks: bool = False,
) -> Image.Image:
    """Returns a grid of up to `count` rows of a split, drawn evenly from it, each at most `tile` pixels wide and high.

    The chance of the augmentation is that of `seed`; torch's generator is left as it was.
    """
    prepared = prepare(rows, processor, augment, masks)
    count = min(count, len(prepared))
    if not count:
        raise ValueError("The split has no rows to preview.")
    positions = [round(index * (len(prepared) - 1) / max(count - 1, 1)) for index in range(count)]
    tiles, captions = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for position in positions:
            image, caption = _tile(prepared[position], processor, id2label, tile)
            tiles.append(image)
            captions.append(caption)
    return tile_grid(tiles, (tile, tile), math.ceil(math.sqrt(count)), captions)


def _tile(item: dict[str, Any], processor: Any, id2label: Mapping[int, str], tile: int) -> tuple[Image.Image, str]:
    """Returns one prepared row as a small image with its targets, and a caption."""
    label = item["labels"]
    image = pixels_to_image(item["pixel_values"], processor)
    if "masks" in label:
        image = _tint(image, label["masks"])
    small = fit_image(image, tile)
    boxes = decode_boxes(label["boxes"], (small.height, small.width)).numpy()
    classes = label["class_labels"].tolist()
    drawn = draw_boxes(small, boxes, [id2label.get(index, f"? {index}") for index in classes], labels=classes)
    return drawn, f"{item['file_name'][-40:]}  {image.width}x{image.height}  {len(classes)} objects"


def decode_boxes(boxes_cxcywh_norm: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Returns boxes `(N, 4)` xyxy in pixels of an image of `size_hw`, from the loss's cxcywh in [0, 1]."""
    corners = box_convert(boxes_cxcywh_norm, "cxcywh", "xyxy")
    return corners * corners.new_tensor([size_hw[1], size_hw[0], size_hw[1], size_hw[0]])


def pixels_to_image(pixel_values: Tensor, processor: Any) -> Image.Image:
    """Returns the image of processed pixels `(3, h, w)`: normalisation and rescaling undone."""
    pixels = pixel_values.float()
    if getattr(processor, "do_normalize", True):
        mean = pixels.new_tensor(processor.image_mean)[:, None, None]
        std = pixels.new_tensor(processor.image_std)[:, None, None]
        pixels = pixels * std + mean
    if getattr(processor, "do_rescale", True):
        pixels = pixels / processor.rescale_factor
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _tint(image: Image.Image, masks: Tensor) -> Image.Image:
    """Returns the image with each mask `(N, h, w)` in the colours of the wheel."""
    for index, mask in enumerate(masks):
        colour = Image.new("RGB", image.size, f"hsl({index * 137 % 360}, 90%, 50%)")
        opacity = Image.fromarray((mask.to(torch.uint8) * round(255 * MASK_OPACITY)).contiguous().numpy())
        image = Image.composite(colour, image, opacity)
    return image
