"""Annotations with one field changed at random load, train and check, or fail with an error of ours.

No crash, no hang, no other error.
"""

import copy
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detr_hf import DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.check import check
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.data.preparing.transform import prepare
from detr_hf.errors import DataError
from detr_hf.processing.mask_annotations_detr import panoptic_masks

from . import layouts

VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 3, 48, 64, 2**31, 2**63, 10**400, -(2**40), 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "5", "x" * 5000, "../../etc/passwd", "/etc/passwd", "http://host/a.png", "\0", "\U0001f600"),
    *(
        [],
        [[]],
        [{}],
        [None],
        [1],
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        ["a", "b", "c", "d"],
        [1e9, 1e9, 1e9, 1e9],
    ),
    *([[1, 2]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, float("nan")]], [[1e9, 0, 0, 1e9, -1e9, -1e9]]),
    [[0, 0, 5e5, 5e5, 0, 5e5] * 50],
    *({}, {"a": 1}, {"size": None, "counts": None}, {"size": [48, 64], "counts": "zzzz"}),
    {"size": [48, 64], "counts": [1, 2]},
    {"size": [48, 64], "counts": [0, -5, 3077]},
    {"size": [10**9, 10**9], "counts": [10**18]},
]


def base() -> dict[str, Any]:
    """Like COCO: polygons, a crowd with run lengths, a compressed run length, a picture without objects."""
    content = layouts.coco_content("train")
    content["info"] = {"year": 2017}
    content["licenses"] = [{"id": 1, "name": "x"}]
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 480, 2592]}}
    # 480 zeros, 500 ones, 2092 zeros, in COCO's compressed text.
    content["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": compressed([480, 500, 2092])}
    return content


def compressed(runs: list[int]) -> str:
    from pycocotools import mask

    text = mask.frPyObjects({"size": [48, 64], "counts": runs}, 48, 64)["counts"]
    return text.decode()


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to every field of a nested value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def change_one_field(content: dict[str, Any], chance: random.Random) -> tuple:
    """Replaces, removes or repeats one field, in place; annotations are as likely as everything else together."""
    paths = places(content)
    chosen = chance.choice([path for path in paths if path[0] == "annotations"] if chance.random() < 0.5 else paths)
    parent = content
    for key in chosen[:-1]:
        parent = parent[key]
    how = chance.random()
    if how < 0.15:
        del parent[chosen[-1]]
    elif how < 0.25 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[chosen[-1]]))
    else:
        parent[chosen[-1]] = chance.choice(VALUES)
    return chosen


