"""A grid of what the model will see: the processor's pixels undone, with the targets decoded back from its labels.

The boxes drawn come from the numbers that the loss reads, not from the annotations: a wrong box format, a flip without
its boxes or a wrong label map shows here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...visualize.boxes import draw_boxes
from ..prepare.transform import prepare

MASK_OPACITY = 0.4
CAPTION_PX = 14


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
    """A picture of up to `count` rows of a split, each at most `tile` pixels wide and high, drawn evenly from the
    split.

    The chance of the augmentation is that of `seed`; torch's generator is left as it was.
    """
    prepared = prepare(rows, processor, augment, masks)
    count = min(count, len(prepared))
    if not count:
        raise ValueError("The split has no rows to preview.")
    positions = [round(index * (len(prepared) - 1) / max(count - 1, 1)) for index in range(count)]
    tiles = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for position in positions:
            tiles.append(_tile(prepared[position], processor, id2label, tile))
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    grid = Image.new("RGB", (columns * tile, lines * (tile + CAPTION_PX)), "white")
    for index, (picture, caption) in enumerate(tiles):
        x, y = index % columns * tile, index // columns * (tile + CAPTION_PX)
        grid.paste(picture, (x, y + CAPTION_PX))
        ImageDraw.Draw(grid).text((x + 2, y + 1), caption, fill="black")
    return grid


def _tile(item: dict[str, Any], processor: Any, id2label: Mapping[int, str], tile: int) -> tuple[Image.Image, str]:
    """One prepared row as a small picture with its targets, and a caption."""
    label = item["labels"]
    picture = pixels_to_image(item["pixel_values"], processor)
    if "masks" in label:
        picture = _tint(picture, label["masks"])
    seen = picture.size
    scale = min(tile / picture.width, tile / picture.height)
    picture = picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)))
    boxes = decode_boxes(label["boxes"], (picture.height, picture.width)).numpy()
    classes = label["class_labels"].tolist()
    drawn = draw_boxes(picture, boxes, [id2label.get(index, f"? {index}") for index in classes], labels=classes)
    return drawn, f"{item['file_name'][-40:]}  {seen[0]}x{seen[1]}  {len(classes)} objects"


def decode_boxes(boxes_cxcywh_norm: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes `(N, 4)` xyxy in pixels of a picture of `size_hw`, from the loss's cxcywh in [0, 1]."""
    centre, size = boxes_cxcywh_norm[:, :2], boxes_cxcywh_norm[:, 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    return corners * corners.new_tensor([size_hw[1], size_hw[0], size_hw[1], size_hw[0]])


def pixels_to_image(pixel_values: Tensor, processor: Any) -> Image.Image:
    """The picture of processed pixels `(3, h, w)`: normalisation and rescaling undone."""
    pixels = pixel_values.float()
    if getattr(processor, "do_normalize", True):
        mean = pixels.new_tensor(processor.image_mean)[:, None, None]
        std = pixels.new_tensor(processor.image_std)[:, None, None]
        pixels = pixels * std + mean
    if getattr(processor, "do_rescale", True):
        pixels = pixels / processor.rescale_factor
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _tint(picture: Image.Image, masks: Tensor) -> Image.Image:
    """The picture with each mask `(N, h, w)` in the colours of the wheel."""
    for index, mask in enumerate(masks):
        colour = Image.new("RGB", picture.size, f"hsl({index * 137 % 360}, 90%, 50%)")
        opacity = Image.fromarray((mask.to(torch.uint8) * round(255 * MASK_OPACITY)).contiguous().numpy())
        picture = Image.composite(colour, picture, opacity)
    return picture
