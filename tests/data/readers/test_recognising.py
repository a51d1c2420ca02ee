"""A folder that could be two data sets, or none, is an error that says what was looked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detr_hf.data import load_detection_dataset
from detr_hf.errors import LayoutError

from .. import layouts


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
