"""YOLO as labelling tools write it: what is read of each export, and what is said about it."""

from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

from ..layouts import fill

PICTURE = (96, 64)
BOX = "1 0.3 0.4 0.4 0.5\n"
BOX_XYWH = [9.6, 9.6, 38.4, 32.0]
NAMES = "cat\ndog\n"


def ultralytics(line: str, more: str = "", split: str = "train") -> dict[str, str | tuple[int, int]]:
    """CVAT's exports for Ultralytics: lists whose lines have a folder before them that is not there."""
    return {
        "data.yaml": f"names:\n  0: cat\n  1: dog\npath: .\n{more}{split}: {split}.txt\n",
        f"{split}.txt": f"data/images/{split}/a.jpg\ndata/images/{split}/sub/b.jpg\n",
        f"images/{split}/a.jpg": PICTURE,
        f"images/{split}/sub/b.jpg": PICTURE,
        f"labels/{split}/a.txt": line,
        f"labels/{split}/sub/b.txt": line,
    }


def roboflow(yaml: str) -> dict[str, str | tuple[int, int]]:
    return {
        "data.yaml": f"{yaml}\nnc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: w\n  version: 1\n",
        "README.roboflow.txt": "1 2 3\n",
        "README.dataset.txt": "x",
        **{f"{split}/images/{split}_jpg.rf.0a.jpg": PICTURE for split in ("train", "valid")},
        **{f"{split}/labels/{split}_jpg.rf.0a.txt": BOX for split in ("train", "valid")},
    }


def side_by_side(*folders: str) -> dict[str, str | tuple[int, int]]:
    return {
        name: content for folder in folders for name, content in ((f"{folder}a.jpg", PICTURE), (f"{folder}a.txt", BOX))
    }


