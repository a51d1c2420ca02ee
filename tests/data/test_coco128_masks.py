"""Real annotations of COCO, to targets and back: nothing moves, at picture size not a pixel.

The pictures lie outside of the package; without them these tests are skipped.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf import DETRImageProcessor
from detr_hf.data import DetectionData, check, load_detection_dataset
from detr_hf.data.preparing.transform import DetectionTransform, prepare
from detr_hf.processing.mask_annotations_detr import masks_to_boxes, resize_masks
from detr_hf.processing.run_lengths_detr import run_lengths

from . import layouts

SHARED = Path(os.environ.get("DETR_HF_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco128"
needs_pictures = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here"),
]
pytestmark = needs_pictures
TASKS = {"instance": (128, 929), "panoptic": (100, 1105)}


@pytest.fixture(scope="module", params=TASKS)
def data(request: pytest.FixtureRequest) -> DetectionData:
    return load_detection_dataset(SHARED, task=request.param)


def truth(data: DetectionData) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Of each picture the category ids and run lengths as pycocotools, or the PNG, has them; crowds are left out."""
    from pycocotools import mask as coco_mask

    panoptic = data.is_thing is not None
    content = layouts.read_json(SHARED / f"{'panoptic' if panoptic else 'instances'}_train.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {image_id: [] for image_id in sizes}
    for item in content["annotations"]:
        if panoptic:
            pixels = np.array(Image.open(SHARED / "panoptic_train" / item["file_name"]).convert("RGB")).astype(int)
            ids = pixels @ [1, 256, 65536]
            segments = [segment for segment in item["segments_info"] if not segment["iscrowd"]]
            masks = [(segment["category_id"], (ids == segment["id"]).astype(np.uint8)) for segment in segments]
            encoded = [(category, coco_mask.encode(np.asfortranarray(mask))) for category, mask in masks]
        elif item["iscrowd"]:
            continue
        else:
            runs = coco_mask.merge(coco_mask.frPyObjects(item["segmentation"], *sizes[item["image_id"]]))
            encoded = [(item["category_id"], runs)]
        found[item["image_id"]] += [(label, one | {"counts": one["counts"].decode()}) for label, one in encoded]
    yield from (found[row] for row in data["train"]["image_id"])


def test_at_picture_size_the_masks_are_cocos_to_the_byte(data: DetectionData):
    rows = prepare(data["train"], DETRImageProcessor(do_resize=False), masks=True)
    pictures = objects = 0
    for row, expected in zip(rows, truth(data), strict=True):
        label = row["labels"]
        ids = [data.source_category_ids[index] for index in label["class_labels"]]
        seen = [(category, run_lengths(mask.numpy())) for category, mask in zip(ids, label["masks"], strict=True)]
        assert seen == expected
        assert label["area"].tolist() == label["masks"].flatten(1).sum(1).tolist()
        pictures, objects = pictures + 1, objects + len(seen)
    assert (pictures, objects) == TASKS["instance" if data.is_thing is None else "panoptic"]


def test_at_working_size_the_masks_come_back(data: DetectionData):
    """Resized as for training and back by nearest: every mask with IoU 0.97 and more."""
    exact = prepare(data["train"], DETRImageProcessor(do_resize=False), masks=True)
    resized = prepare(data["train"], DETRImageProcessor(), masks=True)
    worst = 1.0
    for row, expected in zip(resized, exact, strict=True):
        wanted = expected["labels"]["masks"]
        seen = resize_masks(row["labels"]["masks"], tuple(wanted.shape[1:]))
        for one, other in zip(seen, wanted, strict=True):
            worst = min(worst, float((one & other).sum() / (one | other).sum()))
        assert torch.equal(row["labels"]["boxes"], expected["labels"]["boxes"])
    assert worst >= 0.97, worst


def test_augmented_boxes_end_where_their_masks_do(data: DetectionData):
    """300 draws of `paper`, all through the chain."""
    transform = DetectionTransform(DETRImageProcessor(), "paper", masks=True)
    objects, worst = 0, 0.0
    for draw in range(300):
        torch.manual_seed(draw)
        label = transform.one(data["train"][draw % len(data["train"])])["labels"]
        height, width = label["masks"].shape[1:]
        centre, size = (label["boxes"].double() * torch.tensor([width, height] * 2)).split(2, dim=1)
        apart = torch.cat([centre - size / 2, centre + size / 2], dim=1) - masks_to_boxes(label["masks"])
        objects += len(apart)
        worst = max(worst, float(apart.abs().amax()) if len(apart) else 0.0)
    assert objects > 1500 and worst <= 1.001, (objects, worst)


def test_check_finds_nothing_wrong_with_real_masks(data: DetectionData):
    task = "instance" if data.is_thing is None else "panoptic"
    report = check(SHARED, task=task)
    assert report.errors == report.warnings == {}, report.text()
