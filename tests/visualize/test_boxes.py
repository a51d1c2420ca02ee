"""Drawing: everything stays in the picture, reads well, and changes nothing else."""

import time

import numpy as np
import pytest
from PIL import Image

from detr_hf.visualize.boxes import _fitting_line, draw_boxes, font_px, label_room, line_width
from detr_hf.visualize.colors import class_color, rim_color
from detr_hf.visualize.placing import Span, Taken, label_place


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


@pytest.mark.parametrize("size", [(64, 48), (64, 400), (640, 480), (4000, 2667), (1, 1)])
def test_any_size_is_drawn_without_changing_the_input(size):
    image = grey(*size)
    width, height = size
    fractions = np.array([[0.1, 0.1, 0.6, 0.7], [0.5, 0.2, 1.2, 1.1], [-0.5, -0.5, 0.2, 0.2]])
    boxes = fractions * [width, height, width, height]
    drawn = draw_boxes(
        image, boxes, ["cat", "a name that is far too long for a thumbnail", "owl"], scores=[0.9, 0.8, 0.7]
    )
    assert drawn.size == size and drawn.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(grey(*size)))
    assert not np.array_equal(np.asarray(drawn), np.asarray(image))


def test_a_box_is_drawn_on_its_edges_and_leaves_its_inside_alone():
    drawn = np.asarray(draw_boxes(grey(640, 480), np.array([[100, 200, 300, 400]]), ["cat"], labels=[3]))
    color = np.array(class_color(3))
    assert (drawn[200, 100:300] == color).all() and (drawn[399, 100:300] == color).all()
    assert (drawn[200:400, 100] == color).all() and (drawn[200:400, 299] == color).all()
    assert (drawn[210:390, 110:290] == 128).all()
    assert (drawn[401:, :] == 128).all() and (drawn[:, 302:] == 128).all()


def test_a_small_box_is_not_filled_by_its_line():
    drawn = np.asarray(draw_boxes(grey(4000, 3000), np.array([[2000, 2000, 2012, 2012]]), ["x"], labels=[0]))
    assert (drawn[2004:2008, 2004:2008] == 128).all()


def test_boxes_outside_the_picture_draw_nothing():
    image = grey(100, 80)
    outside = np.array([[-50, -50, -1, -1], [200, 10, 300, 40], [10, 90, 20, 99], [30, 30, 10, 10]])
    assert np.array_equal(np.asarray(draw_boxes(image, outside, list("abcd"))), np.asarray(image))


def test_no_boxes_draw_nothing():
    image = grey(100, 80)
    assert np.array_equal(np.asarray(draw_boxes(image, np.zeros((0, 4)), [])), np.asarray(image))


def test_labels_stay_inside_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, y0 = rng.integers(0, 95), rng.integers(0, 75)
        span = Span(int(x0), int(y0), int(rng.integers(x0 + 1, 101)), int(rng.integers(y0 + 1, 81)))
        place = label_place(40, 12, span, Taken((100, 80)), (100, 80))
        assert place.x0 >= 0 and place.y0 >= 0 and place.x1 <= 100 and place.y1 <= 80
        assert (place.x1 - place.x0, place.y1 - place.y0) == (40, 12)


def test_a_label_gives_way_to_another_one():
    span = Span(100, 100, 200, 200)
    taken = Taken((640, 480))
    first = label_place(40, 12, span, taken, (640, 480))
    taken.add(first)
    second = label_place(40, 12, span, taken, (640, 480))
    assert first == Span(100, 88, 140, 100) and second.overlap(first) == 0


