"""Digit scenes: reproducible, disjoint between the splits, and with boxes that fit what was drawn."""

import pickle
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")

from detr_hf.data import digits
from detr_hf.data.digits import DigitScenes


def pixels_of(scene: dict) -> np.ndarray:
    return np.asarray(scene["image"])


def test_a_scene_depends_on_seed_split_and_index_only():
    scenes = DigitScenes("train", length=50)
    forwards = [scenes[index] for index in range(4)]
    again = DigitScenes("train", length=10)
    for index in reversed(range(4)):
        scene = again[index]
        assert np.array_equal(pixels_of(scene), pixels_of(forwards[index]))
        assert scene["objects"] == forwards[index]["objects"]
    copied = pickle.loads(pickle.dumps(scenes))  # what a data loader does with it
    assert np.array_equal(pixels_of(copied[2]), pixels_of(forwards[2]))


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "validation"}])
def test_another_seed_or_split_gives_another_scene(other):
    scene, different = DigitScenes(**{"split": "train"})[3], DigitScenes(**{"split": "train", **other})[3]
    assert not np.array_equal(pixels_of(scene), pixels_of(different))


def test_splits_share_no_digit_and_no_part_of_a_photograph():
    from sklearn.datasets import load_digits

    targets = load_digits().target
    train, validation = (digits.split_digit_indices(targets, split) for split in digits.SPLITS)
    for digit in range(10):
        assert not set(train[digit]) & set(validation[digit])
        assert len(validation[digit]) > 20
    together = np.concatenate([*train.values(), *validation.values()])
    assert np.array_equal(np.sort(together), np.arange(len(targets)))
    left, right = (digits.split_region(640, 427, split) for split in digits.SPLITS)
    assert left[2] == right[0]
    assert [source.size for source in digits.load_sources("validation").photographs] == [(192, 427)] * 2


def test_no_two_images_of_different_splits_look_the_same():
    """The index test above would not see a digit that the data set holds twice."""
    train, validation = (digits.load_sources(split).digits for split in digits.SPLITS)
    for digit in range(10):
        assert not {image.tobytes() for image in train[digit]} & {image.tobytes() for image in validation[digit]}


@pytest.mark.parametrize("size_hw", [(256, 256), (64, 64), (120, 300)])
def test_targets_lie_inside_the_scene_and_hardly_overlap(size_hw):
    scenes = DigitScenes("train", length=40, size_hw=size_hw)
    height, width = size_hw
    for scene in (scenes[index] for index in range(40)):
        assert scene["image"].size == (width, height) == (scene["width"], scene["height"])
        objects = scene["objects"]
        lengths = {len(values) for values in objects.values()}
        assert len(lengths) == 1 and 1 <= lengths.pop() <= 8
        boxes = np.array(objects["bbox"])
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 3).all()
        assert (boxes[:, 0] + boxes[:, 2] <= width).all() and (boxes[:, 1] + boxes[:, 3] <= height).all()
        assert objects["area"] == [w * h for _, _, w, h in objects["bbox"]]
        for number, (x, y, w, h) in enumerate(boxes):
            for x2, y2, w2, h2 in boxes[:number]:
                shared = max(0, min(x + w, x2 + w2) - max(x, x2)) * max(0, min(y + h, y2 + h2) - max(y, y2))
                assert shared <= digits.MAX_COVERAGE * min(w * h, w2 * h2)


def test_a_box_is_the_smallest_around_the_ink(monkeypatch):
    """On a plain background, with full opacity, the pixels that changed by half or more are the box."""
    grey = 128
    monkeypatch.setattr(
        digits, "draw_background", lambda rng, photographs, size_hw: np.full((*size_hw, 3), grey, np.uint8)
    )
    monkeypatch.setattr(digits, "choose_ink", lambda rng, background: np.full(3, 255, np.float32))
    scenes = DigitScenes("validation", length=30, objects_per_scene=(1, 1))
    for scene in (scenes[index] for index in range(30)):
        (x, y, w, h) = map(int, scene["objects"]["bbox"][0])
        change = (pixels_of(scene)[..., 0].astype(float) - grey) / (255 - grey)
        ink = change >= 0.5 * 0.85  # opacity is at least 0.85
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        assert abs(columns[0] - x) <= 1 and abs(rows[0] - y) <= 1
        assert abs(columns[-1] + 1 - (x + w)) <= 1 and abs(rows[-1] + 1 - (y + h)) <= 1


