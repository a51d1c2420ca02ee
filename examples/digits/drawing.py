"""Batches of training scenes drawn where the model computes, some ten times as many a second as worker processes draw.

A scene has the distribution of `detr_hf.data.digits.DigitScenes`, from the same pictures: backgrounds are resampled as
Pillow does it (a triangle filter each way), digits are Pillow's bicubic enlargement, made once and
read bilinearly, and boxes are measured on the drawn ink. What differs on purpose: a batch is drawn at once, without a
host sync, and the numbers come from torch, so scene by scene they are other scenes. Nothing is validated on these.

Dimension letters: B scenes, N digits of a scene, P side of a digit's patch in pixels, T tries to place it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from detr_hf.data.digits import MAX_COVERAGE, PLACEMENT_TRIES, RIM, load_sources

ENLARGED = 8  # samples of a kept digit for each of its cells, each way
INK_DISTANCE = (70, 200)  # levels between ink and the background under it
INK_LEVELS = (5, 250)


class Sheet(NamedTuple):
    """What scenes are drawn from, on one device.

    `photographs (F, h, 3, w)` float32 in [0, 255]; `digits (G, E, E)` uint8 with rim, enlarged, sorted by class: the
    images of a class begin at `starts (10,)` and are `numbers (10,)` many.
    """

    photographs: Tensor
    digits: Tensor
    starts: Tensor
    numbers: Tensor

    @property
    def cells(self) -> int:
        """Cells of a digit with its rim, each way."""
        return self.digits.shape[-1] // ENLARGED


class Views(NamedTuple):
    """Which part of a photograph is a background, and how it is lit; `(B,)` each, `gains` `(B, 3)`."""

    photograph: Tensor
    scale: Tensor
    x0: Tensor
    y0: Tensor
    mirrored: Tensor
    flipped: Tensor
    gains: Tensor
    offset: Tensor


class Shapes(NamedTuple):
    """Which digit is drawn, and how it is warped; `(B, N)` each, `cell` is the side of one of its cells in pixels."""

    digit: Tensor
    cell: Tensor
    angle: Tensor
    shear: Tensor
    stretch: Tensor
    threshold: Tensor
    softness: Tensor


class Inks(NamedTuple):
    """Colour of a digit relative to its background: `(B, N)` each, `tint` `(B, N, 3)`."""

    distance: Tensor
    lighter: Tensor
    tint: Tensor
    opacity: Tensor


class DrawnScenes(NamedTuple):
    """A batch: `pixels (B, H, W, 3)` uint8; the first `counts (B,)` of `labels (B, N)`, `boxes_xyxy_abs (B, N, 4)`."""

    pixels: Tensor
    labels: Tensor
    boxes_xyxy_abs: Tensor
    counts: Tensor


def load_sheet(split: str, device: torch.device | str) -> Sheet:
    """The pictures of one split (see `load_sources`), on a device."""
    sources = load_sources(split)
    images = [image for label in sorted(sources.digits) for image in sources.digits[label]]
    numbers = torch.tensor([len(sources.digits[label]) for label in sorted(sources.digits)])
    photographs = np.stack([np.asarray(photograph) for photograph in sources.photographs])
    return Sheet(
        torch.from_numpy(photographs).to(device).permute(0, 1, 3, 2).float().contiguous(),
        torch.from_numpy(np.stack([enlarge(image) for image in images])).to(device),
        (numbers.cumsum(0) - numbers).to(device),
        numbers.to(device),
    )


def enlarge(grey: np.ndarray) -> np.ndarray:
    """Pillow's bicubic enlargement of a digit `(12, 12) uint8`, `ENLARGED` times each way."""
    size = (grey.shape[1] * ENLARGED, grey.shape[0] * ENLARGED)
    matrix = (1 / ENLARGED, 0, 0, 0, 1 / ENLARGED, 0)
    return np.array(Image.fromarray(grey).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def resampling_weights(start: Tensor, scale: Tensor, reverse: Tensor, source: int, length: int) -> Tensor:
    """Weights `(B, source, length)` by which Pillow's bilinear `resize` makes `length` pixels of a `source`.

    Output pixel k looks at the input around `start + (k + 0.5) * scale`; counted from the end where `reverse`.
    """
    number = torch.arange(length, device=start.device) + 0.5
    centre = torch.where(reverse[:, None], length - number, number) * scale[:, None] + start[:, None]
    distance = torch.arange(source, device=start.device)[:, None] + 0.5 - centre[:, None]
    weights = (1 - distance.abs() / scale.clamp(min=1)[:, None, None]).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def draw_backgrounds(sheet: Sheet, views: Views, size_hw: tuple[int, int]) -> Tensor:
    """Parts of photographs, scaled, mirrored and re-lit: `(B, 3, H, W)` float32, whole levels."""
    whole = sheet.photographs[views.photograph]
    height, width = size_hw
    columns = resampling_weights(views.x0, views.scale, views.mirrored, whole.shape[3], width)
    rows = resampling_weights(views.y0, views.scale, views.flipped, whole.shape[1], height)
    lines = (rows.transpose(1, 2) @ whole.flatten(2)).unflatten(2, whole.shape[2:])  # (B, H, 3, w)
    parts = (lines.flatten(1, 2) @ columns).unflatten(1, (height, 3)).transpose(1, 2)
    return (parts.round() * views.gains[..., None, None] + views.offset[:, None, None, None]).clamp(0, 255).floor()


def warp_digits(sheet: Sheet, shapes: Shapes, side: int) -> Tensor:
    """Alpha `(B, N, P, P)` in [0, 1] of warped digits, `P = side`, each in the upper left of its patch."""
    cos, sin = shapes.angle.cos(), shapes.angle.sin()
    across = shapes.cell * shapes.stretch
    to_x = ((cos + shapes.shear * sin) / across, (sin - shapes.shear * cos) / across)
    to_y = (-sin / shapes.cell, cos / shapes.cell)
    # the digit's middle lies in the middle of a square that just holds it
    middle = (shapes.cell * sheet.cells * 1.1).ceil()[..., None] / 2
    offset = torch.arange(side, device=middle.device) + 0.5 - middle  # (B, N, P)
    x, y = (
        (a[..., None] * offset)[..., None, :] + (b[..., None] * offset)[..., :, None] for a, b in (to_x, to_y)
    )  # (B, N, P, P), in cells from the middle
    grid = torch.stack([x, y], dim=-1).flatten(0, 1) * (2 / sheet.cells)
    images = sheet.digits[shapes.digit.flatten()][:, None].float() / 255
    grey = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).view_as(x)
    return ((grey - shapes.threshold[..., None, None]) / shapes.softness[..., None, None] + 0.5).clamp(0, 1)


