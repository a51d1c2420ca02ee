"""The table of findings is whole, and `on_fault="drop"` leaves out what it says: made, dropped and checked again."""

import ast
import inspect
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image as Picture, List, Value
from PIL import Image

from detr_hf.data import check, findings, load_detection_dataset
from detr_hf.data.findings import CODES, SEVERITIES, FindingLog
from detr_hf.errors import DataError

from ..bad_inputs import kinds
from ..bad_inputs.kinds import coco, edit, rows, voc, write, yolo
from . import layouts
from .checking.test_check import BROKEN

DATA = Path(inspect.getfile(findings)).parent
CALLS = {"add", "fault", "log", "refuse", "say", "remark", "_add"}
A_CODE = re.compile(r"[a-z]+(-[a-z]+)+")


def codes_in_the_source() -> dict[str, set[str]]:
    """Codes that are given to a log, and the severities beside them in the call."""
    found: dict[str, set[str]] = {}
    for path in DATA.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in CALLS:
                texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                texts = {text for text in texts if isinstance(text, str)}
                for code in texts:
                    if A_CODE.fullmatch(code):
                        found.setdefault(code, set()).update(texts & set(SEVERITIES))
    return found


def test_every_code_is_in_the_table_with_its_severity():
    found = codes_in_the_source()
    assert set(found) - set(CODES) == set(), "add these to findings.CODES"
    for code, severities in found.items():
        for severity in severities:
            assert SEVERITIES.index(severity) >= SEVERITIES.index(CODES[code].severity), code
    text = "".join(path.read_text(encoding="utf-8") for path in DATA.rglob("*.py") if path.name != "findings.py")
    unused = [code for code in CODES if f'"{code}"' not in text and "boxes-look" not in code]
    assert not unused


def coco_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda root: edit(coco(root, names=("a.png", "b.png", "c.png")), change)


def yolo_with(text: str | bytes) -> Callable[[Path], Any]:
    return lambda root: (yolo(root), write(root / "labels/train/a.txt", text))


