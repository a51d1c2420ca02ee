"""One class list from the categories of every split; a fault in what nothing uses is left out with a word."""

from typing import Any

import pytest

from detr_hf.data.findings import FindingLog
from detr_hf.data.readers.coco_classes import merge_categories


def named(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"id": key, "name": name} for key, name in pairs]


CLEAR = {
    "Roboflow's grouping category": (named((0, "fish"), (1, "fish")), {1}, {1: "fish"}),
    "the group is the one that is used": (named((0, "fish"), (1, "fish")), {0}, {0: "fish"}),
    "neither is used": (named((0, "fish"), (1, "fish"), (2, "cat")), {2}, {1: "fish", 2: "cat"}),
    "three of one name": (named((4, "a"), (7, "a"), (9, "a")), {7}, {7: "a"}),
    "without a name": (named((1, "a"), (2, ""), (3, None)), {1}, {1: "a"}),
    "an id again, unused": (named((1, "a"), (2, "b"), (2, "c")), {1}, {1: "a", 2: "b"}),
}


@pytest.mark.parametrize("name", CLEAR)
def test_what_no_annotation_uses_is_left_out_with_a_word(name: str):
    listed, used, expected = CLEAR[name]
    log = FindingLog()
    merged = merge_categories({"train": listed}, {"train": used}, log)
    assert dict(zip(merged.source_ids, merged.names, strict=True)) == expected
    assert set(log.counts) == {"category-left-out"} and log.severities["category-left-out"] == "info"


def test_a_name_of_another_split_counts_where_it_is_used():
    log = FindingLog()
    listed = {"train": named((1, "cat")), "val": named((1, "lion"))}
    assert merge_categories(listed, {"train": set(), "val": {1}}, log).names == ["lion"]
    assert log.of("error") == {}
    merge_categories(listed, {"train": {1}, "val": {1}}, log)
    assert log.of("error") == {"category-conflict": 1}


@pytest.mark.parametrize(
    ("listed", "code", "words"),
    [
        (named((0, "fish"), (1, "fish")), "category-name-duplicate", ["[0, 1]", "fish", "one id", "id2label="]),
        (named((0, "a"), (1, "b"), (1, "c")), "category-id-duplicate", ["'b'", "'c'"]),
        (named((0, "a"), (1, "")), "category-malformed", ["''"]),
        ([*named((0, "a")), "b"], "category-malformed", ["b"]),
        ([*named((0, "a")), {"name": "b"}], "category-malformed", ["'b'"]),
        ([], "categories-missing", ["id2label="]),
    ],
)
def test_what_annotations_use_is_an_error(listed: list, code: str, words: list[str]):
    log = FindingLog()
    merge_categories({"train": listed}, {"train": {0, 1}}, log)
    assert log.of("error") == {code: 1}
    message = log.kept[code][0].message
    assert [word for word in words if word not in message] == []
