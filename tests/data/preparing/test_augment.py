import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from detr_hf import DETRImageProcessor
from detr_hf.data.preparing.augment import PRESETS, RandomShortestSize, RandomSizeCrop, augmentation, sanitize
from detr_hf.data.preparing.transform import DetectionTransform
from detr_hf.processing.mask_annotations_detr import masks_to_boxes, resize_masks
from detr_hf.processing.run_lengths_detr import run_lengths

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)


def scene(height: int = 120, width: int = 160) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """Three coloured rectangles on grey, with boxes and masks."""
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    boxes = torch.tensor([[10, 20, 60, 50], [80, 10, 150, 100], [20, 70, 50, 110]], dtype=torch.float32)
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    for index, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        image[:, y0:y1, x0:x1] = COLOURS[index][:, None, None]
        masks[index, y0:y1, x0:x1] = True
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([0, 1, 2]),
        "index": torch.tensor([0, 1, 2]),
        "masks": tv_tensors.Mask(masks),
    }
    return tv_tensors.Image(image), target


def seen_box(image: torch.Tensor, label: int) -> list[int] | None:
    """The box (x0, y0, x1, y1) of the pixels in a class's colour."""
    near = (image.int() - COLOURS[label].int()[:, None, None]).abs().amax(dim=0) < 100
    ys, xs = torch.nonzero(near, as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(ys) else None


@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_masks_follow_the_pixels(seed: int):
    torch.manual_seed(seed)
    image, target = augmentation("paper", 100, 167)(*scene())
    target = sanitize(target, tuple(image.shape[-2:]))
    assert len(target["boxes"]) >= 1
    for box, label, mask in zip(target["boxes"], target["labels"].tolist(), target["masks"], strict=True):
        seen = seen_box(image, label)
        assert seen is not None
        assert np.abs(np.array(seen) - box.numpy()).max() <= 2.5
        ys, xs = torch.nonzero(mask, as_tuple=True)
        drawn = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        assert np.abs(np.array(drawn) - box.numpy()).max() <= 2.5
    gone = set(range(3)) - set(target["labels"].tolist())
    for label in gone:
        seen = seen_box(image, label)
        assert seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) <= 3


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_move_with_the_pixels(preset: str):
    """An L and a ring, through the whole chain: the mask is where the colour is, the box ends where the mask does."""
    pixels = np.full((96, 128, 3), 100, dtype=np.uint8)
    inside, masks = np.mgrid[:96, :128], np.zeros((2, 96, 128), dtype=bool)
    masks[0, 10:80, 8:20] = masks[0, 64:80, 8:70] = True
    radius = np.hypot(inside[0] - 34, inside[1] - 90)
    masks[1] = (radius < 32) & (radius > 18)
    for mask, colour in zip(masks, COLOURS.numpy(), strict=False):
        pixels[mask] = colour
    boxes = masks_to_boxes(torch.from_numpy(masks))
    boxes[:, 2:] -= boxes[:, :2]
    objects = {"id": [1, 2], "bbox": boxes.tolist(), "category": [0, 1], "iscrowd": [0, 0]}
    objects["segmentation"] = [json.dumps(run_lengths(mask)) for mask in masks]
    row = {"image": Image.fromarray(pixels), "image_id": 1, "file_name": "a", "width": 128, "height": 96}
    processor = DETRImageProcessor(
        size={"shortest_edge": 150, "longest_edge": 250}, do_normalize=False, do_convert_annotations=True
    )
    transform, seen = DetectionTransform(processor, preset, masks=True), 0
    for seed in range(10):
        torch.manual_seed(seed)
        made = transform.one(row | {"objects": objects})
        label = made["labels"]
        height, width = label["masks"].shape[1:]
        centre, size = (label["boxes"].double() * torch.tensor([width, height] * 2)).split(2, dim=1)
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
        # at working size a box that is resized ends between pixels
        assert (corners - masks_to_boxes(label["masks"])).abs().max() <= 1.001 if len(corners) else True
        colours = made["pixel_values"] - made["pixel_values"].mean(dim=0)
        for mask, number in zip(label["masks"], label["class_labels"].tolist(), strict=True):
            drawn = colours[number] > 0.2  # half of what is full, or what a distortion leaves of it
            apart = (drawn ^ mask).sum() / (drawn | mask).sum()
            assert preset == "strong" or apart < 0.2, (seed, number, float(apart))
            seen += 1
    assert seen >= 10


