"""`datasets` with an `objects` column: in memory, streamed, and in other box formats."""

from pathlib import Path

import pytest

from detr_hf.data import load_detection_dataset
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
    from datasets import Features, List, Value

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
