"""Pictures of attention: light where the weights are, whatever the picture; nothing found is no error."""

import numpy as np
import pytest
from PIL import Image

from detr_hf.inference.results import BestBelow, Detections
from detr_hf.visualize import Attention, QuerySlots, query_slots
from detr_hf.visualize.attention_maps import Grid, heat_image
from detr_hf.visualize.slots import HIGH_COLOR, SMALL_COLOR, WIDE_COLOR


def attention_of(count: int, size: tuple[int, int] = (90, 60), path=None) -> Attention:
    """Returns attention of objects that each look at one cell of 2x3, in the order of the cells."""
    boxes = np.array([[30 * (i % 3), 30 * (i // 3), 30 * (i % 3) + 30, 30 * (i // 3) + 30] for i in range(count)])
    found = Detections(
        boxes.reshape(-1, 4) * np.tile([size[0] / 90, size[1] / 60], 2),
        np.linspace(0.9, 0.5, count),
        list(range(count)),
        [f"猫{i}" for i in range(count)],
        size_hw=size[::-1],
        source=None if path else Image.new("RGB", size, "grey"),
        path=path,
        best_below=None if count else BestBelow("cat", 0.41, 0.7),
    )
    decoder = np.eye(6, dtype=np.float32)[:count].reshape(count, 2, 3)
    grid = Grid((2, 3), (2.0, 3.0))
    asked = {"layer": -1, "head": None, "counts": (2, 3, 4), "threshold": 0.7}
    return Attention(found, decoder, np.eye(6, dtype=np.float32), (grid, grid), **asked)


@pytest.mark.parametrize("size", [(90, 60), (300, 40), (40, 300), (9, 6), (4, 4)])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_any_size_and_number_of_objects_is_drawn(size, count):
    seen = attention_of(count, size)
    drawn = seen.draw(tile=90)
    assert np.allclose(seen.in_boxes(), np.ones(count), atol=1e-4)
    assert drawn.mode == "RGB" and min(drawn.size) > 0 and seen.draw([(1, 1)], tile=90).width > drawn.width / 8
    assert f"{count} object" in repr(seen) and "layer 2 (0 to 2), mean of 4 heads" in repr(seen)


def test_nothing_found_is_told_with_the_best(monkeypatch):
    told = []
    monkeypatch.setattr(
        "detr_hf.visualize.attention_maps.grid", lambda cells, columns, captions, **styles: told.extend(captions)
    )
    attention_of(0).draw()
    attention_of(2).draw()
    long = attention_of(1)
    long.detections.names = ["a name of two hundred letters " * 7]
    long.draw()
    long.draw([(1, 1)])
    assert told[0] == "nothing over 0.70; the best is 0.41 cat"
    assert told[2:4] == ["猫0  0.90: 100% in its box", "猫1  0.50: 100% in its box"]
    assert told[5] == "a name of two hundr…  0.90: 100% in its box"
    assert told[7] == "from (1, 1): 0.0 to 6.0 times an even share"


def test_light_is_where_the_weights_are():
    weights = np.zeros((2, 3), np.float32)
    weights[1, 2] = 0.2
    drawn = np.asarray(heat_image(Image.new("RGB", (90, 60), "grey"), weights, Grid((2, 3), (2.0, 3.0)), (255, 0, 0)))
    red = drawn[..., 0].astype(int) - drawn[..., 2]
    assert np.unravel_index(red.argmax(), red.shape) >= (30, 60) and (red[:15, :45] == 0).all()
    beyond = heat_image(Image.new("RGB", (90, 60), "grey"), weights, Grid((2, 3), (1.5, 3.0)), (255, 0, 0))
    lower = np.asarray(beyond)[..., 0].astype(int).sum(axis=1).argmax()
    assert lower >= 50, "half of the last row lies beyond the picture"
    raised = np.asarray(
        heat_image(Image.new("RGB", (90, 60), "grey"), weights + 0.3, Grid((2, 3), (2.0, 3.0)), (255, 0, 0))
    )
    assert np.abs(raised.astype(int) - drawn).max() <= 1, "what all cells have tells nothing"
    even = heat_image(Image.new("RGB", (9, 6), "grey"), np.ones((2, 3)), Grid((2, 3), (2.0, 3.0)), (255, 0, 0))
    assert (np.ptp(np.asarray(even).astype(int), axis=2) > 50).all()
    blank = np.asarray(
        heat_image(Image.new("RGB", (9, 6), "grey"), np.zeros((2, 3)), Grid((2, 3), (2.0, 3.0)), (255, 0, 0))
    )
    assert len(np.unique(blank)) == 1


def test_what_is_saved_is_whole_and_never_the_picture(tmp_path):
    picture = tmp_path / "street.png"
    Image.new("RGB", (90, 60)).save(picture)
    before, seen = picture.read_bytes(), attention_of(2, path=picture)
    with pytest.raises(ValueError, match="looked at"):
        seen.save(picture)
    with pytest.raises(ValueError, match=r"\.png"):
        seen.save(tmp_path / "a.txt")
    assert picture.read_bytes() == before
    with Image.open(seen.save(tmp_path / "new" / "a.png", points=[(3, 4)])) as drawn:
        assert drawn.size[0] > drawn.size[1]


class Seer:
    """A detector of three queries, of which the last is of no use in every other picture."""

    def stream(self, pictures, threshold, batch_size, masks_from):
        assert threshold == 0 and masks_from == 1
        for place, _ in enumerate(pictures):
            boxes = [[10, 10, 20, 20], [0, 0, 100, 20], [0, 0, 20, 50]][: 3 - place % 2]
            order = list(range(len(boxes)))[::-1]
            found = [[boxes[i] for i in order], [0.5] * len(order), [0] * len(order), ["a"] * len(order)]
            yield Detections(*found, size_hw=(50, 100), queries=order if place < 5 else None)


def test_slots_are_of_their_queries_and_coloured_by_shape(tmp_path):
    slots = query_slots(Seer(), ["a", "b", "c"])
    assert slots.boxes_xyxy_norm.shape == (3, 3, 4) and np.isnan(slots.boxes_xyxy_norm[2, 1]).all()
    assert np.allclose(slots.centres[:2, 0], [[0.15, 0.3], [0.5, 0.2]]) and np.allclose(
        slots.centres[2, 2], [0.1, 0.5]
    )
    drawn = np.asarray(slots.draw(tile=100, columns=3))
    for place, color in enumerate((SMALL_COLOR, WIDE_COLOR, HIGH_COLOR)):
        square = drawn[14:114, 106 * place : 106 * place + 100]
        assert (square == color).all(-1).any() and repr(slots) == "QuerySlots(3 queries, 3 pictures)"
    assert slots.save(tmp_path / "slots.png").stat().st_size > 100
    with pytest.raises(ValueError, match="no pictures"):
        query_slots(Seer(), [])
    with pytest.raises(ValueError, match="does not tell which query"):
        query_slots(Seer(), ["abcdef"] * 6)
    assert query_slots(Seer(), "one.png").boxes_xyxy_norm.shape[1] == 1
    assert isinstance(slots, QuerySlots)
