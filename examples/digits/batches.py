"""Batches of training scenes: drawn by worker processes while the model computes, or on the model's device."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detr_hf.data.digits import DigitScenes

from .drawing import DrawnScenes, SceneDrawer, load_sheet
from .recipe import Recipe, rank_and_world_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_SIZES_HW = (*((256, 256),) * 3, (224, 288), (288, 224), (192, 320), (320, 192), (288, 288), (224, 224))
# Training scenes are fuller than validation scenes (1 to 8 digits): more to learn from a picture of the same cost.
OBJECTS_PER_SCENE = {"pretrain": (6, 16), "detect": (2, 10)}
# From `late_step` to `small_until` every other batch shows many small digits, which are learnt last.
SMALL_DIGITS = {"objects_per_scene": (4, 14), "digit_px": (28, 64)}
MOST_PADDING = 128  # pixels, below and to the right of the largest scene of a padded batch
FIRST_SCENE = {"pretrain": 0, "detect": 1_000_000}
# On a device: few sizes, as each costs a GPU seconds of planning, and those of validation more often in the end.
DRAWN_SIZES_HW = (*((256, 256),) * 3, (224, 288), (288, 224), (192, 320), (320, 192))
FINAL_SIZES_HW = (*((256, 256),) * 5, *DRAWN_SIZES_HW)


class SceneBatches(Dataset):
    """Batches of training scenes, or this process's share of them in the second stage.

    A batch is a pure function of seed and step, so that a run can be resumed, by another number of processes too.
    """

    def __init__(self, recipe: Recipe, stage: str, first_step: int, last_step: int):
        self.scenes = DigitScenes("train", objects_per_scene=OBJECTS_PER_SCENE[stage], seed=recipe.seed)
        self.batch_size, self.first_step, self.last_step = recipe.batch_size, first_step, last_step
        self.first_scene = FIRST_SCENE[stage]
        self.padded_fraction = recipe.padded_fraction if stage == "detect" else 0.0
        # read here: the worker process that draws is in no group; and the first stage runs in one process
        self.rank, self.world_size = rank_and_world_size() if stage == "detect" else (0, 1)
        self.small_steps = range(recipe.late_step, recipe.small_until) if stage == "detect" else range(0)
        self.small_scenes = DigitScenes("train", seed=recipe.seed, **SMALL_DIGITS)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __getitem__(self, offset: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        step = self.first_step + offset
        rng = np.random.default_rng((self.scenes.seed, step))
        sizes_hw = [TRAIN_SIZES_HW[int(rng.integers(len(TRAIN_SIZES_HW)))]] * self.batch_size
        canvas_hw = np.array(sizes_hw[0])
        if rng.random() < self.padded_fraction:
            sizes_hw = [TRAIN_SIZES_HW[place] for place in rng.integers(len(TRAIN_SIZES_HW), size=self.batch_size)]
            canvas_hw = np.max(sizes_hw, axis=0) + rng.integers(0, MOST_PADDING, size=2)
        start = self.first_scene + step * self.batch_size
        scenes = self.small_scenes if step in self.small_steps and step % 2 else self.scenes
        mine = range(self.rank, self.batch_size, self.world_size)
        drawn = [scenes.draw(start + number, sizes_hw[number]) for number in mine]
        pixels = torch.zeros(len(drawn), *map(int, canvas_hw), 3, dtype=torch.uint8)
        for picture, scene in zip(pixels, drawn, strict=True):
            picture[: scene["height"], : scene["width"]] = torch.from_numpy(np.array(scene["image"]))
        return pixels, [to_target(scene) for scene in drawn]


def to_target(scene: dict) -> dict[str, Tensor]:
    """Class labels (N,), boxes (N, 4), cxcywh in [0, 1], and size (2,), height and width, of one scene."""
    boxes_xywh = torch.tensor(scene["objects"]["bbox"], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]], dim=1)
    size_hw = torch.tensor([scene["height"], scene["width"]])
    labels = torch.tensor(scene["objects"]["category"], dtype=torch.int64)
    return {"class_labels": labels, "boxes": boxes / size_hw.flip(0).repeat(2), "size": size_hw}


def normalise(pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W), in channels-last memory, normalised and padded as by the processor."""
    mean, std = mean_and_std(pixels.device)
    normalised = (pixels.float() / 255 - mean) / std
    return (normalised if mask is None else normalised * mask[..., None]).permute(0, 3, 1, 2)


