"""Data sets as people have them: read with the right value, or refused by name, and `check` says the same."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import concatenate_datasets
from PIL import Image
from typer.testing import CliRunner

from detr_hf.cli.main import app
from detr_hf.data import check, load_detection_dataset
from detr_hf.visualize.saving import save_drawing

from .kinds import Holds, Kind, Refused, coco, coco_with, each, picture, rows, try_out, voc, write, yolo


def load(**options: Any) -> Callable[[Any], dict[str, int]]:
    """Returns the road: load with these options, and count the objects of each split."""

    def road(what: Any) -> dict[str, int]:
        data = load_detection_dataset(what, **options)
        return {name: sum(len(row["objects"]["bbox"]) for row in split) for name, split in data.items()}

    return road


def checked(what: Any) -> str:
    """The road of `detr-hf check`: its text."""
    return check(what).text()


def command(*words: str) -> Callable[[Any], str]:
    """Returns the road of the command line, with the data in the place of DATA: what it says, and its exit code."""

    def road(data: Any) -> str:
        result = CliRunner().invoke(app, [str(data) if word == "DATA" else word for word in words])
        return f"{' '.join(result.output.split())} {result.exception} exit {result.exit_code}"

    return road


def list_again(content: dict[str, Any]) -> None:
    content["images"].append({**content["images"][0], "id": 9})


def same_ids(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: [annotation.update(id=value) for annotation in content["annotations"]]


def one_crowd(content: dict[str, Any]) -> None:
    content["annotations"][0]["iscrowd"] = 1


def half_a_pixel(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [10, 10, 0.5, 20]


def as_corners(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"] = [10, 10, 90, 60]


def masks(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: [annotation.update(segmentation=value) for annotation in content["annotations"]]


def yolo_list(*stems: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        yolo(root, ("train",))
        write(root / "train.txt", "".join(f"images/train/{stem}.png\n" for stem in stems))
        write(root / "data.yaml", "train: train.txt\nnames: [cat, dog]\n")

    return make


def voc_list(*stems: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        voc(root, ("train",))
        write(root / "ImageSets/Main/train.txt", "".join(f"train_{stem}\n" for stem in stems))

    return make


def voc_without_objects(root: Path) -> None:
    voc(root)
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().split("<object>")[0] + "</annotation>")


def yolo_without_labels(*folders: str) -> Callable[[Path], None]:
    return lambda root: (yolo(root), [shutil.rmtree(root / folder) for folder in folders])[0] and None


def two_splits_of_one(root: Path) -> None:
    yolo(root, ("train",))
    write(root / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")


def renamed_labels(root: Path) -> None:
    yolo(root)
    (root / "labels").rename(root / "annotations")


def joined_rows(root: Path) -> Any:
    return concatenate_datasets([rows(root / "a"), rows(root / "b")])


def half_of_the_rows(root: Path) -> Any:
    return rows(root, image=[str(picture(root / "a.png")), None])


IN_BOTH = ("splits-overlap", "image-in-two-splits")


def of_findings(*codes: str) -> Callable[[Path], list[str]]:
    """Returns the road: load and check; which of these codes the check's text has."""
    return lambda root: (load()(root), [code for code in codes if code in checked(root)])[1]


def rows_of_splits(root: Path) -> dict[str, int]:
    """The road: load, and count the pictures of each split."""
    return {name: len(split) for name, split in load_detection_dataset(root).items()}


def with_drawing(write_data: Callable[[Path], Any], folder: str) -> Callable[[Path], None]:
    """Returns a `make`: a data set with the drawing that `check --preview` put into a folder."""

    def make(root: Path) -> None:
        write_data(root)
        save_drawing(Image.new("RGB", (96, 64)), root / folder / "preview.png")

    return make


def one_split(root: Path) -> None:
    coco(root, "a")