def test_what_is_taken_is_the_sum_of_the_areas_in_common():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 80, (60, 4))
    spans = [Span(int(x), int(y), int(x + 1 + w // 4), int(y + 1 + h // 4)) for x, y, w, h in corners]
    taken = Taken((100, 100))
    for span in spans[:50]:
        taken.add(span)
    for span in spans:
        assert taken.overlap(span) == sum(map(span.overlap, spans[:50]))


def test_the_time_grows_with_the_number_of_boxes_and_not_with_its_square():
    def seconds(count: int) -> float:
        corners = np.random.default_rng(0).uniform(0, 360, (count, 2))
        boxes = np.concatenate([corners, corners + 40], axis=1)
        start = time.process_time()
        draw_boxes(grey(400, 400), boxes, ["cell"] * count, labels=[0] * count, scores=np.linspace(0, 1, count))
        return time.process_time() - start

    seconds(10)
    assert min(seconds(1600) for _ in range(2)) < 24 * min(
        seconds(200) for _ in range(3)
    )  # 8 is linear, 64 its square


def test_lines_and_letters_grow_with_the_picture():
    sizes = [(64, 48), (256, 256), (640, 480), (1333, 800), (4000, 3000)]
    lines, letters = [line_width(size) for size in sizes], [font_px(size) for size in sizes]
    assert lines == sorted(lines) and lines[0] == 1 and lines[-1] == 12
    assert letters == sorted(set(letters)) and letters[0] == 9


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_are_drawn_in_rgb(mode):
    drawn = draw_boxes(grey(64, 64).convert(mode), np.array([[10, 20, 50, 60]]), ["cat"], labels=[0])
    assert drawn.mode == "RGB" and drawn.getpixel((10, 40)) == class_color(0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one length"):
        draw_boxes(grey(64, 64), np.zeros((2, 4)), ["cat"])
    with pytest.raises(ValueError, match="not a finite number"):
        draw_boxes(grey(64, 64), np.array([[0, 0, np.nan, 10]]), ["cat"])


def test_in_a_crowd_names_that_would_cover_others_are_left_out_unless_all_are_wanted():
    corners = np.random.default_rng(0).uniform(0, 380, (60, 2))
    boxes, labels = np.concatenate([corners, corners + 20], axis=1), [2] * 60
    scores = np.linspace(0.9, 0.5, 60)
    grounds = {}
    for shown in ("clear", "all", "none"):
        drawn = draw_boxes(grey(400, 400), boxes, ["person"] * 60, labels=labels, scores=scores, shown_names=shown)
        grounds[shown] = (np.asarray(drawn) == class_color(2)).all(axis=2).sum()
    label = 55 * 14  # about
    assert grounds["none"] + 5 * label < grounds["clear"] < grounds["all"] - 5 * label
    tiny = [[100, 100, 200, 200], [101, 84, 107, 96]]  # the second lies where the first one's name would go
    hidden = draw_boxes(grey(400, 400), tiny, ["a", "b"], labels=labels[:2], scores=[0.9, 0.8])
    assert hidden.getpixel((104, 90)) == (128, 128, 128)
    with pytest.raises(ValueError, match="labels must be one of clear, all, none, got 'some'"):
        draw_boxes(grey(64, 64), [], [], shown_names="some")


def test_a_class_beyond_the_colours_has_a_dashed_line_with_a_second_tone_in_its_gaps():
    box, color = [[100, 100, 500, 400]], class_color(2 + 12)
    drawn = np.asarray(draw_boxes(grey(640, 480), box, ["x"], labels=[14], shown_names="none"))
    for side in (drawn[100, 100:500], drawn[399, 100:500], drawn[100:400, 100], drawn[100:400, 499]):
        dashes, gaps = (side == color).all(axis=1), (side == rim_color(color)).all(axis=1)
        assert (dashes | gaps).all() and 0.5 < dashes.mean() < 0.8
        assert np.diff(gaps.astype(int)).clip(0).sum() > 8


def test_a_long_name_is_cut_and_its_score_stays():
    line = _fitting_line("long " * 40, 0, 0.62, (640, 480), "")
    assert line.length <= label_room((640, 480)) < 0.45 * 640
    assert [text for text, _ in line._runs][-1].endswith("  0.62")
    assert label_room((64, 48)) == 60 and _fitting_line("cat", 0, 0.62, (20, 20), "").length <= 16
