"""Results that others wrote are measured with the data's ids, and what cannot be meant is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_hf import load_detection_dataset
from detr_hf.data.picture_truth import PictureTruth
from detr_hf.evaluation import evaluate_masks, evaluate_panoptic, evaluate_panoptic_results, evaluate_results
from detr_hf.evaluation.from_files import kind_of_results
from detr_hf.evaluation.running import without_pictures
from detr_hf.processing.mask_annotations_detr import read_panoptic_png
from detr_hf.processing.run_lengths_detr import run_length_mask, run_lengths

from ..data import layouts
from .test_panoptic import write_png


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = layouts.write_panoptic(tmp_path_factory.mktemp("panoptic"))
    content = layouts.read_json(root / "panoptic_train.json")
    content["annotations"][3]["segments_info"][1]["iscrowd"] = 1
    layouts.write_json(root / "panoptic_train.json", content)
    return root


@pytest.fixture(scope="module")
def data(folder):
    return load_detection_dataset(folder, task="panoptic")


@pytest.fixture(scope="module")
def results(data) -> list[dict]:
    """Every true mask, shifted by its number; with the ids of the source."""
    found = []
    for row in without_pictures(data["train"]):
        truth = PictureTruth.of(row)
        for mask, label in zip(truth.run_lengths(), row["objects"]["category"], strict=True):
            moved = np.roll(run_length_mask(mask, truth.size_hw), len(found) % 3, axis=0)
            one = {"image_id": row["image_id"], "category_id": data.source_category_ids[label]}
            found.append({**one, "score": 1 - len(found) / 40, "segmentation": run_lengths(moved)})
    return found


def written(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_masks_of_a_file_are_measured_and_boxes_are_around_them(data, results, tmp_path):
    path = written(tmp_path / "masks.json", results)
    assert kind_of_results(path) == "masks"
    found = evaluate_results(path, data)
    images = [{"id": row["image_id"], **{side: row[side] for side in ("height", "width")}} for row in data["train"]]
    annotations = []
    for row in without_pictures(data["train"]):
        masks, objects = PictureTruth.of(row).run_lengths(), row["objects"]
        for index, mask in enumerate(masks):
            one = {name: objects[name][index] for name in ("bbox", "area", "iscrowd")}
            one |= {"image_id": row["image_id"], "category_id": data.source_category_ids[objects["category"][index]]}
            annotations.append({**one, "id": len(annotations), "segmentation": mask})
    things = [{"id": identity, "name": name} for identity, name in zip(layouts.SOURCE_IDS, layouts.NAMES, strict=True)]
    truth = {"images": images, "categories": things}
    truth["annotations"] = [one for one in annotations if one["category_id"] != 20]
    expected = evaluate_masks(truth, [one for one in results if one["category_id"] != 20], "pycocotools").summary
    assert found.masks.summary == pytest.approx(expected, abs=1e-9, nan_ok=True) and 0.5 < expected["AP"] < 1
    assert 0.5 < found.metrics["AP"] <= 1, "boxes are those of the masks"
    assert [one["segmentation"] for one in found.results()] == [one["segmentation"] for one in results]
    assert "masks" in found.table() and found.to_dict()["masks"]["AP"] == found.masks.summary["AP"]
    boxes = [{**one, "bbox": [1, 1, 5, 5]} for one in results]
    for one in boxes[::2]:
        del one["segmentation"]
    mixed = evaluate_results(written(tmp_path / "mixed.json", boxes), data)
    assert mixed.masks.summary["AP"] < found.masks.summary["AP"] and mixed.metrics["AP"] == 0


def test_results_without_masks_where_masks_are_asked_for(data, results, tmp_path):
    boxes = [{**one, "bbox": [1, 1, 5, 5]} for one in results]
    for one in boxes:
        del one["segmentation"]
    path = written(tmp_path / "boxes.json", boxes)
    assert kind_of_results(path) == "boxes" and evaluate_results(path, data).masks is None
    with pytest.raises(ValueError, match=r"boxes.json holds boxes alone, and masks are asked for"):
        evaluate_results(path, data, masks=True)
    results = [{**results[0], "segmentation": {"size": [1, 1], "counts": [1]}}]
    with pytest.raises(ValueError, match=r"Detection 0 of .*bad.json has run lengths of size \[1, 1\] in an image"):
        evaluate_results(written(tmp_path / "bad.json", results), data)
    yolo = load_detection_dataset(layouts.write_yolo(tmp_path / "yolo"), splits=["train"])
    one = {"image_id": 1, "category_id": 0, "score": 1, "segmentation": {"size": [48, 64], "counts": [48 * 64]}}
    with pytest.raises(ValueError, match="has masks, and the data has none"):
        evaluate_results(written(tmp_path / "masks.json", [one]), yolo, masks=True)


# --- panoptic


@pytest.fixture
def predicted(folder, tmp_path) -> Path:
    """The truth's PNGs, moved, and their JSON."""
    content = layouts.read_json(folder / "panoptic_train.json")
    annotations = []
    for annotation, image in zip(content["annotations"], content["images"], strict=True):
        size = (image["height"], image["width"])
        ids = read_panoptic_png(folder / "panoptic_train", annotation["file_name"], size, "x")
        write_png(tmp_path / "found" / annotation["file_name"], np.roll(ids, 3, axis=0))
        segments = [{"id": one["id"], "category_id": one["category_id"]} for one in annotation["segments_info"]]
        annotations.append({**annotation, "segments_info": segments})
    return written(tmp_path / "found.json", annotations)


