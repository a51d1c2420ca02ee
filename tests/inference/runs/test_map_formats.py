"""Masks and maps of a run on disk: in every format the same, read by others' readers, and the same after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_hf.inference.runs import map_formats
from detr_hf.inference.runs.prediction import read_predictions
from detr_hf.processing.mask_annotations_detr import masks_to_boxes, panoptic_masks
from detr_hf.processing.run_lengths_detr import run_length_mask

from ..stand_in import StandIn, write_pictures
from .test_prediction import ROOT, predict

COUNT = 12


@pytest.fixture
def photos(tmp_path) -> Path:
    write_pictures(tmp_path / "photos", COUNT)
    (tmp_path / "photos" / "00005.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def maps_of(path: Path) -> dict:
    found = StandIn(task="panoptic")
    item = found.prepare(0, str(path))
    return found.masks(item)


def test_panoptic_pngs_and_json_are_read_back_by_the_reader_of_truth(photos, tmp_path):
    out = tmp_path / "out"
    assert predict(StandIn(task="panoptic"), photos, out, format="coco-panoptic").complete
    written = json.loads((out / "panoptic.json").read_text())
    assert written["categories"] == [
        {"id": 1, "name": "thing", "isthing": 1},
        {"id": 300, "name": "sand", "isthing": 0},
    ]
    assert len(written["images"]) == COUNT and "error" in written["images"][5]
    assert [one["image_id"] for one in written["annotations"]] == [n for n in range(COUNT) if n != 5]
    for one in written["annotations"]:
        assert one["file_name"] == f"{one['image_id']:012d}.png"
        expected = maps_of(photos / f"{one['image_id']:05d}.png")["panoptic"]
        segments, masks = panoptic_masks(one, out / "panoptic", expected.size_hw)
        assert [segment["id"] for segment in segments] == [1, 2]  # 0 is nothing
        assert [segment["category_id"] for segment in segments] == [1, 300]
        assert [segment["isthing"] for segment in segments] == [1, 0]
        for segment, mask, box in zip(one["segments_info"], masks, masks_to_boxes(masks).tolist(), strict=True):
            assert np.array_equal(mask.numpy(), expected.segmentation == segment["id"])
            assert segment["area"] == int(mask.sum()) and segment["iscrowd"] == 0
            assert segment["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_pngs_of_labels_hold_labels_beyond_a_byte(photos, tmp_path):
    predict(StandIn(task="semantic"), photos, tmp_path / "out", format="png")
    written = json.loads((tmp_path / "out" / "semantic.json").read_text())
    assert len(written["annotations"]) == COUNT - 1
    for one in written["annotations"]:
        with Image.open(tmp_path / "out" / "semantic" / one["file_name"]) as image:
            labels = np.asarray(image)
        bright = maps_of(photos / f"{one['image_id']:05d}.png")["segmentations"][0]
        assert np.array_equal(labels == 1, run_length_mask(bright, labels.shape))
        assert {segment["id"]: segment["area"] for segment in one["segments_info"]} == {
            label: int((labels == label).sum()) for label in (1, 300)
        }


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_parquet_says_what_lines_say(photos, tmp_path, task):
    pytest.importorskip("pyarrow")
    records = []
    for format in ("jsonl", "parquet"):
        predict(StandIn(task=task), photos, tmp_path / format, format=format)
        records.append(list(read_predictions(tmp_path / format)))
    for lines, rows in zip(*records, strict=True):
        assert json.loads(json.dumps(rows), parse_float=lambda text: round(float(text), 6)) == lines
    first = records[1][0]
    assert ("segmentation" in first["objects"][0]) == (task != "semantic")
    assert ("segments" in first, "classes" in first) == (task == "panoptic", task == "semantic")


def test_coco_results_have_masks_that_pycocotools_reads(photos, tmp_path):
    from pycocotools.coco import COCO

    predict(StandIn(task="instance"), photos, tmp_path / "out", format="coco")
    truth = COCO()
    images = json.loads((tmp_path / "out" / "coco_images.json").read_text())
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    truth.createIndex()
    results = truth.loadRes(json.loads((tmp_path / "out" / "coco_results.json").read_text()))
    assert len(results.anns) == COUNT - 1
    for one in results.anns.values():
        expected = maps_of(photos / f"{one['image_id']:05d}.png")["segmentations"][0]
        assert np.array_equal(results.annToMask(one), run_length_mask(expected, expected["size"]))


def test_formats_of_another_task_are_refused_before_anything_is_written(photos, tmp_path):
    for format, task, needed in (("coco-panoptic", "detection", "panoptic"), ("png", "panoptic", "semantic")):
        with pytest.raises(ValueError, match=f"{format} is of {needed} maps, and the task is {task}"):
            predict(StandIn(task=task), photos, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    predict(StandIn(task="instance"), photos, tmp_path / "out")
    with pytest.raises(ValueError, match="task was 'instance', now 'panoptic'"):
        predict(StandIn(task="panoptic"), photos, tmp_path / "out")


def test_stopped_while_maps_are_written_it_goes_on_with_those_that_are_missing(photos, tmp_path, monkeypatch):
    written = []

    def writes(ids, path):
        if len(written) == 4:
            raise OSError("disk full")
        written.append(path)
        write(ids, path)

    write = map_formats.write_panoptic_png
    monkeypatch.setattr(map_formats, "write_panoptic_png", writes)
    with pytest.raises(OSError, match="disk full"):
        predict(StandIn(task="panoptic"), photos, tmp_path / "out", format="coco-panoptic")
    assert not (tmp_path / "out" / "panoptic.json").exists()
    monkeypatch.setattr(map_formats, "write_panoptic_png", write)
    again = StandIn(task="panoptic")
    assert predict(again, photos, tmp_path / "out", format="coco-panoptic").complete and again.seen == 0
    predict(StandIn(task="panoptic"), photos, tmp_path / "whole", format="coco-panoptic")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(files(tmp_path / "out" / "panoptic")) == COUNT - 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_in_the_middle_the_same_maps_come_out(tmp_path):
    write_pictures(tmp_path / "photos", 50)
    command = [sys.executable, "-m", "tests.inference.stand_in", str(tmp_path / "photos"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "0.04", "coco-panoptic"], env=environment, cwd=ROOT)
    until = time.monotonic() + 60
    while time.monotonic() < until and sum(map(len, files(tmp_path / "out").values())) < 5_000:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "panoptic.json").exists()
    detector = StandIn(task="panoptic")
    run = predict(detector, tmp_path / "photos", tmp_path / "out", shard_size=37, format="coco-panoptic")
    assert run.complete and 0 < detector.seen < 50
    predict(StandIn(task="panoptic"), tmp_path / "photos", tmp_path / "whole", shard_size=37, format="coco-panoptic")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
