"""Mistakes counted on cases that can be counted by hand; precision by recall against its definition."""

import numpy as np
import pytest

from detr_hf.evaluation import analysis, report
from detr_hf.evaluation.analysis import ERRORS, Judged, best_cut, best_thresholds, count_mistakes, precision_recall
from detr_hf.evaluation.coco import evaluate_boxes
from detr_hf.evaluation.report import Evaluation

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
    # the object, which nothing of its class touches, is missed as well
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
    if kind == "class and localisation":
        expected["missed"] = 1
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
    array = as_array(results)
    mistakes = count_mistakes(case, array, threshold=0.3)
    real = [one for one in case["annotations"] if not one.get("iscrowd")]
    per_class = [sum(one["category_id"] == label for one in real) for label in range(3)]
    assert mistakes.confusion[:3].sum(axis=1).tolist() == per_class
    shown = Judged(case, array).counted & (array[:, 5] >= 0.3)
    wrong = sum(mistakes.errors[kind] for kind in ERRORS if kind not in ("right", "missed"))
    assert 0 < mistakes.errors["right"] + wrong == shown.sum() == mistakes.confusion[:, :3].sum()


def as_array(results):
    return np.array([[one["image_id"], *one["bbox"], one["score"], one["category_id"]] for one in results])


@pytest.mark.parametrize("seed", range(3))
def test_the_best_threshold_is_the_best_of_all_and_gives_what_it_says(seed):
    """Against counting anew at every score, with what lies above it alone."""
    case, results = random_case(seed)
    array, thresholds = as_array(results), best_thresholds(case, as_array(results))
    objects = sum(not one.get("iscrowd") for one in case["annotations"])

    def reached(score):
        errors = count_mistakes(case, array, score).errors
        found = errors["right"]
        wrong = sum(errors[kind] for kind in ERRORS if kind not in ("right", "missed"))
        return 2 * found / (found + wrong + objects), found / max(found + wrong, 1), found / objects

    best = thresholds.of_all
    assert reached(best.score) == pytest.approx(tuple(best[1:]))
    assert best.f1 == pytest.approx(max(reached(score)[0] for score in np.unique(array[:, 5])))
    scores = Judged(case, array).evaluation.f_scores()
    by_class = np.mean([cut.f1 for cut in thresholds.per_class.values()])
    assert by_class == pytest.approx(scores["F1_50"], abs=0.05)  # which goes by curves that never rise


def test_a_threshold_is_a_short_number_and_equal_scores_are_cut_together():
    right = np.array([True, True, False, False])
    assert best_cut(np.array([0.9, 0.8, 0.61, 0.1]), right, 2)[:2] == (0.7, 1.0)
    assert best_cut(np.array([0.9, 0.5004, 0.5003, 0.1]), right, 2).score == 0.5004
    assert best_cut(np.array([0.9, 0.7, 0.7, 0.1]), right, 2).precision == pytest.approx(2 / 3)
    assert best_cut(np.array([0.9]), np.array([False]), 2) is None


def test_without_hotcoco_the_table_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(analysis, "can_judge", lambda: False)
    monkeypatch.setattr(report, "can_judge", lambda: False)
    case, results = random_case(0)
    found = Evaluation.of(case, as_array(results))
    assert found.mistakes is None and found.to_dict()["thresholds"] is None
    assert found.table().endswith("pip install 'detr-hf[eval]'.")
    with pytest.raises(ImportError, match=r"pip install 'detr-hf\[eval\]'"):
        count_mistakes(case, as_array(results))


def test_the_mean_of_the_curve_is_ap50():
    case, results = random_case(2)
    curves = precision_recall(case, results)
    per_class = evaluate_boxes(case, results).per_class
    for name, row in curves["classes"].items():
        assert np.mean(row["precision"]) == pytest.approx(per_class[name]["AP50"])
        assert np.all(np.diff(row["precision"]) <= 1e-12)
    assert precision_recall(case, [])["classes"] == {}
