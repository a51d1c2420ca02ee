"""Pascal VOC as labelling tools write it: what is read of each export, and what is said about it."""

from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import AnnotationError, LayoutError

from ..layouts import fill

BOX = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


def xml(filename: str = "", objects: str = CAT, size: tuple[int, int] | None = (96, 64)) -> str:
    width, height = size or (0, 0)
    sized = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>f</folder><filename>{filename}</filename>{sized}{objects}</annotation>"


PICTURE = (96, 64)
# Tool: its files, the pictures read by split, and the codes of what `check` says.
EXPORTS: dict[str, tuple[dict[str, str | tuple[int, int]], dict[str, int], set[str]]] = {
    "CVAT 'Pascal VOC 1.1'": (
        {
            "Annotations/a.xml": xml("a.jpg"),
            "JPEGImages/a.jpg": PICTURE,
            "ImageSets/Main/default.txt": "a\n",
            "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:::\ncat:::\n",
        },
        {"default": 1},
        set(),
    ),
    "CVAT, a task with subsets and folders": (
        {
            "Annotations/day/a b.xml": xml("day/a b.jpg"),
            "JPEGImages/day/a b.jpg": PICTURE,
            "Annotations/night/a b.xml": xml("night/a b.jpg"),
            "JPEGImages/night/a b.jpg": PICTURE,
            "ImageSets/Main/Train.txt": "day/a b\n",
            "ImageSets/Main/Validation.txt": "night/a b\n",
        },
        {"Train": 1, "Validation": 1},
        set(),
    ),
    "Roboflow 'Pascal VOC'": (
        {
            "train/a_jpg.rf.0a.jpg": PICTURE,
            "train/a_jpg.rf.0a.xml": xml("a_jpg.rf.0a.jpg", CAT.replace("<bndbox>", "<pose>x</pose><bndbox>")),
            "valid/b_jpg.rf.0b.jpg": PICTURE,
            "valid/b_jpg.rf.0b.xml": xml("b_jpg.rf.0b.jpg"),
            "README.roboflow.txt": "x",
        },
        {"train": 1, "valid": 1},
        set(),
    ),
    "labelImg, XML beside the pictures": (
        {"a.JPG": PICTURE, "a.xml": xml("a.JPG"), "._a.JPG": "x", "._a.xml": "x"},
        {"train": 1},
        set(),
    ),
    "labelImg after the pictures were renamed and converted": (
        {"images/new.jpg": PICTURE, "annotations/new.xml": xml("old.png")},
        {"train": 1},
        {"filename-stale"},
    ),
    "makesense 'VOC XML', unpacked beside the pictures' folder": (
        {"images/a.jpeg": PICTURE, "labels/a.xml": xml("a.jpeg")},
        {"train": 1},
        set(),
    ),
    "Label Studio 'Pascal VOC XML'": (
        {"images/0a1b-a.jpg": PICTURE, "Annotations/0a1b-a.xml": xml("0a1b-a")},
        {"train": 1},
        {"filename-stale"},
    ),
    "VoTT 'Pascal VOC'": (
        {
            "Annotations/a.xml": xml("a.jpg"),
            "Annotations/b.xml": xml("b.jpg"),
            "JPEGImages/a.jpg": PICTURE,
            "JPEGImages/b.jpg": PICTURE,
            "ImageSets/Main/cat_train.txt": "a.jpg  1\n",
            "ImageSets/Main/cat_val.txt": "b.jpg -1\n",
            "pascal_label_map.pbtxt": "item { id: 1 name: 'cat' }",
        },
        {"train": 1, "val": 1},
        set(),
    ),
    "FiftyOne 'VOCDetectionDataset'": (
        {"data/a.jpg": PICTURE, "labels/a.xml": xml("a.jpg")},
        {"train": 1},
        set(),
    ),
    "VOC2007 with trainval and test": (
        {
            **{f"VOCdevkit/VOC2007/JPEGImages/00000{i}.jpg": PICTURE for i in (1, 2, 3)},
            **{f"VOCdevkit/VOC2007/Annotations/00000{i}.xml": xml(f"00000{i}.jpg") for i in (1, 2)},
            "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": "000001\n",
            "VOCdevkit/VOC2007/ImageSets/Main/test.txt": "000002\n",
            "VOCdevkit/VOC2007/ImageSets/Main/cat_trainval.txt": "000001  1\n",
        },
        {"test": 1, "trainval": 1},
        {"image-unlisted"},
    ),
    "Kaggle, split folders below": (
        {
            **{f"images/{split}/a.jpg": PICTURE for split in ("train", "val")},
            **{f"annotations/{split}/a.xml": xml("a.jpg") for split in ("train", "val")},
        },
        {"train": 1, "val": 1},
        set(),
    ),
    "Kaggle, split folders above": (
        {
            **{f"{split}/images/a.jpg": PICTURE for split in ("train", "test")},
            **{f"{split}/annots/a.xml": xml("a.jpg") for split in ("train", "test")},
        },
        {"train": 1, "test": 1},
        set(),
    ),
    "a list that names files with endings and folders": (
        {
            "Annotations/a.xml": xml("a.jpg"),
            "JPEGImages/a.jpg": PICTURE,
            "ImageSets/Main/my_train.txt": "VOC2012/JPEGImages/a.jpg\n",
        },
        {"my_train": 1},
        set(),
    ),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_is_read_as_the_tool_makes_it(tool: str, tmp_path: Path):
    files, expected, said = EXPORTS[tool]
    data = load_detection_dataset(fill(tmp_path, files))
    assert {name: len(rows) for name, rows in data.items()} == expected
    assert list(data.id2label.values()) == ["cat"]
    first = data[next(iter(sorted(expected, reverse=True)))][0]["objects"]
    assert first["bbox"] == ([[10.0, 10.0, 40.0, 30.0]] if first["bbox"] else [])
    report = check(tmp_path)
    ordinary = {"image-duplicate", "class-few-objects", "split-few-images"}
    assert report.ok and set(report.counts) - ordinary == said, report.text()


OTHER_XML = {
    "CVAT for images": ('<annotations><image id="0" name="a.jpg"><box label="cat"/></image></annotations>', "CVAT"),
    "dlib": ("<?xml version='1.0'?><dataset><images><image file='a.jpg'/></images></dataset>", "dlib"),
    "a playlist": ("<!-- x --><playlist><track/></playlist>", "<playlist>"),
    "nothing": ("", "no element"),
}


@pytest.mark.parametrize("tool", OTHER_XML)
@pytest.mark.parametrize("place", ["annotations.xml", "Annotations/a.xml"])
def test_xml_of_another_tool_is_told_apart(tool: str, place: str, tmp_path: Path):
    content, word = OTHER_XML[tool]
    fill(tmp_path, {"images/a.jpg": PICTURE, place: content})
    with pytest.raises(LayoutError, match=f"(?s)no data set that is known.*is not VOC: .*{word}"):
        load_detection_dataset(tmp_path)


def test_one_file_of_another_tool_among_vocs_is_named(tmp_path: Path):
    fill(tmp_path, {"a.jpg": PICTURE, "a.xml": xml("a.jpg"), "b.xml": OTHER_XML["CVAT for images"][0]})
    with pytest.raises(AnnotationError, match=r"b\.xml is not VOC: its first element is <annotations>"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        # Both pictures fit: the XML file's own name counts.
        ({"a.jpg": PICTURE, "b.jpg": PICTURE, "a.xml": xml("b.jpg")}, "a.jpg"),
        # The recorded size says that <filename> is right.
        ({"a.jpg": (50, 50), "b.jpg": PICTURE, "a.xml": xml("b.jpg")}, "b.jpg"),
        ({"a.jpg": PICTURE, "a.xml": xml("/home/me/gone.jpg")}, "a.jpg"),
        ({"caf\u00e9.jpg": PICTURE, "cafe\u0301.xml": xml("cafe\u0301.jpg")}, "caf\u00e9.jpg"),
        ({"photo.jpg": PICTURE, "0001.xml": xml("C:\\me\\photo.jpg")}, "photo.jpg"),
    ],
)
def test_the_picture_of_an_xml_file(files: dict, taken: str, tmp_path: Path):
    data = load_detection_dataset(fill(tmp_path, files))
    assert list(data["train"]["file_name"]) == [taken]
    assert (taken == "caf\u00e9.jpg") != bool({"filename-stale", "file-name-repaired"} & set(data.findings.counts))


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.jpg": PICTURE, "1.xml": xml("a.jpg"), "2.xml": xml("a.jpg")}, "file-listed-twice"),
        ({"a.jpg": PICTURE, "1.xml": xml("/x/a.jpg"), "2.xml": xml("/y/a.jpg")}, "file-name-ambiguous"),
        ({"a.jpg": (50, 50), "1.xml": xml("/x/a.jpg")}, "image-size-mismatch"),
        ({"b.jpg": PICTURE, "a.xml": xml("../../etc/passwd")}, "file-name-unsafe"),
        ({"a.jpg": PICTURE, "a.xml": xml("a.jpg", "<object><name>x</name><robndbox/></object>")}, "box-missing"),
    ],
)
def test_what_cannot_be_right_is_refused(files: dict, code: str, tmp_path: Path):
    with pytest.raises(AnnotationError, match=code):
        load_detection_dataset(fill(tmp_path, files))