def test_masks_made_larger_and_small_again_are_the_same():
    """At pixel corners, which is torch's and torchvision's rule, they lose a row and a column."""
    masks = torch.rand(3, 61, 83, generator=torch.Generator().manual_seed(0)) > 0.5
    for sides in ((100, 140), (62, 84), (333, 250)):
        assert torch.equal(resize_masks(resize_masks(masks, sides), (61, 83)), masks)
    larger = RandomShortestSize(100)(tv_tensors.Mask(masks))
    assert torch.equal(larger.as_subclass(torch.Tensor), resize_masks(masks, tuple(larger.shape[1:])))


def test_paper_sizes_are_the_recipes():
    """Shortest side in the scales, longest at most the cap; both branches occur, and both directions."""
    shortest, flipped, cropped = set(), 0, 0
    preset = augmentation("paper")
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = preset(*scene(480, 640))
        height, width = image.shape[-2:]
        assert max(height, width) <= 1333
        if max(height, width) < 1332:
            shortest.add(min(height, width))
        flipped += bool(target["boxes"][0, 0] > target["boxes"][1, 0])
        cropped += abs(width / height - 640 / 480) > 0.01
    assert shortest <= set(range(480, 801, 32)) and len(shortest) > 6
    assert 15 <= flipped <= 45 and 10 <= cropped <= 45


def test_strong_changes_scale_and_colour_and_bounds_memory():
    sizes, colours = [], set()
    preset = augmentation("strong", 80, 133)
    for seed in range(40):
        torch.manual_seed(seed)
        image, _ = preset(*scene())
        sizes.append(image.shape[-2] * image.shape[-1])
        colours.add(tuple(image[:, 0, 0].tolist()))
    assert max(sizes) <= 80 * 133 * 1.02
    assert min(sizes) < 0.1 * max(sizes)
    assert len(colours) > 5


def test_chance_comes_from_torch_alone():
    def draw(preset: str) -> torch.Tensor:
        torch.manual_seed(3)
        return augmentation(preset, 100, 167)(*scene())[0]

    for preset in ("paper", "strong"):
        first = draw(preset)
        np.random.seed(1)
        assert torch.equal(first, draw(preset))


def test_none_changes_nothing():
    image, target = scene()
    same, same_target = augmentation(None)(image, target)
    assert same is image and same_target is target


def test_crop_is_inside_and_at_most_the_picture():
    for seed in range(20):
        torch.manual_seed(seed)
        image, _ = RandomSizeCrop(50, 100)(*scene(60, 300))
        assert 50 <= image.shape[-2] <= 60 and 50 <= image.shape[-1] <= 100


def test_sanitize_cuts_and_removes_everywhere_at_once():
    image, target = scene()
    target["boxes"][0] = torch.tensor([-10, -5, 30, 40])
    target["boxes"][1] = torch.tensor([200, 10, 300, 20])
    target["masks"][2] = False
    kept = sanitize(target, tuple(image.shape[-2:]))
    assert kept["boxes"].tolist() == [[0, 0, 30, 40]]
    assert kept["labels"].tolist() == kept["index"].tolist() == [0] and len(kept["masks"]) == 1


def test_a_callable_that_loses_objects_halfway_is_told_so():
    image, target = scene()
    with pytest.raises(ValueError, match="remove an object from all"):
        sanitize({**target, "boxes": target["boxes"][:2]}, tuple(image.shape[-2:]))


def test_any_callable_or_a_known_name():
    flip = v2.RandomHorizontalFlip(1.0)
    assert augmentation(flip) is flip
    with pytest.raises(ValueError, match="none, paper, strong"):
        augmentation("heavy")


def test_a_users_callable_goes_through_the_whole_chain(tmp_path: Path):
    """Flipped by the user's callable, the target is the mirrored one."""
    from detr_hf import DETRImageProcessor
    from detr_hf.data import load_detection_dataset
    from detr_hf.data.preparing.transform import prepare

    from .. import layouts

    split = load_detection_dataset(layouts.write_coco(tmp_path))["train"]
    processor = DETRImageProcessor(size={"shortest_edge": 40, "longest_edge": 80})
    plain = prepare(split, processor)[3]["labels"]
    flipped = prepare(split, processor, v2.RandomHorizontalFlip(1.0))[3]["labels"]
    assert torch.allclose(flipped["boxes"][:, 0], 1 - plain["boxes"][:, 0]) and torch.allclose(
        flipped["boxes"][:, 1:], plain["boxes"][:, 1:]
    )
    assert torch.allclose(flipped["area"], plain["area"])
