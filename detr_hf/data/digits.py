"""Endless digit scenes: real handwritten digits drawn on parts of real photographs, with COCO-style boxes.

The pictures come from scikit-learn (`load_digits`: 1797 digits of 8x8 pixels; `load_sample_images`: two photographs,
CC BY 2.0), so a detector can be trained and measured on a machine without a network. Scene number `index` is a pure
function of `(seed, split, index)` and of the drawing options: nothing is stored, any worker can draw any scene, and a
validation set is just the first scenes of its split. The two splits share neither a digit image nor a region of a
photograph.

A box is measured on the drawn ink, after the warp: it is the smallest one around all pixels that the ink covers by
half or more. With `masks`, digits are things and two kinds of background are stuff: a photograph each, which meet
along a curve. A digit's mask is the ink that its box is measured on, without what a later digit covers.
"""

import json
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..processing.run_lengths_detr import run_lengths

SPLITS = ("train", "validation")
# Every sixth image of a class validates; the photographs are cut at this fraction of their width.
VALIDATION_EVERY = 6
TRAIN_WIDTH_FRACTION = 0.7
# The part of the smaller box that another digit's box may cover: a drawn digit stays readable.
MAX_COVERAGE = 0.15
PLACEMENT_TRIES = 12
# An 8x8 digit gets this empty rim before it is warped, so that strokes at the border keep their round ends.
RIM = 2
SMALLEST_LEGIBLE_PX = 10
# The stuff classes, one a photograph, in the order in which scikit-learn has them.
STUFF = ("temple", "flower")


class Sources(NamedTuple):
    """What one split is drawn from: digits as `class -> (N, 12, 12) uint8` (with rim), photographs as PIL pictures."""

    digits: dict[int, np.ndarray]
    photographs: tuple[Image.Image, ...]


class DrawnDigit(NamedTuple):
    """A warped digit: `alpha (h, w)` float32 in [0, 1], and the ink's box inside it, `(x0, y0, x1, y1)` in pixels."""

    alpha: np.ndarray
    ink_xyxy: tuple[int, int, int, int]


