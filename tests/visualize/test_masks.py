"""Masks and segments on an image: in their places, their colours and their names."""

import numpy as np
import pytest
from PIL import Image

from detr_hf.visualize.boxes import draw_boxes
from detr_hf.visualize.colors import class_color
from detr_hf.visualize.masks import inner, paint_mask, placed_mask, resized_mask
from detr_hf.visualize.placing import inside_place
from detr_hf.visualize.segments import LINE_COLOR, draw_segments

GREY = (128, 128, 128)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def test_a_mask_is_filled_and_lined_where_it_is_and_nowhere_else():
    rng = np.random.default_rng(0)
    for line_px in (1, 2):
        mask = np.zeros((60, 80), dtype=bool)
        mask[10:40, 20:70] = rng.random((30, 50)) < 0.97
        image, color = grey(80, 60), (250, 10, 10)
        paint_mask(image, (20, 10), mask[10:40, 20:70], color, line_px)
        drawn = np.asarray(image)
        inside = mask.copy()  # further than the line from anything else, by the definition
        for _ in range(line_px):
            padded = np.pad(inside, 1)
            inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        assert (drawn[~mask] == GREY).all() and (drawn[mask & ~inside] == color).all()
        assert inside.any() and (np.abs(drawn[inside].astype(int) - np.add(GREY, color) // 2) < 15).all()


@pytest.mark.parametrize("size_hw", [(0, 0), (1, 1), (1, 5), (2, 2), (3, 3)])
def test_masks_too_small_for_a_line_are_all_line(size_hw):
    pixels = np.ones(size_hw, dtype=bool)
    assert inner(pixels, 1).sum() == (size_hw == (3, 3))
    paint_mask(grey(5, 5), (0, 0), pixels, (1, 2, 3), 1)


def test_boxes_and_masks_of_an_object_have_one_color_and_the_best_is_on_top():
    mask = np.ones((100, 100), dtype=bool)
    box = [[50, 50, 150, 150]] * 2
    masks = [(50, 50, mask), (50, 50, mask)]
    drawn = draw_boxes(grey(400, 300), box, ["a", "b"], labels=[0, 1], scores=[0.5, 0.9], masks=masks)
    once = draw_boxes(grey(400, 300), box[:1], ["b"], labels=[1], scores=[0.9], masks=masks[:1])
    shade, alone = (np.array(image.getpixel((100, 100)), dtype=int) for image in (drawn, once))
    assert np.abs(shade - class_color(1)).sum() < np.abs(shade - class_color(0)).sum()
    assert np.abs(alone - class_color(1)).sum() < np.abs(np.array(GREY) - class_color(1)).sum()
    with pytest.raises(ValueError, match="one length"):
        draw_boxes(grey(64, 64), np.zeros((2, 4)), ["a", "b"], masks=masks[:1])


def test_segments_have_the_colors_of_boxes_lines_between_them_and_nothing_where_there_is_none():
    ids = np.zeros((300, 400), dtype=np.int32)
    ids[:, 200:], ids[200:] = 8_000_000, 5
    ids[:50, :50] = 77  # which is not listed
    segments = [{"id": 8_000_000, "label_id": 3, "name": "sky"}, {"id": 5, "label_id": 30, "name": "sea"}]
    segments += [{"id": 6, "label_id": 1, "name": "without a pixel"}]
    drawn = np.asarray(draw_segments(grey(400, 300), ids, segments)).astype(int)
    assert (drawn[:190, :190] == GREY).all()
    for (y, x), label in (((20, 380), 3), ((280, 20), 30)):
        middle = (np.array(GREY) + class_color(label)) / 2
        assert np.abs(drawn[y, x] - middle).max() < 15
    assert (drawn[100, 199] == LINE_COLOR).all() and (drawn[199, 100] == LINE_COLOR).all()
    for label, place in ((3, drawn[:195, 205:]), (30, drawn[205:])):  # the ground of the name, inside of the segment
        assert (place == class_color(label)).all(axis=-1).sum() > 100
    with pytest.raises(ValueError, match="have"):
        draw_segments(grey(40, 30), ids, segments)


def test_a_name_stands_inside_where_most_room_is_or_nowhere():
    mask = np.zeros((200, 300), dtype=bool)
    mask[20:60, 10:290] = mask[60:190, 200:290] = True  # a flat bar, and a broad column at its end
    x, y = inside_place(mask, (40, 12))
    assert mask[y : y + 12, x : x + 40].all() and x >= 200 and x + 40 <= 290 and 40 < y < 170
    assert inside_place(mask, (300, 12)) is None and inside_place(np.zeros((5, 5), bool), (2, 2)) is None
    rng = np.random.default_rng(0)
    for _ in range(30):
        ragged = rng.random((rng.integers(1, 300), rng.integers(1, 300))) < 0.999
        place = inside_place(ragged, (9, 4))
        assert place is None or ragged[place[1] : place[1] + 4, place[0] : place[0] + 9].all()


def test_images_of_any_mode_and_without_segments():
    ids = np.zeros((48, 64), dtype=np.int32)
    for mode in ("L", "RGBA", "CMYK"):
        drawn = draw_segments(grey(64, 48).convert(mode), ids, [])
        assert drawn.mode == "RGB" and drawn.getextrema() == ((128, 128),) * 3


def test_a_mask_may_be_of_the_whole_image_a_part_or_none_and_of_no_other_size():
    whole = np.zeros((48, 64), dtype=bool)
    whole[10:30, 20:50] = True
    boxes = [[20, 10, 50, 30], [0, 0, 9, 9]]
    drawn = [
        np.asarray(draw_boxes(grey(64, 48), boxes, ["a", "b"], masks=[mask, None], shown_names="none"))
        for mask in (whole, whole.astype(np.uint8) * 255, (20, 10, whole[10:30, 20:50]))
    ]
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])
    assert (drawn[0][whole] != 128).any(axis=-1).all() and (drawn[0][2:7, 2:7] == 128).all()
    for wrong in (whole[1:], (40, 10, whole[10:30, 20:50]), (-1, 0, whole[:5, :5])):
        with pytest.raises(ValueError, match=r"has .* image has|does not lie in the image"):
            draw_boxes(grey(64, 48), boxes[:1], ["a"], masks=[wrong])