def ink_boxes(alpha: Tensor) -> Tensor:
    """Smallest boxes `(B, N, 4)`, xyxy in pixels of the patch, around all pixels covered by half or more."""
    ink = alpha >= 0.5
    side = alpha.shape[-1]
    number = torch.arange(side, device=alpha.device)
    columns, rows = ink.any(dim=-2), ink.any(dim=-1)  # (B, N, P)
    first = [torch.where(line, number, side).amin(dim=-1) for line in (columns, rows)]
    last = [torch.where(line, number + 1, 0).amax(dim=-1) for line in (columns, rows)]
    return torch.stack([*first, *last], dim=-1)


def place_digits(ink_wh: Tensor, tries: Tensor, wanted: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes `(B, N, 4)`, xyxy in pixels, that cover each other little, and which digits found a place `(B, N)`.

    Args:
        ink_wh: (B, N, 2), sizes of the boxes.
        tries: (B, N, T, 2), where to try, in [0, 1) of the room that there is.
        wanted: (B, N) bool; other digits get no place.
        size_hw: of the scene.
    """
    room = torch.tensor([size_hw[1], size_hw[0]]).to(ink_wh.device, non_blocking=True) - ink_wh
    corners = (tries * (room + 1)[:, :, None]).floor()  # (B, N, T, 2)
    candidates = torch.cat([corners, corners + ink_wh[:, :, None]], dim=-1)
    possible = (room >= 0).all(dim=-1) & wanted
    boxes, found = torch.zeros_like(candidates[:, :, 0]), torch.zeros_like(wanted)
    for number in range(ink_wh.shape[1]):
        candidate, others = candidates[:, number], boxes[:, None, :number]  # (B, T, 4), (B, 1, n, 4)
        upper = torch.maximum(candidate[:, :, None, :2], others[..., :2])
        lower = torch.minimum(candidate[:, :, None, 2:], others[..., 2:])
        overlap = (lower - upper).clamp(min=0).prod(dim=-1)  # (B, T, n); a digit without a place has an empty box
        smaller = torch.minimum(
            ink_wh[:, number].prod(-1)[:, None], (others[..., 2:] - others[..., :2]).prod(-1)[:, 0]
        )
        free = (overlap <= MAX_COVERAGE * smaller[:, None]).all(dim=-1)  # (B, T)
        place = candidate.gather(1, free.byte().argmax(dim=1)[:, None, None].expand(-1, 1, 4))[:, 0]
        found[:, number] = free.any(dim=1) & possible[:, number]
        boxes[:, number] = torch.where(found[:, number, None], place, 0)
    return boxes, found


def choose_colours(inks: Inks, level: Tensor, number: int) -> Tensor:
    """Colours `(B, 3)` of digit `number`, whose mean is about 70 levels or more from the background's `level (B,)`."""
    nearest, (darkest, lightest) = INK_DISTANCE[0], INK_LEVELS
    wish = inks.lighter[:, number]
    lighter = torch.where(wish, level + nearest <= lightest, level - nearest < darkest)
    distance, tint = inks.distance[:, number], inks.tint[:, number]
    target = torch.where(lighter, level + distance, level - distance).clamp(darkest, lightest)
    return (target[:, None] + tint - tint.mean(dim=-1, keepdim=True)).clamp(0, 255)


def paint(canvas: Tensor, alpha: Tensor, boxes: Tensor, ink_xyxy: Tensor, found: Tensor, inks: Inks) -> Tensor:
    """Blends the digits into `canvas (B, 3, H, W)`, one after the other; see `ink_boxes` and `place_digits`."""
    (height, width), side = canvas.shape[-2:], alpha.shape[-1]
    # the last pixel of a row of the flat picture takes what lies outside it
    flat = F.pad(canvas.flatten(2), (0, 1))
    number = torch.arange(side, device=canvas.device)
    for index in range(alpha.shape[1]):
        ink = ink_xyxy[:, index, :, None]  # (B, 4, 1)
        xs, ys = (boxes[:, index, axis, None].long() - ink[:, axis] + number for axis in (0, 1))  # (B, P)
        inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None]
        where = torch.where(inside, ys[:, :, None] * width + xs[:, None], height * width)
        where = where.flatten(1)[:, None].expand(-1, 3, -1)  # (B, 3, P * P)
        region = flat.gather(2, where)
        in_box = [(number >= ink[:, axis]) & (number < ink[:, axis + 2]) for axis in (0, 1)]  # x, y: (B, P)
        in_box = (in_box[1][:, :, None] & in_box[0][:, None]).flatten(1)
        level = (region.mean(dim=1) * in_box).sum(dim=1) / in_box.sum(dim=1)
        colours = choose_colours(inks, level, index)
        cover = alpha[:, index].flatten(1) * (inks.opacity[:, index] * found[:, index])[:, None]
        flat.scatter_(2, where, (region + cover[:, None] * (colours[..., None] - region)).floor())
    return flat[..., :-1].view_as(canvas)


