"""YOLO folders without a data.yaml: which folder is which split, and what is not in any."""

from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

from ..layouts import fill
from .test_exports_yolo import BOX, PICTURE, side_by_side
from .test_yolo_yaml import site

NAMES = {"classes.txt": "cat\ndog\n"}
NESTED = {"images/train/a.jpg": PICTURE, "labels/train/a.txt": BOX}

SPLITS = {
    "images and labels": ({"images/a.jpg": PICTURE, "labels/a.txt": BOX}, {"train": 1}),
    "images with folders": (NESTED, {"train": 1}),
    "images with folders, labels beside": ({"images/val/a.jpg": PICTURE, "images/val/a.txt": BOX}, {"val": 1}),
    "split folders": (site("train", "valid", "testing"), {"train": 1, "valid": 1, "testing": 1}),
    "split folders, labels beside": (
        {**side_by_side("train/images/"), **side_by_side("val/images/")},
        {"train": 1, "val": 1},
    ),
    "flat split folders": (side_by_side("training/", "validation/"), {"training": 1, "validation": 1}),
    "one folder": (side_by_side("my pictures/"), {"train": 1}),
    "images and labels, and a split folder": ({**NESTED, **site("test")}, {"train": 1, "test": 1}),
    "flat, and a split folder": (side_by_side("", "val/"), {"train": 1, "val": 1}),
}


@pytest.mark.parametrize("what", SPLITS)
def test_folders_are_splits(what: str, tmp_path: Path):
    files, expected = SPLITS[what]
    data = load_detection_dataset(fill(tmp_path, {**NAMES, **files}))
    assert {name: len(rows) for name, rows in data.items()} == expected
    assert all(len(row["objects"]["bbox"]) == 1 for rows in data.values() for row in rows)
    assert check(tmp_path).warnings.keys() <= {"objects-small"}


@pytest.mark.parametrize(
    "files",
    [
        {**NESTED, "images/b.jpg": PICTURE},
        {**NESTED, **site("train")},
        {**side_by_side("", "train/")},
        {**side_by_side("train/", "obj_train_data/")},
    ],
)
def test_two_folders_for_a_split_are_refused(files: dict, tmp_path: Path):
    with pytest.raises(LayoutError, match="ambiguous"):
        load_detection_dataset(fill(tmp_path, {**NAMES, **files}))


def test_folders_that_no_list_has_are_told(tmp_path: Path):
    fill(tmp_path, {**NAMES, **side_by_side("train/", "val/"), "train.txt": "train/a.jpg\n"})
    assert list(load_detection_dataset(tmp_path)) == ["train"]
    report = check(tmp_path)
    assert report.counts["image-unlisted"] == 1 and str(Path("val/a.jpg")) in report.text()
