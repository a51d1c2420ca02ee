"""What the convergence benchmark trains on: digit scenes on a frozen backbone, or the pictures of a data set, on a
backbone that trains or (`Settings.crops`) on one that is frozen.

Everything is held in memory, as uint8 pictures or as feature maps, and a batch is a pure function of seed and step:
all arms see the same pictures in the same order with the same augmentation.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_hf.data.digits import DigitScenes
from detr_hf.data.loading import load_detection_dataset
from detr_hf.data.pictures import load_pixels
from detr_hf.model.matcher_detr import PackedTargets
from detr_hf.model.training_aids_detr import FeatureFrame, assign_tokens

from .convergence_features import ONE_MAP, Shape, features_of, frozen_task, weights_digest

logger = logging.getLogger(__name__)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
DIGITS_PX = 128
DIGIT_CLASSES = (0, 1, 4, 7)
DIGIT_SIZES_PX = (28, 64)
DIGITS_PER_SCENE = (1, 4)
DIGIT_BACKBONE = {
    "backbone": "resnet18",
    "backbone_kwargs": {"channels": [32, 64, 128, 192], "layers": [1, 1, 1, 1], "stem_type": "deep", "stem_width": 8},
    "dilation": True,
}
TRAIN_SCENES, VALIDATION_SCENES = 4000, 256
PRETRAIN_STEPS, PRETRAIN_BATCH = 700, 16
SMALLEST_CROP = 0.6  # of a picture's side
LARGEST_STRIDE = 32
LEAST_VISIBLE = 0.3  # of an object's area, for a crop to keep it


@dataclass
class Pictures:
    """One split: `pixels` (N, C, H, W), uint8 pictures or features; `masks` (N, H, W) or None; targets in cxcywh."""

    pixels: Tensor
    masks: Tensor | None
    targets: list[dict[str, Tensor]]
    truth: dict[str, Any]
    sizes_hw: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Task:
    """Data and what the arms share: classes, backbone, whether `pixels` are feature maps of a frozen backbone, and the
    shapes of these."""

    id2label: dict[int, str]
    train: Pictures
    validation: Pictures
    backbone: dict[str, Any]
    are_features: bool
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    shapes: list[Shape] = field(default_factory=list)

    def batch(self, seed: int, step: int, size: int, device: str) -> tuple[Tensor, Tensor | None, list[dict]]:
        """Returns pixels, mask and targets of training step `step`."""
        train = self.train
        per_epoch = len(train.pixels) // size
        order = np.random.default_rng((seed, step // per_epoch)).permutation(len(train.pixels))
        chosen = order[step % per_epoch * size :][:size]
        targets = [train.targets[index] for index in chosen]
        if self.are_features:
            masks = None if train.masks is None else train.masks[chosen].to(device).long()
            return train.pixels[chosen].to(device).float(), masks, _moved(targets, device)
        rng = np.random.default_rng((seed, step, 1))
        pixels = train.pixels[chosen].to(device)
        drawn = [
            crop_and_flip(rng, pixels[number], target, train.sizes_hw[index])
            for number, (index, target) in enumerate(zip(chosen, targets, strict=True))
        ]
        return (
            self.normalise(torch.stack([picture for picture, _ in drawn])),
            train.masks[chosen].to(device),
            _moved([target for _, target in drawn], device),
        )

    def validation_batches(self, size: int, device: str):
        """Yields pixels and mask of all validation pictures, in order."""
        for start in range(0, len(self.validation.pixels), size):
            pixels, masks = self.validation.pixels[start : start + size].to(device), self.validation.masks
            masks = None if masks is None else masks[start : start + size].to(device).long()
            yield pixels.float() if self.are_features else self.normalise(pixels), masks

    def normalise(self, pixels: Tensor) -> Tensor:
        """Returns uint8 pixels (B, 3, H, W) as normalised float."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@dataclass