def padding_mask(pixels: Tensor, targets: list[dict[str, Tensor]]) -> Tensor | None:
    """(B, H, W), True on the scenes of `pixels` (B, H, W, 3); None where each fills its picture, as on a device."""
    if "size" not in targets[0]:
        return None
    sizes_hw = torch.stack([target["size"] for target in targets])
    if bool((sizes_hw == sizes_hw.new_tensor(pixels.shape[1:3])).all()):
        return None
    rows, columns = (torch.arange(length, device=pixels.device) for length in pixels.shape[1:3])
    return (rows < sizes_hw[:, :1])[:, :, None] & (columns < sizes_hw[:, 1:])[:, None, :]


@lru_cache
def mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """`MEAN` and `STD` on a device, copied there once: each copy would make the host wait."""
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)


def loader(recipe: Recipe, stage: str, first_step: int, last_step: int) -> DataLoader:
    """Batches in order, drawn in worker processes while the model computes."""
    batches = SceneBatches(recipe, stage, first_step, last_step)
    return DataLoader(batches, batch_size=None, num_workers=recipe.workers, prefetch_factor=4)


def drawn_batches(
    recipe: Recipe, device: torch.device | str, first_step: int, progress: Callable[[int], float]
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Batches of the second stage, drawn on `device`; the next one before this one is used, so that no step waits.

    Until the last `final_fraction` of the run, as `progress(step)` in [0, 1] tells it, every other batch shows many
    small digits; then scenes are like those of validation. A batch is a pure function of seed, step and kind of scene.

    Raises:
        ValueError: there are several processes.
    """
    if rank_and_world_size()[1] > 1:
        raise ValueError("Drawing on the device is for one process; start without torchrun, or give --draw workers.")
    sheet, (own, small) = load_sheet("train", device), (DigitScenes("train"), DigitScenes("train", **SMALL_DIGITS))
    kinds = {
        "full": (OBJECTS_PER_SCENE["detect"], own.digit_px),
        "small": (small.objects_per_scene, small.digit_px),
        "final": (own.objects_per_scene, own.digit_px),
    }
    drawers = {name: SceneDrawer(sheet, recipe.batch_size, *kind, seed=recipe.seed) for name, kind in kinds.items()}

    def draw(step: int) -> tuple[DrawnScenes, Tensor, torch.cuda.Event | None]:
        in_the_end = progress(step) >= 1 - recipe.final_fraction
        sizes = FINAL_SIZES_HW if in_the_end else DRAWN_SIZES_HW
        size_hw = sizes[int(np.random.default_rng((recipe.seed, step)).integers(len(sizes)))]
        drawer = drawers["final" if in_the_end else ("full", "small")[step % 2]]
        return begin_copy(drawer.draw(step, size_hw))

    ahead = draw(first_step)
    for step in range(first_step, recipe.steps):
        (scenes, counts, copied), ahead = ahead, draw(step + 1)
        if copied is not None:
            copied.synchronize()
        yield scenes.pixels, to_targets(scenes, counts.tolist())


def begin_copy(scenes: DrawnScenes) -> tuple[DrawnScenes, Tensor, torch.cuda.Event | None]:
    """The scenes, their counts on the host, and the event of a GPU that says when these have arrived."""
    if scenes.counts.device.type != "cuda":
        return scenes, scenes.counts, None
    counts = torch.empty(scenes.counts.shape, dtype=scenes.counts.dtype, pin_memory=True)
    counts.copy_(scenes.counts, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return scenes, counts, copied


def to_targets(scenes: DrawnScenes, counts: list[int]) -> list[dict[str, Tensor]]:
    """As `to_target`, for every scene of a batch whose `counts` are known."""
    height, width = scenes.pixels.shape[1:3]
    upper, lower = scenes.boxes_xyxy_abs.split(2, dim=-1)
    size = torch.tensor([width, height]).to(upper.device, non_blocking=True)
    boxes = torch.cat([(upper + lower) / 2 / size, (lower - upper) / size], dim=-1)
    rows = zip(scenes.labels, boxes, counts, strict=True)
    return [{"class_labels": labels[:count], "boxes": these[:count]} for labels, these, count in rows]
