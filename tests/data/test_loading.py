import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel

from detr_hf.data import DetectionData, load_detection_dataset
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


def objects_of(data: DetectionData, kind: str) -> list[list[tuple]]:
    """For each row of a split: (class name, x, y, width, height) of its objects."""
    names = data.id2label
    split = data[data.split_for(kind)]
    return [
        [
            (names[c], *(round(value, 3) for value in box))
            for c, box in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)
        ]
        for row in split
    ]


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_objects(layout: str, tmp_path: Path):
    data = load_detection_dataset(WRITERS[layout](tmp_path / "data"))
    assert data.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert data.label2id == {"cat": 0, "dog": 1, "owl": 2}
    for split, kind in (("train", "train"), ("val", "validation")):
        expected = [
            [(layouts.NAMES[c], *map(float, box)) for c, *box in objects] for _, _, objects in layouts.SCENES[split]
        ]
        assert objects_of(data, kind) == expected
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


def test_splits_are_chosen_and_renamed(tmp_path: Path):
    root = layouts.write_coco2017(tmp_path)
    assert list(load_detection_dataset(root)) == ["train2017", "val2017"]
    assert list(load_detection_dataset(root, "val2017")) == ["val2017"]
    assert list(load_detection_dataset(root, {"train": "train2017"})) == ["train"]
    with pytest.raises(LayoutError, match="'train2017', 'val2017'"):
        load_detection_dataset(root, "train")
    with pytest.raises(LayoutError, match=r"No splits .* named for test"):
        load_detection_dataset(root).split_for("test")


def test_one_json_with_its_folder_and_string_ids(tmp_path: Path):
    layouts.save_pictures(tmp_path / "images", "train")
    content = layouts.coco_content("train")
    for image in content["images"]:
        image["id"] = f"img_{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"img_{annotation['image_id']}"
        annotation["id"] = f"a{annotation['id']}"
        annotation["category_id"] = f"c{annotation['category_id']}"
    for category in content["categories"]:
        category["id"] = f"c{category['id']}"
    layouts.write_json(tmp_path / "labels.json", content)
    for path in (tmp_path, tmp_path / "labels.json"):
        data = load_detection_dataset(path)
        assert data.mapping == {"c3": 0, "c5": 1, "c9": 2}
        assert data["train"]["source_image_id"][0] == "img_100"
        assert data["train"]["image_id"][:] == [1, 2, 3, 4]


def test_panoptic_has_segments_stuff_and_pngs(tmp_path: Path):
    data = load_detection_dataset(layouts.write_panoptic(tmp_path))
    assert data.id2label == {0: "cat", 1: "dog", 2: "owl", 3: "ground"}
    assert data.is_thing == [True, True, True, False]
    row = data["train"][0]
    assert row["objects"]["id"] == [7, 1000, 1001]
    assert row["panoptic"].size == (64, 48)


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


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path: Path):
    root = layouts.write_voc(tmp_path)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>60</ymax></bndbox>"
    size = "<size><width>60</width><height>60</height></size>"
    text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
    (root / "Annotations" / "train_2.xml").write_text(text)
    assert load_detection_dataset(root)["train"][2]["objects"]["bbox"] == [[0.0, 0.0, 1.0, 60.0]]