class Settings:
    """What all arms of a run share. `data` is "digits", or a data set's folder."""

    data: str = "digits"
    work: str = "runs/convergence"
    steps: int = 1500
    eval_every: int = 100
    batch: int = 16
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 1e-4
    clip: float = 0.1
    hidden_dim: int = 64
    nheads: int = 4
    layers: int = 3
    num_queries: int = 16
    dropout: float = 0.0
    device: str = "cpu"
    side: int = 384
    backbone: str = "resnet50"
    backbone_weights: str | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    processes: int = 2
    crops: int = 0  # of a picture, as features of a frozen backbone; 0: the backbone trains

    def task(self, maps: Sequence[int] = ONE_MAP) -> Task:
        """Reads or makes the data; features where the backbone is frozen, those of `maps`."""
        if self.data == "digits":
            return digit_task(Path(self.work), self.processes, maps)
        return frozen_task(self, maps) if self.crops else self.pictures()

    def pictures(self) -> Task:
        """Reads the pictures of a data set."""
        if self.backbone_weights is None:
            raise ValueError("Pictures need a pretrained backbone: give --backbone-weights a file.")
        return picture_task(self.data, self.side, self.backbone, self.backbone_weights, self.mean, self.std)

    def to_record(self) -> dict[str, Any]:
        """Returns what a run depends on, without the folders of this machine: two equal ones may be compared."""
        found = {name: value for name, value in asdict(self).items() if name not in ("work", "processes")}
        weights = self.backbone_weights
        named = weights and f"{Path(weights).name} {weights_digest(weights)}".removesuffix(f" {weights}")
        return {**found, "data": Path(self.data).name, "backbone_weights": named}


def _moved(targets: list[dict[str, Tensor]], device: str) -> list[dict[str, Tensor]]:
    return [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets]


def crop_and_flip(
    rng: np.random.Generator, picture: Tensor, target: dict[str, Tensor], size_hw: tuple[int, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a part of `picture` (3, H, W) enlarged to the picture's own size, mirrored half of the time."""
    height, width = size_hw
    part = rng.uniform(SMALLEST_CROP, 1.0)
    x0, y0 = rng.uniform(0, 1 - part, size=2)
    top, left = int(y0 * height), int(x0 * width)
    rows, columns = max(1, int(part * height)), max(1, int(part * width))
    mirrored = rng.random() < 0.5
    cut = picture[None, :, top : top + rows, left : left + columns].float()
    cut = F.interpolate(cut, size=size_hw, mode="bilinear", align_corners=False)[0]
    out = picture.new_zeros(picture.shape)
    out[:, :height, :width] = (cut.flip(-1) if mirrored else cut).round().to(out.dtype)

    offset = torch.tensor([left / width, top / height] * 2)
    scale = torch.tensor([columns / width, rows / height] * 2)
    centres, sizes = target["boxes"].split(2, dim=1)
    whole = (torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1) - offset) / scale
    corners = whole.clamp(0, 1)
    if mirrored:
        corners = torch.stack([1 - corners[:, 2], corners[:, 1], 1 - corners[:, 0], corners[:, 3]], dim=1)
    visible = (corners[:, 2:] - corners[:, :2]).prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
    keep = visible > LEAST_VISIBLE
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    return out, {"class_labels": target["class_labels"][keep], "boxes": boxes[keep]}


def picture_task(
    folder: str, side: int, backbone: str, weights: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Task:
    """The pictures of a data set, scaled to `side` pixels at the longer side, for a backbone that trains."""
    data = load_detection_dataset(folder, masks=False)
    splits = {kind: _read_split(data[data.split_for(kind)], data.id2label, side) for kind in ("train", "validation")}
    _trim(splits.values())
    return Task(
        id2label=dict(data.id2label),
        backbone={"backbone": backbone, "backbone_weights": weights, "dilation": True},
        are_features=False,
        mean=mean,
        std=std,
        **splits,
    )


def _read_split(rows: Any, id2label: dict[int, str], side: int) -> Pictures:
    pixels = torch.zeros(len(rows), 3, side, side, dtype=torch.uint8)
    masks = torch.zeros(len(rows), side, side, dtype=torch.long)
    targets, sizes_hw = [], []
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories(id2label)}
    for number, row in enumerate(rows):
        picture = load_pixels(row["image"], str(row.get("file_name")), None).float()
        scale = side / max(picture.shape[1:])
        size_hw = tuple(max(1, round(extent * scale)) for extent in picture.shape[1:])
        scaled = F.interpolate(picture[None], size=size_hw, mode="bilinear", antialias=True)[0]
        pixels[number, :, : size_hw[0], : size_hw[1]] = scaled.round().clamp(0, 255).to(torch.uint8)
        masks[number, : size_hw[0], : size_hw[1]] = 1
        objects = row["objects"]
        boxes = torch.tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4) * scale
        target, annotations = _target_and_truth(number, boxes, objects["category"], size_hw, objects.get("iscrowd"))
        targets.append(target)
        sizes_hw.append(size_hw)
        truth["images"].append({"id": number, "height": size_hw[0], "width": size_hw[1]})
        truth["annotations"] += annotations
    return Pictures(pixels, masks, targets, truth, sizes_hw)


