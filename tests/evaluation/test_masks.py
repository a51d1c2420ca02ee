"""AP of masks and panoptic quality while pictures go by, beside independent computations on the same outputs."""

import json
import pickle
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from detr_hf import DETRImageProcessor
from detr_hf.data.picture_truth import TRUTH, PictureTruth
from detr_hf.evaluation import DetectionEvaluator, evaluate_masks
from detr_hf.evaluation.segments import MASKS_FROM, SegmentEvaluator
from detr_hf.model.predictions_detr import Predictions
from detr_hf.processing.run_lengths_detr import run_length_counts, run_length_mask, run_lengths

from .test_panoptic import independent

NAMES = {0: "cat", 1: "dog", 2: "grass"}
THINGS = [True, True, False]
SIZES = [(48, 64), (60, 40), (64, 64), (33, 57)]
CANVAS = (64, 64)


def rectangle(size_hw: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size_hw, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def row(number: int) -> dict[str, Any]:
    """A picture with two animals on grass, a crowd of dogs in every second, and void at its right edge."""
    height, width = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    top, left = rng.integers(1, 6, 2)
    animals = [
        rectangle((height, width), top, left, top + 12, left + 14),
        rectangle((height, width), top + 14, 4, top + 27, 20),
    ]
    crowd = rectangle((height, width), 2, 22, 20, 34) if number % 2 else rectangle((height, width), 0, 0, 0, 0)
    grass = ~(animals[0] | animals[1] | crowd)
    grass[:, -5:] = False
    masks = [*animals, *([crowd] if number % 2 else []), grass]
    categories = [number % 2, 1, *([1] if number % 2 else []), 2]
    objects = {
        "id": list(range(1, len(masks) + 1)),
        "category": categories,
        "bbox": [[0.0, 0.0, float(width), float(height)]] * len(masks),
        "area": [float(mask.sum()) for mask in masks],
        "iscrowd": [int(number % 2 and place == 2) for place in range(len(masks))],
        "segmentation": [json.dumps(run_lengths(mask)) for mask in masks],
    }
    return {"image_id": number, "file_name": f"{number}.png", "width": width, "height": height, "objects": objects}


def answers(rows: list[dict[str, Any]], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a model could say of a padded batch: truth that was moved, split, joined, renamed, and found on void."""
    rng = np.random.default_rng(seed + rows[0]["image_id"])
    logits = torch.full((len(rows), 9, 4), -4.0)
    logits[..., 3] = 3.0
    masks = torch.full((len(rows), 9, *CANVAS), -6.0)
    for image, one in enumerate(rows):
        truth = PictureTruth.of(one)
        found = [run_length_mask(mask, truth.size_hw) for mask in truth.run_lengths()]
        found = [np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1)) for mask in found]
        labels = list(one["objects"]["category"])
        half = found[-1].copy()
        half[: truth.size_hw[0] // 2] = False  # of grass, a second time
        joined = found[0] | found[1]
        found += [half, joined, rectangle(truth.size_hw, 3, truth.size_hw[1] - 5, 9, truth.size_hw[1]), found[1]]
        labels += [2, 0, 0, 0]  # the last one renamed
        for query, (mask, label) in enumerate(zip(found[:9], labels, strict=False)):
            masks[image, query, : truth.size_hw[0], : truth.size_hw[1]] = torch.from_numpy(np.where(mask, 5.0, -5.0))
            logits[image, query, label] = 3 + float(rng.choice([-4.5, -2.0, 1.5, 3.0, 6.0])) + float(rng.random())
    sizes = torch.tensor([(one["height"], one["width"]) for one in rows])
    frame = {"image_sizes_hw": sizes, "padded_sizes_hw": torch.tensor(CANVAS).expand(len(rows), 2)}
    boxes = torch.full((len(rows), 9, 4), 0.5)
    return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks, **frame}


def labels_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return [
        {"image_id": torch.tensor([one["image_id"]]), "orig_size": torch.tensor([one["height"], one["width"]])}
        | {**empty, TRUTH: PictureTruth.of(one)}
        for one in rows
    ]


def shown(rows: list[dict[str, Any]]) -> torch.Tensor:
    mask = torch.zeros(len(rows), *CANVAS)
    for image, one in enumerate(rows):
        mask[image, : one["height"], : one["width"]] = 1
    return mask


def streamed(batches: list[list[int]], is_thing: list[bool] | None = THINGS, **options: Any) -> DetectionEvaluator:
    evaluator = DetectionEvaluator(NAMES, segments=SegmentEvaluator(NAMES, is_thing, **options), **options)
    for numbers in batches:
        rows = [row(number) for number in numbers]
        outputs = [answers([one]) for one in rows]
        joined = {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}
        found = Predictions(joined["logits"], joined["pred_boxes"], joined["pred_masks"])
        evaluator.update(found, labels_of(rows), shown(rows))
    return evaluator


BATCHES = [[0, 1, 2], [3], [4, 5, 6, 7]]


@pytest.fixture(scope="module")
def evaluator() -> DetectionEvaluator:
    return streamed(BATCHES)


def by_pycocotools(is_thing: list[bool] | None) -> dict[str, float]:
    """The numbers of post-processing's run lengths, by the official code on the rows as a COCO file has them."""
    rows = [row(number) for number in range(8)]
    processor, counted = DETRImageProcessor(), [label for label in NAMES if is_thing is None or is_thing[label]]
    results, annotations = [], []
    for one in rows:
        sizes = [(one["height"], one["width"])]
        found = processor.post_process_instance_segmentation(
            answers([one]), MASKS_FROM, target_sizes=sizes, return_coco_annotation=True
        )[0]
        for segment, mask in zip(found["segments_info"], found["segmentation"], strict=True):
            result = {"image_id": one["image_id"], "category_id": segment["label_id"], "score": segment["score"]}
            results.append({**result, "segmentation": mask})
        names = ("category", "area", "iscrowd", "segmentation", "bbox")
        for category, area, crowd, mask, box in zip(*(one["objects"][name] for name in names), strict=True):
            annotation = {"image_id": one["image_id"], "category_id": category, "area": area, "iscrowd": crowd}
            annotations.append({**annotation, "id": len(annotations) + 1, "bbox": box, "segmentation": mask})
    truth = {
        "images": [{"id": one["image_id"], "height": one["height"], "width": one["width"]} for one in rows],
        "categories": [{"id": label, "name": NAMES[label]} for label in counted],
        "annotations": [one for one in annotations if one["category_id"] in counted],
    }
    kept = [one for one in results if one["category_id"] in counted]
    return evaluate_masks(truth, kept, "pycocotools").summary


def test_masks_and_segments_are_those_of_post_processing_and_the_definition(evaluator):
    metrics, quality = evaluator.compute_masks(), evaluator.compute_panoptic()
    assert 0.1 < metrics.summary["AP"] < 0.95 and list(metrics.per_class) == ["cat", "dog"], "of things"
    assert metrics.summary == pytest.approx(by_pycocotools(THINGS), abs=1e-9, nan_ok=True)
    every = streamed(BATCHES, None)
    assert list(every.compute_masks().per_class) == list(NAMES.values()) and every.compute_panoptic() is None
    assert every.compute_masks().summary == pytest.approx(by_pycocotools(None), abs=1e-9, nan_ok=True)

    pairs = []
    for number in range(8):
        one = row(number)
        found = DETRImageProcessor().post_process_panoptic_segmentation(
            answers([one]), label_ids_to_fuse=[2], target_sizes=[(one["height"], one["width"])]
        )[0]
        segments = [{**segment, "category_id": segment["label_id"]} for segment in found["segments_info"]]
        ids = np.zeros((one["height"], one["width"]), dtype=int)
        for place, mask in enumerate(PictureTruth.of(one).run_lengths(), start=1):
            ids[run_length_mask(mask, ids.shape)] = place
        objects = zip(one["objects"]["category"], one["objects"]["iscrowd"], strict=True)
        listed = [
            {"id": place, "category_id": label, "iscrowd": crowd}
            for place, (label, crowd) in enumerate(objects, start=1)
        ]
        prediction = {"segmentation": found["segmentation"].numpy(), "segments_info": segments}
        pairs.append((prediction, {"segmentation": ids, "segments_info": listed}))
    expected = independent(pairs, [{"id": label, "name": name} for label, name in NAMES.items()])
    for name, row_ in expected.items():
        for key, value in row_.items():
            assert quality.per_class[name][key] == pytest.approx(value, abs=1e-12), (name, key)
    assert 0.1 < quality.summary["PQ"] < 0.95 and quality.summary["PQ_st"] > 0


def gathered(make, monkeypatch) -> list[DetectionEvaluator]:
    """The evaluators of `make` () after a gather among them, which sends what each has as accelerate does: pickled."""
    sent: dict[int, list[bytes]] = {}
    for evaluator in make():
        calls = iter(range(9))

        def send(content: list, calls=calls) -> list:
            sent.setdefault(next(calls), []).append(pickle.dumps(content))
            return content

        monkeypatch.setattr("accelerate.utils.gather_object", send)
        evaluator.gather()
    joined = make()
    for evaluator in joined:
        calls = iter(range(9))

        def receive(content, calls=calls):
            return [one for share in sent[next(calls)] for one in pickle.loads(share)]

        monkeypatch.setattr("accelerate.utils.gather_object", receive)
        evaluator.gather()
    return joined


def test_neither_order_nor_batches_nor_processes_matter(evaluator, monkeypatch):
    shares = [[[0, 1], [4, 5, 6]], [[2, 3], [7, 0]]]  # picture 0 fills up the last batch
    pair = gathered(lambda: [streamed(share, repeats=True) for share in shares], monkeypatch)
    shuffled = streamed([[number] for number in random.Random(0).sample(range(8), 8)])
    for other in (shuffled, *pair):
        assert other.compute_masks().summary == pytest.approx(evaluator.compute_masks().summary, nan_ok=True)
        assert other.compute_panoptic() == evaluator.compute_panoptic()
        assert len(other) == 8 and len(other.results()) == len(evaluator.results())


def test_results_have_the_masks_that_were_measured(evaluator):
    results = evaluator.results([10, 20, 30])
    masked = [one for one in results if "segmentation" in one]
    assert len(results) == 8 * 9 and 0 < len(masked) < len(results)
    assert min(one["score"] for one in masked) > MASKS_FROM
    assert {one["category_id"] for one in results} <= {10, 20, 30}
    for one in masked:
        size = (row(one["image_id"])["height"], row(one["image_id"])["width"])
        assert run_length_mask(one["segmentation"], size).any()
    assert json.loads(json.dumps(results)) == results


def test_objects_without_a_mask_are_ignored_and_counted(caplog):
    """What is found in their box is neither right nor wrong."""
    one = row(0)
    one["objects"]["segmentation"][1] = None
    height, width = one["height"], one["width"]
    one["objects"]["bbox"] = [[0.0, 0.0, 5.0, 5.0], [10.0, 10.0, 20.0, 20.0], [0.0, 0.0, float(width), float(height)]]
    segments = SegmentEvaluator(NAMES)
    segments.add_truth(0, PictureTruth.of(one))
    truths = [run_length_mask(mask, (height, width)) for mask in PictureTruth.of(row(0)).run_lengths()]
    found = [truths[0], rectangle((height, width), 12, 12, 28, 28), truths[2]]
    results = [
        {"image_id": 0, "category_id": label, "score": 0.9, "segmentation": run_lengths(mask)}
        for label, mask in zip(one["objects"]["category"], found, strict=True)
    ]
    images = {0: {"id": 0, "height": height, "width": width}}
    assert segments.compute_masks(images, results).summary["AP"] == pytest.approx(1)
    assert "1 true objects have no mask" in caplog.text
    one["objects"]["segmentation"] = [None] * 3
    segments.add_truth(0, PictureTruth.of(one))
    assert segments.compute_masks(images, results) is None and "The data has no masks" in caplog.text


def test_without_rows_the_targets_masks_are_the_truth(caplog):
    """Of a data set that gives tensors alone; they were resized."""
    one, evaluator = row(0), DetectionEvaluator(NAMES, segments=SegmentEvaluator(NAMES))
    masks = torch.stack([torch.from_numpy(run_length_mask(m, (48, 64))) for m in PictureTruth.of(one).run_lengths()])
    small = masks[:, ::2, ::2]
    label = {"image_id": 0, "orig_size": torch.tensor([48, 64]), "size": torch.tensor([24, 32]), "masks": small}
    label |= {"class_labels": torch.tensor([0, 1, 2]), "boxes": torch.full((3, 4), 0.5)}
    logits = torch.full((1, 3, 4), -9.0)
    logits[0, range(3), range(3)] = 9.0
    found = Predictions(logits, torch.full((1, 3, 4), 0.5), torch.where(masks, 9.0, -9.0)[None])
    evaluator.update(found, [label])
    assert evaluator.compute_masks().summary["AP50"] == pytest.approx(1)
    assert "of their resized targets" in caplog.text


def filled(pictures: int) -> DetectionEvaluator:
    """Returns what was added of pictures with six objects, each found, among a hundred detections."""
    evaluator = DetectionEvaluator(NAMES, {"images": []}, segments=SegmentEvaluator(NAMES))
    for number in range(pictures):
        masks = [run_lengths(rectangle((64, 128), number, left, 60, 100 + left)) for left in range(6)]
        objects = {"bbox": [[0.5, 1.5, 30.0, 40.0]] * 6, "category": [0] * 6, "area": [1200.5] * 6, "iscrowd": [0] * 6}
        objects["segmentation"] = [json.dumps(mask) for mask in masks]
        evaluator.add(number, (64, 128), np.linspace(0.9, 0, 100), np.zeros(100), np.ones((100, 4)))
        evaluator.segments.add(number, {TRUTH: PictureTruth(f"{number}.png", (64, 128), objects)}, None)
        evaluator.add_masks(number, np.linspace(0.9, 0, 100), [*masks, *[None] * 94])
    return evaluator


def test_memory_is_that_of_what_has_a_mask():
    """Kept packed, and in the end none is of detections without a mask, which as results take half a kB each."""
    assert filled(2).compute_masks().summary["AP"] == pytest.approx(1)  # what is loaded once, is
    tracemalloc.start()
    try:
        evaluator = filled(24)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        evaluator.compute_masks()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 24 * 6000 and most - kept < 24 * 20000, (kept / 24, (most - kept) / 24)


# --- evaluate_masks


def dictionaries() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Polygons as truth, and detections that are a pixel or two aside."""
    images = [{"id": number, "height": 40, "width": 50} for number in range(3)]
    annotations, results = [], []
    for number in range(6):
        x, y = 3 + 4 * number, 5 + number
        polygon = [x, y, x + 14, y, x + 14, y + 12, x, y + 12]
        one = {"id": 9, "image_id": number // 2, "category_id": 1 + number % 2, "bbox": [x, y, 14, 12]}
        annotations.append({**one, "segmentation": [polygon], "area": 168, "iscrowd": int(number == 5)})
        mask = run_lengths(rectangle((40, 50), y + number % 3, x, y + 12, x + 14))
        results.append({"image_id": one["image_id"], "category_id": one["category_id"], "score": 0.9 - number / 10})
        results[-1]["segmentation"] = mask
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def test_every_form_of_mask_gives_the_same_numbers():
    truth, results = dictionaries()
    masks = [rectangle((40, 50), y, x, y + h, x + w) for x, y, w, h in (one["bbox"] for one in truth["annotations"])]
    forms = {
        "polygons": [one["segmentation"] for one in truth["annotations"]],
        "text of polygons": [json.dumps(one["segmentation"]) for one in truth["annotations"]],
        "text of run lengths": [json.dumps(run_lengths(mask)) for mask in masks],
        "run lengths": [run_lengths(mask) for mask in masks],
        "lists": [
            {"size": [40, 50], "counts": run_length_counts(run_lengths(mask), (40, 50)).tolist()} for mask in masks
        ],
    }
    summaries = []
    for name, form in forms.items():
        given = [{**one, "segmentation": mask} for one, mask in zip(truth["annotations"], form, strict=True)]
        for backend in ("hotcoco", "pycocotools"):
            summary = evaluate_masks({**truth, "annotations": given}, results, backend).summary
            assert summary == pytest.approx(summaries[0] if summaries else summary, abs=1e-9, nan_ok=True), name
            summaries.append(summary)
    assert 0.5 < summaries[0]["AP"] < 1
    counts = [run_length_counts(one["segmentation"], (40, 50)).tolist() for one in results]
    for change in (lambda text, numbers: text.encode(), lambda text, numbers: numbers):
        given = [
            {**one, "segmentation": {"size": [40, 50], "counts": change(one["segmentation"]["counts"], numbers)}}
            for one, numbers in zip(results, counts, strict=True)
        ]
        for backend in ("hotcoco", "pycocotools"):
            assert evaluate_masks(truth, given, backend).summary == pytest.approx(summaries[0], nan_ok=True)


def boxes_alone(truth, results):
    results[1] = {key: value for key, value in results[1].items() if key != "segmentation"} | {"bbox": [1, 1, 2, 2]}


WRONG = {
    "boxes alone": (boxes_alone, r"Detection 1 has .*'bbox' and no 'segmentation': masks are asked for"),
    "another size": (
        lambda truth, results: results[0]["segmentation"].update(size=[50, 40]),
        r"Detection 0 has run lengths of size \[50, 40\] in an image of \(height, width\) \(40, 50\)",
    ),
    "too short": (
        lambda truth, results: results[0]["segmentation"].update(counts=[3, 4]),
        r"Detection 0 has run-length counts that do not fit.* 2000 .*their sum is 7",
    ),
    "no counts": (
        lambda truth, results: results[0]["segmentation"].update(counts=None),
        "Detection 0 has run-length counts of type NoneType",
    ),
    "garbled": (
        lambda truth, results: results[0]["segmentation"].update(counts="~~"),
        "Detection 0 has compressed run lengths that cannot be read",
    ),
    "polygons found": (
        lambda truth, results: results[0].update(segmentation=[[1, 1, 2, 2, 3, 1]]),
        "Detection 0 has segmentation .* expected a run-length encoding",
    ),
    "an unknown image": (lambda truth, results: results[0].update(image_id=7), "Detection 0 is of image 7"),
    "no true mask": (
        lambda truth, results: truth["annotations"][2].update(segmentation=None),
        "Annotation 9 of image 1 has no segmentation; expected polygons or run lengths",
    ),
    "a true mask of another size": (
        lambda truth, results: truth["annotations"][2].update(
            segmentation=json.dumps({"size": [9, 9], "counts": [81]})
        ),
        "Annotation 9 of image 1: the run length is for 9x9 and the picture is 40x50",
    ),
    "text that is none": (
        lambda truth, results: truth["annotations"][2].update(segmentation="{"),
        "Annotation 9 of image 1: the segmentation is no JSON",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_masks_that_cannot_be_compared_are_named(case):
    truth, results = dictionaries()
    change, words = WRONG[case]
    change(truth, results)
    with pytest.raises(ValueError, match=words):
        evaluate_masks(truth, results)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "best"}, "rule is 'best'; there are 'confident' and 'original'"),
        ({"panoptic_threshold": 1.5}, "panoptic_threshold must be a number from 0 to 1"),
        ({"is_thing": [True]}, "is_thing has 1 values for 3 classes"),
    ],
)
def test_what_is_no_way_to_measure_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SegmentEvaluator(NAMES, **options)
