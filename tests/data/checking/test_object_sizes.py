"""How large objects are to the model, and which size is proposed."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from detr_hf import DETRConfig
from detr_hf.cli.main import app
from detr_hf.data.checking.check import check, model_side
from detr_hf.data.checking.object_sizes import ModelSide, fitting_size, larger_size
from detr_hf.data.readers.records import JudgedSplit, SplitRecords

from .. import layouts

PLATE = np.array([[10.0, 10.0, 50.0, 14.0]])  # in photographs of 640 x 480
PHOTO = np.array([[640, 480]])


@pytest.mark.parametrize(
    ("side", "width", "proposed"),
    [
        (ModelSide(shortest=240, longest=400), 50, (320, 0.0, (320 / 240) ** 2)),  # 25 pixels; 33 at 320
        (ModelSide(shortest=240, longest=400), 20, (800, 0.0, (800 / 240) ** 2)),
        (ModelSide(shortest=240, longest=400, stride=16), 20, (480, 0.0, 4.0)),
        (ModelSide(shortest=240, longest=400), 4, None),  # no size helps, to which a photograph may be enlarged
        (ModelSide(shortest=800, longest=1333), 10, None),
    ],
)
def test_the_least_size_that_helps_is_proposed_with_its_cost(side, width, proposed):
    boxes = PLATE * [1, 1, width / 50, 1 / 10]
    found = larger_size(boxes, PHOTO, side, 1.0)
    assert found == (None if proposed is None else pytest.approx(proposed))


def test_the_longest_side_limits_and_costs_as_in_the_processor():
    """A panorama at its longest side grows in proportion all the same."""
    side = ModelSide(shortest=320, longest=400)
    assert side.scales(np.array([[1000, 100]])) == pytest.approx(0.4)
    assert side.scales(np.array([[1000, 100]]), 640) == pytest.approx(0.8)


FITTING = {  # pictures of W x H, sides of their square objects in pixels: what a new model should see them at
    "their own": ((640, 480), [100], 480),
    "not 12 megapixels": ((4000, 3000), [900], 800),
    "small ones a little larger": ((200, 150), [40], 320),
    "larger where objects are small": ((640, 480), [6, 7], 640),
    "and 800 at most": ((640, 480), [5, 6], 800),
    "their own where none helps": ((640, 480), [3, 4], 480),
    "not more than twice their own": ((300, 200), [3, 4], 320),
    "not known": ((0, 0), [100], None),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_new_model_sees_pictures_at_a_size_that_suits_them(case):
    size_wh, sides, wanted = FITTING[case]
    records = SplitRecords("train")
    boxes = np.array([[10.0, 10.0, side, side] for side in sides])
    records.image_ids, records.widths, records.heights = [1], [size_wh[0]], [size_wh[1]]
    records.rows = [0] * len(sides)
    everything = np.ones(len(sides), dtype=bool)
    split = JudgedSplit(records, boxes, np.zeros(len(sides), dtype=int), everything, np.ones(1, dtype=bool))
    assert fitting_size({"train": split}, stride=8) == wanted


def test_check_says_sizes_by_class_in_text_and_json(tmp_path):
    root = layouts.write_coco(tmp_path / "data")
    report = check(root, size=(100, 167))
    scale = 100 / 48  # pictures of 64 x 48
    boxes = json.loads((root / "annotations_train.json").read_text())["annotations"]
    first = next(iter(report.sizes.values()))
    widths = [one["bbox"][2] * scale for one in boxes]
    assert min(widths) - 1 <= first.width <= max(widths) + 1
    assert sum(size.objects for size in report.sizes.values()) == report.splits["train"].objects
    assert "at a shortest side of 100 pixels" in report.text() and "under a cell" in report.text()
    assert report.to_dict()["object_sizes"].keys() == report.sizes.keys()
    assert report.to_dict()["model"]["shortest"] == 100


@pytest.mark.parametrize(
    ("config", "cell"),
    [(DETRConfig(), 32), (DETRConfig(dilation=True), 16), (DETRConfig.from_preset("precise"), 8)],
)
def test_a_cell_is_one_of_the_finest_map(config, cell):
    assert model_side(config, None, None).stride == cell


def test_the_verb_takes_a_size(tmp_path):
    root = layouts.write_coco(tmp_path)
    done = CliRunner().invoke(app, ["check", str(root), "--shortest-edge", "50"])
    assert "at a shortest side of 50 pixels" in done.output and "32-pixel cell" in done.output