def test_sizes_of_digits_span_the_range():
    scenes = DigitScenes("train", length=150)
    heights = np.array([box[3] for index in range(150) for box in scenes[index]["objects"]["bbox"]])
    assert 24 <= heights.min() <= 38 and 90 <= heights.max() <= 140
    assert 50 <= np.median(heights) <= 72  # log-uniform between 32 and 112: about 60


def test_classes_are_relabelled_in_the_order_given():
    scenes = DigitScenes("train", length=30, size_hw=(64, 64), classes=(7, 0, 4, 1), objects_per_scene=(1, 4))
    assert scenes.id2label == {0: "7", 1: "0", 2: "4", 3: "1"}
    labels = {label for index in range(30) for label in scenes[index]["objects"]["category"]}
    assert labels == {0, 1, 2, 3}


def test_every_class_is_drawn_about_equally_often():
    scenes = DigitScenes("train", length=150)
    counts = np.bincount(
        [label for index in range(150) for label in scenes[index]["objects"]["category"]], minlength=10
    )
    assert counts.min() > 0.5 * counts.mean()


def test_scenes_without_objects_are_possible():
    scene = DigitScenes("train", objects_per_scene=(0, 0))[0]
    assert scene["objects"] == {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}


def test_scenes_go_on_beyond_the_length_and_at_other_sizes():
    scenes = DigitScenes("train", length=5)
    assert scenes.draw(10**7)["image"].size == (256, 256)
    assert scenes.draw(3, size_hw=(96, 160))["image"].size == (160, 96)
    assert np.array_equal(pixels_of(scenes[-1]), pixels_of(scenes[4]))
    with pytest.raises(IndexError, match="scene 5 of 5"):
        scenes[5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "'train' and 'validation'"),
        ({"classes": (1, 1)}, "different digits"),
        ({"classes": (10,)}, "from 0 to 9"),
        ({"classes": ()}, "one or more"),
        ({"objects_per_scene": (3, 2)}, "fewest <= most"),
        ({"digit_px": (10, 300)}, "smallest <= largest"),
        ({"size_hw": (8, 8)}, "digit_px"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**options)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.load_sources.cache_clear()
    with pytest.raises(ImportError, match=r"pip install detr_hf\[train\]"):
        DigitScenes("train")[0]


def test_ink_always_stands_out():
    rng = np.random.default_rng(0)
    for level in (0, 30, 128, 230, 255):
        background = np.full((4, 4, 3), level, np.uint8)
        for _ in range(50):
            assert abs(digits.choose_ink(rng, background).mean() - level) >= 55


def test_a_scene_is_a_picture():
    assert isinstance(DigitScenes("train")[0]["image"], Image.Image)


def test_scenes_with_masks_are_panoptic():
    from detr_hf.data.readers.mask_text import decode_masks

    scenes = DigitScenes("validation", 20, masks=True)
    stuff_parts = []
    for scene in (scenes[index] for index in range(20)):
        objects = scene["objects"]
        height, width = scene["height"], scene["width"]
        names = [str(number) for number in objects["id"]]
        masks = decode_masks(objects["segmentation"], height, width, names)
        assert masks.sum(0).eq(1).all()  # every pixel has one owner
        assert [mask.sum().item() for mask in masks] == objects["area"]
        for mask, (x, y, w, h), label in zip(masks, objects["bbox"], objects["category"], strict=True):
            rows, columns = mask.nonzero().T
            inside = [columns.min() - x, rows.min() - y, x + w - columns.max() - 1, y + h - rows.max() - 1]
            assert min(inside) >= 0 and (max(inside) == 0 or scenes.is_thing[label])
        stuff = [area for area, label in zip(objects["area"], objects["category"], strict=True) if label >= 10]
        stuff_parts.append(max(stuff) / sum(stuff))
    assert scenes.id2label[10] != scenes.id2label[11] and scenes.is_thing == [True] * 10 + [False] * 2
    assert len(set(objects["id"])) == len(objects["id"]) and 0.5 <= min(stuff_parts) < max(stuff_parts) < 1


def test_masks_are_not_asked_for_by_default():
    scene = DigitScenes("validation", 1)[0]
    assert "segmentation" not in scene["objects"] and DigitScenes("validation", 1).is_thing is None
