"""Scenes drawn in batches for the digit detector's training: pixel by pixel as Pillow draws them, and as often."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from detr_hf.data import digits as with_pillow
from detr_hf.data.digits import DigitScenes, load_sources

EXAMPLES = Path(__file__).parent.parent / "examples"
MANY = 5  # batches of 32 scenes


def from_examples(name: str):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


drawing, batches, recipes = (from_examples(f"digits.{name}") for name in ("drawing", "batches", "recipe"))


@pytest.fixture(scope="module")
def sheet():
    return drawing.load_sheet("train", "cpu")


def drawer_of(sheet, scenes: DigitScenes, batch_size: int, seed: int = 0):
    return drawing.SceneDrawer(sheet, batch_size, scenes.objects_per_scene, scenes.digit_px, seed)


class Planned:
    """In place of numpy's generator: answers with planned values, in order."""

    def __init__(self, *values):
        self.values = list(values)

    def _next(self, *args, **kwargs):
        return self.values.pop(0)

    integers = uniform = random = _next


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("size_hw", [(256, 256), (192, 264)])
def test_background_is_pillows(sheet, scale, size_hw):
    height, width = size_hw
    photographs = load_sources("train").photographs
    largest = min(photographs[0].width / width, photographs[0].height / height)
    factors = np.array([[0.9], [1.0], [1.1]])
    for number, (mirrored, flipped) in enumerate([(False, False), (True, False), (True, True)]):
        which, x0, y0 = number % 2, 3.3 * number, 4.7
        share = scale / largest
        plan = Planned(which, share, x0, y0, 0.4 if mirrored else 0.6, 0.2 if flipped else 0.3, 0.9, factors, 7.5)
        wanted = with_pillow.draw_background(plan, photographs, size_hw)
        view = drawing.Views(
            *(torch.tensor([value]) for value in (which, scale, x0, y0, mirrored, flipped)),
            gains=torch.tensor(0.9 * factors.T, dtype=torch.float32),
            offset=torch.tensor([7.5]),
        )
        drawn = drawing.draw_backgrounds(sheet, view, size_hw)[0].permute(1, 2, 0).numpy()
        difference = np.abs(drawn - wanted)  # Pillow also rounds between rows and columns
        assert difference.max() <= 3
        assert difference.mean() < 0.5


@pytest.mark.parametrize("size_px", [28.0, 47.3, 112.0])
def test_digit_and_its_box_are_pillows(sheet, size_px):
    side = 190
    for number in range(0, 1500, 60):
        label = int((sheet.starts <= number).sum()) - 1
        grey = load_sources("train").digits[label][number - int(sheet.starts[label])]
        angle, shear, stretch, threshold, softness = 12 - number / 70, number / 6000 - 0.1, 1.1, 0.45, 0.2
        wanted = with_pillow.warp_digit(Planned(angle, shear, stretch, threshold, softness), grey, size_px)
        values = (size_px / 8, np.deg2rad(angle), shear, stretch, threshold, softness)
        shapes = drawing.Shapes(torch.tensor([[number]]), *(torch.tensor([[value]]).float() for value in values))
        alpha = drawing.warp_digits(sheet, shapes, side)
        length = len(wanted.alpha)
        assert alpha.shape == (1, 1, side, side)
        difference = (alpha[0, 0, :length, :length].numpy() - wanted.alpha).ravel()
        assert np.abs(difference).mean() < 0.003
        assert np.abs(difference).max() < 0.08  # a level of grey is a fiftieth of the way across an edge
        assert alpha[0, 0, length:].max() == 0
        found = drawing.ink_boxes(alpha)[0, 0].numpy()
        assert np.abs(found - wanted.ink_xyxy).max() <= 1
        if np.abs(wanted.alpha - 0.5).min() > 0.08:
            assert tuple(found) == wanted.ink_xyxy


def test_a_box_is_the_smallest_around_the_drawn_ink(sheet, monkeypatch):
    """Read from the finished picture: what a digit changed, on a flat background and in full opacity."""
    monkeypatch.setattr(drawing, "draw_backgrounds", lambda sheet, views, size_hw: torch.full((24, 3, *size_hw), 9.0))
    monkeypatch.setattr(drawing, "choose_colours", lambda inks, level, number: torch.full((24, 3), 209.0))
    drawer = drawing.SceneDrawer(sheet, 24, (1, 1), (30, 112))
    drawer_choice = drawer._choose_digits

    def opaque():
        labels, shapes, inks, tries = drawer_choice()
        return labels, shapes, inks._replace(opacity=torch.ones_like(inks.opacity)), tries

    monkeypatch.setattr(drawer, "_choose_digits", opaque)
    scenes = drawer.draw(5, (224, 288))
    assert scenes.counts.tolist() == [1] * 24
    for pixels, box in zip(scenes.pixels, scenes.boxes_xyxy_abs[:, 0], strict=True):
        rows, columns = torch.where(pixels[..., 0] >= 109)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_lie_inside_and_cover_each_other_little(sheet):
    scenes = drawing.SceneDrawer(sheet, 24, (8, 14), (28, 112)).draw(0, (192, 320))
    for boxes, count in zip(scenes.boxes_xyxy_abs, scenes.counts.tolist(), strict=True):
        real = boxes[:count]
        assert bool((real >= 0).all())
        assert bool((real[:, 2:] <= torch.tensor([320, 192])).all())
        assert not boxes[count:].any()
        area = (real[:, 2:] - real[:, :2]).prod(-1)
        low, high = (
            torch.maximum(real[:, None, :2], real[None, :, :2]),
            torch.minimum(real[:, None, 2:], real[None, :, 2:]),
        )
        overlap = (high - low).clamp(min=0).prod(-1).fill_diagonal_(0)
        assert bool((overlap <= with_pillow.MAX_COVERAGE * torch.minimum(area[:, None], area[None])).all())
    assert 5 < scenes.counts.float().mean() < 11  # some find no place


