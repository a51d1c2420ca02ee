"""`coco_instances.json`: the boxes that were found, whoever reads them, and through other tools' formats and back."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_hf import load_detection_dataset
from detr_hf.inference.results import Detections
from detr_hf.inference.runs.prediction import read_predictions

from ..stand_in import StandIn
from .test_prediction import predict

COUNT = 6


class Finder(StandIn):
    """Finds a box of odd fractions in each picture, another of no area, and in the last one nothing."""

    id2label = {0: "cat", 1: "N/A", 2: "hot dog"}  # noqa: RUF012

    def detect(self, batch):
        for found in super().detect(batch):
            height, width = found.size_hw
            at = found.scores[0] * 7
            boxes = [[at, at / 3, width - at / 2, height - 0.25], [width, 3, width, 9]]
            masks = None
            if found.segmentations:
                masks = [found.segmentations[0], {"size": [height, width], "counts": [height * width]}]
            kept = slice(0, 0 if found.path.stem == "5" else 2)
            given = {"size_hw": found.size_hw, "path": found.path, "segmentations": masks}
            yield Detections(boxes, [0.9, 0.8], [2, 0], ["hot dog", "cat"], **given)[kept]


@pytest.fixture(scope="module", params=["detection", "instance"])
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "photos" / "sub").mkdir(parents=True)
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / ("sub" if number % 2 else "") / f"{number}.png")
    (folder / "photos" / "broken.png").write_bytes(b"")
    predict(Finder(task=request.param), folder / "photos", folder / "out", format="coco", model="finder")
    return folder


def boxes(images: list, annotations: list) -> dict[str, list]:
    """The boxes of each picture by its name without folders and ending."""
    found = {Path(image["file_name"]).stem: [] for image in images}
    name_of = {image["id"]: Path(image["file_name"]).stem for image in images}
    for annotation in annotations:
        found[name_of[annotation["image_id"]]].append(annotation["bbox"])
    return found


def test_what_it_says(run):
    written = json.loads((run / "out" / "coco_instances.json").read_text())
    assert [Path(image["file_name"]).as_posix() for image in written["images"]] == [
        *("0.png", "2.png", "4.png"),
        *("sub/1.png", "sub/3.png", "sub/5.png"),
    ]
    assert written["info"]["image_root"] == str(run / "photos") and "finder" in written["info"]["description"]
    assert written["categories"] == [{"id": 0, "name": "cat"}, {"id": 2, "name": "hot dog"}]
    records = {Path(record["picture"]).stem: record for record in read_predictions(run / "out")}
    expected = {
        name: [[x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)] for x0, y0, x1, y1 in (record["objects"][0]["box"],)]
        for name, record in records.items()
        if record.get("objects")
    }
    assert boxes(written["images"], written["annotations"]) == expected | {"5": []}
    results = json.loads((run / "out" / "coco_results.json").read_text())
    for one in written["annotations"]:
        assert one["iscrowd"] == 0 and one["score"] == 0.9 and one["category_id"] == 2
        assert {key: one[key] for key in one.keys() - {"id", "area", "iscrowd"}} in results
        if "segmentation" not in one:
            assert one["area"] == pytest.approx(one["bbox"][2] * one["bbox"][3], abs=0.001)
    assert [one["id"] for one in written["annotations"]] == list(range(1, COUNT))


def test_who_reads_it_finds_the_same_boxes(run):
    hotcoco, pycocotools = pytest.importorskip("hotcoco"), pytest.importorskip("pycocotools.coco")
    path = run / "out" / "coco_instances.json"
    written = json.loads(path.read_text())
    expected = boxes(written["images"], written["annotations"])
    for read in (pycocotools.COCO(str(path)), hotcoco.COCO(str(path))):
        assert boxes(read.loadImgs(read.getImgIds()), read.loadAnns(read.getAnnIds())) == expected
        for one in read.loadAnns(read.getAnnIds()):
            if "segmentation" in one:
                assert read.annToMask(one).sum() == one["area"]
    with_masks = "segmentation" in written["annotations"][0]
    data = load_detection_dataset(
        path, image_root=written["info"]["image_root"], task="instance" if with_masks else None
    )
    (split,) = data.splits.values()
    assert data.id2label == {0: "cat", 1: "hot dog"} and len(split) == COUNT
    for row in split:
        (name,) = [name for name in expected if row["width"] == 50 + int(name)]
        np.testing.assert_allclose(np.reshape(row["objects"]["bbox"], (-1, 4)), np.reshape(expected[name], (-1, 4)))


@pytest.mark.parametrize("to", ["cvat", "voc", "yolo"])
def test_through_other_formats_and_back_within_a_pixel(run, to, tmp_path):
    hotcoco = pytest.importorskip("hotcoco")
    path = run / "out" / "coco_instances.json"
    written = json.loads(path.read_text())
    expected = boxes(written["images"], written["annotations"])
    for image in written["images"]:  # as a tool has them that takes no folders
        image["file_name"] = Path(image["file_name"]).name
    (tmp_path / "flat.json").write_text(json.dumps(written))
    for picture in (run / "photos").rglob("[0-9].png"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / picture.name).write_bytes(picture.read_bytes())
    out = tmp_path / ("cvat.xml" if to == "cvat" else to)
    getattr(hotcoco.COCO(str(tmp_path / "flat.json")), f"to_{to}")(str(out))
    pictures = {"images_dir": str(tmp_path / "pictures")} if to == "yolo" else {}
    back = getattr(hotcoco.COCO, f"from_{to}")(str(out), **pictures).dataset
    assert "hot dog" in [category["name"] for category in back["categories"]]
    found = boxes(back["images"], back["annotations"])
    assert found.keys() == expected.keys()
    for name, there in expected.items():
        np.testing.assert_allclose(np.reshape(found[name], (-1, 4)), np.reshape(there, (-1, 4)), atol=1.0)


def test_it_is_added_to_a_complete_run_and_left_whole(run, caplog):
    path = run / "out" / "coco_instances.json"
    before = path.read_bytes()
    path.unlink()
    task = "instance" if b'"segmentation"' in before else "detection"
    predict(Finder(task=task), run / "photos", run / "out", format="coco", model="finder")
    assert path.read_bytes() == before
    assert "without 1 pictures that could not be read" in caplog.text and "5 boxes without area" in caplog.text
