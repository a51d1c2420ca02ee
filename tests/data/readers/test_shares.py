"""A share for validation: the same pictures each time, whole pictures, and nothing lost."""

from pathlib import Path

import numpy as np
import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

from ...bad_inputs.kinds import CLASSES, coco, edit, rows, yolo
from .. import layouts

NAMES = [f"{number:02d}.png" for number in range(20)]


def names_of(data, split: str) -> list[str]:
    return list(data[split]["file_name"])


def test_the_same_pictures_are_set_aside_whatever_their_order(tmp_path: Path):
    path = coco(tmp_path, names=NAMES)
    first = load_detection_dataset(tmp_path, validation_share=0.25)
    assert list(first) == ["train", "validation"] and len(first["validation"]) == 5
    assert sorted(names_of(first, "train") + names_of(first, "validation")) == NAMES
    edit(path, lambda content: content["images"].reverse())
    again = load_detection_dataset(tmp_path, validation_share=0.25)
    assert sorted(names_of(again, "validation")) == sorted(names_of(first, "validation"))
    other = load_detection_dataset(tmp_path, validation_share=0.25, validation_seed=1)
    assert sorted(names_of(other, "validation")) != sorted(names_of(first, "validation"))


def test_objects_stay_with_their_pictures(tmp_path: Path):
    def move(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation["bbox"] = [number, number, 10, 10]
        content["annotations"].reverse()

    edit(coco(tmp_path, names=NAMES), move)
    whole = load_detection_dataset(tmp_path)["train"]
    shared = load_detection_dataset(tmp_path, validation_share=0.5)
    parts = [row for split in shared.values() for row in split]
    for row in parts:
        assert row["objects"] == whole[NAMES.index(row["file_name"])]["objects"]
    assert len(parts) == 20 and shared.findings.counts["validation-share"] == 1
    report = check(shared)
    assert report.ok and report.splits["validation"].objects == 10


@pytest.mark.parametrize("source", ["yolo", "rows", "panoptic"])
def test_other_formats(source: str, tmp_path: Path):
    if source == "yolo":
        yolo(tmp_path, ("train",), NAMES)
    elif source == "panoptic":
        layouts.write_panoptic(tmp_path)
    data = rows(tmp_path, 10) if source == "rows" else tmp_path
    whole = load_detection_dataset(data)["train"]
    parts = load_detection_dataset(data, validation_share=0.3)
    assert len(parts["train"]) + len(parts["validation"]) == len(whole)
    pictures = {str(row["image_id"]): np.asarray(row["image"]) for row in whole}
    for row in (row for split in parts.values() for row in split):
        assert np.array_equal(np.asarray(row["image"]), pictures[str(row["image_id"])])
    assert check(parts, pictures=source != "rows").ok


def test_a_picture_that_is_listed_twice_goes_one_way(tmp_path: Path):
    def repeat(content):
        content["images"] += [{**image, "id": 100 + image["id"]} for image in content["images"]]

    edit(coco(tmp_path, names=NAMES), repeat)
    parts = load_detection_dataset(tmp_path, validation_share=0.5, on_fault="drop")
    assert not set(names_of(parts, "train")) & set(names_of(parts, "validation"))
    assert len(parts["train"]) == len(parts["validation"]) == 10


@pytest.mark.parametrize(
    ("splits", "share", "words"),
    [
        (("train", "val"), 0.5, "has the validation split 'val'"),
        (("one", "two"), 0.5, "splits={'train': 'one'}"),
        (("train",), 0.1, "of 2 pictures is 0"),
        (("train",), 1.5, "between 0 and 1"),
    ],
)
def test_what_is_refused(splits: tuple[str, ...], share: float, words: str, tmp_path: Path):
    for split in splits:
        coco(tmp_path, split)
    with pytest.raises(LayoutError, match=words):
        load_detection_dataset(tmp_path, validation_share=share)


def test_the_only_split_serves_and_others_are_left_alone(tmp_path: Path):
    coco(tmp_path / "one", "default", NAMES)
    assert list(load_detection_dataset(tmp_path / "one", validation_share=0.1)) == ["default", "validation"]
    for split in ("train", "val"):
        coco(tmp_path / "two", split, NAMES)
    assert list(load_detection_dataset(tmp_path / "two", ["train"], validation_share=0.1)) == ["train", "validation"]
    stream = rows(tmp_path / "three").to_iterable_dataset()
    with pytest.raises(LayoutError, match="streamed"):
        load_detection_dataset(stream, id2label=CLASSES, validation_share=0.5)
