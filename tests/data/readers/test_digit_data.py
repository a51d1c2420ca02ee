"""`digits` is a data set like any other: boxes, masks and panoptic maps of scenes that are drawn when it is read."""

import numpy as np
import pytest

from detr_hf import load_detection_dataset
from detr_hf.data import DigitScenes
from detr_hf.data.readers import digit_data
from detr_hf.errors import LayoutError


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(digit_data, "SCENES", {"train": 2, "validation": 3})


def test_they_are_the_first_scenes():
    data = load_detection_dataset("digits")
    assert {name: len(split) for name, split in data.items()} == {"train": 2, "validation": 3}
    assert data.id2label == DigitScenes().id2label and data.is_thing is None
    row, scene = data["validation"][2], DigitScenes("validation")[2]
    assert np.array_equal(row["image"], scene["image"])
    assert row["objects"]["bbox"] == scene["objects"]["bbox"]
    assert row["objects"]["category"] == scene["objects"]["category"]
    assert list(load_detection_dataset("digits", splits=["validation"])) == ["validation"]
    with pytest.raises(LayoutError, match=r"The splits \['test'\] are not in digits"):
        load_detection_dataset("digits", splits=["test"])


def test_masks_and_panoptic_maps():
    scene = DigitScenes("train", masks=True)[1]["objects"]
    digits = [label for label in scene["category"] if label < 10]
    (row,) = load_detection_dataset("digits", task="instance")["train"].select([1])
    assert row["objects"]["category"] == digits and None not in row["objects"]["segmentation"]
    data = load_detection_dataset("digits", task="panoptic")
    assert data.is_thing == [True] * 10 + [False] * 2
    (row,) = data["train"].select([1])
    assert sorted(row["objects"]["category"]) == sorted(scene["category"])
    assert sorted(row["objects"]["area"]) == pytest.approx(sorted(scene["area"]))


def test_a_folder_of_that_name_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(LayoutError, match="digits is no data set that is known"):
        load_detection_dataset("digits")


@pytest.mark.parametrize(
    ("name", "said"), [("", "name of the data set is empty"), ("digit", r"Did you mean digits\?")]
)
def test_a_name_of_nothing_says_so(name, said):
    with pytest.raises(LayoutError, match=said):
        load_detection_dataset(name)
