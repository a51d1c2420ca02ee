"""One result, three faces: pixels, a file of its own kind, and a notebook's cell."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detr_hf.inference.results import Detections
from detr_hf.inference.segments import SegmentMap
from detr_hf.inference.showing import SHOWN_IN_A_CELL, DetectionsList
from detr_hf.processing.run_lengths_detr import run_lengths
from detr_hf.visualize.saving import is_marked

SVG = "{http://www.w3.org/2000/svg}"


def grouped(svg: str) -> dict[str, str]:
    """The names that are read aloud, by the number of the object."""
    return {
        each.get("data-index"): each.get("aria-label")
        for each in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if each.get("data-index")
    }


@pytest.fixture
def found() -> Detections:
    image = Image.new("RGB", (100, 80), (128, 128, 128))
    masks = [np.zeros((80, 100), dtype=bool) for _ in range(2)]
    masks[0][10:30, 20:40] = True
    ids = np.where(np.arange(80)[:, None] < 40, 1, 2) * np.ones((1, 100), dtype=int)
    return Detections(
        [[20, 10, 40, 30], [0, 0, 30, 30]],
        [0.9, 0.4],
        [1, 0],
        ["dog", "<b>"],
        segmentations=[run_lengths(mask) for mask in masks],
        panoptic=SegmentMap(ids, [{"id": 2, "label_id": 5, "name": "sea", "score": 0.8, "area": 4000}]),
        size_hw=(80, 100),
        source=image,
    )


def test_an_svg_holds_what_is_drawn(found):
    assert grouped(found.to_svg()) == {"0": "dog 0.90", "1": "<b> 0.40"}
    assert grouped(found.to_svg(threshold=0.4)) == {"0": "dog 0.90"}
    assert grouped(found.to_svg(what="panoptic")) == {"0": "sea 0.80"}
    assert found.to_svg().count('class="mask"') == 1 and 'class="mask"' not in found.to_svg(what="detection")
    assert found.to_svg(threshold=0.4).count('class="mask"') == 1
    with pytest.raises(ValueError, match="nothing to draw for 'semantic'"):
        found.to_svg(what="semantic")


def test_a_picture_at_hand_takes_the_place_of_the_one_that_would_be_opened(found, tmp_path):
    found.source, found.path = None, tmp_path / "gone.png"
    half = Image.new("RGB", (50, 40), "red")
    svg = found.to_svg(half)
    assert ElementTree.fromstring(svg).get("viewBox") == "0 0 100 80" and grouped(svg)
    with pytest.raises(ValueError, match="50x60 pixels, the picture of 100x80"):
        found.to_svg(Image.new("RGB", (50, 60)))


@pytest.mark.parametrize("name", ["a.svg", "deep/b.SVG", "c.html", "d.htm"])
def test_saves_an_svg_or_a_page_of_it_and_knows_it_again(found, tmp_path, name):
    path = found.save(tmp_path / name, what="panoptic")
    text = path.read_text(encoding="utf-8")
    svg = text[text.index("<svg") : text.index("</svg>") + 7]
    assert svg == found.to_svg(what="panoptic") and is_marked(path) and text.startswith(("<svg", "<!doctype"))
    path.write_text(svg.replace("detr_hf", "another"), encoding="utf-8")
    assert not is_marked(path)


def test_a_cell_shows_the_picture_or_says_why_there_is_none(found):
    assert found._repr_html_() == found.to_svg()
    unknown = Detections(found.boxes, found.scores, found.labels, found.names, size_hw=(80, 100))
    assert "source= or path=" in unknown._repr_html_() and "&lt;b&gt;" in unknown._repr_html_()
    many = DetectionsList([found] * (SHOWN_IN_A_CELL + 2))
    assert many._repr_html_().count("<svg") == SHOWN_IN_A_CELL and "and 2 pictures more" in many._repr_html_()
    assert many[0] is found and isinstance(many, list) and "more" not in DetectionsList([found])._repr_html_()


def test_where_nothing_is_over_the_threshold_it_is_said_what_came_nearest(found):
    empty = found.filter(threshold=0.9)
    assert str(empty.best_below) == "nothing over 0.9000; the best is 0.9000 dog"  # of float32
    assert str(found.filter(threshold=0.95).best_below) == "nothing over 0.95; the best is 0.90 dog"
    assert "  nothing over 0.95; the best is 0.90 dog" in repr(found.filter(threshold=0.95))
    assert np.array_equal(np.asarray(empty.draw()), np.asarray(found.image))
    for svg in (empty.to_svg(), found.to_svg(threshold=0.9)):
        assert "nothing over 0.9000" in svg and grouped(svg) == {}
    assert "nothing over" not in found.to_svg() + found.to_svg(what="panoptic", threshold=0.9)
    assert empty.filter(threshold=0.95).best_below == empty.best_below
    assert found[:0].best_below is None and found.filter(threshold=0.95, names="dog").best_below is None


def test_an_object_may_be_without_a_mask(found):
    found.segmentations[1] = None
    found = Detections(**{key: getattr(found, key) for key in found.__dataclass_fields__})
    assert found.masks.sum(axis=(1, 2)).tolist() == [400, 0] and "mask" not in repr(found).splitlines()[2]
    assert [("segmentation" in one) for one in found.to_coco(1)] == [True, False]
    assert found.draw().size == (100, 80) and found.to_svg().count('class="mask"') == 1