def split_digit_indices(targets: np.ndarray, split: str) -> dict[int, np.ndarray]:
    """Returns where one split's images are in `targets (N,)`, by class; the splits are disjoint and complete."""
    indices = {}
    for digit in np.unique(targets):
        positions = np.flatnonzero(targets == digit)
        validates = np.arange(len(positions)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        indices[int(digit)] = positions[validates if split == "validation" else ~validates]
    return indices


def split_region(width: int, height: int, split: str) -> tuple[int, int, int, int]:
    """Returns the part `(x0, y0, x1, y1)` of a photograph for a split: train has the left, validation the right."""
    cut = round(width * TRAIN_WIDTH_FRACTION)
    return (0, 0, cut, height) if split == "train" else (cut, 0, width, height)


@lru_cache(maxsize=len(SPLITS))
def load_sources(split: str) -> Sources:
    """Returns digits and photographs of one split, read once a process.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            "Digit scenes are drawn from scikit-learn's digits and photographs, and scikit-learn is not installed. "
            "Install it with `pip install scikit-learn` or `pip install detr_hf[train]`."
        ) from error
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    grey = np.pad(grey, ((0, 0), (RIM, RIM), (RIM, RIM)))
    digits = {digit: grey[positions] for digit, positions in split_digit_indices(data.target, split).items()}
    photographs = []
    for pixels in load_sample_images().images:
        photograph = Image.fromarray(pixels)
        photographs.append(photograph.crop(split_region(*photograph.size, split)))
    return Sources(digits, tuple(photographs))


def draw_background(
    rng: np.random.Generator, photographs: tuple[Image.Image, ...], size_hw: tuple[int, int]
) -> np.ndarray:
    """Returns a part of a photograph, scaled, mirrored and re-lit: `(H, W, 3)` uint8."""
    height, width = size_hw
    photograph = photographs[rng.integers(len(photographs))]
    largest = min(photograph.width / width, photograph.height / height)
    scale = largest * rng.uniform(0.4, 1.0)
    part_w, part_h = width * scale, height * scale
    x0, y0 = rng.uniform(0, photograph.width - part_w), rng.uniform(0, photograph.height - part_h)
    part = photograph.resize((width, height), Image.Resampling.BILINEAR, box=(x0, y0, x0 + part_w, y0 + part_h))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        part = part.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    gains, offset = rng.uniform(0.6, 1.15) * rng.uniform(0.9, 1.1, size=(3, 1)), rng.uniform(-20, 30)
    levels = np.clip(np.arange(256) * gains + offset, 0, 255)
    return np.array(part.point(levels.astype(np.uint8).ravel().tolist()))


def draw_curve(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Returns `(H, W)` bool: one side of a wave across the picture, through its middle part at any angle."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wave = rng.uniform(0.02, 0.12) * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * along + rng.random()))
    return across > wave + rng.uniform(-0.25, 0.25)


def warp_digit(rng: np.random.Generator, grey: np.ndarray, size_px: float) -> DrawnDigit:
    """Returns a digit `(12, 12) uint8` enlarged, turned and sheared; its 8 rows become about `size_px` pixels."""
    cell = size_px / (grey.shape[0] - 2 * RIM)
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    stretch = rng.uniform(0.85, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([cell * stretch, cell])
    inverse = np.linalg.inv(forward)
    side = int(np.ceil(cell * grey.shape[0] * 1.1))
    offset = grey.shape[0] / 2 - inverse @ np.array([side / 2, side / 2])
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    picture = Image.fromarray(grey).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    # A soft threshold turns the blurred 8x8 enlargement into strokes; it keeps the grey of a nearly closed loop.
    threshold, softness = rng.uniform(0.4, 0.55), rng.uniform(0.1, 0.4)
    alpha = np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)
    alpha = np.clip((alpha - threshold) / softness + 0.5, 0, 1)
    ink = alpha >= 0.5
    columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    return DrawnDigit(alpha, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def find_place(
    rng: np.random.Generator,
    ink_wh: tuple[int, int],
    size_hw: tuple[int, int],
    placed_xyxy: list[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """Returns a left upper corner `(x, y)` where a box of `ink_wh` covers no other much (`MAX_COVERAGE`), or None."""
    ink_w, ink_h = ink_wh
    room_w, room_h = size_hw[1] - ink_w, size_hw[0] - ink_h
    if room_w < 0 or room_h < 0:
        return None
    for _ in range(PLACEMENT_TRIES):
        x, y = int(rng.integers(room_w + 1)), int(rng.integers(room_h + 1))
        for x0, y0, x1, y1 in placed_xyxy:
            overlap = max(0, min(x + ink_w, x1) - max(x, x0)) * max(0, min(y + ink_h, y1) - max(y, y0))
            if overlap > MAX_COVERAGE * min(ink_w * ink_h, (x1 - x0) * (y1 - y0)):
                break
        else:
            return x, y
    return None


def choose_ink(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Returns a colour `(3,)` in [0, 255] whose mean is some 70 levels or more from that of `background (h, w, 3)`."""
    level = float(background.mean())
    distance = rng.uniform(70, 200)
    lighter = (rng.random() < 0.5 or level < 75) and level <= 180  # towards the side that has room for it
    target = min(level + distance, 250) if lighter else max(level - distance, 5)
    tint = rng.uniform(-60, 60, size=3)
    return np.clip(target + tint - tint.mean(), 0, 255).astype(np.float32)


def paint(canvas: np.ndarray, drawn: DrawnDigit, x: int, y: int, ink: np.ndarray, opacity: float) -> None:
    """Blends a digit into `canvas (H, W, 3)` uint8 in place, its ink's corner at `(x, y)`; the rest is cut."""
    height, width = canvas.shape[:2]
    left, top = x - drawn.ink_xyxy[0], y - drawn.ink_xyxy[1]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + drawn.alpha.shape[1], width), min(top + drawn.alpha.shape[0], height)
    alpha = drawn.alpha[y0 - top : y1 - top, x0 - left : x1 - left, None] * np.float32(opacity)
    region = canvas[y0:y1, x0:x1].astype(np.float32)
    canvas[y0:y1, x0:x1] = region + alpha * (ink - region)


