"""Panoptic quality beside an independent writing of its definition, and what is refused."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_hf import load_detection_dataset
from detr_hf.evaluation import PanopticEvaluator, evaluate_panoptic, evaluate_panoptic_results
from detr_hf.processing.mask_annotations_detr import read_panoptic_png

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 92, "name": "grass", "isthing": 0},
    {"id": 200, "name": "sky", "isthing": 0},
]
SIZE = (40, 50)


def segments(generator: np.random.Generator, crowds: bool) -> dict[str, Any]:
    """Rectangles over each other, some of them crowds, and void in between."""
    ids = np.zeros(SIZE, dtype=np.int64)
    listed = []
    for number in range(1, 9):
        top, left = generator.integers(0, 30, 2)
        height, width = generator.integers(4, 25, 2)
        ids[top : top + height, left : left + width] = number * 1000
        category = CATEGORIES[generator.integers(len(CATEGORIES))]
        crowd = int(crowds and category["isthing"] and generator.random() < 0.4)
        listed.append({"id": number * 1000, "category_id": category["id"], "iscrowd": crowd, "area": 10**9})
    return {"segmentation": ids, "segments_info": [one for one in listed if (ids == one["id"]).any()]}


def perturbed(truth: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Moved, split, joined and renamed segments, on void and on crowds too."""
    ids = np.roll(truth["segmentation"], tuple(generator.integers(-3, 4, 2)), axis=(0, 1)).copy()
    listed = [{"id": one["id"], "category_id": one["category_id"]} for one in truth["segments_info"]]
    ids[:, 25:][ids[:, 25:] == listed[0]["id"]] = 77  # one is split
    listed.append({"id": 77, "category_id": listed[0]["category_id"]})
    if len(listed) > 3:
        ids[ids == listed[1]["id"]] = listed[2]["id"]  # two are joined
        listed[2]["category_id"] = listed[1]["category_id"]
    listed[-2]["category_id"] = CATEGORIES[generator.integers(len(CATEGORIES))]["id"]
    ids[:6, :6] = 99
    listed.append({"id": 99, "category_id": 1})
    return {"segmentation": ids, "segments_info": [one for one in listed if (ids == one["id"]).any()]}


@pytest.fixture(scope="module")
def pictures() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    generator = np.random.default_rng(0)
    truths = [segments(generator, crowds=True) for _ in range(30)]
    return [(perturbed(truth, generator), truth) for truth in truths]


def independent(
    pictures: list[tuple[dict[str, Any], dict[str, Any]]], categories: list[dict[str, Any]] = CATEGORIES
) -> dict[str, dict[str, float]]:
    """The definition, segment by segment with all pixels of each."""
    sums = {category["id"]: [0.0, 0, 0, 0] for category in categories}

    def pixels(side: dict[str, Any], one: dict[str, Any]) -> np.ndarray:
        return side["segmentation"] == one["id"]

    count = np.count_nonzero

    for prediction, truth in pictures:
        void = truth["segmentation"] == 0
        real = [(one["category_id"], one["iscrowd"], pixels(truth, one)) for one in truth["segments_info"]]
        used = set()
        for one in prediction["segments_info"]:
            own, label = pixels(prediction, one), one["category_id"]
            partner = None
            for number, (category, crowd, area) in enumerate(real):
                iou = count(own & area) / count((own | area) & ~(own & void))
                if category == label and not crowd and iou > 0.5:
                    partner = number
                    sums[label][0] += iou
            if partner is not None:
                used.add(partner)
                sums[label][1] += 1
                continue
            of_crowds = [area for category, crowd, area in real if crowd and category == label]
            excused = np.logical_or.reduce([void, *of_crowds])
            sums[label][2] += count(own & excused) <= count(own) / 2
        for number, (category, crowd, _) in enumerate(real):
            sums[category][3] += not crowd and number not in used
    table = {}
    for category in categories:
        iou, tp, fp, fn = sums[category["id"]]
        weight = tp + fp / 2 + fn / 2
        if not weight:
            continue
        table[category["name"]] = {"PQ": iou / weight, "SQ": iou / tp if tp else 0, "RQ": tp / weight}
    return table


