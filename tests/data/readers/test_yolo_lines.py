"""Lines of label files: boxes, polygons, key points, and what else people have in them."""

import math
import random

import pytest

from detr_hf.data.readers.yolo_lines import LineKind, infer_kind, kind_from_yaml, parse_line, parse_numbers
from detr_hf.errors import AnnotationError, LayoutError

POLYGONS = LineKind()
BOX = [0.5, 0.5, 0.25, 0.5]


def numbers(*lines: str) -> list[list[float]]:
    return [parse_numbers(line) for line in lines]


@pytest.mark.parametrize(
    ("line", "kind", "values", "said"),
    [
        ("1 0.5 0.5 0.25 0.5", POLYGONS, BOX, []),
        ("1\t0.5\t0.5\t0.25\t0.5\t", POLYGONS, BOX, []),
        ("1,0.5,0.5,0.25,0.5", POLYGONS, BOX, []),
        ("1; 0.5; 0.5; 0.25; 0.5", POLYGONS, BOX, []),
        ("1.0 5e-1 .5 0.25 0.50000", POLYGONS, BOX, []),
        ("1 0.5 0.5 0.25 0.5 0.87", POLYGONS, BOX, ["label-number-extra"]),
        ("1 0.5 0.5 0.25 0.5 12", POLYGONS, BOX, ["label-number-extra"]),
        ("1 0.5 0.5 0.25 0.5 0.87 12", POLYGONS, BOX, ["label-number-extra"]),
        ("1 0.1 0.1 0.3 0.1 0.2 0.4", POLYGONS, [0.1, 0.1, 0.3, 0.1, 0.2, 0.4], []),
        ("1 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4", POLYGONS, [0.1, 0.1, 0.3, 0.1, 0.3, 0.4, 0.1, 0.4], []),
        ("1 0.5 0.5 0.25 0.5 0.4 0.4 2", LineKind("key points", 8), BOX, ["key-points-not-read"]),
        ("1 0.5 0.5 0.25 0.5", LineKind("key points", 8), BOX, []),
        ("1 0.5 0.5 0.25 0.5 0.4 0.4 0.5 0.6", LineKind("key points"), BOX, ["key-points-not-read"]),
    ],
)
def test_a_line_is_read(line: str, kind: LineKind, values: list[float], said: list[str]):
    notes = []
    assert parse_line(line, kind, lambda code, _: notes.append(code)) == (1, values)
    assert notes == said


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("dog 0.5 0.5 0.25 0.5", POLYGONS, "the class is written with its name"),
        ("0,5 0,5 0,25 0,5", POLYGONS, "decimals are written with a point"),
        ("1 0,5 0,5 0,25 0,5", POLYGONS, "decimals are written with a point"),
        ("1 0.5 0.5 x 0.5", POLYGONS, "not a number"),
        ("1 0.5 0.5 0_2 0.5", POLYGONS, "not a number"),
        ("-1 0.5 0.5 0.25 0.5", POLYGONS, "expected an integer from 0"),
        ("1.5 0.5 0.5 0.25 0.5", POLYGONS, "expected an integer from 0"),
        ("nan 0.5 0.5 0.25 0.5", POLYGONS, "expected an integer from 0"),
        ("1 0.5 0.5 0.25", POLYGONS, "expected 5"),
        ("1 0.5 0.5 0.25 0.5 -0.78", POLYGONS, "it has 6 numbers"),
        ("1 0.5 0.5 0.25 0.5 0.4 0.4 2", POLYGONS, "kpt_shape"),
        ("1 0.5 0.5 0.25 0.5 0.4 0.4", LineKind("key points", 8), "with the kpt_shape of data.yaml it would be 8"),
    ],
)
def test_a_line_is_refused(line: str, kind: LineKind, words: str):
    with pytest.raises(AnnotationError, match=words):
        parse_line(line, kind, lambda *_: None)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({}, None),
        ({"kpt_shape": "null"}, None),
        ({"kpt_shape": ["17", "3"]}, LineKind("key points", 56)),
        ({"kpt_shape": ["3", "2"], "task": "pose"}, LineKind("key points", 11)),
        ({"task": "pose"}, LineKind("key points")),
        ({"task": "segment"}, POLYGONS),
        ({"task": "obb"}, POLYGONS),
    ],
)
def test_data_yaml_says_what_many_numbers_are(content: dict, kind: LineKind | None):
    assert kind_from_yaml(content, "data.yaml") == kind


def ring(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> str:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    return "0 " + " ".join(f"{value:.6f}" for point in points for value in point)


def pose(chance: random.Random, points: int, step: int) -> str:
    """A box somewhere, with key points in it."""
    width, height = chance.uniform(0.1, 0.4), chance.uniform(0.1, 0.4)
    x, y = chance.uniform(0.2, 0.8), chance.uniform(0.2, 0.8)
    values = [x, y, width, height]
    for _ in range(points):
        values += [x + width * chance.uniform(-0.5, 0.5), y + height * chance.uniform(-0.5, 0.5)]
        values += [chance.choice([1, 2])] * (step - 2)
    return "0 " + " ".join(f"{value:.6f}" for value in values)


@pytest.mark.parametrize("points", [1, 2, 5, 17])
def test_key_points_with_visibility_are_told_by_it(points: int):
    chance = random.Random(points)
    lines = [pose(chance, points, 3) for _ in range(8)] + ["0 0.5 0.5 0.1 0.1"]
    assert infer_kind(numbers(*lines), "d") == LineKind("key points", 5 + 3 * points)


@pytest.mark.parametrize("points", [2, 3, 4, 17])
def test_key_points_without_visibility_are_not_taken_for_polygons(points: int):
    chance = random.Random(points)
    with pytest.raises(LayoutError, match=rf"`kpt_shape: \[{points}, 2\]` or `task: segment`"):
        infer_kind(numbers(*(pose(chance, points, 2) for _ in range(8))), "d")


@pytest.mark.parametrize("corners", [3, 4, 5, 8, 40])
@pytest.mark.parametrize("radius", [0.01, 0.1, 0.3])
def test_polygons_stay_polygons(corners: int, radius: float):
    """Turned ones and small ones too, all of as many corners, as rotated boxes are."""
    chance = random.Random(corners)
    where = [(chance.uniform(0.35, 0.65), chance.uniform(0.35, 0.65), chance.uniform(0, 6)) for _ in range(8)]
    assert infer_kind(numbers(*(ring(x, y, radius, corners, turn) for x, y, turn in where)), "d") == POLYGONS


def test_boxes_alone_and_polygons_of_many_counts_need_no_guess():
    assert infer_kind(numbers("0 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1 0.9"), "d") == POLYGONS
    assert infer_kind(numbers(ring(0.5, 0.5, 0.1, 5), ring(0.5, 0.5, 0.1, 6)), "d") == POLYGONS
