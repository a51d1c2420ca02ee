"""`evaluate`: any detector on any split gives the numbers of its detections, and says what does not fit."""

import json

import numpy as np
import pytest
from PIL import Image as Pictures

from detr_hf import Detections, Detector, DETRImageProcessor, evaluate, load_detection_dataset
from detr_hf.data import DigitScenes
from detr_hf.errors import LayoutError
from detr_hf.evaluation import evaluate_boxes, evaluate_results, write_results
from detr_hf.evaluation.truth import coco_truth
from detr_hf.hub import facts_of

from ..conftest import tiny_model

NAMES = ("cat", "dog", "owl")
SOURCE_IDS = (3, 5, 9)


def small_model():
    return tiny_model(backbone="test_resnet", hidden_dim=16, dim_feedforward=32, dec_layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A COCO folder of three pictures of one size, whose image ids are words and whose category ids have gaps."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(2)
    (root / "annotations").mkdir()
    for split, count in (("train", 1), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            name = f"{split}{index}.png"
            Pictures.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / split / name)
            images.append({"id": f"picture {index}", "file_name": name, "width": 64, "height": 48})
            box = {"bbox": [4.0 + index, 6.0, 30.0, 25.0], "area": 750.0, "iscrowd": int(index == 2)}
            mask = {"counts": [0, 1500, 48 * 64 - 1500], "size": [48, 64]} if index == 2 else []
            identity = {"id": index + 1, "image_id": f"picture {index}", "category_id": SOURCE_IDS[index % 3]}
            annotations.append({**identity, **box, "segmentation": mask})
        categories = [{"id": identity, "name": name} for identity, name in zip(SOURCE_IDS, NAMES, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    small_model().save_pretrained(root / "model")
    DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / "model")
    return root


@pytest.fixture(scope="module")
def data(folder):
    return load_detection_dataset(folder)


@pytest.fixture(scope="module")
def reached(folder, data):
    return evaluate(folder / "model", data)


class Finds:
    """A detector without torch, of other labels than the data, that finds a box and class for every picture."""

    def __init__(self, label):
        self.id2label = {0: "N/A", 7: "Dog", 8: "CAT"}
        self.label = label

    def stream(self, images, threshold):
        for image in images:
            box = [[4.0, 6.0, 34.0, 31.0]]
            yield Detections(box, [1.0], [self.label], [self.id2label[self.label]], size_hw=image.shape[:2])


def test_numbers_are_those_of_the_detections(reached, data):
    assert reached.metrics == pytest.approx(
        evaluate_boxes(reached.ground_truth, reached.detections).summary, nan_ok=True
    )
    assert reached.coco.num_images == 3 and list(reached.per_class) == list(NAMES)
    assert sum(row["objects"] for row in reached.per_class.values()) == 2, "the crowd is no object"
    assert len(reached.detections) == 3 * 7 and reached.seconds > 0
    assert all(name in reached.table() for name in ("AP75", *NAMES, "missed"))


def test_a_split_a_detector_and_a_model_say_the_same(reached, folder, data):
    """Pictures of one size are never padded, so that a `Detector` sees what the model sees."""
    detector = Detector.from_pretrained(folder / "model", device="cpu")
    found = evaluate(detector, data)
    assert np.allclose(found.detections, reached.detections, atol=1e-3)
    rows = evaluate(detector.model, data["val"], processor=detector.image_processor)
    assert np.array_equal(rows.detections, reached.detections) and rows.metrics["AP"] == reached.metrics["AP"]


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"max_height": 64, "max_width": 64}, "pad_size": {"height": 64, "width": 64}},
        {"size": {"longest_edge": 56}},
    ],
    ids=["canvas", "longest edge"],
)
def test_a_processor_of_other_rules_is_followed_by_model_and_detector_alike(settings, folder, data):
    processor = DETRImageProcessor(**settings)
    model = Detector.from_pretrained(folder / "model", device="cpu").model
    by_model, by_detector = evaluate(model, data, processor=processor), evaluate(Detector(model, processor), data)
    assert np.allclose(by_model.detections, by_detector.detections, atol=1e-3)