def test_xml_entities_are_refused(tmp_path: Path):
    root = layouts.write_voc(tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotation><filename>&x;</filename></annotation>'
    (root / "Annotations" / "train_0.xml").write_text(bomb)
    with pytest.raises(AnnotationError, match="entities"):
        load_detection_dataset(root)


def test_in_memory_datasets_and_streams(tmp_path: Path):
    splits = layouts.hf_splits()
    whole = load_detection_dataset(splits)
    streamed = load_detection_dataset({name: split.to_iterable_dataset() for name, split in splits.items()})
    assert streamed.id2label == whole.id2label
    rows = list(streamed["train"])
    assert [row["objects"]["bbox"] for row in rows] == [row["objects"]["bbox"] for row in whole["train"]]
    assert [row["image_id"] for row in rows] == [100, 101, 102, 103]


def test_a_stream_without_class_names_says_what_to_pass():
    from datasets import Features, List, Value

    split = layouts.hf_splits()["train"]
    features = Features(
        {
            **split.features,
            "objects": {"bbox": List(List(Value("float32"), length=4)), "category": List(Value("int64"))},
        }
    )
    stream = split.cast(features).to_iterable_dataset()
    with pytest.raises(LayoutError, match="id2label="):
        load_detection_dataset(stream)
    data = load_detection_dataset(stream, id2label=dict(enumerate(layouts.NAMES)))
    assert [len(row["objects"]["id"]) for row in data["train"]] == [2, 1, 0, 3]
    faulty = load_detection_dataset(stream, id2label={0: "cat"})
    with pytest.raises(AnnotationError, match="category 1 is not in id2label"):
        list(faulty["train"])


def test_hf_boxes_in_another_format_are_refused_and_read_when_named():
    def to_xyxy(row: dict) -> dict:
        row["objects"]["bbox"] = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
        return row

    splits = layouts.hf_splits()
    corners = splits.map(to_xyxy, features=splits["train"].features)
    with pytest.raises(AnnotationError, match="box_format='xyxy'"):
        load_detection_dataset(corners)
    assert objects_of(load_detection_dataset(corners, box_format="xyxy"), "train") == objects_of(
        load_detection_dataset(splits), "train"
    )


def _two_formats(root: Path) -> None:
    layouts.write_coco(root)
    (root / "data.yaml").write_text("train: train\nnames: [a]\n")


def _two_json_for_a_split(root: Path) -> None:
    layouts.write_coco(root)
    layouts.write_json(root / "train.json", layouts.coco_content("train"))


def _two_picture_folders(root: Path) -> None:
    layouts.write_coco(root)
    layouts.save_pictures(root / "images" / "train", "train")


def _nothing(root: Path) -> None:
    (root / "notes.txt").write_text("hello")


def _pictures_elsewhere(root: Path) -> None:
    layouts.write_json(root / "annotations_train.json", layouts.coco_content("train"))


def _yaml_outside(root: Path) -> None:
    (root / "data.yaml").write_text("train: /etc\nval: ../../etc\nnames: [a]\n")


def _broken_json(root: Path) -> None:
    layouts.write_coco(root)
    path = root / "annotations_train.json"
    path.write_text(path.read_text()[:-40])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_two_formats, ["ambiguous", "coco and as yolo", "format="]),
        (_two_json_for_a_split, ["ambiguous", "annotations_train.json", "train.json"]),
        (_two_picture_folders, ["ambiguous", "image_root="]),
        (_nothing, ["looked for", "COCO", "YOLO", "Pascal VOC", "objects", "notes.txt"]),
        (_pictures_elsewhere, ["were not found", "image_root="]),
        (_yaml_outside, ["not below", "image_root="]),
        (_broken_json, ["annotations_train.json", "not JSON"]),
    ],
)
def test_a_layout_that_is_not_clear_is_an_error_that_says_why(
    make: Callable[[Path], None], words: list[str], tmp_path: Path
):
    make(tmp_path)
    with pytest.raises(LayoutError) as raised:
        load_detection_dataset(tmp_path)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a/../../b.png", "C:\\x.png", "..\\x.png", "http://host/x.png", "", "a\0b"],
)
def test_file_names_cannot_leave_the_folder(name: str, tmp_path: Path):
    root = layouts.write_coco(tmp_path / "data")
    layouts.draw("train", 0).save(tmp_path / "secret.png")
    content = layouts.read_json(root / "annotations_train.json")
    content["images"][0]["file_name"] = name
    layouts.write_json(root / "annotations_train.json", content)
    with pytest.raises(AnnotationError, match="file-name-unsafe"):
        load_detection_dataset(root)


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
