"""Nothing to learn from is told before training: no objects, no pictures, crowds in the place of objects."""

from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import AnnotationError

from ...bad_inputs.kinds import coco, edit, rows, voc, yolo

NAMES = [f"{number:02d}.png" for number in range(20)]


@pytest.mark.parametrize(
    ("crowds", "classes", "severity"),
    [(0, 1, None), (1, 1, "info"), (2, 1, "warning"), (1, 20, "warning"), (20, 1, "warning")],
)
def test_crowds_are_counted_and_many_are_a_warning(crowds: int, classes: int, severity: str | None, tmp_path: Path):
    """Many of all objects, or most of one class."""

    def change(content):
        content["categories"] = [{"id": number, "name": f"c{number}"} for number in range(classes)]
        for number, annotation in enumerate(content["annotations"]):
            annotation.update(iscrowd=int(number < crowds), category_id=number % classes)

    edit(coco(tmp_path, names=NAMES), change)
    report = check(tmp_path)
    assert report.log.severities.get("objects-crowd") == severity
    if severity:
        assert f"{crowds} of 20 objects are marked as crowds" in report.text()
    if crowds != 20:
        loaded = check(load_detection_dataset(tmp_path))
        assert loaded.counts.get("objects-crowd") == report.counts.get("objects-crowd")  # told when it was read, too
    if crowds == 20:
        assert "no-objects" in report.errors
    if classes == 20:
        assert "most of c0" in report.text()


@pytest.mark.parametrize(("split", "errors"), [("val", {"no-objects": 1}), ("test", {})])
def test_a_split_without_objects(split: str, errors: dict[str, int], tmp_path: Path):
    """A test split often comes without labels; any other is an error that names a way to read the rest."""
    yolo(tmp_path, ("train", split))
    for path in (tmp_path / "labels" / split).iterdir():
        path.unlink()
    report = check(tmp_path)
    assert report.errors == errors and str(Path("labels") / split) in report.text()
    assert report.warnings == ({} if errors else {"no-objects-in-test": 1})
    if errors:
        with pytest.raises(AnnotationError, match=r"splits=\['train'\]"):
            load_detection_dataset(tmp_path)
        assert list(load_detection_dataset(tmp_path, ["train"])) == ["train"]
    else:
        assert len(load_detection_dataset(tmp_path)["test"]) == 2


@pytest.mark.parametrize("format", ["coco", "voc", "rows"])
def test_no_object_at_all_is_refused_and_says_where_it_looked(format: str, tmp_path: Path):
    data, place = tmp_path, {"coco": "instances_train.json", "voc": "Annotations", "rows": ""}[format]
    if format == "coco":
        edit(coco(tmp_path), lambda content: content.update(annotations=[]))
    elif format == "voc":
        voc(tmp_path, ("train",))
        for path in (tmp_path / "Annotations").iterdir():
            path.write_text(path.read_text().split("<object>")[0] + "</annotation>")
    else:
        data = rows(tmp_path, objects=[{"bbox": [], "category": []}] * 2)
    with pytest.raises(AnnotationError, match="no image of the split has an object") as raised:
        load_detection_dataset(data)
    assert place in str(raised.value)
    assert check(data).errors == {"no-objects": 1}
