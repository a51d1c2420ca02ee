"""`datasets` with an `objects` column: in memory, streamed, and in other box formats."""

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import AnnotationError, LayoutError

from .. import layouts


def test_in_memory_datasets_and_streams(tmp_path: Path):
    splits = layouts.hf_splits()
    whole = load_detection_dataset(splits)
    streamed = load_detection_dataset({name: split.to_iterable_dataset() for name, split in splits.items()})
    assert streamed.id2label == whole.id2label
    rows = list(streamed["train"])
    assert [row["objects"]["bbox"] for row in rows] == [row["objects"]["bbox"] for row in whole["train"]]
    assert [row["image_id"] for row in rows] == [100, 101, 102, 103]


def test_a_stream_without_class_names_says_what_to_pass():

    split = layouts.hf_splits()["train"]
    features = Features(
        {
            **split.features,
            "objects": {"bbox": List(List(Value("float32"), length=4)), "category": List(Value("int64"))},
        }
    )
    stream = split.cast(features).to_iterable_dataset()
    with pytest.raises(LayoutError, match="id2label="):
        load_detection_dataset(stream)
    data = load_detection_dataset(stream, id2label=dict(enumerate(layouts.NAMES)))
    assert [len(row["objects"]["id"]) for row in data["train"]] == [2, 1, 0, 3]
    faulty = load_detection_dataset(stream, id2label={0: "cat"})
    with pytest.raises(AnnotationError, match="category 1 is not in id2label"):
        list(faulty["train"])


def test_hf_boxes_in_another_format_are_refused_and_read_when_named():
    def to_xyxy(row: dict) -> dict:
        row["objects"]["bbox"] = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
        return row

    splits = layouts.hf_splits()
    corners = splits.map(to_xyxy, features=splits["train"].features)
    with pytest.raises(AnnotationError, match="box_format='xyxy'"):
        load_detection_dataset(corners)
    assert layouts.objects_of(load_detection_dataset(corners, box_format="xyxy"), "train") == layouts.objects_of(
        load_detection_dataset(splits), "train"
    )


def _rows(images: list[Any], **columns: list[Any]) -> Dataset:
    objects = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=["cat", "dog"]))}
    features = Features({"image": Image(), "image_id": Value("int64"), "objects": objects})
    one = {"bbox": [[10.0, 10.0, 40.0, 30.0]], "category": [1]}
    rows = {"image": images, "image_id": list(range(len(images))), "objects": [one] * len(images)}
    return Dataset.from_dict(rows | columns, features=features)


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (None, "image-missing", "`image` is None"),
        ({"path": "gone.jpg", "bytes": None}, "image-missing", "no file gone.jpg"),
        ({"path": None, "bytes": b"not a picture"}, "image-unreadable", "cannot be read"),
    ],
)
@pytest.mark.parametrize("layout", [None, "numpy", "torch"])
def test_a_row_without_a_picture_is_named_and_can_be_dropped(bad: Any, code: str, words: str, layout: str | None):
    rows = _rows([layouts.draw("train", 0), bad]).with_format(layout)
    report = check(rows)
    assert not report.ok and words in report.text() and "row 1" in report.text()
    with pytest.raises(AnnotationError, match=code):
        load_detection_dataset(rows)
    assert len(load_detection_dataset(rows, on_fault="drop")["train"]) == 1


def test_image_ids_that_repeat_are_numbered_anew_with_a_word():
    picture = layouts.draw("train", 0)
    data = load_detection_dataset(concatenate_datasets([_rows([picture] * 2), _rows([picture] * 2)]))
    assert list(data["train"]["image_id"]) == [1, 2, 3, 4] and data.findings.counts["image-id-repeated"] == 2
