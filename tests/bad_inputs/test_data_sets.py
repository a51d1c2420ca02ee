"""Data sets as people have them: read with the right value, or refused by name, and `check` says the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detr_hf.data import check, load_detection_dataset

from .kinds import Holds, Kind, Refused, coco, coco_with, each, try_out, voc, yolo


def load(**options: Any) -> Callable[[Any], dict[str, int]]:
    """Returns the road: load with these options, and count the objects of each split."""

    def road(what: Any) -> dict[str, int]:
        data = load_detection_dataset(what, **options)
        return {name: sum(len(row["objects"]["bbox"]) for row in split) for name, split in data.items()}

    return road


def checked(what: Any) -> str:
    """The road of `detr-hf check`: its text."""
    return check(what).text()


SOUND = [
    Kind("COCO", lambda root: coco(root) and None, load(), {"train": 2}),
    Kind("YOLO", lambda root: yolo(root) and None, load(), {"train": 2, "val": 2}),
    Kind("VOC", voc, load(), {"train": 2, "val": 2}),
]
FAULTY = [
    Kind(
        "a file is listed twice",
        coco_with(lambda content: content["images"].append({**content["images"][0], "id": 9})),
        load(),
        Refused("file-listed-twice (1)", "a.png"),
    ),
    Kind(
        "a box is upside down",
        coco_with(lambda content: content["annotations"][0].update(bbox=[50, 40, -40, -30])),
        checked,
        Holds("box-negative (1)", "annotation 1"),
    ),
]


@each(SOUND, FAULTY)
def test_data_sets(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)