def _trim(splits: Iterable[Pictures]) -> None:
    """Cuts off padding that all pictures have, down to a multiple of the largest stride."""
    sizes = [size_hw for split in splits for size_hw in split.sizes_hw]
    height, width = (-(-max(extents) // LARGEST_STRIDE) * LARGEST_STRIDE for extents in zip(*sizes, strict=True))
    for split in splits:
        split.pixels = split.pixels[:, :, :height, :width].contiguous()
        split.masks = split.masks[:, :height, :width].contiguous()


def _categories(id2label: dict[int, str]) -> list[dict[str, Any]]:
    return [{"id": label, "name": name} for label, name in id2label.items()]


def _target_and_truth(
    number: int, boxes_xywh: Tensor, labels: list[int], size_hw: tuple[int, int], crowds: Sequence[int] | None = None
):
    """Returns the target (cxcywh in [0, 1], without crowds) and the COCO annotations of one picture."""
    crowds = [int(crowd or 0) for crowd in crowds or [0] * len(labels)]
    size = torch.tensor([size_hw[1], size_hw[0]] * 2)
    boxes = torch.cat([boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]], dim=1) / size
    single = torch.tensor(crowds) == 0
    target = {"class_labels": torch.tensor(labels, dtype=torch.int64)[single], "boxes": boxes[single]}
    annotations = [
        {"image_id": number, "category_id": int(label), "bbox": box, "iscrowd": crowd}
        for box, label, crowd in zip(boxes_xywh.tolist(), labels, crowds, strict=True)
    ]
    return target, annotations


def digit_task(work: Path, processes: int, maps: Sequence[int] = ONE_MAP) -> Task:
    """Digit scenes as feature maps of a small ResNet that was trained to name digits and is frozen for all arms.

    It is trained, in a few minutes on a slow CPU, and everything is drawn, the first time; then read from `work`.
    """
    cache = work / ("digits.pt" if tuple(maps) == ONE_MAP else f"digits-{'-'.join(map(str, maps))}.pt")
    if not cache.exists():
        work.mkdir(parents=True, exist_ok=True)
        splits = {
            split: draw_scenes(split, range(count), processes)
            for split, count in (("train", TRAIN_SCENES), ("validation", VALIDATION_SCENES))
        }
        weights = work / "digits_backbone.safetensors"
        if not weights.exists():
            pretrain_backbone(weights, processes)
        options = {**DIGIT_BACKBONE, "backbone_weights": str(weights)}
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        for pictures in splits.values():
            parts = ((part.float() / 255 - mean) / std for part in pictures.pixels.split(64))
            pictures.pixels, shapes = features_of(maps, options, parts, torch.float32)
        torch.save({"shapes": shapes, **{split: vars(pictures) for split, pictures in splits.items()}}, cache)
    held = torch.load(cache, weights_only=True)
    shapes = held.pop("shapes", [])
    splits = {split: Pictures(**kept) for split, kept in held.items()}
    id2label = {label: str(digit) for label, digit in enumerate(DIGIT_CLASSES)}
    return Task(id2label=id2label, backbone=DIGIT_BACKBONE, are_features=True, shapes=shapes, **splits)


def draw_scenes(split: str, numbers: range, processes: int) -> Pictures:
    """Draws digit scenes; a scene depends on its number alone."""
    with ProcessPoolExecutor(processes) as pool:
        scenes = list(pool.map(partial(_draw, split), numbers, chunksize=64))
    id2label = {label: str(digit) for label, digit in enumerate(DIGIT_CLASSES)}
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories(id2label)}
    size_hw, targets = (DIGITS_PX, DIGITS_PX), []
    for number, (_, boxes, labels) in enumerate(scenes):
        target, annotations = _target_and_truth(
            number, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, size_hw
        )
        targets.append(target)
        truth["images"].append({"id": number, "height": DIGITS_PX, "width": DIGITS_PX})
        truth["annotations"] += annotations
    pixels = torch.from_numpy(np.stack([picture for picture, _, _ in scenes])).permute(0, 3, 1, 2)
    return Pictures(pixels, None, targets, truth, [size_hw] * len(scenes))


