"""COCO metrics: equal in both libraries, right on cases computed by hand, and honest about what is not there."""

import importlib.util
import math

import numpy as np
import pytest

from detr_hf.evaluation import coco
from detr_hf.evaluation.analysis import precision_recall
from detr_hf.evaluation.coco import BACKENDS, METRIC_NAMES, coco_metrics, evaluate_boxes

INSTALLED = [name for name in BACKENDS if importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(not INSTALLED, reason="neither hotcoco nor pycocotools is installed")
both = pytest.mark.parametrize("backend", INSTALLED)


def ground_truth(annotations, num_images=1, names=("cat", "dog")):
    return {
        "images": [{"id": index, "width": 640, "height": 480} for index in range(num_images)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
        "annotations": annotations,
    }


def found(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def random_case(seed):
    """Objects of all sizes, some crowds, and detections that are jittered objects or inventions."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(12):
        for _ in range(rng.integers(0, 7)):
            size = np.exp(rng.uniform(np.log(8), np.log(250), size=2))
            box = [float(value) for value in (*rng.uniform(0, 200, size=2), *size)]
            label, crowd = int(rng.integers(3)), int(rng.random() < 0.1)
            annotations.append({"image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                moved = [
                    float(value) for value in np.array(box) + rng.normal(0, 0.08, 4) * np.array([box[2], box[3]] * 2)
                ]
                detections.append(
                    found(image, label if rng.random() < 0.9 else int(rng.integers(3)), moved, float(rng.random()))
                )
        for _ in range(rng.integers(0, 4)):
            box = [float(value) for value in rng.uniform(1, 200, size=4)]
            detections.append(found(image, int(rng.integers(3)), box, float(rng.random() / 2)))
    return ground_truth(annotations, num_images=12, names=("cat", "dog", "eel")), detections


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both libraries")
@pytest.mark.parametrize("seed", range(5))
def test_both_libraries_give_the_same_numbers(seed):
    truth, detections = random_case(seed)
    ours, oracle = (evaluate_boxes(truth, detections, backend) for backend in ("hotcoco", "pycocotools"))
    assert 0.05 < oracle.summary["AP"] < 0.95  # a case that says something
    np.testing.assert_allclose(list(ours.summary.values()), list(oracle.summary.values()), atol=1e-12)
    assert ours.per_class.keys() == oracle.per_class.keys()
    for name, row in ours.per_class.items():
        np.testing.assert_allclose(list(row.values()), list(oracle.per_class[name].values()), atol=1e-12)


@both
def test_mean_of_the_classes_is_the_summary(backend):
    truth, detections = random_case(7)
    metrics = evaluate_boxes(truth, detections, backend)
    for key in ("AP", "AP50"):
        assert metrics.summary[key] == pytest.approx(
            np.mean([row[key] for row in metrics.per_class.values()]), abs=1e-12
        )


@both
def test_a_case_by_hand(backend):
    """IoU 0.9 counts at 9 of 10 thresholds; one of two objects found at precision 1 fills 51 of 101 recall points."""
    truth = ground_truth(
        [
            {"image_id": 0, "category_id": 0, "bbox": [10, 10, 100, 100]},
            {"image_id": 0, "category_id": 1, "bbox": [200, 10, 20, 20]},
            {"image_id": 0, "category_id": 1, "bbox": [300, 10, 20, 20]},
        ]
    )
    detections = [found(0, 0, [10, 10, 100, 90], 0.9), found(0, 1, [200, 10, 20, 20], 0.8)]
    metrics = evaluate_boxes(truth, detections, backend)
    assert metrics.per_class["cat"] == {"AP": pytest.approx(0.9), "AP50": pytest.approx(1.0), "objects": 1}
    assert metrics.per_class["dog"] == {"AP": pytest.approx(51 / 101), "AP50": pytest.approx(51 / 101), "objects": 2}
    assert metrics.summary["APl"] == pytest.approx(0.9)
    assert metrics.summary["APs"] == pytest.approx(51 / 101)
    assert math.isnan(metrics.summary["APm"])
    assert metrics.to_dict()["APm"] is None


@both
def test_perfect_detections_score_one(backend):
    truth, _ = random_case(3)
    truth["annotations"] = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    perfect = [found(a["image_id"], a["category_id"], a["bbox"], 1.0) for a in truth["annotations"]]
    summary = evaluate_boxes(truth, perfect, backend).summary
    assert all(summary[name] == pytest.approx(1.0) for name in METRIC_NAMES if name not in ("AR1", "AR10"))


@both
def test_no_detections_are_zero_and_not_an_error(backend):
    truth = ground_truth([{"image_id": 0, "category_id": 0, "bbox": [0, 0, 20, 20]}])
    metrics = evaluate_boxes(truth, [], backend)
    assert metrics.summary["AP"] == metrics.summary["APs"] == 0.0
    assert math.isnan(metrics.summary["APl"])
    assert metrics.per_class["cat"]["AP"] == 0.0 and math.isnan(metrics.per_class["dog"]["AP"])
    wrong = evaluate_boxes(truth, [found(0, 0, [300, 300, 20, 20], 0.5)], backend)
    np.testing.assert_equal(wrong.summary, metrics.summary)


@both
def test_without_objects_there_is_nothing_to_measure(backend):
    metrics = evaluate_boxes(ground_truth([]), [found(0, 0, [0, 0, 5, 5], 0.5)], backend)
    assert all(math.isnan(value) for value in metrics.summary.values())


@both
def test_category_ids_may_have_gaps_and_any_order(backend):
    truth = ground_truth([{"image_id": 0, "category_id": 90, "bbox": [0, 0, 50, 50]}])
    truth["categories"] = [{"id": 90, "name": "last"}, {"id": 5, "name": "first"}]
    metrics = evaluate_boxes(truth, [found(0, 90, [0, 0, 50, 50], 0.5)], backend)
    assert metrics.per_class["last"]["AP"] == pytest.approx(1.0)
    assert math.isnan(metrics.per_class["first"]["AP"])


@both
def test_inputs_are_not_changed_and_nothing_is_printed(backend, capfd):
    truth, detections = random_case(1)
    before = repr((truth, detections))
    evaluate_boxes(truth, detections, backend)
    assert repr((truth, detections)) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (found(5, 0, [0, 0, 1, 1], 0.5), "image 5"),
        (found(0, 7, [0, 0, 1, 1], 0.5), "category 7"),
        (found(0, 0, [0, 0, math.nan, 1], 0.5), "finite"),
        (found(0, 0, [0, 0, 1], 0.5), "four finite numbers"),
        (found(0, 0, [0, 0, 1, 1], math.inf), "finite score"),
    ],
)
def test_bad_detections_are_refused_with_their_number(detection, message):
    truth = ground_truth([{"image_id": 0, "category_id": 0, "bbox": [0, 0, 20, 20]}])
    with pytest.raises(ValueError, match=f"Detection 1 .*{message}"):
        evaluate_boxes(truth, [found(0, 0, [0, 0, 1, 1], 0.5), detection])


def masked(box, image_wh=(640, 480), hole=False):
    """A filled rectangle as a run-length encoding; with a `hole` its frame of two pixels alone."""
    pycocotools_mask = pytest.importorskip("pycocotools.mask")
    x, y, width, height = box
    pixels = np.zeros((image_wh[1], image_wh[0]), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    if hole:
        pixels[y + 2 : y + height - 2, x + 2 : x + width - 2] = 0
    encoded = pycocotools_mask.encode(pixels)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def scenes_of_rectangles():
    """Objects and detections whose boxes are whole pixels, each with the mask that fills its box."""
    rng = np.random.default_rng(4)
    annotations, detections = [], []
    for image, label in enumerate(rng.integers(0, 2, 6)):
        box = [int(side) for side in (*rng.integers(0, 100, 2), *rng.integers(20, 150, 2))]
        one = {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        annotations.append({**one, "segmentation": masked(box)})
        moved = [side + int(shift) for side, shift in zip(box, rng.integers(0, 12, 4), strict=True)]
        result = found(image, int(label), moved, float(rng.random()))
        detections.append({**result, "segmentation": masked(moved)})
    return ground_truth(annotations, num_images=6), detections


@both
def test_masks_that_fill_their_boxes_give_the_numbers_of_the_boxes(backend):
    truth, detections = scenes_of_rectangles()
    boxes, masks = (coco_metrics(truth, detections, kind, backend) for kind in ("bbox", "segm"))
    assert 0.05 < boxes.summary["AP"] < 0.95
    assert masks.summary == pytest.approx(boxes.summary, nan_ok=True)
    curves = [precision_recall(truth, detections, 0.5, backend, kind)["mean"] for kind in ("bbox", "segm")]
    assert curves[0] == pytest.approx(curves[1])


@both
def test_a_mask_counts_by_its_pixels_not_by_its_box(backend):
    truth, _ = scenes_of_rectangles()
    framed = [
        {
            **found(one["image_id"], one["category_id"], one["bbox"], 0.9),
            "segmentation": masked(one["bbox"], hole=True),
        }
        for one in truth["annotations"]
    ]
    assert coco_metrics(truth, framed, "bbox", backend).summary["AP"] == pytest.approx(1)
    assert coco_metrics(truth, framed, "segm", backend).summary["AP"] < 0.1


def test_what_is_no_mask_and_no_kind_of_iou_is_refused():
    truth, detections = scenes_of_rectangles()
    with pytest.raises(ValueError, match="iou_type is 'keypoints'; choose from 'bbox', 'segm'"):
        coco_metrics(truth, detections, "keypoints")
    with pytest.raises(ValueError, match=r"Detection 0 has segmentation .* expected a run-length encoding"):
        coco_metrics(truth, [{**detections[0], "segmentation": [[0, 0, 1, 1]]}], "segm")
    with pytest.raises(ValueError, match="has boxes alone"):
        coco_metrics(truth, np.ones((1, 7)), "segm")


def test_backend_is_checked_and_its_absence_explained(monkeypatch):
    with pytest.raises(ValueError, match="'hotcoco', 'pycocotools'"):
        coco.choose_backend("cocoapi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'detr-hf\[eval\]'"):
        coco.choose_backend()


def test_the_fallback_is_used_where_hotcoco_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hotcoco" else object())
    assert coco.choose_backend() == "pycocotools"
