"""Mistakes counted on cases that can be counted by hand; precision by recall against its definition."""

import numpy as np
import pytest

from detr_hf.evaluation.analysis import ERRORS, box_iou_xywh, count_mistakes, precision_recall
from detr_hf.evaluation.coco import evaluate_boxes

from .test_coco import ground_truth, random_case

BOX = [100.0, 100.0, 40.0, 40.0]


def truth(*objects):
    annotations = [
        {"id": n + 1, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (image, label, box, crowd) in enumerate(objects)
    ]
    return ground_truth(annotations, num_images=2)


def found(*rows):
    return np.array([[image, *box, score, label] for image, label, box, score in rows], dtype=float).reshape(-1, 7)


def shifted(by):
    return [BOX[0] + by, *BOX[1:]]


CASES = {
    "right": ([(0, 0, BOX, 0)], [(0, 0, shifted(5), 0.9)]),
    "class": ([(0, 0, BOX, 0)], [(0, 1, BOX, 0.9)]),
    "localisation": ([(0, 0, BOX, 0)], [(0, 0, shifted(20), 0.9)]),
    "class and localisation": ([(0, 0, BOX, 0)], [(0, 1, shifted(20), 0.9)]),
    "background": ([(0, 0, BOX, 0)], [(0, 0, BOX, 0.9), (0, 0, [300.0, 300.0, 20.0, 20.0], 0.8)]),
    "duplicate": ([(0, 0, BOX, 0)], [(0, 0, BOX, 0.9), (0, 0, shifted(2), 0.8)]),
    "missed": ([(0, 0, BOX, 0)], [(0, 0, BOX, 0.4)]),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_mistake(kind):
    objects, rows = CASES[kind]
    errors = count_mistakes(truth(*objects), found(*rows)).errors
    expected = dict.fromkeys(ERRORS, 0) | {kind: 1}
    if kind in ("background", "duplicate"):
        expected["right"] = 1
    assert errors == expected


def test_the_confusion_matrix_has_true_classes_in_rows():
    objects = [(0, 0, BOX, 0), (0, 1, [10.0, 10.0, 30.0, 30.0], 0), (1, 1, BOX, 0)]
    rows = [(0, 1, BOX, 0.9), (0, 1, [10.0, 10.0, 30.0, 30.0], 0.8), (1, 0, [400.0, 400.0, 9.0, 9.0], 0.7)]
    mistakes = count_mistakes(truth(*objects), found(*rows))
    assert mistakes.names == ["cat", "dog"]
    assert mistakes.confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_an_object_is_given_to_the_surer_detection_and_its_own_class_first():
    both = [(0, 0, BOX, 0), (0, 1, BOX, 0)]
    assert count_mistakes(truth(*both), found((0, 1, BOX, 0.9), (0, 0, BOX, 0.8))).errors["right"] == 2


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong():
    errors = count_mistakes(truth((0, 0, [0.0, 0.0, 300.0, 300.0], 1)), found((0, 0, BOX, 0.9))).errors
    assert errors == dict.fromkeys(ERRORS, 0)


@pytest.mark.parametrize("seed", range(3))
def test_counts_add_up(seed):
    case, results = random_case(seed)
    array = np.array([[one["image_id"], *one["bbox"], one["score"], one["category_id"]] for one in results])
    mistakes = count_mistakes(case, array, threshold=0.3)
    real = [one for one in case["annotations"] if not one.get("iscrowd")]
    per_class = [sum(one["category_id"] == label for one in real) for label in range(3)]
    assert mistakes.confusion[:3].sum(axis=1).tolist() == per_class
    assert mistakes.errors["right"] == np.trace(mistakes.confusion[:3, :3])
    shown = (array[:, 5] >= 0.3).sum()
    wrong = sum(mistakes.errors[kind] for kind in ERRORS if kind not in ("right", "missed"))
    assert 0 < mistakes.errors["right"] + wrong <= shown


def test_the_mean_of_the_curve_is_ap50():
    case, results = random_case(2)
    curves = precision_recall(case, results)
    per_class = evaluate_boxes(case, results).per_class
    for name, row in curves["classes"].items():
        assert np.mean(row["precision"]) == pytest.approx(per_class[name]["AP50"])
        assert np.all(np.diff(row["precision"]) <= 1e-12)
    assert precision_recall(case, [])["classes"] == {}


def test_iou():
    assert box_iou_xywh(np.array([BOX]), np.array([shifted(20), shifted(40)])).tolist() == [
        [pytest.approx(1 / 3), 0.0]
    ]