def test_panoptic_results_have_their_quality(folder, data, predicted):
    found = evaluate_panoptic_results(predicted, data)
    truth, annotations = layouts.read_json(folder / "panoptic_train.json"), layouts.read_json(predicted)
    folders = {"truth_folder": folder / "panoptic_train", "predictions_folder": predicted.with_suffix("")}
    expected = evaluate_panoptic(truth, annotations, **folders)
    assert found.summary == expected.summary and 0.3 < found.summary["PQ"] < 1
    assert found.per_class == expected.per_class
    assert kind_of_results(predicted) == kind_of_results(predicted.with_suffix("")) == "panoptic"
    assert evaluate_panoptic_results(predicted.with_suffix(""), data) == found, "by the folder of the PNGs"


def test_without_a_picture_there_is_no_quality(folder, predicted):
    data = load_detection_dataset(folder, task="panoptic")
    data.splits["train"] = data["train"].select([])
    with pytest.raises(ValueError, match=r"no picture that .*found\.json could be compared with"):
        evaluate_panoptic_results(written(predicted, []), data)


def test_results_with_names_of_their_own_go_by_name(data, predicted):
    """As `detr-hf predict` writes them: labels of the model, images by number, in a folder with other files."""
    expected = evaluate_panoptic_results(predicted, data)
    annotations = layouts.read_json(predicted)
    label_of = {3: 2, 5: 7, 9: 0, 20: 1}
    images = [{"id": number, "file_name": f"in/{one['file_name']}"} for number, one in enumerate(annotations)]
    images[0]["id"], images[1]["id"] = 101, 100  # ids of the data, of other pictures
    for image, one in zip(images, annotations, strict=True):
        one["image_id"] = image["id"]
        for segment in one["segments_info"]:
            segment["category_id"] = label_of[segment["category_id"]]
    names = {2: "Cat", 7: "dog", 0: "owl", 1: "ground", 9: "unicorn"}
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": label, "name": name} for label, name in names.items()]
    predicted.with_suffix("").rename(predicted.parent / "panoptic")
    written(predicted.parent / "panoptic.json", content)
    assert evaluate_panoptic_results(predicted.parent, data) == expected
    unicorns = annotations[3]["segments_info"]
    unicorns[0]["category_id"] = 9
    written(predicted.parent / "panoptic.json", content)
    fewer = evaluate_panoptic_results(predicted.parent, data)
    assert fewer.per_class["ground"]["fn"] == expected.per_class["ground"]["fn"] + 1
    assert fewer.per_class["ground"]["fp"] == expected.per_class["ground"]["fp"]


def grey(annotations, folder):
    Image.new("L", (64, 48)).save(folder / annotations[0]["file_name"])


def small(annotations, folder):
    Image.new("RGB", (64, 47)).save(folder / annotations[0]["file_name"])


WRONG = {
    "a picture lacks": (lambda found, folder: found.pop(), r"no prediction for image 103 \(train_3.png\)"),
    "a picture too many": (
        lambda found, folder: found.append({**found[0], "image_id": 7}),
        "predictions for 1 images that the data does not have, for example 7. Is it the right split",
    ),
    "twice": (lambda found, folder: found.append(found[0]), "image 100 has two predictions"),
    "an unknown category": (
        lambda found, folder: found[1]["segments_info"][0].update(category_id=4),
        "the prediction for image 101 has a segment of category 4; the categories are 3, 5, 9, 20",
    ),
    "without a pixel": (
        lambda found, folder: found[1]["segments_info"].append({"id": 5, "category_id": 3}),
        "the prediction for image 101 lists the segment 5, which has no pixel",
    ),
    "unlisted": (
        lambda found, folder: found[1]["segments_info"].pop(),
        "the prediction for image 101 holds the id 1000 in its map, which segments_info does not list",
    ),
    "no list": (lambda found, folder: found[2].pop("segments_info"), "Annotation 2 of .* has no segments_info"),
    "outside": (lambda found, folder: found[0].update(file_name="../a.png"), "not one that leaves it"),
    "grey": (grey, "image 100: .* has mode 'L'; segment ids are coded in the colours of an RGB PNG"),
    "small": (small, r"image 100: .* has \(height, width\) \(47, 64\), the image has \(48, 64\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_panoptic_results_that_cannot_be_meant_name_the_picture(case, data, predicted):
    change, words = WRONG[case]
    annotations = layouts.read_json(predicted)
    change(annotations, predicted.with_suffix(""))
    written(predicted, annotations)
    with pytest.raises(ValueError, match=words):
        evaluate_panoptic_results(predicted, data)


def test_data_without_stuff_and_folders_without_results(data, predicted, tmp_path):
    plain = load_detection_dataset(layouts.write_coco(tmp_path / "coco"))
    with pytest.raises(ValueError, match=r"does not tell things from stuff.*task='panoptic'"):
        evaluate_panoptic_results(predicted, plain, split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="should hold one JSON of panoptic annotations with its PNGs; there is none"):
        evaluate_panoptic_results(tmp_path / "empty", data)
    assert kind_of_results(tmp_path / "empty") is None and kind_of_results("facebook/detr-resnet-50") is None