def test_parts_of_an_object_are_no_objects(tmp_path: Path):
    part = f"<object><name>cat</name>{BOX}<part><name>head</name>{BOX}</part></object>"
    data = load_detection_dataset(fill(tmp_path, {"a.jpg": PICTURE, "a.xml": xml("a.jpg", part)}))
    assert list(data.id2label.values()) == ["cat"] and len(data["train"][0]["objects"]["bbox"]) == 1


def test_what_lists_leave_out_is_counted(tmp_path: Path):
    fill(
        tmp_path,
        {
            **{f"JPEGImages/{name}.jpg": PICTURE for name in "abcd"},
            **{f"Annotations/{name}.xml": xml(f"{name}.jpg") for name in "abc"},
            "ImageSets/Main/train.txt": "a\n",
            "ImageSets/Main/val.txt": "b\n",
            "ImageSets/Main/zzz.txt": "gone\n",
        },
    )
    counts = check(tmp_path).counts
    assert {code: counts[code] for code in ("annotation-unlisted", "image-unlisted", "split-left-out")} == {
        "annotation-unlisted": 1,
        "image-unlisted": 2,
        "split-left-out": 1,
    }
    fill(tmp_path, {"ImageSets/Main/train.txt": "a\ngone\n"})
    with pytest.raises(AnnotationError, match=r"annotation-missing(?s:.)*names 'gone'"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("variants", [("Cat", "cat", "CAT"), ("traffic light", "traffic  light"), ("İ", "i̇")])
def test_class_names_that_are_nearly_one_are_named_with_their_counts(variants: tuple[str, ...], tmp_path: Path):
    files: dict = {}
    for number, name in enumerate(variants):
        files |= {f"{number}.jpg": PICTURE, f"{number}.xml": xml(f"{number}.jpg", CAT.replace("cat", name))}
    data = load_detection_dataset(fill(tmp_path, files))
    found = next(finding for finding in data.findings if finding.code == "class-names-alike")
    assert all(f"{name!r} (1 objects)" in found.message for name in variants)


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path):
    names = {"1": "caf\u00e9", "2": "cafe\u0301"}
    files: dict = {f"{stem}.jpg": PICTURE for stem in names}
    files |= {f"{stem}.xml": xml(f"{stem}.jpg", CAT.replace("cat", name)) for stem, name in names.items()}
    assert list(load_detection_dataset(fill(tmp_path, files)).id2label.values()) == ["caf\u00e9"]


def test_id2label_gives_the_order_of_the_classes_and_refuses_others(tmp_path: Path):
    fill(tmp_path, {"a.jpg": PICTURE, "a.xml": xml("a.jpg")})
    data = load_detection_dataset(tmp_path, id2label={0: "dog", 1: "cat"})
    assert data["train"][0]["objects"]["category"] == [1]
    with pytest.raises(AnnotationError, match="category-unknown"):
        load_detection_dataset(tmp_path, id2label={0: "dog"})