class SceneDrawer:
    """Draws batches of scenes on a device: `drawer.draw(step, size_hw)` is a pure function of seed, step and options.

    On another kind of device the same seed gives other scenes.

    Args:
        sheet: the pictures, see `load_sheet`.
        batch_size: scenes of a batch.
        objects_per_scene, digit_px: as in `DigitScenes`.
        seed: another seed gives other scenes.
    """

    def __init__(
        self,
        sheet: Sheet,
        batch_size: int,
        objects_per_scene: tuple[int, int],
        digit_px: tuple[float, float],
        seed: int = 0,
    ):
        self.sheet, self.batch_size, self.seed = sheet, batch_size, seed
        self.objects_per_scene, self.digit_px = objects_per_scene, digit_px
        self.generator = torch.Generator(sheet.digits.device)

    def draw(self, step: int, size_hw: tuple[int, int]) -> DrawnScenes:
        """The scenes of one step, `H, W = size_hw`."""
        self.generator.manual_seed(int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0]))
        views, wanted = self._choose_views(size_hw)
        labels, shapes, inks, tries = self._choose_digits()
        side = math.ceil(self.digit_px[1] / (self.sheet.cells - 2 * RIM) * self.sheet.cells * 1.1)
        alpha = warp_digits(self.sheet, shapes, side)
        ink_xyxy = ink_boxes(alpha)
        ink_wh = ink_xyxy[..., 2:] - ink_xyxy[..., :2]
        boxes, found = place_digits(ink_wh, tries, wanted, size_hw)
        canvas = paint(draw_backgrounds(self.sheet, views, size_hw), alpha, boxes, ink_xyxy, found, inks)
        order = found.byte().argsort(dim=1, descending=True, stable=True)  # those with a place come first
        return DrawnScenes(
            canvas.byte().permute(0, 2, 3, 1).contiguous(),
            labels.gather(1, order),
            boxes.gather(1, order[..., None].expand(-1, -1, 4)),
            found.sum(dim=1),
        )

    def _random(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), `(B, *shape)`."""
        return torch.rand(self.batch_size, *shape, generator=self.generator, device=self.sheet.digits.device)

    def _choose_views(self, size_hw: tuple[int, int]) -> tuple[Views, Tensor]:
        """Views of photographs, and which of N digits are wanted in each scene `(B, N)`."""
        height, width = size_hw
        photographs, full_height, _, full_width = self.sheet.photographs.shape
        which, scale, x0, y0, mirrored, flipped, gain, offset, count = self._random(9).unbind(-1)
        scale = min(full_width / width, full_height / height) * between(scale, 0.4, 1.0)
        views = Views(
            photograph=(which * photographs).long(),
            scale=scale,
            x0=x0 * (full_width - width * scale),
            y0=y0 * (full_height - height * scale),
            mirrored=mirrored < 0.5,
            flipped=flipped < 0.25,
            gains=between(gain, 0.6, 1.15)[:, None] * between(self._random(3), 0.9, 1.1),
            offset=between(offset, -20, 30),
        )
        fewest, most = self.objects_per_scene
        count = fewest + (count * (most + 1 - fewest)).floor()
        return views, torch.arange(most, device=count.device) < count[:, None]

    def _choose_digits(self) -> tuple[Tensor, Shapes, Inks, Tensor]:
        """Labels `(B, N)`, shapes, inks, and places to try `(B, N, T, 2)`."""
        number = self.objects_per_scene[1]
        label, image, size, angle, shear, stretch, threshold, softness, distance, lighter, opacity = self._random(
            number, 11
        ).unbind(-1)
        labels = (label * len(self.sheet.numbers)).long()
        smallest, largest = self.digit_px
        size_px = between(size, math.log(smallest), math.log(largest)).exp()
        shapes = Shapes(
            digit=self.sheet.starts[labels] + (image * self.sheet.numbers[labels]).long(),
            cell=size_px / (self.sheet.cells - 2 * RIM),
            angle=between(angle, -12, 12) * (math.pi / 180),
            shear=between(shear, -0.15, 0.15),
            stretch=between(stretch, 0.85, 1.15),
            threshold=between(threshold, 0.4, 0.55),
            softness=between(softness, 0.1, 0.4),
        )
        inks = Inks(
            distance=between(distance, *INK_DISTANCE),
            lighter=lighter < 0.5,
            tint=between(self._random(number, 3), -60, 60),
            opacity=between(opacity, 0.85, 1.0),
        )
        return labels, shapes, inks, self._random(number, PLACEMENT_TRIES, 2)


def between(share: Tensor, low: float, high: float) -> Tensor:
    """Maps [0, 1) to [low, high)."""
    return low + share * (high - low)
