"""`evaluate`: any detector on any split gives the numbers of its detections, and says what does not fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from detr_hf import Detections, Detector, DETRConfig, DETRImageProcessor, evaluate, load_detection_dataset
from detr_hf.data import DigitScenes
from detr_hf.data.picture_truth import PictureTruth
from detr_hf.errors import AnnotationError, LayoutError
from detr_hf.evaluation import evaluate_boxes, evaluate_results, write_results
from detr_hf.evaluation.plotting import slots_of
from detr_hf.evaluation.segments import MASKS_FROM
from detr_hf.evaluation.truth import coco_truth
from detr_hf.hub import facts_of
from detr_hf.processing.run_lengths_detr import run_length_counts, run_length_mask, run_lengths
from detr_hf.visualize import query_slots

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
    pictures = [folder / "val" / f"val{index}.png" for index in range(3)]
    slots = query_slots(detector, pictures).boxes_xyxy_norm
    for evaluation in (reached, found):
        assert np.allclose(slots_of(evaluation).boxes_xyxy_norm, slots, atol=1e-4)


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


def test_a_detector_follows_no_rule_but_its_own(data):
    with pytest.raises(ValueError, match="rule='original' needs a model's own outputs, and a Detector"):
        evaluate(Finds(8), data, rule="original")


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


# --- masks


class Sees(torch.nn.Module):
    """A model with masks that finds what scenes show, under other labels than theirs, and a unicorn in each."""

    has_mask_head, device, dtype = True, torch.device("cpu"), torch.float32

    def __init__(self, scenes):
        super().__init__()
        self.scenes, self.asked, self.seen = scenes, [], 0
        names = ["Unicorn", *reversed(scenes.id2label.values())]
        self.config = DETRConfig(id2label=dict(enumerate(names)))

    def forward(self, pixel_values, pixel_mask, mask_score_threshold=None):
        self.asked.append(mask_score_threshold)
        batch, (height, width) = len(pixel_values), pixel_values.shape[-2:]
        logits = torch.full((batch, 12, self.config.num_labels + 1), -9.0)
        logits[:, :, -1] = 9.0
        masks = torch.full((batch, 12, height, width), -9.0)
        boxes = torch.full((batch, 12, 4), 0.5)
        for image in range(batch):
            row = self.scenes[self.seen]
            self.seen += 1
            for query, mask in enumerate(PictureTruth.of(row).run_lengths()):
                label = self.config.label2id[self.scenes.id2label[row["objects"]["category"][query]]]
                logits[image, query, [label, -1]] = torch.tensor([9.0, -9.0])
                inside = torch.from_numpy(run_length_mask(mask, self.scenes.size_hw))
                masks[image, query, : inside.shape[0], : inside.shape[1]] = torch.where(inside, 9.0, -9.0)
                x, y, w, h = row["objects"]["bbox"][query]
                frame = torch.tensor(self.scenes.size_hw * 2)
                boxes[image, query] = torch.tensor([x + w / 2, y + h / 2, w, h]) / frame.flip(0)
            logits[image, 11, [0, -1]] = torch.tensor([9.0, -9.0])
            masks[image, 11] = 9.0
        return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_masks=masks)


SCENES = {"split": "validation", "length": 4, "size_hw": (64, 96), "objects_per_scene": (1, 5)}


def test_masks_and_segments_are_measured_by_name_and_at_the_size_of_the_data():
    """A perfect model has perfect numbers, whatever its labels, its batches and other classes."""
    scenes = DigitScenes(**SCENES, masks=True)
    model = Sees(scenes)
    found = evaluate(model, scenes, processor=DETRImageProcessor(do_resize=False), batch_size=3)
    assert found.masks.summary["AP"] == pytest.approx(1) and list(found.masks.per_class) == list("0123456789")
    assert found.panoptic.summary["PQ"] == found.panoptic.summary["PQ_st"] == 1 and found.panoptic.num_images == 4
    assert found.metrics["AP"] == pytest.approx(1), "of boxes, stuff too"
    assert set(model.asked) == {MASKS_FROM}
    table = found.table()
    assert all(words in table for words in ("masks", "panoptic", "things", "stuff", "temple")), table
    numbers = found.to_dict()
    assert numbers["masks"]["AP"] == pytest.approx(1) and numbers["panoptic"]["PQ_th"] == 1
    assert "mask_AP=1.000, PQ=1.000" in repr(found)
    masked = [one for one in found.results() if "segmentation" in one]
    assert len(masked) == sum(len(scenes[index]["objects"]["id"]) for index in range(4))


def test_without_masks_in_the_data_none_are_made(caplog):
    model = Sees(DigitScenes(**SCENES, masks=True))
    plain = DigitScenes(**SCENES)
    found = evaluate(model, plain, processor=DETRImageProcessor(do_resize=False))
    assert found.masks is None and found.panoptic is None and set(model.asked) == {1.0}
    assert "The data has no masks: boxes alone" in caplog.text and "masks" not in found.table()
    assert not any("segmentation" in one for one in found.results())


def test_a_detector_with_masks_is_measured_alike():
    """Its panoptic segments come from queries that contest the pixels, not from all whose boxes are told."""
    scenes = DigitScenes(**SCENES, masks=True)

    class Segments:
        task, id2label = "panoptic", {0: "temple", 5: "flower", **{20 + digit: str(digit) for digit in range(10)}}

        def stream(self, images, threshold, panoptic_threshold, masks_from):
            assert (threshold, panoptic_threshold, masks_from) == (0.0, 0.6, MASKS_FROM)
            label_of = {name: label for label, name in self.id2label.items()}
            for number, _ in enumerate(images):
                truth = PictureTruth.of(scenes[number])
                real, _ = truth.segments()
                labels = [label_of[scenes.id2label[label]] for label in scenes[number]["objects"]["category"]]
                segments = [
                    {"id": one["id"], "label_id": label}
                    for one, label in zip(real["segments_info"], labels, strict=True)
                ]
                boxes = np.array(scenes[number]["objects"]["bbox"]) @ np.array(
                    [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]
                )
                yield SimpleNamespace(
                    boxes=np.concatenate([boxes, boxes[:1]]),
                    scores=np.array([*np.full(len(labels), 0.9), 0.01]),
                    labels=np.array([*labels, labels[0]]),
                    segmentations=[*truth.run_lengths(), run_lengths(np.ones((64, 96), dtype=bool))],
                    panoptic=SimpleNamespace(segmentation=real["segmentation"], segments_info=segments),
                    size_hw=(64, 96),
                )

    found = evaluate(Segments(), scenes, panoptic_threshold=0.6)
    assert found.masks.summary["AP"] == pytest.approx(1) and found.panoptic.summary["PQ"] == 1
    Segments.task = "semantic"
    with pytest.raises(TypeError, match="masks_from"):  # is not asked for masks
        evaluate(Segments(), scenes)
    assert len(found.results()) - sum("segmentation" in one for one in found.results()) == 4, "of 0.01"


def test_truth_of_scenes_is_what_was_drawn():
    scenes = DigitScenes("validation", 3, (64, 96), masks=True)
    truth = PictureTruth.of(scenes[1])
    real, odd = truth.segments()
    assert odd == 0 and (real["segmentation"] > 0).all(), "digits and two backgrounds cover a scene"
    assert [one["category_id"] for one in real["segments_info"]] == scenes[1]["objects"]["category"]
    assert [sum(run_length_counts(m, (64, 96))[1::2]) for m in truth.run_lengths()] == scenes[1]["objects"]["area"]
    overlapping = {**scenes[1]["objects"]}
    overlapping["segmentation"] = [overlapping["segmentation"][0]] * len(overlapping["id"])
    with pytest.raises(AnnotationError, match=r"image 1: object 2 overlaps object 1.*one segment"):
        PictureTruth.of({**scenes[1], "objects": overlapping}).segments()
