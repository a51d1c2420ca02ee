"""COCO JSON, detection and panoptic: everything that the file says arrives."""

import json
from pathlib import Path

from detr_hf.data import load_detection_dataset

from .. import layouts


def test_columns_of_coco_survive(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    content = layouts.read_json(root / "annotations_train.json")
    runs = [0, 48 * 10, 48 * 54]
    content["annotations"][0] |= {"iscrowd": 1, "area": 480.5, "segmentation": {"size": [48, 64], "counts": runs}}
    layouts.write_json(root / "annotations_train.json", content)
    row = load_detection_dataset(root)["train"][0]
    assert row["image_id"] == 100 and row["file_name"] == "train_0.png"
    assert row["objects"]["id"] == [1, 2]
    assert row["objects"]["iscrowd"] == [1, 0]
    assert row["objects"]["area"] == [480.5, 720.0]
    assert json.loads(row["objects"]["segmentation"][0]) == {"size": [48, 64], "counts": runs}
    assert json.loads(row["objects"]["segmentation"][1]) == content["annotations"][1]["segmentation"]
    assert load_detection_dataset(root, masks=False)["train"][0]["objects"]["segmentation"] == [None, None]


def test_annotations_before_images_read_the_same(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    expected = load_detection_dataset(root)["train"][:]["objects"]
    content = layouts.read_json(root / "annotations_train.json")
    layouts.write_json(
        root / "annotations_train.json",
        {"info": 1, **{key: content[key] for key in ("annotations", "categories", "images")}},
    )
    assert load_detection_dataset(root)["train"][:]["objects"] == expected


def test_panoptic_has_segments_stuff_and_pngs(tmp_path: Path):
    data = load_detection_dataset(layouts.write_panoptic(tmp_path))
    assert data.id2label == {0: "cat", 1: "dog", 2: "owl", 3: "ground"}
    assert data.is_thing == [True, True, True, False]
    row = data["train"][0]
    assert row["objects"]["id"] == [7, 1000, 1001]
    assert row["panoptic"].size == (64, 48)
