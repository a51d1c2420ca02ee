"""`Detections`: what it holds stays together, and every form of it says the same."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf.inference.results import FIELDS, Detection, Detections
from detr_hf.inference.runs.result_formats import read_part, record_of, write_parquet
from detr_hf.inference.segments import TASKS, SegmentMap
from detr_hf.inference.sources.base import Picture
from detr_hf.processing.run_lengths_detr import run_lengths

ROOT = Path(__file__).parents[2]


@pytest.fixture
def found() -> Detections:
    boxes = [[10, 20, 50, 60], [0, 0, 30, 30], [5, 5, 25, 45]]
    source = Image.new("RGB", (100, 80), "grey")
    return Detections(boxes, [0.9, 0.8, 0.5], [1, 0, 1], ["dog", "cat", "dog"], size_hw=(80, 100), source=source)


@pytest.fixture
def masked(found) -> Detections:
    """The same with masks: of the second only its left half, the third without a pixel; and maps of the picture."""
    masks = np.zeros((3, *found.size_hw), dtype=bool)
    masks[0, 20:60, 10:50] = masks[1, :30, :15] = True
    segments = [{"id": 1, "label_id": 1, "name": "dog", "score": 0.9, "was_fused": False, "area": 1600}]
    maps = {"panoptic": SegmentMap(masks[0], segments), "semantic": SegmentMap.of_classes(masks[1] * 2, str)}
    return replace(found, segmentations=[run_lengths(mask) for mask in masks], **maps)


def test_iterates_over_objects(found):
    assert len(found) == 3
    first, *_, last = found
    assert first == Detection("dog", 1, pytest.approx(0.9), (10.0, 20.0, 50.0, 60.0))
    assert last.box == (5.0, 5.0, 25.0, 45.0)
    assert list(found) == [found[0], found[1], found[2]] and found[-1] == found[2]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (slice(1, None), ["cat", "dog"]),
        ([2, 0], ["dog", "dog"]),
        (np.array([False, True, False]), ["cat"]),
        ([True, False, False], ["dog"]),
        ([], []),
        (slice(0, 0), []),
    ],
)
def test_selects_like_an_array(found, key, names):
    chosen = found[key]
    assert isinstance(chosen, Detections) and chosen.names == names
    assert len(chosen.boxes) == len(chosen.scores) == len(chosen.labels) == len(names)
    assert chosen.size_hw == (80, 100) and chosen.image.size == (100, 80)


def test_masks_stay_with_their_objects(masked):
    assert masked.masks.shape == (3, 80, 100) and masked.masks.sum(axis=(1, 2)).tolist() == [1600, 450, 0]
    assert masked[1].segmentation == masked.segmentations[1] and len(masked[1]) == 4  # unpacks as ever
    for chosen, areas in ((masked[[2, 0]], [0, 1600]), (masked.filter(names="cat"), [450]), (masked[:0], [])):
        assert chosen.masks.sum(axis=(1, 2)).tolist() == areas
        assert chosen.panoptic is None and chosen.semantic is None  # of the whole picture
    assert pickle.loads(pickle.dumps(masked[0])).segmentation == masked.segmentations[0]
    assert "[0.0, 0.0, 30.0, 30.0]  mask of 450 px" in repr(masked)


def test_masks_of_another_size_or_number_are_refused(found, masked):
    for wrong in (
        {"segmentations": [run_lengths(np.ones((8, 9)))] * 3},
        {"panoptic": SegmentMap(np.ones((8, 9)), [])},
    ):
        with pytest.raises(ValueError, match=r"\{\(8, 9\)\} in a picture of \(80, 100\)"):
            replace(found, **wrong)
    with pytest.raises(ValueError, match="one length"):
        replace(found, segmentations=masked.segmentations[:2])


def test_masks_are_in_what_others_read(found, masked):
    from pycocotools import mask as coco_mask

    results = masked.to_coco(7)
    assert [coco_mask.decode(one.pop("segmentation")).sum() for one in results] == [1600, 450, 0]
    assert results == found.to_coco(7) and masked.to_pandas().equals(found.to_pandas())
    read = json.loads(json.dumps(masked.to_dict()))
    assert [one["name"] for one in read["segments"]] == ["dog"] and [one["name"] for one in read["classes"]] == [
        "0",
        "2",
    ]
    supervision = pytest.importorskip("supervision")
    other = masked.to_supervision()
    assert isinstance(other, supervision.Detections) and np.array_equal(other.mask, masked.masks)


def test_what_is_drawn_can_be_chosen(found, masked):
    pixels = {what: np.asarray(masked.draw(what=what)) for what in (None, *TASKS)}
    assert np.array_equal(pixels["detection"], np.asarray(found.draw()))
    assert np.array_equal(pixels[None], pixels["instance"])
    bare = {what: (drawn[masked.masks[0]] == 128).all(axis=-1).sum() for what, drawn in pixels.items()}
    assert bare["detection"] > 100 and bare["instance"] == bare["panoptic"] == 0
    assert (pixels["panoptic"][70:, 60:] == 128).all() and not (pixels["semantic"][70:, 60:] == 128).any()
    with pytest.raises(ValueError, match="nothing to draw for 'panoptic'"):
        masked[:2].draw(what="panoptic")
    with pytest.raises(ValueError, match="one of detection, instance"):
        masked.draw(what="masks")


def test_filters_by_score_and_name(found):
    assert found.filter(threshold=0.6).names == ["dog", "cat"]
    assert found.filter(names="cat").names == ["cat"]
    assert found.filter(threshold=0.6, names=["dog", "owl"]).names == ["dog"]
    assert len(found.filter(threshold=0.95)) == 0 and len(found.filter(threshold=0.95).filter(names="cat")) == 0


def test_a_class_that_the_model_does_not_have_is_no_filter(found):
    of_model = replace(found, id2label={0: "cat", 1: "dog", 2: "zebra"})
    assert len(of_model.filter(names="zebra")) == len(of_model[:0].filter(names=["zebra", "dog"])) == 0
    with pytest.raises(ValueError, match=r"'zebre'; the model's 3 are cat, dog, zebra.* mean zebra"):
        of_model.filter(names=["dog", "zebre"])
    assert len(found.filter(names="zebre")) == 0  # nobody told which classes there are
    many = replace(found, id2label={label: f"kind {label:02}" for label in range(91)})
    with pytest.raises(ValueError, match=r"the model's 91 are kind 00, .*, kind 09, \.\.\.\.$"):
        many.filter(names="zebra")


def test_to_dict_is_json(found):
    read = json.loads(json.dumps(found.to_dict()))
    assert (read["width"], read["height"], read["path"]) == (100, 80, None)
    assert read["objects"][1] == {"name": "cat", "label": 0, "score": pytest.approx(0.8), "box": [0, 0, 30, 30]}


def test_to_coco_has_corner_and_size(found):
    first = found.to_coco(image_id=7)[0]
    assert first == {"image_id": 7, "category_id": 1, "bbox": [10, 20, 40, 40], "score": pytest.approx(0.9)}


def test_coco_records_are_read_by_pycocotools(found, capsys):
    from pycocotools.coco import COCO

    ground = COCO()
    ground.dataset = {"images": [{"id": 7}], "categories": [{"id": 0}, {"id": 1}], "annotations": []}
    ground.createIndex()
    read = ground.loadRes(found.to_coco(7)).dataset["annotations"]
    assert [record["area"] for record in read] == [1600, 900, 800]


def test_to_pandas(found):
    table = found.to_pandas()
    assert list(table.columns) == ["name", "label", "score", "x0", "y0", "x1", "y1"]
    assert list(table["name"]) == found.names and table["x1"].tolist() == [50, 30, 25]


@pytest.mark.parametrize(("method", "package"), [("to_pandas", "pandas"), ("to_supervision", "supervision")])
def test_a_missing_package_is_named_with_its_command(found, method, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(found, method)()


def test_to_supervision(found):
    supervision = pytest.importorskip("supervision")
    other = found.to_supervision()
    assert isinstance(other, supervision.Detections) and len(other) == 3
    assert np.array_equal(other.xyxy, found.boxes) and list(other["class_name"]) == found.names


def test_repr_shows_the_objects(found):
    text = repr(found)
    assert "3 objects" in text and "100x80" in text and "dog" in text and "0.90" in text
    many = found[[0] * 30]
    assert "20 more" in repr(many) and len(repr(many).splitlines()) == 12


def test_counts_the_frequent_first(found):
    assert found.count() == {"dog": 2, "cat": 1} and next(iter(found.count())) == "dog"


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="one length"):
        Detections(np.zeros((2, 4)), [0.5], [0], ["cat"], size_hw=(10, 10))


def test_saves_in_new_folders_and_formats(found, tmp_path):
    for name in ("deep/er/a.png", "b.JPG", "c.webp"):
        path = found.save(tmp_path / name)
        with Image.open(path) as drawn:
            assert drawn.size == (100, 80)


def test_save_refuses_unknown_formats_and_the_source(found, tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.jpg or \.webp, or \.svg"):
        found.save(tmp_path / "boxes.txt")
    source = tmp_path / "street.png"
    Image.new("RGB", (100, 80)).save(source)
    before = source.read_bytes()
    detections = Detections(found.boxes, found.scores, found.labels, found.names, size_hw=(80, 100), path=source)
    with pytest.raises(ValueError, match="looked at"):
        detections.save(tmp_path / "." / "street.png")
    assert source.read_bytes() == before
    detections.save(tmp_path / "street_boxes.png")


def test_without_a_picture_drawing_says_what_is_missing():
    with pytest.raises(ValueError, match="source= or path="):
        Detections([], [], [], [], size_hw=(10, 10)).draw()


def test_draws_on_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture has to be turned by 90 degrees
    Image.new("RGB", (100, 40)).save(tmp_path / "turned.jpg", exif=exif)
    detections = Detections([[0, 0, 40, 100]], [0.9], [0], ["cat"], size_hw=(100, 40), path=tmp_path / "turned.jpg")
    assert detections.draw().size == (40, 100)


def test_the_image_is_rgb_whatever_the_source(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    sources = (
        image,
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        tmp_path / "a.png",
        (tmp_path / "a.png").read_bytes(),
    )
    for source in sources:
        detections = Detections([], [], [], [], size_hw=(12, 16), source=source)
        assert np.array_equal(np.asarray(detections.image), pixels)


def test_drawing_needs_neither_torch_nor_the_check_of_exports(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    program = """
import sys
from detr_hf.inference.results import Detections
Detections([[1, 2, 9, 9]], [0.9], [0], ["cat"], size_hw=(20, 30), path=sys.argv[1]).save(sys.argv[1] + ".png")
sys.exit(bool({"torch", "detr_hf.export.parity", "detr_hf.export.runtimes"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")], env=environment, check=False)
    assert done.returncode == 0 and (tmp_path / "a.png.png").is_file()


def test_every_form_of_results_has_the_same_fields(found, masked, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_schema

    singular = [each.one for each in FIELDS.values()]
    assert singular == [*Detection._fields, "segmentation"]
    for of_task, task, known in ((found, "detection", singular[:-1]), (masked, "instance", singular)):
        assert list(of_task.to_dict()["objects"][0]) == known
        record = record_of(Picture("a.png", None), of_task)
        assert list(record["objects"][0]) == known
        write_parquet([record], tmp_path / "a.parquet", task)
        an_object = read_schema(tmp_path / "a.parquet").field("objects").type.value_type
        assert [column.name for column in an_object] == known
    assert [len(getattr(masked[:2], plural)) for plural in FIELDS] == [2] * len(FIELDS)


def test_a_field_that_is_not_known_is_absent_from_tables_as_from_lines(found, tmp_path):
    pytest.importorskip("pyarrow")
    record = record_of(Picture("a.png", None), found)
    for one in record["objects"]:
        del one["label"]
    write_parquet([record], tmp_path / "a.parquet")
    (read,) = read_part(tmp_path / "a.parquet")
    assert [set(one) for one in read["objects"]] == [{"name", "score", "box"}] * 3