def voc_with(old: str, new: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        voc(root)
        path = root / "Annotations/train_a.xml"
        path.write_text(path.read_text().replace(old, new))

    return make


def panoptic_with(change: Callable[[Path, dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        layouts.write_panoptic(root)
        edit(root / "panoptic_train.json", lambda content: change(root / "panoptic_train", content))

    return make


def uneven_rows(root: Path) -> Any:
    objects = {"bbox": List(List(Value("float32"))), "category": List(Value("string"))}
    columns = {
        "image": [str(kinds.picture(root / f"{number}.png")) for number in range(2)],
        "objects": [{"bbox": [kinds.BOX], "category": ["cat"]}, {"bbox": [kinds.BOX], "category": ["cat", "dog"]}],
    }
    return Dataset.from_dict(columns, features=Features({"image": Picture(), "objects": objects}))


def pictures_of_rows(root: Path, second: Path | None) -> Any:
    return rows(root, image=[str(kinds.picture(root / "a.png")), second and str(second)])


def same_segment_twice(folder: Path, content: dict[str, Any]) -> None:
    segments = content["annotations"][0]["segments_info"]
    segments.append(segments[1] | {"category_id": 5})


# What makes a code, for those that `test_check.BROKEN` does not make; rows that are returned are loaded.
MADE: dict[str, Callable[[Path], Any]] = {
    "layout": lambda root: write(root / "notes.txt", "nothing"),
    "no-images": coco_with(lambda content: content.update(images=[{"id": 1}], annotations=[{"image_id": 1}])),
    "category-id-duplicate": coco_with(lambda content: content["categories"].append({"id": 2, "name": "owl"})),
    "annotation-malformed": coco_with(lambda content: content["annotations"].append([1])),
    "iscrowd-malformed": coco_with(lambda content: content["annotations"][0].update(iscrowd="no")),
    "image-malformed": coco_with(lambda content: content["images"].append({"file_name": "x.png"})),
    "file-listed-twice": coco_with(lambda content: content["images"].append({**content["images"][0], "id": 9})),
    "box-not-normalised": yolo_with("1 40 30 10 10\n1 0.5 0.5 0.1 0.1\n"),
    "label-malformed": yolo_with("1 0.5 x\n1 0.5 0.5 0.1 0.1\n"),
    "label-file-unreadable": yolo_with(b"1 0.5 0.5 0.1 0.1 \xe9\n"),
    "annotation-missing": lambda root: (voc(root), write(root / "ImageSets/Main/train.txt", "train_a\ngone\n")),
    "file-name-ambiguous": coco_with(
        lambda content: content["images"].append({**content["images"][0], "id": 9, "file_name": "/x/a.png"})
    ),
    "file-name-other-picture": coco_with(
        lambda content: content["images"][0].update(file_name="/x/a.png", width=9, height=9)
    ),
    "label-ambiguous": lambda root: (yolo(root), write(root / "images/train/a.txt", kinds.yolo_line(label=0))),
    "xml-malformed": voc_with("</annotation>", ""),
    "objects-uneven": uneven_rows,
    "image-annotated-twice": panoptic_with(
        lambda folder, content: content["annotations"].append(content["annotations"][0])
    ),
    "segment-id-duplicate": panoptic_with(same_segment_twice),
    "segment-id-zero": panoptic_with(
        lambda folder, content: content["annotations"][0]["segments_info"][0].update(id=0)
    ),
    "isthing-unknown": panoptic_with(lambda folder, content: content["categories"][0].pop("isthing")),
    "mask-missing": lambda root: coco(root),
    "panoptic-missing": panoptic_with(lambda folder, content: (folder / "train_0.png").unlink()),
    "panoptic-unreadable": panoptic_with(lambda folder, content: (folder / "train_0.png").write_bytes(b"x")),
    "panoptic-size-mismatch": panoptic_with(
        lambda folder, content: Image.new("RGB", (9, 9)).save(folder / "train_0.png")
    ),
}
MORE = {
    "a row without an image": ("image-missing", lambda root: pictures_of_rows(root, None)),
    "a row whose image is none": ("image-unreadable", lambda root: pictures_of_rows(root, write(root / "x.png", "x"))),
    "no box in an XML": ("box-missing", voc_with("bndbox", "box")),
    "no name in an XML": ("category-missing", voc_with("<name>dog</name>", "")),
    "no label at all": (
        "no-objects",
        lambda root: (yolo(root), shutil.rmtree(root / "labels")),
    ),
}


OPTIONS: dict[str, dict[str, Any]] = {"mask-missing": {"task": "instance"}}


def cases() -> list[Any]:
    made: dict[str, tuple[str, Callable[[Path], Any]]] = {}
    for name, (breaks, code, severity, _) in BROKEN.items():
        if severity == "error":
            made[name] = (code, lambda root, breaks=breaks: breaks(layouts.write_coco(root)))
    made |= {code: (code, make) for code, make in MADE.items()} | MORE
    return [pytest.param(code, make, id=name) for name, (code, make) in made.items()]


@pytest.mark.parametrize(("code", "make"), cases())
def test_dropping_leaves_out_what_it_says(code: str, make: Callable[[Path], Any], tmp_path: Path):
    source, options = make(tmp_path), OPTIONS.get(code, {})
    source = source if isinstance(source, Dataset) else tmp_path
    found = check(source, **options)
    assert code in found.errors, found.text()
    if CODES[code].left_out is None:
        with pytest.raises(DataError):
            load_detection_dataset(source, on_fault="drop", **options)
        assert not check(source, on_fault="drop", **options).ok
        return
    data = load_detection_dataset(source, on_fault="drop", **options)
    assert data.findings.severities[code] == "warning"
    assert f"left out: the {CODES[code].left_out}" in str(data.findings.kept[code][0])
    again, dropped = check(data), check(source, on_fault="drop", **options)
    assert again.ok and dropped.ok, again.text() + dropped.text()
    assert again.counts[code] == dropped.counts[code] == found.counts[code], "told once"
    assert {name: vars(split) for name, split in again.splits.items()} == {
        name: vars(split) for name, split in dropped.splits.items()
    }


def test_every_error_is_made():
    made = {case.values[0] for case in cases()}
    assert {code for code, (severity, *_) in CODES.items() if severity == "error"} == made


def test_what_is_left_out(tmp_path: Path):
    """A picture goes with its objects; an object alone; of a faulty mask only the mask."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2]]
        content["annotations"][1]["bbox"] = [1, 2, -3, 4]
        content["images"].append({**content["images"][2], "id": 9})

    coco_with(change)(tmp_path)
    data = load_detection_dataset(tmp_path, on_fault="drop")
    objects = [(row["file_name"], row["objects"]["bbox"], row["objects"]["segmentation"]) for row in data["train"]]
    assert objects == [("a.png", [kinds.BOX], [None]), ("b.png", [], []), ("c.png", [kinds.BOX], [None])]
    without = load_detection_dataset(tmp_path, on_fault="drop", masks=False)
    assert "mask-malformed" not in without.findings.counts and without.findings.severities["mask-unused"] == "warning"


def test_pictures_that_cannot_be_decoded_are_left_out(tmp_path: Path):
    """Their size is recorded, so that reading alone does not see it."""
    path = coco(tmp_path).parents[1] / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:-500])
    assert len(load_detection_dataset(tmp_path)["train"]) == 2
    assert load_detection_dataset(tmp_path, on_fault="drop")["train"]["file_name"] == ["b.png"]


def test_findings_are_logged_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    names = [f"{number}.png" for number in range(20)]
    edit(coco(tmp_path, names=names), lambda content: content["annotations"][0].update(iscrowd=1))
    with caplog.at_level(logging.INFO, logger="detr_hf.data"):
        load_detection_dataset(tmp_path)
    assert "objects-crowd (1)" in caplog.text and "1 of 20 objects are marked as crowds" in caplog.text
    assert [record.levelname for record in caplog.records if "objects-crowd" in record.message] == ["INFO"]


def test_a_log_takes_the_worst_severity_and_takes_over_what_is_new():
    log, earlier = FindingLog(), FindingLog()
    log.add("x", "info", "a")
    log.add("x", "error", "b")
    earlier.add("x", "error", "b")
    earlier.add("y", "warning", "c")
    log.take_over(earlier)
    assert log.of("error") == {"x": 2} and log.of("warning") == {"y": 1} and len(list(log)) == 3