def _draw(split: str, number: int) -> tuple[np.ndarray, list[list[float]], list[int]]:
    scenes = DigitScenes(
        split,
        size_hw=(DIGITS_PX, DIGITS_PX),
        classes=DIGIT_CLASSES,
        objects_per_scene=DIGITS_PER_SCENE,
        digit_px=DIGIT_SIZES_PX,
    )
    scene = scenes.draw(number)
    return np.asarray(scene["image"]), scene["objects"]["bbox"], scene["objects"]["category"]


def pretrain_backbone(path: Path, processes: int) -> None:
    """Trains the small ResNet, with live batch norm, to name the digit of every cell of its feature map."""
    torch.manual_seed(0)
    scenes = draw_scenes("train", range(100_000, 100_000 + TRAIN_SCENES), processes)
    body = timm.create_model(
        DIGIT_BACKBONE["backbone"],
        features_only=True,
        out_indices=(-1,),
        output_stride=16,
        **DIGIT_BACKBONE["backbone_kwargs"],
    ).train()
    head = nn.Linear(body.feature_info.channels()[-1], len(DIGIT_CLASSES) + 1)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=PRETRAIN_STEPS)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    for step in range(PRETRAIN_STEPS):
        chosen = np.random.default_rng((7, step)).integers(len(scenes.pixels), size=PRETRAIN_BATCH)
        features = body((scenes.pixels[chosen].float() / 255 - mean) / std)[-1]
        targets = PackedTargets.from_list([scenes.targets[index] for index in chosen], len(chosen), features.device)
        objects = assign_tokens(FeatureFrame(*features.shape[-2:], None), targets, len(DIGIT_CLASSES))
        logits = head(features.flatten(2).transpose(1, 2))
        weight = torch.where(objects.classes < len(DIGIT_CLASSES), 1.0, 0.2) * objects.valid
        entropy = F.cross_entropy(logits.flatten(0, 1), objects.classes.flatten(), reduction="none").view_as(weight)
        loss = (entropy * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            logger.info("backbone step %d: loss %.3f", step + 1, float(loss.detach()))
    save_file({name: tensor.contiguous() for name, tensor in body.state_dict().items()}, path)


__all__ = [
    "IMAGENET",
    "Pictures",
    "Settings",
    "Task",
    "crop_and_flip",
    "digit_task",
    "picture_task",
    "pretrain_backbone",
]