def test_a_model_goes_on_training_afterwards(data):
    model = small_model().train()
    evaluate(model, data, processor=DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}))
    assert model.training


def test_classes_of_a_detector_are_matched_by_name(data):
    assert evaluate(Finds(8), data).per_class["cat"]["AP50"] == pytest.approx(1)
    assert evaluate(Finds(7), data).mistakes.errors["class"] == 1
    assert len(evaluate(Finds(0), data).detections) == 0


def test_results_have_the_ids_of_the_source_and_can_be_read_back(reached, data, tmp_path):
    results = reached.results()
    assert {result["image_id"] for result in results} == {"picture 0", "picture 1", "picture 2"}
    assert {result["category_id"] for result in results} <= set(SOURCE_IDS)
    write_results(tmp_path / "results.json", results)
    again = evaluate_results(tmp_path / "results.json", data)
    assert np.allclose(again.detections, reached.detections, atol=1e-3)
    assert again.results() == results and again.metrics["AP"] == pytest.approx(reached.metrics["AP"], abs=1e-6)


def test_what_is_saved_is_what_was_reached(reached, tmp_path):
    reached.save(tmp_path / "new" / "numbers.json", {"model": "mine"}, curves=True)
    numbers = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert numbers["model"] == "mine" and numbers["AP"] == reached.metrics["AP"]
    assert len(numbers["precision_recall"]["recall"]) == 101
    reached.save(tmp_path / "numbers.json")
    assert "precision_recall" not in json.loads((tmp_path / "numbers.json").read_text())
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".unfinished"] == []


def test_a_card_takes_the_numbers_alone(reached):
    facts = facts_of(small_model(), "mine", evaluation=reached)["evaluation"]
    assert facts["AP"] == reached.metrics["AP"] and "mistakes" not in facts


def test_progress_is_told(data, folder):
    told = []
    evaluate(folder / "model", data, batch_size=2, device="cpu", on_batch=lambda *batch: told.append(batch))
    assert told == [(2, 3), (1, 3)]


def test_rows_without_class_names_have_those_of_the_detector():
    rows = [DigitScenes("validation", 2, (96, 96))[index] for index in range(2)]
    truth = coco_truth(rows, DigitScenes("validation", 1).id2label)
    assert [image["id"] for image in truth["images"]] == [0, 1]
    assert len(truth["annotations"]) == sum(len(row["objects"]["id"]) for row in rows)
    first, objects = truth["annotations"][0], rows[0]["objects"]
    assert first["bbox"] == objects["bbox"][0] and first["category_id"] == objects["category"][0]
    assert {"id", "image_id", "area", "iscrowd"} <= set(first)
    with pytest.raises(ValueError, match=r"categories .*, and the classes are .* Give the data with its class names"):
        evaluate(Finds(0), rows)
    finder = Finds(0)
    finder.id2label = {label: f"digit {label}" for label in range(10)}
    assert list(evaluate(finder, rows).per_class) == list(finder.id2label.values())
    finder.id2label = DigitScenes("validation", 1).id2label
    assert evaluate(finder, DigitScenes("validation", 2, (96, 96))).coco.num_images == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "test"}, LayoutError, "There is no split 'test'; there are 'train', 'val'. Name one"),
        ({"data": "coco/"}, TypeError, r"give what load_detection_dataset\('coco/'\) returns"),
        ({"data": {"a": [], "b": []}}, LayoutError, "There is no split 'validation'; there are 'a', 'b'"),
        ({"data": [], "split": "val"}, TypeError, "one split already"),
        ({"data": []}, ValueError, "no picture was added"),
        ({"model": 3}, TypeError, "model is a int; expected a DETR, a Detector, or a checkpoint's name"),
    ],
)
def test_what_does_not_fit_is_said_with_the_fix(change, error, message, data):
    arguments = {"model": Finds(8), "data": data, **change}
    with pytest.raises(error, match=message):
        evaluate(arguments.pop("model"), arguments.pop("data"), **arguments)


def test_a_detector_of_other_classes_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="no class in common"):
        evaluate(tiny_model(backbone="test_resnet", id2label={0: "car"}), data)
