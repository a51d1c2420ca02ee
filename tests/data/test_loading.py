import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel

from detr_hf.data import load_detection_dataset
from detr_hf.data.detection_data import split_kind
from detr_hf.errors import AnnotationError, LayoutError

from . import layouts

WRITERS = {
    "coco": layouts.write_coco,
    "coco2017": layouts.write_coco2017,
    "roboflow": layouts.write_roboflow,
    "yolo": layouts.write_yolo,
    "voc": layouts.write_voc,
    "hf": layouts.write_hf,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_objects(layout: str, tmp_path: Path):
    data = load_detection_dataset(WRITERS[layout](tmp_path / "data"))
    assert data.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert data.label2id == {"cat": 0, "dog": 1, "owl": 2}
    for split, kind in (("train", "train"), ("val", "validation")):
        expected = [
            [(layouts.NAMES[c], *map(float, box)) for c, *box in objects] for _, _, objects in layouts.SCENES[split]
        ]
        assert layouts.objects_of(data, kind) == expected
        rows = data[data.split_for(kind)]
        assert [(row["width"], row["height"]) for row in rows] == [scene[:2] for scene in layouts.SCENES[split]]
        assert rows.features["objects"]["category"].feature == ClassLabel(names=list(layouts.NAMES))
        for number, row in enumerate(rows):
            assert np.array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(layouts.draw(split, number)))
            lengths = {len(values) for values in row["objects"].values()}
            assert lengths == {len(layouts.SCENES[split][number][2])}


def test_category_ids_are_remapped_and_the_mapping_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="detr_hf.data"):
        data = load_detection_dataset(layouts.write_coco(tmp_path))
    assert data.mapping == {3: 0, 5: 1, 9: 2}
    assert data.source_category_ids == [3, 5, 9]
    assert "1 <- 5: dog" in caplog.text


def test_splits_are_chosen_and_renamed(tmp_path: Path):
    root = layouts.write_coco2017(tmp_path)
    assert list(load_detection_dataset(root)) == ["train2017", "val2017"]
    assert list(load_detection_dataset(root, "val2017")) == ["val2017"]
    assert list(load_detection_dataset(root, {"train": "train2017"})) == ["train"]
    with pytest.raises(LayoutError, match="'train2017', 'val2017'"):
        load_detection_dataset(root, "train")
    with pytest.raises(LayoutError, match=r"No splits .* named for test"):
        load_detection_dataset(root).split_for("test")


def test_faults_can_be_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = layouts.write_coco(tmp_path)
    content = layouts.read_json(root / "annotations_train.json")
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    content["annotations"][2]["bbox"][2] = 0
    (root / "train" / "train_3.png").unlink()
    layouts.write_json(root / "annotations_train.json", content)
    with pytest.raises(AnnotationError) as raised:
        load_detection_dataset(root)
    assert (
        "annotation 1" in str(raised.value)
        and "train_0.png" in str(raised.value)
        and "image-missing" in str(raised.value)
    )
    with caplog.at_level(logging.WARNING, logger="detr_hf.data"):
        data = load_detection_dataset(root, on_fault="drop")
    assert [row["objects"]["id"] for row in data["train"]] == [[2], [], []]
    assert "box-empty" in caplog.text and "annotation 3" in caplog.text


def test_unknown_options_are_refused(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    with pytest.raises(TypeError, match="image_folder"):
        load_detection_dataset(root, image_folder="x")
    with pytest.raises(LayoutError, match="xyxy_norm"):
        load_detection_dataset(root, box_format="corners")
    with pytest.raises(LayoutError, match="no file or folder"):
        load_detection_dataset(tmp_path / "nowhere" / "at" / "all")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "train",
            ["train", "Training", "train2017", "trainval", "train_val", "train_set", "train-v2"],
        ),
        ("validation", ["val", "valid", "validate", "validation", "dev", "eval_set", "val2017", "Validation"]),
        ("test", ["test", "testing", "test_2012", "test-split"]),
        (None, ["default", "trainer", "tested", "evaluate_me", "day", "values"]),
    ],
)
def test_what_a_splits_name_says_it_is_for(kind: str | None, names: list[str]):
    assert {name: split_kind(name) for name in names} == dict.fromkeys(names, kind)
