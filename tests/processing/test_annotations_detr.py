"""COCO detection annotations to targets. Ids in the tables are those of a survey of annotations that people have."""

import logging

import numpy as np
import pytest
import torch

from detr_hf.processing.annotations_detr import check_annotations, detection_target

HW, RESIZED = (60, 80), (120, 160)
GOOD = {"id": 17, "bbox": [10, 10, 30, 20], "category_id": 1, "area": 170.0, "iscrowd": 0}
GOOD_BOX = [[25 / 80, 20 / 60, 30 / 80, 20 / 60]]


def annotation(*objects, image_id=5):
    return {"image_id": image_id, "annotations": list(objects)}


def changed(**changes):
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}


def target_of(*objects, **options):
    return detection_target(annotation(*objects), HW, RESIZED, **options)


def test_the_whole_target():
    target = target_of(GOOD, changed(id=18, bbox=[0, 0, 80, 60], category_id=0, area=4800))
    assert {key: value.dtype for key, value in target.items()} == {
        "image_id": torch.int64,
        "class_labels": torch.int64,
        "boxes": torch.float32,
        "area": torch.float32,
        "iscrowd": torch.int64,
        "orig_size": torch.int64,
        "size": torch.int64,
    }
    torch.testing.assert_close(target["boxes"], torch.tensor([*GOOD_BOX, [0.5, 0.5, 1, 1]]))
    assert target["class_labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [680, 19200]  # in pixels of the resized image
    assert target["image_id"].tolist() == [5]
    assert (target["orig_size"].tolist(), target["size"].tolist()) == ([60, 80], [120, 160])


KEPT = [
    ("partly outside", changed(bbox=[70, 50, 100, 100]), [[75 / 80, 55 / 60, 10 / 80, 10 / 60]], 680),
    ("starts outside", changed(bbox=[-10, -10, 20, 20]), [[5 / 80, 5 / 60, 10 / 80, 10 / 60]], 680),
    ("area missing", changed(area=...), GOOD_BOX, 2400),
    ("iscrowd missing", changed(iscrowd=...), GOOD_BOX, 680),
    ("area negative", changed(area=-3), GOOD_BOX, 2400),
    ("area NaN", changed(area=float("nan")), GOOD_BOX, 2400),
    ("area a string", changed(area="12"), GOOD_BOX, 2400),
    ("no id", changed(id=...), GOOD_BOX, 680),
    ("tuple", changed(bbox=(10, 10, 30, 20)), GOOD_BOX, 680),
    ("array", changed(bbox=np.array([10, 10, 30, 20])), GOOD_BOX, 680),
    ("tensor", changed(bbox=torch.tensor([10.0, 10, 30, 20]), category_id=torch.tensor(1)), GOOD_BOX, 680),
    ("numpy label", changed(category_id=np.int64(1)), GOOD_BOX, 680),
    # as augmentations hand label fields back
    ("whole float label", changed(category_id=1.0), GOOD_BOX, 680),
    ("whole float32 label", changed(category_id=np.float32(1)), GOOD_BOX, 680),
    ("whole tensor label", changed(category_id=torch.tensor([1.0])), GOOD_BOX, 680),
    ("crowd a bool", changed(iscrowd=False), GOOD_BOX, 680),
    ("crowd of numpy", changed(iscrowd=np.False_), GOOD_BOX, 680),
    ("crowd a float", changed(iscrowd=0.0), GOOD_BOX, 680),
    ("float32 limits", changed(bbox=[10, 10, 1e300, 1e300]), [[45 / 80, 35 / 60, 70 / 80, 50 / 60]], 680),
    ("keypoints are ignored", changed(keypoints=[1, 2, 2]), GOOD_BOX, 680),
]


@pytest.mark.parametrize(("item", "boxes", "area"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
def test_kept(item, boxes, area):
    target = target_of(item)
    torch.testing.assert_close(target["boxes"], torch.tensor(boxes))
    assert target["class_labels"].tolist() == [1]
    assert target["area"].tolist() == [area]


DROPPED = [
    ("no width", changed(bbox=[10, 10, 0, 20])),
    ("negative width", changed(bbox=[30, 10, -10, 20])),
    ("negative height", changed(bbox=[30, 30, 10, -20])),
    ("outside", changed(bbox=[90, 10, 10, 20])),
    ("no width in float32", changed(bbox=[10, 10, 1e-320, 20])),
    ("left of it", changed(bbox=[-30, 10, 20, 20])),
]


@pytest.mark.parametrize("item", [row[1] for row in DROPPED], ids=[row[0] for row in DROPPED])
def test_dropped_with_a_warning(item, caplog):
    # a fresh image id each time: the same warning is given once in a process
    image_id = f"dropped {item['bbox']}"
    with caplog.at_level(logging.WARNING):
        target = detection_target(annotation(changed(id=16), item, image_id=image_id), HW, RESIZED)
    assert target["class_labels"].tolist() == [1]
    assert target["boxes"].shape == (1, 4)
    assert "dropped 1 of 2 objects" in caplog.text
    assert "annotation 17." in caplog.text
    assert image_id in caplog.text


REFUSED = [
    ("NaN", changed(bbox=[10, float("nan"), 30, 20]), ValueError, "not finite"),
    ("infinity", changed(bbox=[10, 10, float("inf"), 20]), ValueError, "not finite"),
    ("label -1", changed(category_id=-1), ValueError, "category_id -1"),
    ("label -100", changed(category_id=-100), ValueError, "category_id -100"),
    ("label 2**40", changed(category_id=2**40), ValueError, "category_id 1099511627776"),
    ("label a string", changed(category_id="1"), TypeError, "category_id '1'"),
    ("label 1.7", changed(category_id=1.7), TypeError, "category_id 1.7"),
    (
        "label 1.7 of numpy",
        changed(category_id=np.float32(1.5)),
        TypeError,
        "category_id 1.5: expected a whole number",
    ),
    ("label NaN", changed(category_id=float("nan")), TypeError, "category_id nan"),
    ("label infinity", changed(category_id=float("inf")), TypeError, "category_id inf"),
    ("label -1.0", changed(category_id=-1.0), ValueError, "category_id -1"),
    ("bool of numpy", changed(category_id=np.True_), TypeError, "category_id True"),
    ("iscrowd NaN", changed(iscrowd=float("nan")), ValueError, "iscrowd nan"),
    ("label None", changed(category_id=None), TypeError, "category_id None"),
    ("label a bool", changed(category_id=True), TypeError, "category_id True"),
    ("no bbox", changed(bbox=...), ValueError, "no 'bbox'"),
    ("bbox None", changed(bbox=None), ValueError, "has 'bbox': None"),
    ("no category_id", changed(category_id=...), ValueError, "no 'category_id'"),
    ("three numbers", changed(bbox=[10, 10, 30]), ValueError, "four numbers"),
    ("five numbers", changed(bbox=[10, 10, 30, 20, 0.9]), ValueError, "four numbers"),
    ("strings", changed(bbox=["10", "10", "30", "20"]), TypeError, "four numbers"),
    ("a dict", changed(bbox={"x": 10}), ValueError, "four numbers"),
    ("None inside", changed(bbox=[10, None, 30, 20]), TypeError, "four numbers"),
    ("integer beyond floats", changed(bbox=[10, 10, 10**400, 20]), ValueError, "too large"),
    ("label beyond floats", changed(category_id=10**400), ValueError, "category_id 1000"),
    ("iscrowd 2", changed(iscrowd=2), ValueError, "iscrowd 2"),
]


@pytest.mark.parametrize(("item", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_by_name(item, error, message):
    with pytest.raises(error, match=message) as caught:
        target_of(changed(id=16), item)
    assert "Annotation 17 of image 5" in str(caught.value)


def test_an_object_without_id_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"Annotation number 1 \(it has no id\) of image 5"):
        target_of(GOOD, changed(id=..., bbox=[1]))


def test_ragged_boxes_of_right_total_length_are_refused():
    """2 + 6 numbers are not two boxes."""
    with pytest.raises(ValueError, match="Annotation 1 "):
        target_of(changed(id=1, bbox=[1, 2]), changed(id=2, bbox=[1, 2, 3, 4, 5, 6]))


@pytest.mark.parametrize(
    "objects",
    [[], [changed(iscrowd=1)], [changed(iscrowd=1, bbox=None)], [changed(iscrowd=True), changed(iscrowd=np.True_)]],
)
def test_background_images(objects):
    """No object at all, or crowds only, whatever else is wrong with them."""
    target = target_of(*objects, with_masks=True)
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["class_labels"].dtype == torch.int64
    assert target["area"].shape == (0,)
    assert target["masks"].shape == (0, *RESIZED)


def test_duplicates_are_kept_with_a_warning(caplog):
    """The warning names both."""
    with caplog.at_level(logging.WARNING):
        target = detection_target(annotation(GOOD, changed(id=18), image_id="twice"), HW, RESIZED)
    assert len(target["boxes"]) == 2
    assert "annotation 18 repeats annotation 17" in caplog.text


def test_many_objects():
    """How many the model has queries for is not the processor's business."""
    assert len(target_of(*[changed(id=i, bbox=[i % 50, i % 30, 10, 10]) for i in range(300)])["boxes"]) == 300


def test_boxes_in_pixels():
    target = target_of(GOOD, normalize_boxes=False)
    assert target["boxes"].tolist() == [[20, 20, 80, 60]]  # xyxy of the resized image


def test_boxes_do_not_depend_on_the_resize():
    generator = np.random.default_rng(0)
    objects = [changed(id=i, bbox=generator.uniform(1, 30, 4).tolist()) for i in range(20)]
    small, large = (detection_target(annotation(*objects), HW, hw)["boxes"] for hw in ((37, 49), (801, 1333)))
    torch.testing.assert_close(small, large, rtol=0, atol=0)


@pytest.mark.parametrize("image_id", [5, np.int64(5), torch.tensor(5), torch.tensor([5]), 5.0, np.float64(5)])
def test_integer_image_ids(image_id):
    (checked,) = check_annotations(annotation(GOOD, image_id=image_id), 1)
    assert detection_target(checked, HW, RESIZED)["image_id"].tolist() == [5]


def test_string_image_ids():
    """As some data sets have them."""
    (checked,) = check_annotations(annotation(GOOD, image_id="img_001"), 1)
    assert detection_target(checked, HW, RESIZED)["image_id"] == "img_001"


UNUSABLE = [
    ("no image_id", {"annotations": []}, ValueError, "no 'image_id'"),
    ("no annotations", {"image_id": 5, "objects": []}, ValueError, "no 'annotations'; its keys are"),
    ("annotations None", {"image_id": 5, "annotations": None}, ValueError, "has 'annotations': None"),
    ("raw list", [GOOD], ValueError, "Gather the objects of one image"),
    ("raw lists", [[GOOD]], TypeError, "is a list: expected a dict like"),
    ("too many", [annotation(GOOD)] * 2, ValueError, "1 images and 2 annotations"),
    ("none", [], ValueError, "1 images and 0 annotations"),
    (
        "dict of lists",
        {"image_id": 5, "annotations": {"bbox": [], "category": []}},
        TypeError,
        "must be a list of dicts",
    ),
    ("not a dict inside", {"image_id": 5, "annotations": [[1, 2, 3, 4]]}, TypeError, "Number 0 in 'annotations'"),
    ("image_id 1.5", annotation(GOOD, image_id=1.5), TypeError, "image_id 1.5"),
    ("image_id -1.5", annotation(GOOD, image_id=-1.5), TypeError, "image_id -1.5"),
    ("image_id beyond floats", annotation(GOOD, image_id=10**400), ValueError, "64 bits"),
    ("image_id beyond 64 bits", annotation(GOOD, image_id=2**70), ValueError, "64 bits"),
    ("a string", "annotations.json", TypeError, "got str"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"), [row[1:] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE]
)
def test_unusable_annotations(given, error, message):
    with pytest.raises(error, match=message):
        check_annotations(given, 1)


def test_fuzzed_annotations_give_a_target_or_an_error_that_names_them():
    """No input escapes as a KeyError, an IndexError or a tensor's complaint."""
    generator = np.random.default_rng(0)
    odd = [
        None,
        "",
        "7",
        -1,
        0,
        1.5,
        2**80,
        float("nan"),
        float("inf"),
        [],
        {},
        [None] * 4,
        [1, 2, 3],
        True,
        b"x",
        [[1]],
    ]
    outcomes = {"target": 0, "error": 0}
    for _ in range(500):
        item = {**GOOD}
        for key in generator.choice([*GOOD, "segmentation"], 2):
            item[key] = odd[generator.integers(len(odd))]
            if generator.random() < 0.2:
                del item[key]
        try:
            detection_target(annotation(changed(id=16), item), HW, RESIZED)
            outcomes["target"] += 1
        except (ValueError, TypeError) as error:
            assert "of image 5" in str(error)
            outcomes["error"] += 1
    assert min(outcomes.values()) > 50
