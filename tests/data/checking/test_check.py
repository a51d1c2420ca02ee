"""Broken data sets are made here, each with one fault; `check` names and places it, and finds nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.check import check
from detr_hf.errors import AnnotationError, LayoutError

from .. import layouts

SHARED = Path(os.environ.get("DETR_HF_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
Content = dict[str, Any]


def annotation(**changes: Any) -> Callable[[Path], None]:
    """Breaks a key of train annotation 2 (image train_0.png); the value `KeyError` removes the key."""

    def change(root: Path) -> None:
        def edit(content: Content) -> None:
            for key, value in changes.items():
                if value is KeyError:
                    del content["annotations"][1][key]
                else:
                    content["annotations"][1][key] = value

        edit_json(root, edit)

    return change


def edit_json(root: Path, edit: Callable[[Content], None], name: str = "annotations_train.json") -> None:
    content = layouts.read_json(root / name)
    edit(content)
    layouts.write_json(root / name, content)


def edited(edit: Callable[[Content], None], name: str = "annotations_train.json") -> Callable[[Path], None]:
    return lambda root: edit_json(root, edit, name)


def cut_picture(root: Path) -> None:
    path = root / "train" / "train_0.png"
    path.write_bytes(path.read_bytes()[:-200])


def cut_jpeg(root: Path) -> None:
    path = root / "train" / "train_0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    edit_json(root, lambda content: content["images"][0].update(file_name="train_0.jpg"))


def turned(recorded_turned: bool) -> Callable[[Path], None]:
    """A picture stored with EXIF orientation 6, annotated as stored or as turned."""

    def change(root: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = layouts.draw("train", 0)
        if recorded_turned:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        picture.save(root / "train" / "train_0.png", exif=exif)

    return change


def as_corners(content: Content) -> None:
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x, y, x + w, y + h]


def as_fractions(content: Content) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for item in content["annotations"]:
        width, height = sizes[item["image_id"]]
        x, y, w, h = item["bbox"]
        item["bbox"] = [x / width, y / height, w / width, h / height]


def repeat_annotation_id(content: Content) -> None:
    content["annotations"][2]["id"] = content["annotations"][1]["id"]


def repeat_object(content: Content) -> None:
    content["annotations"].append(content["annotations"][1] | {"id": 99})


def repeat_image_id(content: Content) -> None:
    content["images"].append(content["images"][0] | {"file_name": "train_1.png"})


def copy_picture(target: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / "train" / "train_0.png", root / target)


def copy_into_validation(root: Path) -> None:
    shutil.copy(root / "train" / "train_0.png", root / "val" / "val_0.png")
    edit_json(root, lambda content: content["images"][0].update(width=64, height=48), "annotations_val.json")
    edit_json(root, lambda content: content["annotations"][0].update(bbox=[10, 10, 40, 30]), "annotations_val.json")


def copy_within_split(root: Path) -> None:
    shutil.copy(root / "train" / "train_0.png", root / "train" / "train_1.png")
    edit_json(root, lambda content: content["images"][1].update(width=64, height=48))
    edit_json(root, lambda content: content["annotations"][2].update(bbox=[8, 8, 16, 30]))


def drop_class_from_training(content: Content) -> None:
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] != 9]


def rename_category(content: Content) -> None:
    content["categories"][0]["name"] = "lion"


def same_names(root: Path) -> None:
    for split in layouts.SCENES:
        edit_json(root, lambda content: content["categories"][1].update(name="cat"), f"annotations_{split}.json")


def no_categories(root: Path) -> None:
    for split in layouts.SCENES:
        edit_json(root, lambda content: content.update(categories=[]), f"annotations_{split}.json")


def no_objects(content: Content) -> None:
    content["annotations"] = []


NAN, INF = float("nan"), float("inf")
# Name of the broken set: (what breaks it, code, severity, what the finding must name).
BROKEN: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "box with NaN": (annotation(bbox=[1, 2, NAN, 4]), "box-nan", "error", "annotation 2"),
    "box with infinity": (annotation(bbox=[1, INF, 3, 4]), "box-infinite", "error", "annotation 2"),
    "negative width": (annotation(bbox=[30, 20, -3, 4]), "box-negative", "error", "annotation 2"),
    "box without area": (annotation(bbox=[30, 20, 0, 4]), "box-empty", "warning", "annotation 2"),
    "box outside": (annotation(bbox=[70, 20, 5, 4]), "box-outside", "warning", "annotation 2"),
    "box partly outside": (annotation(bbox=[50, 20, 40, 4]), "box-cut", "warning", "annotation 2"),
    "box of three numbers": (annotation(bbox=[1, 2, 3]), "box-malformed", "error", "annotation 2"),
    "box of texts": (annotation(bbox=["1", "2", "3", "x"]), "box-malformed", "error", "annotation 2"),
    "no box": (annotation(bbox=KeyError), "box-missing", "error", "annotation 2"),
    "boxes as corners": (edited(as_corners), "boxes-look-xyxy", "error", "train"),
    "boxes as fractions": (edited(as_fractions), "boxes-look-normalised", "error", "train"),
    "unknown category": (annotation(category_id=4), "category-unknown", "error", "annotation 2"),
    "category as float": (annotation(category_id=5.5), "category-malformed", "error", "annotation 2"),
    "no category": (annotation(category_id=KeyError), "category-missing", "error", "annotation 2"),
    "no categories at all": (no_categories, "categories-missing", "error", "id2label"),
    "two categories of one name": (same_names, "category-name-duplicate", "error", "cat"),
    "splits disagree on a category": (
        edited(rename_category, "annotations_val.json"),
        "category-conflict",
        "error",
        "lion",
    ),
    "annotation id twice": (edited(repeat_annotation_id), "annotation-id-duplicate", "warning", "annotation 2"),
    "object twice": (edited(repeat_object), "object-duplicate", "warning", "annotation 99"),
    "image id twice": (edited(repeat_image_id), "image-id-duplicate", "error", "train_1.png"),
    "annotation of no image": (annotation(image_id=7), "image-unknown", "error", "annotation 2"),
    "picture missing": (
        lambda root: (root / "train" / "train_0.png").unlink(),
        "image-missing",
        "error",
        "train_0.png",
    ),
    "picture cut": (cut_picture, "image-unreadable", "error", "train_0.png"),
    "JPEG cut": (cut_jpeg, "image-unreadable", "error", "train_0.jpg"),
    "picture empty": (
        lambda root: (root / "train" / "train_0.png").write_bytes(b""),
        "image-unreadable",
        "error",
        "train_0.png",
    ),
    "picture of another size": (copy_picture("train/train_1.png"), "image-size-mismatch", "error", "train_1.png"),
    "EXIF not followed": (turned(False), "exif-ignored", "warning", "train_0.png"),
    "same picture in both splits": (copy_into_validation, "image-in-two-splits", "warning", "val_0.png"),
    "same picture twice": (copy_within_split, "image-duplicate", "warning", "train_1.png"),
    "file name climbs out": (
        edited(lambda content: content["images"][0].update(file_name="../x.png")),
        "file-name-unsafe",
        "error",
        "../x.png",
    ),
    "polygon of NaN": (annotation(segmentation=[[1, 2, NAN, 4, 5, 6]]), "mask-malformed", "error", "annotation 2"),
    "polygon of odd count": (
        annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "mask-malformed",
        "error",
        "annotation 2",
    ),
    "run length of another size": (
        annotation(segmentation={"size": [9, 9], "counts": [81]}),
        "mask-malformed",
        "error",
        "annotation 2",
    ),
    "run length of garbage": (
        annotation(segmentation={"size": [48, 64], "counts": "zzzz"}),
        "mask-malformed",
        "error",
        "annotation 2",
    ),
    "mask without a pixel": (
        annotation(segmentation={"size": [48, 64], "counts": [48 * 64]}),
        "mask-empty",
        "warning",
        "has no pixel",
    ),
    "mask outside": (
        annotation(segmentation=[layouts.polygon(70, 20, 9, 9)]),
        "mask-empty",
        "warning",
        "lies outside",
    ),
    "mask partly outside": (
        annotation(segmentation=[layouts.polygon(30, 20, 40, 24)], bbox=[30, 20, 34, 24]),
        "mask-cut",
        "warning",
        "reaches 6 pixels out",
    ),
    "mask of another place": (
        annotation(segmentation=[layouts.polygon(24, 20, 30, 24)]),
        "mask-box-differs",
        "warning",
        "annotation 2: box and mask differ by 6 pixels",
    ),
    "polygon that winds for ever": (
        annotation(segmentation=[[0, 0, 5e5, 5e5, 0, 5e5] * 50]),
        "mask-malformed",
        "error",
        "outline",
    ),
    "class only in validation": (edited(drop_class_from_training), "class-not-in-training", "warning", "owl"),
    "no objects": (edited(no_objects, "annotations_val.json"), "no-objects", "error", "val"),
    "size is no size": (
        edited(lambda content: content["images"][0].update(width="wide")),
        "image-size-malformed",
        "error",
        "train_0.png",
    ),
    "JSON cut": (
        lambda root: (root / "annotations_train.json").write_text('{"images": [{"id": 1'),
        "layout",
        "error",
        "annotations_train.json",
    ),
}
# What else follows from the fault itself.
FOLLOWS = {
    "file name climbs out": {"image-unknown"},
    "picture of another size": {"image-duplicate"},
    "box partly outside": {"mask-box-differs"},
    "same picture twice": {"mask-box-differs"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_found_and_named(name: str, tmp_path: Path):
    breaks, code, severity, named = BROKEN[name]
    root = layouts.write_coco(tmp_path)
    breaks(root)
    report = check(root)
    found = [finding for finding in report.findings if finding.code == code]
    assert found, report.text()
    assert found[0].severity == severity
    assert any(named in str(finding) for finding in found), [str(finding) for finding in found]
    others = {finding.code for finding in report.findings if finding.severity != "info"} - {code}
    assert others == FOLLOWS.get(name, set())
    assert report.exit_code() == (severity == "error")
    assert report.exit_code(strict=True) == 1
    assert code in report.text() and named in report.text()


def test_there_are_enough_broken_sets():
    assert len(BROKEN) >= 25 and len({code for _, code, _, _ in BROKEN.values()}) >= 25


@pytest.mark.parametrize(
    "name", [name for name, (_, code, severity, _) in BROKEN.items() if severity == "error" and code[:5] != "image"]
)
def test_loading_refuses_what_check_calls_an_error(name: str, tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    BROKEN[name][0](root)
    if name in ("no objects", "JSON cut"):
        return
    with pytest.raises(AnnotationError) as raised:
        load_detection_dataset(root)
    assert BROKEN[name][1] in str(raised.value)


@pytest.mark.parametrize(
    "write", [layouts.write_coco, layouts.write_yolo, layouts.write_voc, layouts.write_hf, layouts.write_panoptic]
)
def test_a_sound_set_has_no_finding(write: Callable[[Path], Path], tmp_path: Path):
    root = write(tmp_path / "data")
    report = check(root)
    assert report.ok and report.errors == report.warnings == {}, report.text()
    assert report.exit_code(strict=True) == 0
    again = check(load_detection_dataset(root))
    assert again.errors == again.warnings == {}, again.text()
    assert {name: vars(split) for name, split in again.splits.items()} == {
        name: vars(split) for name, split in report.splits.items()
    }


def test_exif_that_the_annotations_follow_is_a_note(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    turned(True)(root)
    report = check(root)
    assert report.counts["exif-turned"] == 1 and report.ok and not report.warnings


def test_more_objects_than_queries(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    report = check(root, num_queries=2)
    assert report.warnings == {"more-objects-than-queries": 1}
    assert "train_3.png" in str(report.findings[-1]) or "train_3.png" in report.text()
    assert check(root, num_queries=3).warnings == {}

    class Config:
        num_queries = 1

    assert check(root, Config()).counts["more-objects-than-queries"] == 3


def test_small_objects_against_the_stride(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    small = check(root, size=(50, 80))
    assert small.counts["objects-small"] == 2 and "32-pixel" in small.text()
    assert "objects-small" not in check(root).counts


def test_panoptic_faults(tmp_path: Path):
    root = layouts.write_panoptic(tmp_path)
    content = layouts.read_json(root / "panoptic_train.json")
    content["annotations"][0]["segments_info"][1]["id"] = 4321
    layouts.write_json(root / "panoptic_train.json", content)
    Image.new("RGB", (10, 10)).save(root / "panoptic_train" / "train_1.png")
    (root / "panoptic_train" / "train_2.png").unlink()
    counts = check(root).counts
    assert counts["segment-absent"] == counts["segment-unlisted"] == 1
    assert counts["panoptic-size-mismatch"] == counts["panoptic-missing"] == 1


def test_segments_that_training_would_suffer_from(tmp_path: Path):
    """Stuff twice, a crowd apart; a box elsewhere; a picture that is grey; a class of which nothing is told."""
    root = layouts.write_panoptic(tmp_path)

    def change(content: Content) -> None:
        first, second, third, fourth = (item["segments_info"] for item in content["annotations"])
        first[1]["category_id"] = 20
        second[1] |= {"category_id": 20, "iscrowd": 1}
        third[0]["bbox"] = [0, 0, 50, 60]
        fourth[0]["bbox"] = [0, 0, 78, 50]
        content["categories"] += [{"id": 30, "name": "sky"}]

    edit_json(root, change, "panoptic_train.json")
    report = check(root)
    assert {code: count for code, count in report.counts.items() if code in report.warnings} == {
        "stuff-repeated": 1,
        "objects-crowd": 1,
        "mask-box-differs": 1,
    }
    assert "train_0.png, annotation 1000: 'ground' is stuff" in report.text()
    assert "train_2.png, annotation 7: box and mask differ by 10 pixels" in report.text()
    assert "isthing of category 30 (sky) is missing, expected 1 for a thing or 0 for stuff: taken as" in report.text()
    Image.new("L", (64, 48)).save(root / "panoptic_train" / "train_0.png")
    assert "has mode 'L'" in check(root).text()


def test_yolo_faults(tmp_path: Path):
    root = layouts.write_yolo(tmp_path)
    lines = "0 0.5 0.5 0.2\n0 12 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\nx 0.5 0.5 0.2 0.2\n0 0.5 0.5 nan 0.2\n"
    (root / "labels" / "train" / "train_2.txt").write_text(lines)
    report = check(root)
    assert report.errors == {"label-malformed": 2, "box-not-normalised": 1, "category-unknown": 1, "box-nan": 1}
    assert "line 2 of train_2.txt" in report.text()


def test_check_writes_json_and_exit_codes(tmp_path: Path):
    from detr_hf.cli.main import app

    root = layouts.write_coco(tmp_path / "data")
    run = CliRunner().invoke
    assert run(app, ["check", str(root), "--strict"]).exit_code == 0
    annotation(bbox=[30, 20, 0, 4])(root)
    assert run(app, ["check", str(root)]).exit_code == 0
    assert run(app, ["check", str(root), "--strict"]).exit_code == 1
    annotation(bbox=[30, 20, NAN, 4])(root)
    report_file = tmp_path / "out" / "report.json"
    result = run(app, ["check", str(root), "--json", str(report_file)])
    assert result.exit_code == 1 and "box-nan (1)" in result.output and "annotation 2" in result.output
    report = json.loads(report_file.read_text())
    assert report["counts"]["error"] == {"box-nan": 1} and not report["ok"]
    assert report["category_mapping"][0] == {"source_id": 3, "id": 0}
    finding = next(item for item in report["findings"] if item["code"] == "box-nan")
    assert (finding["split"], finding["file_name"], finding["annotation_id"]) == ("train", "train_0.png", 2)
    assert run(app, ["check", str(tmp_path / "out")]).exit_code == 1


def test_streams_are_not_checked():
    stream = load_detection_dataset(layouts.hf_splits()["train"].to_iterable_dataset())
    with pytest.raises(LayoutError, match="without streaming"):
        check(stream)


@pytest.mark.parametrize("name", ["bccd", "cards", "coco128"])
def test_shared_sets_have_no_errors(name: str):
    if not (SHARED / name).is_dir():
        pytest.skip("the shared data sets are not here")
    report = check(SHARED / name)
    assert report.errors == report.warnings == {}, report.text()
