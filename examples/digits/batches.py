"""Batches of training scenes, drawn while the model computes."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detr_hf.data.digits import DigitScenes

from .recipe import Recipe, rank_and_world_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_SIZES_HW = (*((256, 256),) * 3, (224, 288), (288, 224), (192, 320), (320, 192), (288, 288), (224, 224))
# Training scenes are fuller than validation scenes (1 to 8 digits): more to learn from a picture of the same cost.
OBJECTS_PER_SCENE = {"pretrain": (6, 16), "detect": (2, 10)}
# From `late_step` to `small_until` every other batch shows many small digits, which are learnt last.
SMALL_DIGITS = {"objects_per_scene": (4, 14), "digit_px": (28, 64)}
FIRST_SCENE = {"pretrain": 0, "detect": 1_000_000}


class SceneBatches(Dataset):
    """Batches of training scenes, or this process's share of them in the second stage.

    A batch is a pure function of seed and step, so that a run can be resumed, by another number of processes too.
    """

    def __init__(self, recipe: Recipe, stage: str, first_step: int, last_step: int):
        self.scenes = DigitScenes("train", objects_per_scene=OBJECTS_PER_SCENE[stage], seed=recipe.seed)
        self.batch_size, self.first_step, self.last_step = recipe.batch_size, first_step, last_step
        self.first_scene = FIRST_SCENE[stage]
        # read here: the worker process that draws is in no group; and the first stage runs in one process
        self.rank, self.world_size = rank_and_world_size() if stage == "detect" else (0, 1)
        self.small_steps = range(recipe.late_step, recipe.small_until) if stage == "detect" else range(0)
        self.small_scenes = DigitScenes("train", seed=recipe.seed, **SMALL_DIGITS)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __getitem__(self, offset: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        step = self.first_step + offset
        size_hw = TRAIN_SIZES_HW[int(np.random.default_rng((self.scenes.seed, step)).integers(len(TRAIN_SIZES_HW)))]
        start = self.first_scene + step * self.batch_size
        scenes = self.small_scenes if step in self.small_steps and step % 2 else self.scenes
        mine = range(self.rank, self.batch_size, self.world_size)
        drawn = [scenes.draw(start + number, size_hw) for number in mine]
        pixels = torch.from_numpy(np.stack([np.asarray(scene["image"]) for scene in drawn]))  # (B, H, W, 3)
        return pixels, [to_target(scene) for scene in drawn]


def to_target(scene: dict) -> dict[str, Tensor]:
    """Class labels (N,) and boxes (N, 4), cxcywh in [0, 1], of one scene."""
    boxes_xywh = torch.tensor(scene["objects"]["bbox"], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]], dim=1)
    size = torch.tensor([scene["width"], scene["height"]] * 2, dtype=torch.float32)
    return {"class_labels": torch.tensor(scene["objects"]["category"], dtype=torch.int64), "boxes": boxes / size}


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W), in channels-last memory, as the image processor normalises."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def loader(recipe: Recipe, stage: str, first_step: int, last_step: int) -> DataLoader:
    """Batches in order, drawn in worker processes while the model computes."""
    batches = SceneBatches(recipe, stage, first_step, last_step)
    return DataLoader(batches, batch_size=None, num_workers=recipe.workers, prefetch_factor=4)
