"""Tiny pictures, a tiny DETR and a trainer for the tests of training; no file and no network."""

import hashlib
import io
import json

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from detr_hf import DETRForObjectDetection, DETRForSegmentation
from detr_hf.data.detection_data import detection_features
from detr_hf.training.arguments import DETRTrainingArguments
from detr_hf.training.trainer import DETRTrainer

from ..conftest import randomise_frozen_statistics, tiny_config

MICRO = {"backbone": "test_resnet", "enc_layers": 1, "dec_layers": 2, "hidden_dim": 16, "dim_feedforward": 32}
SIZE_HW = (48, 64)  # of the pictures that `write_coco` writes


def micro_model(seed: int = 0, masks: bool = False, **changes):
    """Half a million parameters, so that checkpoints take milliseconds; dropout is on. With `masks` a segmenter."""
    torch.manual_seed(seed)
    model_class = DETRForSegmentation if masks else DETRForObjectDetection
    model = model_class(tiny_config(**{**MICRO, **changes})).eval()
    randomise_frozen_statistics(model)
    return model


@torch.no_grad()
def trained(model):
    """The model, whose transformer has other than first values."""
    model.transformer.decoder.norm.bias += 0.01
    return model


class Scenes(torch.utils.data.Dataset):
    """Pictures of noise with random boxes; with `noise`, another picture each time it is read (from torch's, numpy's
    and python's generators). With `masks` the boxes are filled."""

    def __init__(
        self,
        count: int = 8,
        noise: bool = True,
        bad: int | None = None,
        heights: tuple[int, int] = (32, 64),
        masks: bool = False,
    ):
        self.count, self.noise, self.bad, self.heights, self.masks = count, noise, bad, heights, masks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        height, width = self.heights[index % 2], 64
        pixels = torch.randn(3, height, width, generator=generator)
        if self.noise:
            pixels = pixels + 0.1 * torch.randn(pixels.shape) + float(np.random.rand())
        if index == self.bad:
            pixels[0, 3, 5] = torch.nan
        number = 1 + index % 3
        size = torch.rand(number, 2, generator=generator) * 0.3 + 0.2
        center = size / 2 + torch.rand(number, 2, generator=generator) * (1 - size)
        classes = torch.randint(3, (number,), generator=generator)
        labels = target(index, classes, torch.cat([center, size], dim=1), (height, width))
        if self.masks:
            labels["masks"] = filled(labels["boxes"], (height, width))
        return {"pixel_values": pixels, "labels": labels}


def split_of(classes: list[list[int]], crowds: dict[int, int] | None = None, first: int = 0) -> Dataset:
    """A split in the schema, of noise: the classes (of three) of each picture's objects; crowds: picture to class."""
    rows = []
    for index, labels in enumerate(classes):
        labels = [*labels, *([crowds[index]] if crowds and index in crowds else [])]
        pixels = np.random.default_rng(index).integers(0, 255, (32, 64, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        count = len(labels)
        objects = {
            "id": list(range(1, count + 1)),
            "bbox": [[4.0 + 3 * place, 5.0, 20.0, 15.0] for place in range(count)],
            "category": labels,
            "area": [300.0] * count,
            "iscrowd": [int(bool(crowds) and index in crowds and place == count - 1) for place in range(count)],
            "segmentation": [None] * count,
        }
        image = {"bytes": buffer.getvalue(), "path": None}
        name = f"{first + index}.png"
        rows.append({"image": image, "image_id": first + index, "file_name": name, "width": 64, "height": 32})
        rows[-1]["objects"] = objects
    return Dataset.from_list(rows, features=detection_features(["cat", "dog", "owl"]))


def ids_of(index: int) -> np.ndarray:
    """Segment ids (H, W): a thing, a stuff above it, void."""
    ids = np.zeros(SIZE_HW, dtype=np.int64)
    ids[:20], ids[10:40, 5 + index : 30] = 300, 7
    return ids


def write_coco(root, panoptic: bool):
    """Two pictures a split of an owl and sky, as COCO's instances or panoptic segments."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 3, "name": "owl", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(2):
            name, ids = f"{split}{index}", ids_of(index)
            images.append({"id": index + 1, "file_name": f"{name}.jpg", "width": 64, "height": 48})
            Image.fromarray(np.random.default_rng(index).integers(0, 255, (*SIZE_HW, 3), np.uint8)).save(
                root / split / f"{name}.jpg"
            )
            segments = []
            for identity, category in ((7, 3), (300, 9)):
                rows, columns = np.nonzero(ids == identity)
                x0, y0, x1, y1 = (int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
                segments.append({"id": identity, "category_id": category, "area": len(rows), "iscrowd": 0})
                segments[-1]["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            if panoptic:
                folder = root / "annotations" / f"panoptic_{split}"
                folder.mkdir(exist_ok=True)
                colours = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
                Image.fromarray(colours).save(folder / f"{name}.png")
                file = {"image_id": index + 1, "file_name": f"{name}.png"}
                annotations.append({**file, "segments_info": segments})
                continue
            for segment in segments:
                x, y, width, height = segment["bbox"]
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                segment |= {"id": len(annotations) + 1, "image_id": index + 1, "segmentation": [corners]}
                annotations.append(segment)
        content = {"images": images, "annotations": annotations, "categories": categories}
        kind = "panoptic" if panoptic else "instances"
        (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    return root


def target(image_id: int, classes: Tensor, boxes: Tensor, size_hw: tuple[int, int]) -> dict[str, Tensor]:
    """A target as the image processor makes it, of a picture that was not resized."""
    size = torch.tensor(size_hw)
    area = boxes[:, 2] * boxes[:, 3] * size.prod()
    crowd = torch.zeros(len(classes), dtype=torch.int64)
    fields = {"class_labels": classes, "boxes": boxes, "area": area, "iscrowd": crowd}
    return {"image_id": torch.tensor([image_id]), "orig_size": size, "size": size, **fields}


def filled(boxes_cxcywh_norm: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Masks (N, H, W) of everything inside the boxes."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size_hw)
    x, y, width, height = (value[:, None] for value in boxes_cxcywh_norm.unbind(1))
    return ((rows - y).abs() < height / 2)[:, :, None] & ((columns - x).abs() < width / 2)[:, None]


def arguments(folder, **changes) -> DETRTrainingArguments:
    """Two pictures a step, a checkpoint every step, no evaluation."""
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "eval_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }
    return DETRTrainingArguments(str(folder), **{**defaults, **changes})


def trainer(folder, model=None, train=None, evaluation=None, **changes) -> DETRTrainer:
    """A trainer of the micro model on the scenes, which have masks if the model needs them."""
    model = micro_model() if model is None else model
    return DETRTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=Scenes(masks=model.has_mask_head) if train is None else train,
        eval_dataset=evaluation,
    )


def digest(model) -> str:
    """sha256 of all weights and buffers, by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().numpy().tobytes())
    return sha.hexdigest()
