"""Which label file is a picture's: called like it, in `labels` or beside it; what is left over is said."""

import unicodedata
from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset

from ..layouts import fill
from .test_exports_yolo import BOX, PICTURE

YAML = "train: train/images\nnames: [cat, dog]\n"
OTHER = "0 0.5 0.5 0.1 0.1\n"
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
SOUND = {"images/sound.jpg": PICTURE, "labels/sound.txt": BOX}
# True of such small sets.
SMALL = {"class-without-objects", "objects-small", "images-without-objects"}

# Files below train/, the number of objects by picture, and the codes of what `check` says.
LABELS = {
    "in labels": ({"images/a.jpg": PICTURE, "labels/a.txt": BOX}, {"a.jpg": 1}, set()),
    "none": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/b.jpg": PICTURE, "labels/b.txt": "\n"},
        {"a.jpg": 1, "b.jpg": 0},
        set(),
    ),
    "no file": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/b.jpg": PICTURE},
        {"a.jpg": 1, "b.jpg": 0},
        {"label-missing"},
    ),
    "all beside": ({"images/a.jpg": PICTURE, "images/a.txt": BOX}, {"a.jpg": 1}, set()),
    "some beside": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/b.jpg": PICTURE, "images/b.txt": BOX},
        {"a.jpg": 1, "b.jpg": 1},
        {"labels-beside-pictures"},
    ),
    "in both, the same": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/a.txt": BOX.replace("\n", "\r\n")},
        {"a.jpg": 1},
        set(),
    ),
    "in both, another": (
        {**SOUND, "images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/a.txt": OTHER},
        None,
        {"label-ambiguous"},
    ),
    "the other Unicode form": ({f"images/{NFC}.jpg": PICTURE, f"labels/{NFD}.txt": BOX}, {f"{NFC}.jpg": 1}, set()),
    "the other Unicode form of a folder": (
        {f"images/{NFD}/a.jpg": PICTURE, f"labels/{NFC}/a.txt": BOX},
        {f"{NFD}/a.jpg": 1},
        set(),
    ),
    "another case": (
        {"images/A.JPG": PICTURE, "labels/a.txt": BOX},
        {"A.JPG": 1},
        {"label-name-repaired"},
    ),
    "an ending in capitals": ({"images/a.jpg": PICTURE, "labels/a.TXT": BOX}, {"a.jpg": 1}, set()),
    "another case, of another picture": (
        {"images/A.jpg": PICTURE, "images/a.jpg": PICTURE, "labels/a.txt": BOX},
        {"A.jpg": 0, "a.jpg": 1},
        {"label-missing"},
    ),
    "another case, of either picture": (
        {**SOUND, "images/AB.jpg": PICTURE, "images/Ab.jpg": PICTURE, "labels/ab.txt": BOX},
        None,
        {"label-ambiguous"},
    ),
    "one for two pictures": (
        {"images/a.jpg": PICTURE, "images/a.png": PICTURE, "labels/a.txt": BOX},
        {"a.jpg": 1, "a.png": 1},
        {"label-shared"},
    ),
    "two of Label Studio for one picture": (
        {**SOUND, "images/a.jpg": PICTURE, "labels/0a1b2c3d-a.txt": BOX, "labels/1a1b2c3d-a.txt": OTHER},
        None,
        {"label-ambiguous"},
    ),
    "without a picture": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "labels/b.txt": BOX, "labels/old/a.txt": BOX},
        {"a.jpg": 1},
        {"label-unclaimed"},
    ),
    "beside the pictures, without one": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/b.txt": BOX},
        {"a.jpg": 1},
        {"label-unclaimed"},
    ),
    "of a picture that is not read": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "images/b.HEIC": "x", "labels/b.txt": BOX},
        {"a.jpg": 1},
        {"label-unclaimed", "image-kind-unread"},
    ),
    "texts that are no labels": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "labels/readme.txt": "see b", "labels/classes.txt": "cat\n"},
        {"a.jpg": 1},
        set(),
    ),
    "class names that disagree with data.yaml": (
        {"images/a.jpg": PICTURE, "labels/a.txt": BOX, "../labels/classes.txt": "dog\ncat\n"},
        {"a.jpg": 1},
        {"class-names-differ"},
    ),
    "predictions": (
        {"images/a.jpg": PICTURE, "labels/a.txt": "0 0.5 0.5 0.1 0.1 0.9\n" * 2},
        {"a.jpg": 2},
        {"label-number-extra", "object-duplicate"},
    ),
    "key points that nothing announces": (
        {"images/a.jpg": PICTURE, "labels/a.txt": "1 0.5 0.5 0.5 0.5 0.5 0.5 2\n"},
        {"a.jpg": 1},
        {"key-points-inferred", "key-points-not-read"},
    ),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_are_found_and_what_is_passed_over_is_said(what: str, tmp_path: Path):
    files, expected, said = LABELS[what]
    fill(tmp_path, {"data.yaml": YAML, **{f"train/{name}": content for name, content in files.items()}})
    report = check(tmp_path)
    assert set(report.counts) - SMALL == said, report.text()
    assert report.ok == (expected is not None)
    if expected is not None:
        rows = load_detection_dataset(tmp_path)["train"]
        assert {row["file_name"]: len(row["objects"]["bbox"]) for row in rows} == expected


