"""Entries of a data.yaml: taken as written, refused outside of the folder, repaired with a word, never two in one."""

import re
from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

from ..layouts import fill
from .test_exports_yolo import BOX, PICTURE

NAMES = "names: [cat, dog]\n"


def site(*folders: str) -> dict:
    """A picture and its label in `images` and `labels` of each folder."""
    files = {}
    for folder in folders:
        stem = folder.replace("/", "_")
        files |= {f"{folder}/images/{stem}.jpg": PICTURE, f"{folder}/labels/{stem}.txt": BOX}
    return files


def codes(report) -> set[str]:
    return {code for code in report.counts if code.startswith(("entry-", "path-", "split", "image-re", "list-"))}


# What data.yaml says, the pictures by split, what is said about the entries.
TAKEN = {
    "as written": ("train: train/images\nval: valid/images\n", {"train": 1, "val": 1}, set()),
    "dots that stay inside": ("train: ./other/../train/images/\n", {"train": 1}, set()),
    "absolute and inside": ("train: {root}/d/train/images\n", {"train": 1}, set()),
    "backslashes": ("train: .\\train\\images\n", {"train": 1}, set()),
    "lists in lists": ("train: [[train/images], [valid/images]]\n", {"train": 2}, set()),
    "a pattern": ("train: '*/images'\n", {"train": 2}, set()),
    "a path: inside": ("path: ./train\ntrain: images\n", {"train": 1}, set()),
    "nothing for test": ("train: train/images\nval: ''\ntest: null\n", {"train": 1}, set()),
    "val is the training set on purpose": (
        "train: train/images\nval: train/images\n",
        {"train": 1, "val": 1},
        {"splits-overlap"},
    ),
    "one too high, and val the same": (
        "train: ../train/images\nval: ../train/images\n",
        {"train": 1, "val": 1},
        {"entry-shortened", "splits-overlap"},
    ),
    "the same folder twice": ("train: [train/images, ./train/images]\n", {"train": 1}, {"image-repeated"}),
    "one too high": ("train: ../train/images\nval: ../valid/images\n", {"train": 1, "val": 1}, {"entry-shortened"}),
    "of another machine": ("train: C:\\Users\\me\\set\\train\\images\n", {"train": 1}, {"entry-repaired"}),
    "in another case": ("train: Train/Images\n", {"train": 1}, {"entry-shortened"}),
    "a path: that is not there": ("path: /content/set\ntrain: train/images\n", {"train": 1}, {"path-repaired"}),
    "a test folder that is not there": (
        "train: train/images\ntest: test/images\n",
        {"train": 1},
        {"split-missing"},
    ),
}


@pytest.mark.parametrize("what", TAKEN)
def test_entries_are_taken_and_every_repair_is_said(what: str, tmp_path: Path):
    yaml, expected, said = TAKEN[what]
    fill(tmp_path, {**site("d/train", "d/valid"), "d/data.yaml": yaml + NAMES})
    data = load_detection_dataset(tmp_path / "d")
    assert {name: len(rows) for name, rows in data.items()} == expected
    assert codes(check(tmp_path / "d")) == said


