"""Annotations with one field changed at random load, train and check, or fail with an error of ours.

No crash, no hang, no other error.
"""

import copy
import logging
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from detr_hf import DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.check import check
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.data.preparing.transform import prepare
from detr_hf.errors import DataError

from . import layouts

CASES = 300
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


def test_one_field_changes_give_success_or_a_named_error(tmp_path: Path):
    logging.disable(logging.WARNING)
    try:
        outcomes = run_cases(tmp_path)
    finally:
        logging.disable(logging.NOTSET)
    assert sum(outcomes.values()) == CASES
    assert outcomes["success"] > 30 and outcomes["AnnotationError"] > 100


def run_cases(folder: Path) -> Counter:
    layouts.save_pictures(folder / "train", "train")
    processor = DETRImageProcessor(do_resize=False)
    chance = random.Random(7)
    outcomes: Counter = Counter()
    for case in range(CASES):
        content = base()
        changed = change_one_field(content, chance)
        layouts.write_json(folder / "annotations_train.json", content)
        started = time.perf_counter()
        try:
            data = load_detection_dataset(folder)
            rows = prepare(data["train"], processor, masks=True)
            DetectionCollator(id2label=data.id2label)([rows[index] for index in range(len(rows))])
            outcomes["success"] += 1
        except DataError as error:
            assert len(str(error)) < 10_000
            outcomes[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"case {case}, {changed}: {type(error).__name__}: {error}") from error
        report = check(folder, pictures=False)
        assert report.text()
        assert time.perf_counter() - started < 20, f"case {case}, {changed} took too long"
    return outcomes