DROP = load(on_fault="drop")
NOTHING = Refused("no-objects", "no image of the split has an object")
MASKS = {
    "a flat polygon": [10, 10, 50, 10, 50, 40],
    "a polygon of two points": [[10, 10, 50, 40]],
    "an empty polygon": [[]],
    "run lengths of another size": {"size": [9, 9], "counts": [81]},
    "a text for a mask": "none",
}
SOUND = [
    Kind("COCO", lambda root: coco(root) and None, load(), {"train": 2}),
    Kind("YOLO", lambda root: yolo(root) and None, load(), {"train": 2, "val": 2}),
    Kind("VOC", voc, load(), {"train": 2, "val": 2}),
]
FAULTY = [
    Kind("a file is listed twice", coco_with(list_again), load(), Refused("file-listed-twice (1)", "a.png")),
    Kind(
        "a box is upside down",
        coco_with(lambda content: content["annotations"][0].update(bbox=[50, 40, -40, -30])),
        checked,
        Holds("box-negative (1)", "annotation 1"),
    ),
    Kind("a row has no image", lambda root: rows(root, image=[None, None]), checked, Holds("image-missing (2)")),
    Kind("a row has no image", lambda root: rows(root, image=[None, None]), load(), Refused("image-missing (2)")),
    Kind("ids of rows repeat", joined_rows, checked, Holds("image-id-repeated (2)")),
    Kind("no label file is found", yolo_without_labels("labels/train"), load(), Refused("no-objects", "labels/train")),
    Kind("labels are in a folder of another name", renamed_labels, checked, Holds("no-objects", "labels/train")),
    Kind("a JSON without annotations", coco_with(lambda content: content.pop("annotations")), load(), NOTHING),
    Kind("every object is a crowd", lambda root: coco(root, iscrowd=1) and None, load(), NOTHING),
    Kind("XML files without objects", voc_without_objects, load(), NOTHING),
]
# What `on_fault="drop"` leaves, and says.
DROPPED = [
    Kind("a file is listed twice", coco_with(list_again), DROP, {"train": 2}, ["file-listed-twice", "the picture"]),
    Kind("a row has no image", half_of_the_rows, DROP, {"train": 1}, ["image-missing (1)"]),
    Kind("a mask is faulty", lambda root: coco(root, segmentation=[[1]]) and None, DROP, {"train": 2}, ["the mask"]),
    Kind("all are faulty", lambda root: coco(root, bbox=[1, 1, -1, 1]) and None, DROP, NOTHING),
]
# Harmless: read as they are, with a word.
HARMLESS = [
    Kind(
        "YOLO: a drawing of ours lies among the pictures",
        with_drawing(yolo, "images/train"),
        rows_of_splits,
        {"train": 2, "val": 2},
        ["preview.png is a drawing"],
    ),
    Kind("COCO: a drawing of ours is not in the JSON", with_drawing(coco, "train"), of_findings("image-unlisted"), []),
    Kind("a list names a picture twice", yolo_list("a", "b", "a"), load(), {"train": 2}, ["image-repeated (1)"]),
    Kind("ImageSets names a picture twice", voc_list("a", "b", "a"), load(), {"train": 2}, ["image-repeated (1)"]),
    Kind("ids of rows repeat", joined_rows, load(), {"train": 4}, ["image-id-repeated (2)"]),
    Kind(
        "an annotation id occurs twice", coco_with(same_ids(1)), load(), {"train": 2}, ["annotation-id-duplicate (1)"]
    ),
    Kind("every annotation id is 0", coco_with(same_ids(0)), load(), {"train": 2}, ["annotation-id-duplicate (1)"]),
    Kind("annotation ids are one text", coco_with(same_ids("x")), load(), {"train": 2}, ["numbered anew"]),
    Kind("one folder is two splits", two_splits_of_one, of_findings(*IN_BOTH), ["splits-overlap"], ["overlap (1)"]),
    Kind("one object of two is a crowd", coco_with(one_crowd), load(), {"train": 2}, ["1 of 2 objects are marked"]),
    Kind("a box is half a pixel wide", coco_with(half_a_pixel), load(), {"train": 2}, ["box-tiny (1)", "left out of"]),
    *(
        Kind(f"{name}, masks not read", coco_with(masks(value)), load(masks=False), {"train": 2}, ["mask-unused (2)"])
        for name, value in MASKS.items()
    ),
    *(
        Kind(f"{name}, masks read", coco_with(masks(value)), load(), Refused("mask-malformed (2)"))
        for name, value in MASKS.items()
    ),
]
# The command line says, and takes, what helps there.
COMMANDS = [
    Kind(
        "check: boxes as corners",
        coco_with(as_corners),
        command("check", "DATA"),
        Holds("--box_format xyxy", "exit 1"),
    ),
    Kind(
        "check: so",
        coco_with(as_corners),
        command("check", "DATA", "--box_format", "xyxy"),
        Holds("0 errors", "exit 0"),
    ),
    Kind(
        "train: no split is named so",
        one_split,
        command("train", "--data", "DATA", "--output_dir", "out", "--model", "scratch", "--backbone_weights", "none"),
        Holds("--split train=a", "exit 1"),
    ),
    Kind(
        "check: another name", one_split, command("check", "DATA", "--split", "train=a"), Holds("train: 2", "exit 0")
    ),
    Kind(
        "check: a share", one_split, command("check", "DATA", "--validation_share", "0.5"), Holds("1 of 2", "exit 0")
    ),
    Kind(
        "check: faults",
        coco_with(list_again),
        command("check", "DATA", "--on-fault", "drop"),
        Holds("the picture", "exit 0"),
    ),
    Kind(
        "check: a wrong flag", one_split, command("check", "DATA", "--on_falt", "drop"), Holds("--on_fault", "exit 2")
    ),
]


