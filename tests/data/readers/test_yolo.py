"""YOLO: polygons, paths one folder too high, and folders without a data.yaml."""

import json
from pathlib import Path

import pytest

from detr_hf.data import load_detection_dataset
from detr_hf.errors import LayoutError

from .. import layouts


def test_yolo_polygons_and_roboflow_paths(tmp_path: Path):
    root = layouts.write_yolo(tmp_path)
    (root / "labels" / "train" / "train_2.txt").write_text("1 0.5 0.5 0.75 0.5 0.75 1.0\n")
    (root / "data.yaml").write_text(
        "train: ../images/train\nval: ../images/val\nnc: 3\nnames: {0: cat, 1: dog, 2: owl}\n"
    )
    objects = load_detection_dataset(root)["train"][2]["objects"]
    assert objects["bbox"] == [[30.0, 30.0, 15.0, 30.0]]
    assert json.loads(objects["segmentation"][0]) == [[30.0, 30.0, 45.0, 30.0, 45.0, 60.0]]


def test_yolo_folders_without_names_ask_for_them(tmp_path: Path):
    root = layouts.write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    with pytest.raises(LayoutError, match="id2label="):
        load_detection_dataset(root)
    data = load_detection_dataset(root, id2label={0: "a", 1: "b", 2: "c"})
    assert sorted(data) == ["train", "val"] and data.id2label[2] == "c"
