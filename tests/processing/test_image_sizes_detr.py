"""Resize rules: the original's and transformers' sizes, and never a side below one pixel."""

import random

import pytest
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict

from detr_hf.processing.image_sizes_detr import resized_hw, scaled_size

DEFAULT = SizeDict(shortest_edge=800, longest_edge=1333)


def original_rule_hw(image_hw: tuple[int, int], size: int, max_size: int) -> tuple[int, int]:
    """The rule as datasets/transforms.py of facebookresearch/detr states it, written down a second time."""
    h, w = image_hw
    if max(h, w) / min(h, w) * size > max_size:
        size = round(max_size * min(h, w) / max(h, w))
    if min(h, w) == size:
        return h, w
    return (int(size * h / w), size) if w < h else (size, int(size * w / h))


def random_sizes(count: int) -> list[tuple[int, int]]:
    generator = random.Random(0)
    return [(generator.randint(200, 2000), generator.randint(200, 2000)) for _ in range(count)]


def test_original_rule():
    for image_hw in random_sizes(5000):
        assert resized_hw(image_hw, DEFAULT, "original") == original_rule_hw(image_hw, 800, 1333), image_hw


def test_transformers_rule():
    for image_hw in random_sizes(5000):
        assert resized_hw(image_hw, DEFAULT, "transformers") == get_size_with_aspect_ratio(image_hw, 800, 1333), (
            image_hw
        )


def test_the_rules_differ_only_where_the_cap_applies():
    differing = [hw for hw in random_sizes(5000) if resized_hw(hw, DEFAULT) != resized_hw(hw, DEFAULT, "transformers")]
    assert differing
    assert all(max(hw) / min(hw) * 800 > 1333 for hw in differing)


@pytest.mark.parametrize(
    ("image_hw", "size", "expected"),
    [
        ((480, 640), {"shortest_edge": 800, "longest_edge": 1333}, (800, 1066)),
        ((640, 480), {"shortest_edge": 800, "longest_edge": 1333}, (1066, 800)),
        ((3, 10000), {"shortest_edge": 800, "longest_edge": 1333}, (1, 1333)),
        ((10000, 3), {"shortest_edge": 800, "longest_edge": 1333}, (1333, 1)),
        ((1, 1), {"shortest_edge": 800, "longest_edge": 1333}, (800, 800)),
        ((100, 1), {"shortest_edge": 64, "longest_edge": 96}, (100, 1)),
        ((30, 40), {"shortest_edge": 60}, (60, 80)),
        ((30, 40), {"height": 7, "width": 9}, (7, 9)),
        ((30, 40), {"max_height": 60, "max_width": 60}, (45, 60)),
        ((3, 10000), {"max_height": 60, "max_width": 60}, (1, 60)),
        # as MaxResize of microsoft/table-transformer, up and down, both sides rounded
        ((30, 41), {"longest_edge": 800}, (585, 800)),
        ((999, 30), {"longest_edge": 500}, (500, 15)),
        ((2, 1000), {"longest_edge": 100}, (1, 100)),
        ((30, 40), {"shortest_edge": 60.0}, (60, 80)),  # as JSON may hold it
    ],
)
@pytest.mark.parametrize("rule", ["original", "transformers"])
def test_sizes(image_hw, size, expected, rule):
    assert resized_hw(image_hw, SizeDict(**size), rule) == expected


def test_absurd_aspect_ratios_keep_both_sides():
    for rule in ("original", "transformers"):
        for long_side in range(1, 20000, 371):
            height, width = resized_hw((1, long_side), DEFAULT, rule)
            assert height >= 1
            assert 1 <= width <= 2 * 1333


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"shortest_edge": 800, "height": 10}, "has the keys"),
        ({"longest_edge": "800"}, "positive sides"),
        ({"longest_edge": 800.5}, "positive sides"),
        ({"min_pixels": 10, "max_pixels": 800}, "has the keys"),
        ({"shortest_edge": 0, "longest_edge": 1333}, "positive sides"),
        ({"height": 10, "width": -5}, "positive sides"),
    ],
)
def test_refused_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        resized_hw((30, 40), SizeDict(**size))


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ({"shortest_edge": 800, "longest_edge": 1333}, {"shortest_edge": 600, "longest_edge": 1000}),
        ({"shortest_edge": 800, "longest_edge": None}, {"shortest_edge": 600}),
        ({"height": 480, "width": 640}, {"height": 600, "width": 800}),
        ({"longest_edge": 1000}, {"longest_edge": 600}),
    ],
)
def test_another_size_keeps_the_proportion(size, scaled):
    assert scaled_size({"size": size, "pad_size": None}, 600) == scaled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_resize": False}, "leaves images as they are"),
        ({"pad_size": {"height": 9, "width": 9}}, "pads all images"),
    ],
)
def test_another_size_that_would_change_nothing_or_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        scaled_size({"size": dict(DEFAULT), **changes}, 600)