def yaml_of(text: str) -> Callable[[Path], None]:
    return lambda root: (yolo(root), write(root / "data.yaml", text))[0] and None


def aliases(key: str) -> str:
    """Returns the YAML of half a kilobyte that written out has 9 to the 9th names, under a key."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    lists = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairs)
    return f"a: &a [{', '.join('xxxxxxxxx')}]\n{lists}{key}: *i\n"


def grown(name: str, size: int) -> Callable[[Path], None]:
    """Returns a `make`: a VOC data set with a file of so many bytes, none of which takes room."""
    return lambda root: (voc(root, ("train",)), os.truncate(root / name, size))[1]


def without_value(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: [annotation.update({key: None}) for annotation in content["annotations"]]


def yolo_names(text: str) -> Callable[[Path], None]:
    return yaml_of(f"train: images/train\nnames: {text}\n")


NAMES = [
    Kind("YOLO: a name twice", yolo_names("[cat, cat]"), load(), Refused("0, 1", "'cat'", "name them apart")),
    *(
        Kind(f"YOLO: {text}", yolo_names(text), road, words("data.yaml", "class 1", "no name"))
        for text in ("[cat, '']", "{0: cat, 1: ~}", "[cat, [dog]]")
        for road, words in ((load(), Refused), (checked, Holds))
    ),
    Kind("YOLO: null", yolo_names("[cat, null]"), load(), {"train": 2}, ["class 1 is called 'null'"]),
    Kind("YOLO: two names of a class", yolo_names("{0: cat, 0.0: dog}"), load(), Refused("class 0 more than once")),
    *(
        Kind(f"COCO: {key} is null", coco_with(without_value(key)), load(), Refused(f"has '{key}': null, no value"))
        for key in ("bbox", "category_id")
    ),
]
STRANGERS = [
    Kind("names of nested aliases", yaml_of("train: images/train\n" + aliases("names")), load(), Refused("aliases")),
    Kind("a split of nested aliases", yaml_of(aliases("train") + "names: [cat, dog]\n"), checked, Holds("aliases")),
    Kind(
        "an alias of itself", yaml_of("train: &a [*a]\nnames: [cat, dog]\n"), load(), Refused("data.yaml", "aliases")
    ),
    Kind(
        "aliases as people use them",
        yaml_of("train: &a images/train\nval: *a\nnames: [cat, dog]\n"),
        load(),
        {"train": 2, "val": 2},
    ),
    Kind("YAML nested too deeply", yaml_of("[" * 5000), load(), Refused("data.yaml")),
    Kind(
        "JSON nested too deeply",
        lambda root: write(coco(root), '{"images": ' + "[" * 99_999) and None,
        load(),
        Refused("instances_train.json", "RecursionError"),
    ),
    Kind(
        "an XML file without end", grown("Annotations/train_a.xml", 1 << 30), load(), Refused("train_a.xml", "bytes")
    ),
    Kind("a list without end", grown("ImageSets/Main/train.txt", 1 << 30), load(), Refused("train.txt", "bytes")),
]


@each(STRANGERS, NAMES, SOUND, FAULTY, DROPPED, HARMLESS, COMMANDS)
def test_data_sets(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)