OUTSIDE = {
    "a second site": ("train: [../siteA/train/images, ../siteB/train/images]\n", 2),
    "a second site for val, of which this one has its own": ("train: train/images\nval: ../siteB/valid/images\n", 2),
    "an absolute path": ("train: {root}/siteB/train/images\nval: {root}/siteB/valid/images\n", 2),
    "a list": ("train: ../siteB/train.txt\n", 1),
    "path: absolute": ("path: {root}/siteB\ntrain: train/images\n", 1),
    "path: beside": ("path: ../siteB\ntrain: train/images\nval: valid/images\n", 2),
    "path: above": ("path: ..\ntrain: siteB/train/images\n", 1),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_lies_outside_is_refused_and_the_advice_works(what: str, tmp_path: Path):
    yaml, pictures = OUTSIDE[what]
    sites = site("siteA/train", "siteA/valid", "siteB/train", "siteB/valid")
    lists = {"siteB/train.txt": "./train/images/siteB_train.jpg\n"}
    fill(tmp_path, {**sites, **lists, "siteA/data.yaml": yaml + NAMES})
    with pytest.raises(LayoutError, match="not below") as raised:
        load_detection_dataset(tmp_path / "siteA")
    if "path:" in yaml:
        assert "`path: " in str(raised.value)
    root = re.search(r"image_root='([^']+)'", str(raised.value))[1]
    assert Path(root).is_relative_to(tmp_path)
    data = load_detection_dataset(tmp_path / "siteA", image_root=root)
    assert sum(len(rows) for rows in data.values()) == pictures
    assert all(len(row["objects"]["bbox"]) == 1 for rows in data.values() for row in rows)
    assert "siteB" in str([rows["file_name"] for rows in data.values()])


def test_image_root_admits_what_lies_in_it_and_nothing_beside_it(tmp_path: Path):
    fill(tmp_path, {**site("set/siteA", "siteA"), "set/siteA/data.yaml": f"train: ../siteA/images\n{NAMES}"})
    data = load_detection_dataset(tmp_path / "set/siteA/data.yaml", image_root=tmp_path / "set")
    assert data["train"]["file_name"][:] == ["set_siteA.jpg"]


def test_image_root_can_be_given_for_each_split(tmp_path: Path):
    from detr_hf.data.readers.yolo import find_layout

    files = {"code/my.yaml": f"path: /nowhere\ntrain: images\nval: images\n{NAMES}", **site("disk1", "disk2")}
    fill(tmp_path, files)
    layout = find_layout(tmp_path / "code/my.yaml", {"train": tmp_path / "disk1", "val": tmp_path / "disk2"})
    assert {split: [name for _, name in pictures] for split, pictures in layout.pictures.items()} == {
        "train": ["disk1.jpg"],
        "val": ["disk2.jpg"],
    }


MEETING = {
    "val in the training set": "train: train/images\nval: lost/train/images\n",
    "val in what train becomes": "train: ../train/images\nval: lost/train/images\n",
    "two entries of a split": "train: [a/train/images, b/train/images]\n",
    "val around the training set": "train: train/images\nval: ../old/train\n",
    "a list that is another's": "train: train.txt\nval: data/train.txt\n",
}


@pytest.mark.parametrize("what", MEETING)
def test_repairs_that_meet_are_refused(what: str, tmp_path: Path):
    fill(tmp_path, {**site("train"), "train.txt": "train/images/train.jpg\n", "data.yaml": MEETING[what] + NAMES})
    with pytest.raises(LayoutError, match=r"does not exist. Without its leading folders"):
        load_detection_dataset(tmp_path)


def test_names_of_two_lists_do_not_meet_in_one_picture(tmp_path: Path):
    yaml = f"train: train.txt\nval: val.txt\n{NAMES}"
    lists = {"train.txt": "/a/images/d.jpg\n", "val.txt": "/b/images/d.jpg\n"}
    fill(tmp_path, {"images/d.jpg": PICTURE, "labels/d.txt": BOX, "data.yaml": yaml, **lists})
    assert check(tmp_path).errors["file-name-ambiguous"] == 1


def test_a_listed_name_does_not_become_a_picture_of_another_splits_folder(tmp_path: Path):
    yaml = f"train: train/images\nval: val.txt\n{NAMES}"
    fill(tmp_path, {**site("train"), "data.yaml": yaml, "val.txt": "/old/train/images/train.jpg\n"})
    assert check(tmp_path).errors["file-name-ambiguous"] == 1


def test_lines_that_differ_in_what_is_left_out_are_each_said(tmp_path: Path):
    lines = "/a/images/c.jpg\nd.jpg\nimages/e.jpg\n"
    pictures = {f"images/{name}.jpg": PICTURE for name in "cde"} | {f"labels/{name}.txt": BOX for name in "cde"}
    fill(tmp_path, {**pictures, "data.yaml": f"train: train.txt\n{NAMES}", "train.txt": lines})
    report = check(tmp_path)
    assert report.warnings == {"file-name-repaired": 1} and report.errors == {"image-missing": 1}, report.text()


def test_a_split_that_is_not_there_leaves_the_others(tmp_path: Path):
    yaml = f"train: train/images\nval: valid/images\ndownload: https://host/set.zip\n{NAMES}"
    fill(tmp_path, {**site("train"), "data.yaml": yaml})
    with pytest.raises(LayoutError, match=r"'valid/images' for val.*`download:` is not run.*splits="):
        load_detection_dataset(tmp_path)
    assert list(load_detection_dataset(tmp_path, splits=["train"])) == ["train"]


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("train: https://host/images.zip\n", "nothing is downloaded"),
        ("train: {a: train/images}\n", "expected a path or a list of paths"),
        ("train: train/images/train.jpg\n", "neither a folder nor a .txt list"),
        ("nc: 2\n", "names no split"),
        ("train: train/images\nnc: 3\n", "nc is 3 and there are 2 names"),
        ("train: train/images\nnc: two\n", "nc is 'two', expected the number of classes"),
        ("train: train/images\nkpt_shape: [17]\n", "kpt_shape is"),
    ],
)
def test_a_data_yaml_that_cannot_be_meant_is_refused(yaml: str, words: str, tmp_path: Path):
    fill(tmp_path, {**site("train"), "data.yaml": yaml + NAMES})
    with pytest.raises(LayoutError, match=re.escape(words)):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("other", ["dataset.yaml", "more.yml", "obj.data"])
def test_two_descriptions_that_differ_are_refused(other: str, tmp_path: Path):
    fill(tmp_path, {**site("train"), "data.yaml": f"train: train/images\n{NAMES}"})
    fill(tmp_path, {other: "train = t.txt\nnames = n" if other == "obj.data" else "train: train\nnames: [dog, cat]\n"})
    with pytest.raises(LayoutError, match=re.escape(other)):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_two_descriptions_that_say_the_same_are_one(encoding: str, tmp_path: Path):
    fill(tmp_path, {**site("train"), "data.yaml": f"train: train/images\r\n{NAMES}"})
    (tmp_path / "copy.yaml").write_bytes(f"# a copy\ntrain: 'train/images'\n{NAMES}".encode(encoding))
    assert len(load_detection_dataset(tmp_path)["train"]) == 1


def test_image_root_without_a_data_yaml_is_refused_and_not_overlooked(tmp_path: Path):
    fill(tmp_path, {**site("train"), "classes.txt": "cat\ndog\n"})
    assert len(load_detection_dataset(tmp_path)["train"]) == 1
    with pytest.raises(LayoutError, match=r"no data\.yaml whose entries image_root="):
        load_detection_dataset(tmp_path, image_root=tmp_path)
