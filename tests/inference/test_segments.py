"""A `Detector` of a model with masks: masks and maps in the picture's pixels, whatever was padded and resized."""

import pickle

import numpy as np
import pytest
from PIL import Image

from detr_hf import Detector, DETRForSegmentation, DETRImageProcessor
from detr_hf.inference.segments import SegmentMap, mask_crop
from detr_hf.processing.run_lengths_detr import run_lengths

from ..conftest import tiny_config
from .rectangles import Rectangles, rectangle

SIZES_HW = [(60, 80), (83, 61), (60, 80), (120, 37)]
OBJECTS = [
    (0, 0.6, (0.1, 0.2, 0.5, 0.55)),
    (2, 0.95, (0.0, 0.5, 0.6, 1.0)),
    (1, 0.9, (0.55, 0.1, 0.9, 0.45)),
    (2, 0.8, (0.4, 0.55, 1.0, 1.0)),
    (1, 0.75, (0.5, 0.5, 0.5, 0.5)),  # without a pixel
    (3, 0.2, (0.0, 0.0, 1.0, 0.3)),
]
PROCESSORS = {
    "as it is": {"do_resize": False},
    "resized": {"size": {"shortest_edge": 64, "longest_edge": 96}},
    "padded": {"size": {"shortest_edge": 64, "longest_edge": 96}, "pad_size": {"height": 104, "width": 120}},
}


def detector(task: str | None = None, **settings) -> Detector:
    return Detector(Rectangles(OBJECTS), DETRImageProcessor(**settings, label_ids_to_fuse=[2, 3]), task)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", size[::-1], (90, 120, 30)) for size in SIZES_HW]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_masks_lie_where_the_objects_are_in_the_picture(settings):
    for found, size_hw in zip(detector(**settings)(pictures(), 0.5, batch_size=3), SIZES_HW, strict=True):
        assert found.names == ["grass", "dog", "grass", "dog", "cat"] and found.masks.shape == (5, *size_hw)
        for one, mask, query in zip(found, found.masks, (1, 2, 3, 4, 0), strict=True):
            corners = OBJECTS[query][2]
            wanted = rectangle(size_hw, corners)
            assert iou(mask, wanted) > 0.93 if query != 4 else not mask.any(), (query, size_hw)
            assert one.box == pytest.approx(np.multiply(corners, size_hw[::-1] * 2), abs=1e-3)
            assert one.segmentation == run_lengths(mask)


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_the_panoptic_map_has_stuff_once_and_every_pixel_by_score(settings):
    for found, size_hw in zip(detector(**settings)(pictures(), 0.5), SIZES_HW, strict=True):
        ids, segments = found.panoptic.segmentation, found.panoptic.segments_info
        assert [(one["id"], one["name"], one["was_fused"]) for one in segments] == [
            (1, "grass", True),
            (2, "dog", False),
            (3, "cat", False),
        ]
        grass = rectangle(size_hw, OBJECTS[1][2]) | rectangle(size_hw, OBJECTS[3][2])
        cat = rectangle(size_hw, OBJECTS[0][2]) & ~rectangle(size_hw, OBJECTS[1][2])
        for number, wanted in ((1, grass), (2, rectangle(size_hw, OBJECTS[2][2])), (3, cat)):
            assert iou(ids == number, wanted) > 0.9
            assert segments[number - 1]["area"] == (ids == number).sum()
        assert ids.dtype == np.int32 and ids.shape == size_hw and set(np.unique(ids)) == {0, 1, 2, 3}


def test_a_task_gives_what_it_says_and_pays_for_no_more():
    picture = pictures()[0]
    for task, has, least in (
        ("detection", (False, False, False), 1.0),
        ("instance", (True, False, False), 0.49),
        ("panoptic", (True, True, False), 0.49),
        ("semantic", (False, False, True), -1.0),
    ):
        asks = detector(task, do_resize=False)
        found = asks(picture, 0.5)
        assert len(found) == 5 and asks.model.asked == [pytest.approx(least)]
        assert tuple(held is not None for held in (found.masks, found.panoptic, found.semantic)) == has
    labels = found.semantic.segmentation
    assert (labels[:10, :20] == 3).all() and (labels[45:, :30] == 2).all()  # also of queries below the threshold
    assert {one["name"] for one in found.semantic.segments_info} == {"cat", "dog", "grass", "sky"}
    assert detector().task == "panoptic" and not detector()(picture, 0.99).masks.size


