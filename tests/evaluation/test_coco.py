"""COCO metrics: equal in both libraries, right on cases computed by hand, and honest about what is not there."""

import importlib.util
import math

import numpy as np
import pytest

from detr_hf.evaluation import coco
from detr_hf.evaluation.coco import BACKENDS, METRIC_NAMES, evaluate_boxes

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


def test_backend_is_checked_and_its_absence_explained(monkeypatch):
    with pytest.raises(ValueError, match="'hotcoco', 'pycocotools'"):
        coco.choose_backend("cocoapi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install detr_hf\[eval\]"):
        coco.choose_backend()


def test_the_fallback_is_used_where_hotcoco_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hotcoco" else object())
    assert coco.choose_backend() == "pycocotools"
