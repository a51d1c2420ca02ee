"""Class names of YOLO: as they stand in data.yaml or a file beside it; files that disagree are refused."""

from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import AnnotationError, LayoutError

from ..layouts import fill
from .test_exports_yolo import PICTURE

FILES = {"train/images/a.jpg": PICTURE, "train/labels/a.txt": "0 0.3 0.4 0.4 0.5\n"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[no, off, 010, 1e3, 2024-01-01, null]", {0: "no", 1: "off", 2: "010", 3: "1e3", 4: "2024-01-01", 5: "null"}),
        ("\n  - 'yes'\n  - ' dog '\n", {0: "yes", 1: "dog"}),
        ("{0: cat, 1: dog}\nnc: 2", {0: "cat", 1: "dog"}),
        ("{'0': cat, \"1\": dog}\nnc: '2'", {0: "cat", 1: "dog"}),
        ("{0.0: cat, 1.0: dog}\nnc: 2.0", {0: "cat", 1: "dog"}),
        ("{0: cat, 2: dog}\nnc: 3", {0: "cat", 2: "dog"}),
    ],
)
def test_names_of_data_yaml(names: str, expected: dict[int, str], tmp_path: Path):
    fill(tmp_path, {**FILES, "data.yaml": f"train: train/images\nnames: {names}\n"})
    data = load_detection_dataset(tmp_path)
    assert dict(zip(data.source_category_ids, data.id2label.values(), strict=True)) == expected


@pytest.mark.parametrize(
    "names", ["cat", "[[cat]]", "[cat, {dog: 1}]", "{cat: 0}", "{-1: cat}", "{0.5: cat}", "['', cat]"]
)
def test_names_that_cannot_be_meant_are_refused(names: str, tmp_path: Path):
    fill(tmp_path, {**FILES, "data.yaml": f"train: train/images\nnames: {names}\n"})
    with pytest.raises(LayoutError, match=r"names is .*, expected a list of class names"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"data.yaml": "train: train/images\nnc: 3\nnames: [cat, dog]\n"},
        {"data.yaml": "train: train/images\nnc: '3'\n", "classes.txt": "cat\ndog\n"},
        {"obj.data": "classes=3\ntrain=train/images\nnames=obj.names\n", "obj.names": "cat\ndog\n"},
    ],
)
def test_another_number_of_classes_than_names_is_refused(files: dict[str, str], tmp_path: Path):
    fill(tmp_path, {**FILES, **files})
    with pytest.raises(LayoutError, match="nc is 3 and there are 2 names"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "../lost"])
def test_obj_data_does_not_name_a_file_outside(name: str, tmp_path: Path):
    fill(tmp_path, {"secret": "a\nb\n"})
    fill(tmp_path / "d", {**FILES, "obj.data": f"classes=2\ntrain=train/images\nnames={name}\n"})
    with pytest.raises(LayoutError, match="which is not below"):
        load_detection_dataset(tmp_path / "d")


@pytest.mark.parametrize("names", ["[cat, dog, cat]", "['caf\u00e9', 'cafe\u0301']"])
def test_a_name_of_two_classes_is_refused(names: str, tmp_path: Path):
    fill(tmp_path, {**FILES, "data.yaml": f"train: train/images\nnames: {names}\n"})
    with pytest.raises(AnnotationError, match="category-name-duplicate"):
        load_detection_dataset(tmp_path)
    assert load_detection_dataset(tmp_path, id2label={0: "a", 1: "b", 2: "c"}).id2label[1] == "b"


@pytest.mark.parametrize("place", ["", "train/", "train/labels/", "train/images/"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "\ufeffcat\r\n\r\nbig dog\r\n\r\n"),
        ("obj.names", "cat\n\nbig dog"),
        ("_darknet.labels", "cat\n\nbig dog\n"),
        ("notes.json", '{"categories": [{"id": 2, "name": "big dog"}, {"id": 0, "name": "cat"}]}'),
    ],
)
def test_names_of_a_file(name: str, content: str, place: str, tmp_path: Path):
    fill(tmp_path, {**FILES, place + name: content})
    assert load_detection_dataset(tmp_path).source_category_ids == [0, 2]  # an empty line is a number too


def test_files_that_disagree_are_refused_and_a_shorter_one_is_not(tmp_path: Path):
    fill(tmp_path, {**FILES, "classes.txt": "cat\ndog\n", "train/labels/classes.txt": "cat\n"})
    assert len(load_detection_dataset(tmp_path).id2label) == 2
    fill(tmp_path, {"train/labels/classes.txt": "dog\n"})
    with pytest.raises(LayoutError, match="class 0 is 'cat' in the one and 'dog' in the other"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "cp1251"])
def test_another_code_page_is_an_error_only_where_the_names_are_needed(encoding: str, tmp_path: Path):
    word = {"cp1252": "chêtre", "gbk": "狗", "cp1251": "кот"}[encoding]
    fill(tmp_path, FILES)
    (tmp_path / "classes.txt").write_bytes(f"{word}\n".encode(encoding))
    with pytest.raises(LayoutError, match=r"classes\.txt is not UTF-8"):
        load_detection_dataset(tmp_path)
    fill(tmp_path, {"data.yaml": f"train: train/images\nnames: [{word}]\n"})
    assert load_detection_dataset(tmp_path).id2label == {0: word}
    (tmp_path / "data.yaml").write_bytes(f"train: train/images\nnames: [{word}]\n".encode(encoding))
    assert "data.yaml is not UTF-8" in check(tmp_path).text()