def test_masks_are_made_from_a_score_of_their_own():
    """An evaluation wants the boxes of all and the masks of some."""
    every, some = detector(do_resize=False), detector(do_resize=False)
    (expected,), (found,) = (
        list(one.stream(pictures()[:1], 0.0, panoptic_threshold=0.85, **options))
        for one, options in ((every, {}), (some, {"masks_from": 0.75}))
    )
    assert (some.model.asked, every.model.asked) == ([0.75], [pytest.approx(-0.01)]) and len(found) == len(OBJECTS)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.panoptic.segmentation, expected.panoptic.segmentation)
    assert found.segmentations[:3] == expected.segmentations[:3] and expected.masks[4:].any(axis=(1, 2)).all()
    assert found.masks.shape == expected.masks.shape and not found.masks[3:].any()
    semantic = detector("semantic", do_resize=False)
    (found,) = semantic.stream(pictures()[:1], masks_from=0.75)
    assert semantic.model.asked == [-1.0] and found.semantic is not None


def test_masks_that_are_missing_or_random_are_refused_when_the_detector_is_made():
    with pytest.raises(ValueError, match="mask head is new"):
        Detector(Rectangles(OBJECTS, mask_head_is_new=True), DETRImageProcessor())
    with pytest.raises(ValueError, match=r"fuse has \[7\]"):
        Detector(Rectangles(OBJECTS), DETRImageProcessor(label_ids_to_fuse=[7]))
    with pytest.raises(ValueError, match="no masks, so there is no panoptic segmentation"):
        Detector.from_pretrained(task="panoptic")  # the shipped detector
    with pytest.raises(ValueError, match="one of detection, instance"):
        detector("masks")
    assert Detector.from_pretrained().task == "detection"


def test_a_checkpoint_with_masks_gives_them_and_the_boxes_of_its_detector(tmp_path):
    import torch

    torch.manual_seed(0)
    model = DETRForSegmentation(tiny_config())
    model.mask_head_is_new = False
    model.save_pretrained(tmp_path)
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, label_ids_to_fuse=[2]).save_pretrained(tmp_path)
    boxes, found = (Detector.from_pretrained(tmp_path, task=task) for task in ("detection", None))
    assert not boxes.model.has_mask_head and found.task == "panoptic" and found.stuff_labels == [2]
    picture = pictures()[1]
    boxes, found = boxes(picture, 0.2), found(picture, 0.2)
    assert np.array_equal(boxes.boxes, found.boxes) and boxes.masks is None and len(found) > 0
    assert found.masks.shape == (len(found), 83, 61)
    whole = model.eval()(**DETRImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt"))
    (expected,) = DETRImageProcessor().post_process_instance_segmentation(
        whole, 0.2, target_sizes=[(83, 61)], return_coco_annotation=True
    )
    assert [one for one in found.segmentations if mask_crop(one).pixels.size] == expected["segmentation"]


def test_crops_are_the_masks_without_what_is_empty():
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.3, 1):
        for size_hw in ((1, 1), (1, 9), (9, 1), (7, 11)):
            mask = rng.random(size_hw) < share
            x0, y0, pixels = mask_crop(run_lengths(mask))
            whole = np.zeros_like(mask)
            whole[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] = pixels
            assert np.array_equal(whole, mask)
            assert not mask.any() or all(pixels.any(axis=axis)[[0, -1]].all() for axis in (0, 1))


def test_a_map_is_small_and_says_the_same_after_a_journey():
    ids = np.zeros((480, 640), dtype=np.int64)
    ids[100:200, 300:500] = 70_000
    info = {"id": 70_000, "label_id": 2, "name": "grass", "score": 0.51234567, "was_fused": False, "area": 20_000}
    map_ = SegmentMap(ids, [info])
    assert len(pickle.dumps(map_)) < 10_000 and pickle.loads(pickle.dumps(map_)).segments_info == [info]
    assert np.array_equal(map_.segmentation, ids)
    (one,) = map_.plain(digits=3)
    assert one["score"] == 0.512 and mask_crop(one["segmentation"])[:2] == (300, 100)