def test_a_label_is_counted_once_for_each_file_with_its_name(tmp_path: Path):
    fill(tmp_path, {"data.yaml": YAML, "train/images/a.jpg": PICTURE, "train/labels/a.txt": BOX})
    fill(tmp_path, {f"train/labels/lost{number}.txt": BOX for number in range(3)})
    report = check(tmp_path)
    assert report.warnings == {"label-unclaimed": 3} and "lost2.txt" in report.text()


def test_reading_one_split_calls_the_labels_of_the_others_no_leftovers(tmp_path: Path):
    folders = {f"{split}/images/{split}.jpg": PICTURE for split in ("train", "val")}
    labels = {f"{split}/labels/{split}.txt": BOX for split in ("train", "val")}
    fill(tmp_path, {"data.yaml": YAML + "val: val/images\n", **folders, **labels})
    assert not check(tmp_path, splits="train").warnings


def test_a_link_to_nothing_is_a_missing_picture(tmp_path: Path):
    files = {"data.yaml": YAML, "train/images/a.jpg": PICTURE, "train/labels/a.txt": BOX, "train/labels/b.txt": BOX}
    fill(tmp_path, files)
    (tmp_path / "train/images/b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert check(tmp_path).errors == {"image-missing": 1}


def test_linked_folders_of_pictures_and_labels_are_read(tmp_path: Path):
    fill(tmp_path, {"disk/i/a.jpg": PICTURE, "disk/l/a.txt": BOX, "d/data.yaml": "train: images\nnames: [cat, dog]\n"})
    (tmp_path / "d/images").symlink_to(tmp_path / "disk/i")
    (tmp_path / "d/labels").symlink_to(tmp_path / "disk/l")
    assert check(tmp_path / "d").warnings == {}
    assert len(load_detection_dataset(tmp_path / "d")["train"][0]["objects"]["bbox"]) == 1


def test_folders_called_images_above_the_data_set_change_nothing(tmp_path: Path):
    root = fill(tmp_path / "images" / "set", {"classes.txt": "cat\ndog\n", "a.jpg": PICTURE, "a.txt": BOX})
    fill(tmp_path, {"labels/set/a.txt": OTHER})
    assert load_detection_dataset(root)["train"][0]["objects"]["category"] == [1]


def test_where_labels_were_looked_for_is_said_when_there_is_none(tmp_path: Path):
    files = {f"images/{split}/{split}.jpg": PICTURE for split in ("train", "val")}
    labels = {f"labels/{split}_labels/{split}.txt": BOX for split in ("train", "val")}
    fill(tmp_path, {**files, **labels, "data.yaml": "train: images/train\nval: images/val\nnames: [cat, dog]\n"})
    report = check(tmp_path)
    assert report.errors["no-objects"] and report.warnings["label-unclaimed"] == 2
    assert str(tmp_path / "labels" / "train") in report.text()