# Tool: its files, the pictures read by split, and the codes of what `check` says beyond small pictures and classes.
EXPORTS: dict[str, tuple[dict[str, str | tuple[int, int]], dict[str, int], set[str]]] = {
    "CVAT 'YOLO 1.1'": (
        {
            "obj.data": "classes = 2\nnames = data/obj.names\ntrain = data/train.txt\nbackup = backup/\n",
            "obj.names": NAMES,
            "train.txt": "data/obj_train_data/a.jpg\ndata/obj_train_data/day 1/b.jpg\n",
            **side_by_side("obj_train_data/"),
            "obj_train_data/day 1/b.jpg": PICTURE,
            "obj_train_data/day 1/b.txt": BOX,
        },
        {"train": 2},
        {"entry-shortened", "list-prefix"},
    ),
    "CVAT 'YOLO 1.1' with subsets": (
        {
            "obj.data": "classes = 2\nTrain = data/Train.txt\nValidation = data/Validation.txt\n"
            "names = data/obj.names\nbackup = backup/\n",
            "obj.names": NAMES,
            "Train.txt": "data/obj_Train_data/a.jpg\n",
            "Validation.txt": "data/obj_Validation_data/a.jpg\n",
            **side_by_side("obj_Train_data/", "obj_Validation_data/"),
        },
        {"Train": 1, "Validation": 1},
        {"entry-shortened", "list-prefix"},
    ),
    "CVAT 'Ultralytics YOLO Detection'": (ultralytics(BOX), {"train": 2}, {"list-prefix"}),
    "CVAT 'Ultralytics YOLO Pose'": (
        ultralytics("1 0.3 0.4 0.4 0.5 0.2 0.3 2 0.4 0.5 1\n", "kpt_shape: [2, 3]\n"),
        {"train": 2},
        {"list-prefix", "key-points-not-read"},
    ),
    "CVAT 'Ultralytics YOLO Pose' without visibility": (
        ultralytics("1 0.3 0.4 0.4 0.5 0.2 0.3 0.4 0.5\n", "kpt_shape: [2, 2]\n", "val"),
        {"val": 2},
        {"list-prefix", "key-points-not-read"},
    ),
    "CVAT 'Ultralytics YOLO Oriented Bounding Boxes'": (
        ultralytics("1 0.1 0.15 0.5 0.15 0.5 0.65 0.1 0.65\n"),
        {"train": 2},
        {"list-prefix"},
    ),
    "CVAT 'Ultralytics YOLO Segmentation'": (
        ultralytics("1 0.1 0.15 0.5 0.15 0.5 0.65 0.3 0.65 0.1 0.65\n"),
        {"train": 2},
        {"list-prefix"},
    ),
    "Label Studio 'YOLO with Images'": (
        {
            "classes.txt": NAMES,
            "notes.json": '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {}}',
            "images/0a1b2c3d-a_b.jpg": PICTURE,
            "labels/0a1b2c3d-a_b.txt": BOX,
        },
        {"train": 1},
        set(),
    ),
    "Label Studio 'YOLO', with the pictures as they were before the upload": (
        {"classes.txt": NAMES, "images/a_b.jpg": PICTURE, "labels/0a1b2c3d-a_b.txt": BOX},
        {"train": 1},
        {"label-name-repaired"},
    ),
    "Roboflow 'YOLOv5 PyTorch'": (
        roboflow("train: ../train/images\nval: ../valid/images\n"),
        {"train": 1, "val": 1},
        {"entry-shortened"},
    ),
    "Roboflow 'YOLOv8' that names a test folder which it does not write": (
        roboflow("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"),
        {"train": 1, "val": 1},
        {"entry-shortened", "split-missing"},
    ),
    "Roboflow 'YOLO Darknet'": (
        {
            **side_by_side("train/", "valid/", "test/"),
            **{f"{split}/_darknet.labels": NAMES for split in ("train", "valid", "test")},
            "README.dataset.txt": "x",
        },
        {"train": 1, "valid": 1, "test": 1},
        set(),
    ),
    "FiftyOne 'YOLOv4Dataset'": (
        {"obj.names": NAMES, "images.txt": "data/a.jpg\n", **side_by_side("data/")},
        {"train": 1},
        set(),
    ),
    "FiftyOne 'YOLOv5Dataset'": (
        {
            "dataset.yaml": "names:\n- cat\n- dog\nnc: 2\npath: {root}\ntrain: ./images/train/\nval: ./images/val/\n",
            **{f"images/{split}/{split}.jpg": PICTURE for split in ("train", "val")},
            **{f"labels/{split}/{split}.txt": BOX for split in ("train", "val")},
        },
        {"train": 1, "val": 1},
        set(),
    ),
    "FiftyOne 'YOLOv5Dataset', moved to another place": (
        {
            "dataset.yaml": "names: {0: cat, 1: dog}\npath: /home/me/fiftyone/export\ntrain: ./images/train/\n",
            "images/train/a.jpg": PICTURE,
            "labels/train/a.txt": BOX,
        },
        {"train": 1},
        {"path-repaired"},
    ),
    "labelImg, everything in one folder": (
        {**side_by_side(""), "classes.txt": NAMES, "._a.jpg": "x", "._a.txt": "x", "__MACOSX/._a.txt": "x"},
        {"train": 1},
        set(),
    ),
    "labelImg, a folder for each split, classes.txt in each as far as it got": (
        {**side_by_side("train/", "val/"), "train/classes.txt": NAMES, "val/classes.txt": "cat\n"},
        {"train": 1, "val": 1},
        set(),
    ),
    "Darknet's own obj.data, with paths of another machine": (
        {
            "cfg.data": "classes= 2\ntrain  = /home/me/darknet/data/train.txt\nvalid  = data/test.txt\n"
            "names = /home/me/darknet/data/obj.names\nbackup = backup/\neval=coco\n",
            "obj.names": NAMES,
            "train.txt": "/home/me/darknet/data/obj/a.jpg\n",
            "test.txt": "/home/me/darknet/data/obj2/a.jpg\n",
            **side_by_side("obj/", "obj2/"),
        },
        {"train": 1, "valid": 1},
        {"entry-shortened", "list-prefix"},
    ),
    "Darknet for VOC: JPEGImages and labels": (
        {
            "voc.data": "classes= 2\ntrain = train.txt\nnames = voc.names\n",
            "voc.names": NAMES,
            "train.txt": "{root}/VOC2007/JPEGImages/a.jpg\n",
            "VOC2007/JPEGImages/a.jpg": PICTURE,
            "VOC2007/labels/a.txt": BOX,
        },
        {"train": 1},
        set(),
    ),
    "Ultralytics' own layout, with args.yaml and hyp.yaml of a run": (
        {
            "coco8.yaml": "# http://x\npath: ../datasets/coco8 # root\ntrain: images/train\nval: images/val\n"
            "test: # none\nnames:\n  0: cat\n  1: dog\n\ndownload: https://host/coco8.zip\n",
            "args.yaml": "task: detect\nmode: train\ndata: coco8.yaml\nval: true\n",
            "hyp.yaml": "lr0: 0.01\n",
            **{f"images/{split}/{split}.jpg": PICTURE for split in ("train", "val")},
            **{f"labels/{split}/{split}.txt": BOX for split in ("train", "val")},
        },
        {"train": 1, "val": 1},
        {"path-repaired"},
    ),
    "folders in another case, a classes.txt among the labels": (
        {"Images/Train/a.JPG": PICTURE, "Labels/train/A.TXT": BOX, "Labels/classes.txt": NAMES},
        {"Train": 1},
        {"label-name-repaired"},
    ),
    "lists and one folder of pictures": (
        {
            "classes.txt": NAMES,
            "train.txt": "\ufeff./images/a.jpg\r\n# a comment\r\n",
            "val.txt": "images\\b.jpg\r\n",
            **{f"images/{name}.jpg": PICTURE for name in "abc"},
            **{f"labels/{name}.txt": BOX for name in "abc"},
        },
        {"train": 1, "val": 1},
        {"image-unlisted"},
    ),
}
# True of such small sets.
SMALL = {"class-without-objects", "objects-small", "class-not-in-training"}


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_is_read_as_the_tool_makes_it(tool: str, tmp_path: Path):
    files, expected, said = EXPORTS[tool]
    data = load_detection_dataset(fill(tmp_path, files))
    assert {name: len(rows) for name, rows in data.items()} == expected
    for rows in data.values():
        for row in rows:
            assert [data.id2label[index] for index in row["objects"]["category"]] == ["dog"]
            assert row["objects"]["bbox"] == [pytest.approx(BOX_XYWH)]
    report = check(tmp_path)
    assert set(report.counts) - SMALL == said, report.text()
    assert report.ok


def test_makesense_writes_no_names(tmp_path: Path):
    fill(tmp_path, side_by_side("pictures/"))
    with pytest.raises(LayoutError, match=r"id2label=\{0: 'name'"):
        load_detection_dataset(tmp_path)
    data = load_detection_dataset(tmp_path, id2label={0: "cat", 1: "dog"})
    assert len(data["train"][0]["objects"]["bbox"]) == 1


def test_texts_beside_pictures_that_are_no_labels_make_no_data_set(tmp_path: Path):
    fill(tmp_path, {"a.jpg": PICTURE, "a.txt": "a cat on 2 mats\n", "b.jpg": PICTURE, "b.txt": ""})
    with pytest.raises(LayoutError, match="no data set that is known"):
        load_detection_dataset(tmp_path)
