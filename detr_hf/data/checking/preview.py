"""A grid of what the model will see: the processor's pixels undone, with the targets decoded back from its labels.

The boxes drawn come from the numbers that the loss reads, not from the annotations: a wrong box format, a flip without
its boxes or a wrong label map shows here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from ...visualize.boxes import draw_boxes
from ...visualize.grids import grid
from ..preparing.transform import prepare


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
    return grid(tiles, captions=captions, side=tile, gap=0)


def _tile(item: dict[str, Any], processor: Any, id2label: Mapping[int, str], tile: int) -> tuple[Image.Image, str]:
    """Returns one prepared row as a small image with its targets, and a caption."""
    label = item["labels"]
    image = pixels_to_image(item["pixel_values"], processor)
    boxes = decode_boxes(label["boxes"], (image.height, image.width)).numpy()
    masks = list(label["masks"].numpy()) if "masks" in label else None
    classes = label["class_labels"].tolist()
    names = [id2label.get(index, f"? {index}") for index in classes]
    drawn = draw_boxes(image, boxes, names, labels=classes, masks=masks, side=tile)
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