def test_masks_and_segments_follow_the_image_to_another_size():
    whole = np.zeros((480, 640), dtype=bool)
    whole[100:300, 200:500] = True
    x0, y0, pixels = resized_mask(placed_mask(whole, (640, 480)), (640, 480), (64, 48))
    assert (x0, y0, pixels.shape, pixels.all()) == (20, 10, (20, 30), True)
    drawn = draw_boxes(grey(640, 480), [[200, 100, 500, 300]], ["a"], masks=[whole], side=64, shown_names="none")
    inside = (np.asarray(drawn) != 128).any(axis=-1)
    assert drawn.size == (64, 48) and inside[10:30, 20:50].all() and inside.sum() == 600
    tiny = resized_mask((3, 3, np.ones((1, 1), dtype=bool)), (640, 480), (64, 48))
    assert tiny[:2] == (0, 0) and tiny[2].shape == (1, 1)
    segments = draw_segments(grey(640, 480), whole.astype(int), [{"id": 1, "label_id": 0, "name": ""}], side=64)
    assert segments.size == (64, 48) and segments.getpixel((40, 25)) != GREY == segments.getpixel((5, 5))


@pytest.mark.parametrize("classes", [1, 1000])
def test_any_number_of_classes_is_drawn(classes):
    boxes = [[10 + n % 50, 10 + n % 37, 40 + n % 50, 40 + n % 37] for n in range(classes)]
    drawn = draw_boxes(grey(200, 160), boxes, [f"class {n}" for n in range(classes)])
    assert {color for _, color in drawn.getcolors(100_000)} >= {class_color(0)}