@pytest.mark.parametrize("cases", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_one_field_changes_give_success_or_a_named_error(cases: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    layouts.save_pictures(tmp_path / "train", "train")
    outcomes = run_cases(tmp_path, "annotations_train.json", base, cases)
    assert outcomes["success"] > cases // 10 and outcomes["AnnotationError"] > cases // 3


def masks_alone() -> dict[str, Any]:
    """All that can be changed is segmentations: polygons, run lengths in numbers and in text."""
    content = base()
    content["annotations"] = content["annotations"][:3]
    content["annotations"][0]["iscrowd"] = 0
    return content


@pytest.mark.parametrize("cases", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_changed_masks_give_success_or_a_named_error(cases: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    layouts.save_pictures(tmp_path / "train", "train")
    outcomes = run_cases(
        tmp_path,
        "annotations_train.json",
        masks_alone,
        cases,
        change_a_mask,
        task="instance",
        allow_missing_masks=True,
    )
    assert outcomes["success"] > cases / 10 and outcomes["AnnotationError"] > cases / 10


def change_a_mask(content: dict[str, Any], chance: random.Random, folder: Path) -> Any:
    """Replaces a segmentation, a part of one, or characters of a compressed one."""
    item = chance.choice(content["annotations"])
    inner = places(item["segmentation"])
    text = isinstance(item["segmentation"], dict) and isinstance(item["segmentation"]["counts"], str)
    if text and chance.random() < 0.5:
        letters = list(item["segmentation"]["counts"])
        letters[chance.randrange(len(letters))] = chr(chance.randrange(32, 300))
        item["segmentation"]["counts"] = "".join(letters)[: chance.randrange(1, 20)]
    elif inner and chance.random() < 0.7:
        *path, last = chance.choice(inner)
        parent = item["segmentation"]
        for key in path:
            parent = parent[key]
        parent[last] = chance.choice([*VALUES, *range(60)])
    else:
        item["segmentation"] = chance.choice(VALUES)
    return item["segmentation"]


@pytest.mark.parametrize("cases", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_changed_segments_give_success_or_a_named_error(cases: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A field of the panoptic JSON, or the bytes of a PNG."""
    caplog.set_level(logging.ERROR)
    layouts.write_panoptic(tmp_path)
    sound = layouts.read_json(tmp_path / "panoptic_train.json")
    pictures = {path: path.read_bytes() for path in sorted((tmp_path / "panoptic_train").iterdir())}

    def change(content: dict[str, Any], chance: random.Random, folder: Path) -> Any:
        for path, encoded in pictures.items():
            path.write_bytes(encoded)
        if chance.random() < 0.6:
            return change_one_field(content, chance)
        path = chance.choice(list(pictures))
        encoded = bytearray(pictures[path])
        for _ in range(chance.randrange(1, 8)):
            encoded[chance.randrange(len(encoded))] = chance.randrange(256)
        path.write_bytes(encoded[: chance.choice((len(encoded), chance.randrange(len(encoded))))])
        return path.name

    name = "panoptic_train.json"
    outcomes = run_cases(tmp_path, name, lambda: copy.deepcopy(sound), cases, change, task="panoptic")
    assert outcomes["success"] and min(outcomes["AnnotationError"], outcomes["PictureError"]) > cases / 10


@pytest.mark.parametrize("name", ["../secret.png", "/{root}/secret.png", "a/../../secret.png", "..\\secret.png"])
def test_segment_pictures_stay_in_their_folder(name: str, tmp_path: Path):
    """The file is there and would be read; on disk, and where the image processor is given the annotation."""
    root = layouts.write_panoptic(tmp_path / "data")
    content = layouts.read_json(root / "panoptic_train.json")
    for place in (tmp_path / "data" / "secret.png", tmp_path / "secret.png"):
        place.write_bytes((root / "panoptic_train" / "train_0.png").read_bytes())
    content["annotations"][0]["file_name"] = name.replace("{root}", str(root).lstrip("/"))
    layouts.write_json(root / "panoptic_train.json", content)
    with pytest.raises(DataError, match=r"file-name-unsafe.*leaves the image folder|is absolute"):
        load_detection_dataset(root)
    with pytest.raises(ValueError, match="not one that leaves it"):
        panoptic_masks(content["annotations"][0], root / "panoptic_train", (48, 64))


def run_cases(
    folder: Path,
    name: str,
    made: Callable[[], dict[str, Any]],
    cases: int,
    change: Callable[[dict[str, Any], random.Random, Path], Any] = lambda content, chance, _: change_one_field(
        content, chance
    ),
    **options: Any,
) -> Counter:
    processor = DETRImageProcessor(do_resize=False)
    chance = random.Random(7)
    outcomes: Counter = Counter()
    for case in range(cases):
        content = made()
        changed = change(content, chance, folder)
        layouts.write_json(folder / name, content)
        started = time.perf_counter()
        try:
            data = load_detection_dataset(folder, **options)
            rows = prepare(data["train"], processor, masks=True)
            DetectionCollator(id2label=data.id2label)([rows[index] for index in range(len(rows))])
            outcomes["success"] += 1
        except DataError as error:
            assert len(str(error)) < 10_000
            outcomes[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"case {case}, {changed}: {type(error).__name__}: {error}") from error
        report = check(folder, pictures="task" in options and options["task"] == "panoptic", **options)
        assert report.text()
        assert time.perf_counter() - started < 20, f"case {case}, {changed} took too long"
    return outcomes