class DigitScenes(Dataset):
    """Digit scenes as a map-style data set: `scenes[index]` draws scene `index`, in a few milliseconds at 256 pixels.

    Args:
        split: `"train"` or `"validation"`: disjoint digit images on disjoint parts of the photographs.
        length: what `len()` answers; scenes beyond it can still be drawn, up to any index.
        size_hw: height and width of a scene in pixels.
        classes: the digits that appear; label `i` stands for the digit `classes[i]`.
        objects_per_scene: fewest and most digits of a scene, both included. A digit that finds no place is left out
            (never the first).
        digit_px: smallest and largest height of a digit's 8 rows in pixels; by default 1/8 and 7/16 of the shorter
            side (32 and 112 pixels of 256), but no smaller than 10 pixels.
        seed: another seed gives other scenes from the same pictures.
        masks: objects have masks too, and the two kinds of background are objects of the two classes after the
            digits'. These scenes are others than those without.

    An item is `{"image_id", "image" (PIL, RGB), "width", "height", "objects"}`. `objects` has the equally long lists
    `id`, `bbox` (`[x, y, width, height]` in pixels of the scene), `category` (labels), `area` and `iscrowd`, with
    `masks` also `segmentation` (COCO run lengths as text, which do not overlap): the schema of `detr_hf.data`.

    Raises:
        ValueError: an option is out of range; the message says which and what is possible.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 4000,
        size_hw: tuple[int, int] = (256, 256),
        classes: tuple[int, ...] = tuple(range(10)),
        objects_per_scene: tuple[int, int] = (1, 8),
        digit_px: tuple[float, float] | None = None,
        seed: int = 0,
        masks: bool = False,
    ):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; digit scenes have {' and '.join(map(repr, SPLITS))}.")
        unknown = [digit for digit in classes if digit not in range(10)]
        if unknown or not classes or len(set(classes)) != len(classes):
            raise ValueError(f"classes is {tuple(classes)}; give one or more different digits from 0 to 9.")
        fewest, most = objects_per_scene
        if not 0 <= fewest <= most:
            raise ValueError(
                f"objects_per_scene is {objects_per_scene}; give (fewest, most) with 0 <= fewest <= most."
            )
        shorter = min(size_hw)
        if digit_px is None:
            smallest = max(SMALLEST_LEGIBLE_PX, shorter / 8)
            digit_px = (smallest, max(smallest, shorter * 7 / 16))
        if not 4 <= digit_px[0] <= digit_px[1] <= shorter * 0.7:
            raise ValueError(
                f"digit_px is {digit_px} for scenes of {size_hw}; give (smallest, largest) with 4 <= smallest <= "
                f"largest <= {shorter * 0.7:.0f} (0.7 of the shorter side, so that a turned digit fits)."
            )
        self.split, self.length, self.seed = split, int(length), int(seed)
        self.size_hw = (int(size_hw[0]), int(size_hw[1]))
        self.classes = tuple(int(digit) for digit in classes)
        self.objects_per_scene = (int(fewest), int(most))
        self.digit_px = (float(digit_px[0]), float(digit_px[1]))
        self.masks = masks

    @property
    def id2label(self) -> dict[int, str]:
        """Returns the name by label, as a model's config wants it."""
        names = [str(digit) for digit in self.classes] + (list(STUFF) if self.masks else [])
        return dict(enumerate(names))

    @property
    def is_thing(self) -> list[bool] | None:
        """Returns, with masks and by label, whether the class is countable."""
        return [True] * len(self.classes) + [False] * len(STUFF) if self.masks else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += self.length
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return self.draw(index)

    def draw(self, index: int, size_hw: tuple[int, int] | None = None) -> dict[str, Any]:
        """Returns scene `index >= 0` (also beyond `len(self)`), at another size if one is given; see the class."""
        size_hw = self.size_hw if size_hw is None else size_hw
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        sources = load_sources(self.split)
        if self.masks:
            two = [draw_background(rng, (photograph,), size_hw) for photograph in sources.photographs]
            side = draw_curve(rng, size_hw)
            canvas = np.where(side[..., None], *two)
            owner = np.where(side, -2, -1)  # the digit's number, or below it the stuff's
        else:
            canvas = draw_background(rng, sources.photographs, size_hw)
            owner = None
        wanted = int(rng.integers(self.objects_per_scene[0], self.objects_per_scene[1] + 1))
        labels: list[int] = []
        boxes_xyxy: list[tuple[int, int, int, int]] = []
        for _ in range(wanted):
            label = int(rng.integers(len(self.classes)))
            images = sources.digits[self.classes[label]]
            size_px = float(np.exp(rng.uniform(*np.log(self.digit_px))))
            drawn = warp_digit(rng, images[rng.integers(len(images))], size_px)
            x0, y0, x1, y1 = drawn.ink_xyxy
            place = find_place(rng, (x1 - x0, y1 - y0), size_hw, boxes_xyxy)
            if place is None:
                continue
            x, y = place
            ink = choose_ink(rng, canvas[y : y + y1 - y0, x : x + x1 - x0])
            paint(canvas, drawn, x, y, ink, opacity=rng.uniform(0.85, 1.0))
            if owner is not None:
                owner[y : y + y1 - y0, x : x + x1 - x0][drawn.alpha[y0:y1, x0:x1] >= 0.5] = len(labels)
            labels.append(label)
            boxes_xyxy.append((x, y, x + x1 - x0, y + y1 - y0))
        item = self._item(index, canvas, labels, boxes_xyxy)
        return item if owner is None else self._with_masks(item, owner)

    def _with_masks(self, item: dict[str, Any], owner: np.ndarray) -> dict[str, Any]:
        """Returns the scene with the masks of its objects, and its stuff as objects; `owner` is `(H, W)`."""
        objects = item["objects"]
        for number in range(len(STUFF)):
            rows, columns = np.nonzero(owner == number - 2)
            if len(rows):
                left, top = int(columns.min()), int(rows.min())
                box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
                objects["bbox"].append([float(value) for value in box])
                objects["category"].append(len(self.classes) + number)
                objects["iscrowd"].append(0)
        digits = sum(label < len(self.classes) for label in objects["category"])
        numbers = [*range(digits), *(label - len(self.classes) - 2 for label in objects["category"][digits:])]
        masks = [owner == number for number in numbers]
        most = max(self.objects_per_scene[1], 1) + len(STUFF)
        objects["id"] = [item["image_id"] * most + number + 1 for number in range(len(masks))]
        objects["area"] = [float(mask.sum()) for mask in masks]
        objects["segmentation"] = [json.dumps(run_lengths(mask)) for mask in masks]
        return item

    def _item(
        self, index: int, pixels: np.ndarray, labels: list[int], boxes_xyxy: list[tuple[int, int, int, int]]
    ) -> dict[str, Any]:
        most = max(self.objects_per_scene[1], 1)
        bbox = [[float(x0), float(y0), float(x1 - x0), float(y1 - y0)] for x0, y0, x1, y1 in boxes_xyxy]
        return {
            "image_id": index,
            "image": Image.fromarray(pixels),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "objects": {
                "id": [index * most + number + 1 for number in range(len(labels))],
                "bbox": bbox,
                "category": labels,
                "area": [w * h for _, _, w, h in bbox],
                "iscrowd": [0] * len(labels),
            },
        }