def test_qualities_equal_the_definition_in_any_order(pictures):
    expected = independent(pictures)
    results = []
    for order in (range(30), random.Random(1).sample(range(30), 30)):
        evaluator = PanopticEvaluator(CATEGORIES)
        for number in order:
            evaluator.add(number, *pictures[number])
        results.append(evaluator.compute())
    metrics = results[0]
    assert metrics == results[1] and metrics.num_images == 30
    for name, row in expected.items():
        for quality, value in row.items():
            assert metrics.per_class[name][quality] == pytest.approx(value, abs=1e-12), (name, quality)
    for suffix, names in (("", list(expected)), ("_th", ["cat", "dog"]), ("_st", ["grass", "sky"])):
        for quality in ("PQ", "SQ", "RQ"):
            mean = np.mean([expected[name][quality] for name in names])
            assert metrics.summary[f"{quality}{suffix}"] == pytest.approx(mean, abs=1e-12)
    assert json.dumps(metrics.to_dict())


def write_png(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(path)


def test_files_give_what_arrays_give(pictures, tmp_path: Path):
    evaluator = PanopticEvaluator(CATEGORIES)
    annotations: dict[str, list] = {"prediction": [], "truth": []}
    for number, pair in enumerate(pictures[:5]):
        evaluator.add(number, *pair)
        for side, content in zip(annotations, pair, strict=True):
            write_png(tmp_path / side / f"{number}.png", content["segmentation"])
            one = {"image_id": number, "file_name": f"{number}.png", "segments_info": content["segments_info"]}
            annotations[side].append(one)
    images = [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(5)]
    truth = {"images": images, "categories": CATEGORIES, "annotations": annotations["truth"]}
    folders = {"truth_folder": tmp_path / "truth", "predictions_folder": tmp_path / "prediction"}
    assert evaluate_panoptic(truth, annotations["prediction"], **folders) == evaluator.compute()
    for change, words in (
        (lambda found: found.pop(), "1 images have no prediction, for example 4"),
        (lambda found: found.append(found[0]), "image 0 has two predictions"),
        (lambda found: found[1].update(image_id=99), "for image 99, which the truth does not have"),
        (lambda found: found[1].update(file_name="../truth/1.png"), "not one that leaves it"),
    ):
        broken = [dict(one) for one in annotations["prediction"]]
        change(broken)
        with pytest.raises(ValueError, match=words):
            evaluate_panoptic(truth, broken, **folders)
    Image.new("L", (50, 40)).save(tmp_path / "prediction" / "0.png")
    with pytest.raises(ValueError, match=r"image 0.* mode 'L'"):
        evaluate_panoptic(truth, annotations["prediction"], **folders)
    Image.new("RGB", (50, 41)).save(tmp_path / "prediction" / "0.png")
    with pytest.raises(ValueError, match=r"image 0.* has \(height, width\) \(41, 50\)"):
        evaluate_panoptic(truth, annotations["prediction"], **folders)


def test_perfect_and_empty_results():
    generator = np.random.default_rng(3)
    truth = segments(generator, crowds=False)
    nothing = {"segmentation": np.zeros(SIZE, dtype=int), "segments_info": []}
    perfect, empty, void = (PanopticEvaluator(CATEGORIES) for _ in range(3))
    perfect.add("a", truth, truth)
    assert perfect.compute().summary["PQ"] == 1.0
    empty.add("a", nothing, truth)
    assert empty.compute().summary["PQ"] == 0.0
    void.add("a", nothing, nothing)
    assert np.isnan(void.compute().summary["PQ"]) and void.compute().to_dict()["PQ"] is None


def test_a_picture_counts_once():
    truth = segments(np.random.default_rng(3), crowds=False)
    once, repeating = PanopticEvaluator(CATEGORIES), PanopticEvaluator(CATEGORIES, repeats=True)
    once.add(1, truth, truth)
    with pytest.raises(ValueError, match="image 1 comes twice"):
        once.add(1, truth, truth)
    for _ in range(2):
        repeating.add(1, truth, truth)
    assert repeating.compute().to_dict() == once.compute().to_dict() and len(repeating) == 1


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda one: one["segments_info"].append({"id": 5, "category_id": 1}),
            "lists the segment 5, which has no pixel",
        ),
        (lambda one: one["segments_info"].pop(), "which segments_info does not list"),
        (lambda one: one["segments_info"][0].update(category_id=3), "a segment of category 3"),
        (lambda one: one["segments_info"].append(one["segments_info"][0]), "expected different ones"),
        (lambda one: one.update(segmentation=one["segmentation"][:-1]), "expected \\(H, W\\) of the picture"),
        (lambda one: one.update(segmentation=-one["segmentation"]), "expected 0 to"),
        (
            lambda one: one["segmentation"].__setitem__((0, 0), 1 << 24),
            "ids from 0 to 16777216",
        ),
        (lambda one: one["segments_info"].append({"id": 0, "category_id": 1}), "lists the ids .0, "),
        (lambda one: one["segments_info"].append({"id": 1 << 24, "category_id": 1}), "below 16777216"),
    ],
)
def test_results_that_cannot_be_meant_name_the_picture(side: int, change: Any, words: str):
    sides = [segments(np.random.default_rng(3), crowds=False) for _ in range(2)]
    change(sides[side])
    with pytest.raises(ValueError, match=f"image 'x'.*{words}"):
        PanopticEvaluator(CATEGORIES).add("x", *sides)


