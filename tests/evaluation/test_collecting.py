"""What streams through the evaluator gives the numbers of what was put in, and fits in little memory."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from detr_hf.evaluation import DetectionEvaluator, evaluate_boxes, metrics_table, read_results, write_results
from detr_hf.evaluation.analysis import count_mistakes
from detr_hf.evaluation.collecting import FOUND
from detr_hf.evaluation.running import labels_by_name, with_classes_of_data
from detr_hf.evaluation.truth import ground_truth_of
from detr_hf.model import Predictions

NAMES = {0: "cat", 1: "dog", 2: "owl"}


def batch(first_id: int, count: int, seed: int, queries: int = 8):
    """Outputs near the targets, in batches; pictures of different sizes, resized to half."""
    generator = torch.Generator().manual_seed(seed)
    labels, logits, boxes = (
        [],
        torch.randn(count, queries, 4, generator=generator),
        torch.rand(count, queries, 4, generator=generator),
    )
    for index in range(count):
        number = int(torch.randint(0, 4, (), generator=generator))
        size = torch.rand(number, 2, generator=generator) * 0.3 + 0.1
        target = torch.cat([size / 2 + torch.rand(number, 2, generator=generator) * (1 - size), size], dim=1)
        classes = torch.randint(3, (number,), generator=generator)
        hw = torch.tensor([100 + 20 * index, 300])
        area = target[:, 2] * target[:, 3] * (hw // 2).prod()
        labels.append(
            {
                "image_id": torch.tensor([first_id + index]),
                "class_labels": classes,
                "boxes": target,
                "orig_size": hw,
                "size": hw // 2,
                "area": area,
            }
        )
        boxes[index, :number] = target + 0.02 * torch.randn(number, 4, generator=generator)
        logits[index, range(number), classes] += 4.0
    return Predictions(logits, boxes.clamp(0, 1)), labels


def filled(batches=((0, 3, 1), (3, 2, 2))) -> DetectionEvaluator:
    evaluator = DetectionEvaluator(NAMES)
    for arguments in batches:
        evaluator.update(*batch(*arguments))
    return evaluator


def test_numbers_are_those_of_the_same_detections_as_coco_results():
    evaluator = filled()
    metrics = evaluator.compute()
    assert 0.1 < metrics.summary["AP"] < 1
    truth = evaluator.coco_ground_truth()
    assert evaluate_boxes(truth, evaluator.results(), "pycocotools").summary == pytest.approx(
        metrics.summary, abs=1e-3, nan_ok=True
    )
    array = evaluator.coco_detections()
    for backend in ("hotcoco", "pycocotools"):
        assert evaluate_boxes(truth, array, backend).summary == pytest.approx(metrics.summary, abs=1e-9, nan_ok=True)


def test_ground_truth_is_in_pixels_of_the_original_picture():
    labels = batch(0, 3, 1)[1]
    annotations = filled(((0, 3, 1),)).coco_ground_truth()["annotations"]
    expected = [box for label in labels for box in label["boxes"] * label["orig_size"].flip(0).repeat(2)]
    assert len(annotations) == len(expected) > 0
    for annotation, (x, y, w, h) in zip(annotations, expected, strict=True):
        assert annotation["bbox"] == pytest.approx([float(x - w / 2), float(y - h / 2), float(w), float(h)], rel=1e-4)
        assert annotation["area"] == pytest.approx(float(w * h), rel=1e-3)  # scaled back from the resized picture


def test_the_order_of_batches_does_not_matter():
    assert filled().compute() == filled(((3, 2, 2), (0, 3, 1))).compute()


def test_a_picture_that_comes_twice_is_an_error_or_counted_once():
    evaluator = filled()
    with pytest.raises(ValueError, match="Image 3 comes twice"):
        evaluator.update(*batch(3, 2, 2))
    sharded = DetectionEvaluator(NAMES, repeats=True)
    for arguments in ((0, 3, 1), (3, 2, 2), (3, 2, 2)):
        sharded.update(*batch(*arguments))
    assert sharded.compute() == evaluator.compute()


def test_outputs_that_are_not_finite_are_refused():
    predictions, labels = batch(0, 2, 1)
    predictions.logits[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        DetectionEvaluator(NAMES).update(predictions, labels)


def test_without_sizes_the_mask_gives_the_scale():
    predictions, labels = batch(0, 2, 1)
    plain = [{key: label[key] for key in ("class_labels", "boxes")} for label in labels]
    mask = torch.zeros(2, 40, 60)
    mask[0, :20, :50] = mask[1] = 1
    evaluator = DetectionEvaluator(NAMES)
    evaluator.update(predictions, plain, mask)
    assert [(image["height"], image["width"]) for image in evaluator.coco_ground_truth()["images"]] == [
        (20, 50),
        (40, 60),
    ]
    with pytest.raises(ValueError, match="no 'orig_size'"):
        DetectionEvaluator(NAMES).update(predictions, plain)


def test_a_hundred_detections_a_picture_take_32_bytes_each():
    evaluator = DetectionEvaluator(NAMES)
    scores = np.random.default_rng(0).random(300)
    evaluator.add(1, (10, 10), scores, np.zeros(300), np.tile([1.0, 1, 5, 5], (300, 1)))
    assert len(evaluator.coco_detections()) == 100 and FOUND.itemsize == 32
    assert evaluator.coco_detections()[:, 5].min() >= np.sort(scores)[200] - 1e-6


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        DetectionEvaluator(NAMES).compute()


def test_ground_truth_from_rows_has_the_crowds():
    objects = {
        "id": [1, 2],
        "bbox": [[0.0, 0.0, 4.0, 5.0], [1.0, 1.0, 2.0, 2.0]],
        "category": [2, 0],
        "area": [18.0, None],
        "iscrowd": [0, 1],
    }
    rows = Dataset.from_list([{"image_id": 7, "width": 20, "height": 10, "objects": objects}])
    truth = ground_truth_of(rows, NAMES)
    assert truth["images"] == [{"id": 7, "width": 20, "height": 10}]
    kept = [(one["image_id"], one["category_id"], one["area"], one["iscrowd"]) for one in truth["annotations"]]
    assert kept == [(7, 2, 18.0, 0), (7, 0, 4.0, 1)]
    assert ground_truth_of([1, 2], NAMES) is None


def test_results_files_come_back(tmp_path):
    results = filled().results(source_category_ids=[10, 20, 30])
    write_results(tmp_path / "new" / "results.json", results)
    assert read_results(tmp_path / "new" / "results.json") == results
    assert {result["category_id"] for result in results} <= {10, 20, 30}
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_results(tmp_path / "bad.json")


def test_classes_are_matched_by_name():
    assert labels_by_name({0: "N/A", 17: "Cat", 18: "dog"}, {0: "dog", 1: "cat"}) == {17: 1, 18: 0}
    logits = torch.tensor([[[0.0, 2.0, 1.0, 3.0]]])  # N/A, cat, dog, no object
    moved = with_classes_of_data(logits, columns=[1, 2], labels=[1, 0], num_labels=2).softmax(-1)[0, 0]
    whole = logits.softmax(-1)[0, 0]
    assert moved.tolist() == pytest.approx([float(whole[2]), float(whole[1]), float(whole[0] + whole[3])], abs=1e-6)


def test_the_table_shows_every_class():
    evaluator = filled()
    mistakes = count_mistakes(evaluator.coco_ground_truth(), evaluator.coco_detections())
    table = metrics_table(evaluator.compute(), mistakes)
    assert all(word in table for word in ("AP75", "cat", "dog", "owl", "localisation", "missed"))


@pytest.mark.parametrize(("given", "kept"), [(np.int64(7), 7), (np.str_("a"), "a"), (np.uint8(3), 3)])
def test_ids_of_numpy_are_plain_in_results(given, kept):
    evaluator = DetectionEvaluator({0: "thing"})
    evaluator.add(given, (8, 8), [0.5], [0], np.array([[0, 0, 4, 4]]))
    assert json.loads(json.dumps(evaluator.results()))[0]["image_id"] == kept