def statistics(pixels, labels, boxes_xyxy) -> dict[str, float]:
    """What describes a set of scenes; pixels of one (H, W, 3) each."""
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in boxes_xyxy])
    contrast, spread = [], []
    for picture, boxes in zip(pixels, boxes_xyxy, strict=True):
        grey = picture.astype(np.float32).mean(-1)
        spread.append(grey.std())
        for x0, y0, x1, y1 in boxes.astype(int):
            part = grey[y0:y1, x0:x1]
            contrast.append(np.percentile(part, 95) - np.percentile(part, 5))
    counts = np.bincount(np.concatenate(labels).astype(int), minlength=10)
    return {
        "digits in a scene": np.mean([len(boxes) for boxes in boxes_xyxy]),
        "height": sides[:, 1].mean(),
        "log of height, spread": np.log(sides[:, 1]).std(),
        "width": sides[:, 0].mean(),
        "tallest": np.percentile(sides[:, 1], 95),
        "level": np.mean([picture.mean() for picture in pixels]),
        "level of a scene, spread": np.std([picture.mean() for picture in pixels]),
        "levels in a scene, spread": np.mean(spread),
        "contrast": np.mean(contrast),
        "contrast, spread": np.std(contrast),
        "rarest class": counts.min() / counts.sum() * 10,
    }


@pytest.mark.slow
def test_statistics_are_those_of_digit_scenes(sheet):
    scenes = DigitScenes("train", objects_per_scene=(2, 10))
    drawer = drawer_of(sheet, scenes, 32)
    drawn = drawing.DrawnScenes(
        *map(torch.cat, zip(*(drawer.draw(step, (256, 256)) for step in range(MANY)), strict=True))
    )
    counts = drawn.counts.tolist()
    boxes = [boxes[:count].numpy() for boxes, count in zip(drawn.boxes_xyxy_abs, counts, strict=True)]
    labels = [labels[:count].numpy() for labels, count in zip(drawn.labels, counts, strict=True)]
    found = statistics(drawn.pixels.numpy(), labels, boxes)
    items = [scenes.draw(index) for index in range(32 * MANY)]
    corners = [np.array(item["objects"]["bbox"]) for item in items]
    corners = [np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1) for box in corners]
    pictures = [np.asarray(item["image"]) for item in items]
    wanted = statistics(pictures, [np.array(item["objects"]["category"]) for item in items], corners)
    for name, value in wanted.items():
        tolerance = 0.2 if name == "rarest class" else 0.08
        assert found[name] == pytest.approx(value, rel=tolerance), (name, wanted, found)


def test_a_batch_depends_on_seed_and_step_only(sheet):
    scenes = DigitScenes("train")
    drawer, again = drawer_of(sheet, scenes, 4), drawer_of(sheet, scenes, 4)
    first = drawer.draw(7, (256, 256))
    again.draw(3, (256, 256))
    assert all(torch.equal(a, b) for a, b in zip(first, again.draw(7, (256, 256)), strict=True))
    others = drawer.draw(8, (256, 256)), drawer_of(sheet, scenes, 4, seed=1).draw(7, (256, 256))
    assert not any(torch.equal(first.pixels, other.pixels) for other in others)


def test_only_training_pictures_are_drawn_from(sheet):
    sources = load_sources("train")
    assert len(sheet.digits) == sum(len(images) for images in sources.digits.values())
    assert sheet.photographs.shape == (2, 427, 3, 448)
    centres = sheet.digits[:, 4::8, 4::8].float()  # samples that lie nearest the middles of cells
    own = torch.from_numpy(np.concatenate([sources.digits[label] for label in range(10)])).float()
    assert (centres - own).abs().mean() < 4


def test_batches_are_those_of_the_worker_processes_in_form():
    recipe = recipes.Recipe(batch_size=3, steps=4, final_fraction=0.5)
    drawn = list(batches.drawn_batches(recipe, "cpu", 0, lambda step: step / recipe.steps))
    assert len(drawn) == 4
    for pixels, targets in drawn:
        assert pixels.dtype == torch.uint8
        assert tuple(pixels.shape[1:3]) in batches.DRAWN_SIZES_HW
        for target in targets:
            boxes = target["boxes"]
            assert len(target["class_labels"]) == len(boxes) > 0
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
            assert corners.min() > -1e-6
            assert corners.max() < 1 + 1e-6
    resumed = list(batches.drawn_batches(recipe, "cpu", 2, lambda step: step / recipe.steps))
    for (pixels, targets), (again, wanted) in zip(resumed, drawn[2:], strict=True):
        assert torch.equal(pixels, again)
        for target, same in zip(targets, wanted, strict=True):
            assert all(torch.equal(target[name], same[name]) for name in target)


def test_another_way_to_draw_is_refused():
    with pytest.raises(ValueError, match="'auto', 'device' or 'workers'"):
        recipes.Recipe(draw="gpu")