def test_five_thousand_pictures_take_less_than_a_minute_each_core():
    import time

    generator = np.random.default_rng(0)
    truth = np.kron(generator.integers(1, 20, (12, 16)), np.ones((40, 40), dtype=np.int64))
    listed = [{"id": int(number), "category_id": 1} for number in np.unique(truth)]
    side = {"segmentation": truth, "segments_info": listed}
    evaluator = PanopticEvaluator(CATEGORIES)
    started = time.process_time()
    for number in range(50):
        evaluator.add(number, side, side)
    assert (time.process_time() - started) / 50 < 3 * 60 / 5000  # three times what a free processor needs at most


@pytest.mark.slow
def test_real_annotations_give_what_the_definition_gives(tmp_path: Path):
    """coco128's segments moved, split, joined, renamed, on void and on crowds; from arrays, files and results."""
    root = Path(__file__).parents[3] / "shared" / "data" / "coco128"
    if not root.is_dir():
        pytest.skip(f"there is no {root}")
    truth = json.loads((root / "panoptic_train.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    generator, pairs, found = np.random.default_rng(0), [], []
    evaluator = PanopticEvaluator(truth["categories"])
    for annotation in truth["annotations"]:
        name, image_id = annotation["file_name"], annotation["image_id"]
        ids = read_panoptic_png(root / "panoptic_train", name, sizes[image_id], name)
        real = {"segmentation": ids, "segments_info": annotation["segments_info"]}
        guess = perturbed(real, generator)
        pairs.append((guess, real))
        evaluator.add(image_id, *pairs[-1])
        write_png(tmp_path / "found" / name, guess["segmentation"])
        found.append({"image_id": image_id, "file_name": name, "segments_info": guess["segments_info"]})
    assert sum(one["iscrowd"] for _, real in pairs for one in real["segments_info"]) > 0
    metrics = evaluator.compute()
    expected = {name: row for name, row in independent(pairs, truth["categories"]).items() if row}
    for name, row in expected.items():
        for quality, value in row.items():
            assert metrics.per_class[name][quality] == pytest.approx(value, abs=1e-9), (name, quality)
    assert metrics.summary["PQ"] == pytest.approx(np.mean([row["PQ"] for row in expected.values()]), abs=1e-9)
    assert 0.2 < metrics.summary["PQ"] < 0.95 and metrics.num_images == 100
    folders = {"truth_folder": root / "panoptic_train", "predictions_folder": tmp_path / "found"}
    assert evaluate_panoptic(truth, random.Random(0).sample(found, 100), **folders).summary == metrics.summary
    (tmp_path / "found.json").write_text(json.dumps(found))
    data = load_detection_dataset(root, task="panoptic")
    assert evaluate_panoptic_results(tmp_path / "found.json", data).summary == pytest.approx(metrics.summary, abs=1e-9)
