"""COCO JSON, detection and panoptic: everything that the file says arrives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_hf.data import check, load_detection_dataset
from detr_hf.data.readers.mask_text import decode_masks
from detr_hf.errors import AnnotationError, LayoutError

from .. import layouts


def test_columns_of_coco_survive(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    content = layouts.read_json(root / "annotations_train.json")
    runs = [0, 48 * 10, 48 * 54]
    content["annotations"][0] |= {"iscrowd": 1, "area": 480.5, "segmentation": {"size": [48, 64], "counts": runs}}
    layouts.write_json(root / "annotations_train.json", content)
    row = load_detection_dataset(root)["train"][0]
    assert row["image_id"] == 100 and row["file_name"] == "train_0.png"
    assert row["objects"]["id"] == [1, 2]
    assert row["objects"]["iscrowd"] == [1, 0]
    assert row["objects"]["area"] == [480.5, 720.0]
    assert json.loads(row["objects"]["segmentation"][0]) == {"size": [48, 64], "counts": runs}
    assert json.loads(row["objects"]["segmentation"][1]) == content["annotations"][1]["segmentation"]
    assert load_detection_dataset(root, masks=False)["train"][0]["objects"]["segmentation"] == [None, None]


def test_annotations_before_images_read_the_same(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    expected = load_detection_dataset(root)["train"][:]["objects"]
    content = layouts.read_json(root / "annotations_train.json")
    layouts.write_json(
        root / "annotations_train.json",
        {"info": 1, **{key: content[key] for key in ("annotations", "categories", "images")}},
    )
    assert load_detection_dataset(root)["train"][:]["objects"] == expected


def test_panoptic_has_segments_stuff_and_pngs(tmp_path: Path):
    data = load_detection_dataset(layouts.write_panoptic(tmp_path))
    assert data.id2label == {0: "cat", 1: "dog", 2: "owl", 3: "ground"}
    assert data.is_thing == [True, True, True, False]
    row = data["train"][0]
    assert row["objects"]["id"] == [7, 1000, 1001]
    assert row["panoptic"].size == (64, 48)


def edited(root: Path, edit: Callable[[dict[str, Any]], Any], name: str = "annotations_train.json") -> Path:
    """COCO's train split after an edit of its JSON."""
    layouts.write_coco(root)
    content = layouts.read_json(root / name)
    edit(content)
    layouts.write_json(root / name, content)
    return root


def each(key: str, **plain: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """Rewrites fields of every element of a list."""

    def edit(content: dict[str, Any]) -> None:
        for item in content[key]:
            for field, change in plain.items():
                item[field] = change(item.get(field))

    return edit


def both(*edits: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for change in edits:
            change(content)

    return edit


REPAIRED = {"value-repaired": 6}
ODDITIES = {
    "whole floats": (each("annotations", id=float, image_id=float, category_id=float), {"value-repaired": 18}),
    "image ids of the pictures as floats": (each("images", id=float), {}),
    "image ids of the pictures as text": (each("images", id=str), REPAIRED),
    "category ids as floats": (each("categories", id=float), {}),
    "iscrowd 0.0": (each("annotations", iscrowd=float), REPAIRED),
    "image_id as text": (each("annotations", image_id=str), REPAIRED),
    "category_id as text": (each("annotations", category_id=str), REPAIRED),
    "category_id as text with zeros": (each("annotations", category_id="{:04d}".format), REPAIRED),
    "a split's categories' ids as text": (each("categories", id=str), {"category-left-out": 3}),
    "bbox of texts": (each("annotations", bbox=lambda box: [str(value) for value in box]), REPAIRED),
    "bbox as one text": (each("annotations", bbox=str), REPAIRED),
    "bbox as numbers with blanks": (each("annotations", bbox=lambda box: " ".join(map(str, box))), REPAIRED),
    "width and height as text": (each("images", width=str, height=str), {"value-repaired": 4}),
    "iscrowd false": (each("annotations", iscrowd=bool), {}),
    "iscrowd null": (each("annotations", iscrowd=lambda _: None), {}),
    "iscrowd as text": (each("annotations", iscrowd=str), REPAIRED),
    "no area": (lambda content: [item.pop("area") for item in content["annotations"]], {"area-from-box": 6}),
    "area as text": (each("annotations", area=str), REPAIRED),
    "area NaN": (each("annotations", area=lambda _: float("nan")), {"area-from-box": 6}),
    "ids that are none": (each("annotations", id=lambda _: [1]), {"annotation-id-missing": 6}),
    "segmentation {}": (each("annotations", segmentation=lambda _: {}), {}),
    "segmentation null": (each("annotations", segmentation=lambda _: None), {}),
    "size not known": (each("images", width=lambda _: 0, height=lambda _: 0), {"image-size-unknown": 4}),
    "unknown keys": (lambda content: content.update(type="instances", extra=[1], info=None), {}),
    "an entry twice": (
        lambda content: content["images"].append(dict(content["images"][0])),
        {"image-entry-repeated": 1},
    ),
    "a category twice": (lambda content: content["categories"].append(dict(content["categories"][0])), {}),
    "no categories in one split": (lambda content: content.update(categories=[]), {}),
    "categories null": (lambda content: content.update(categories=None), {"value-repaired": 1}),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_has_one_meaning_is_read_and_said(name: str, tmp_path: Path):
    edit, said = ODDITIES[name]
    expected = load_detection_dataset(layouts.write_coco(tmp_path / "sound"))
    data = load_detection_dataset(edited(tmp_path / "odd", edit))
    assert data.id2label == expected.id2label
    for kind in ("train", "validation"):
        assert layouts.objects_of(data, kind) == layouts.objects_of(expected, kind)
        columns = ["width", "height"]
        assert (
            data[data.split_for(kind)]
            .to_pandas()[columns]
            .equals(expected[expected.split_for(kind)].to_pandas()[columns])
        )
    assert [area for row in data["train"] for area in row["objects"]["area"]] == [
        area for row in expected["train"] for area in row["objects"]["area"]
    ]
    assert {code: count for code, count in data.findings.counts.items() if code != "image-unlisted"} == said


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (each("annotations", bbox=lambda box: ["wide", *map(str, box[1:])]), ["box-malformed", "wide"]),
        (each("annotations", category_id=lambda _: True), ["category-malformed", "True (bool)|'True' is a bool"]),
        (each("annotations", image_id=lambda _: 1.5), ["annotation-malformed", "1.5"]),
        (each("annotations", iscrowd=lambda _: "maybe"), ["iscrowd-malformed", "maybe"]),
        (
            both(
                lambda content: content["images"][1].update(id="0100"),
                lambda content: content["annotations"][0].update(image_id="00100"),
            ),
            ["image-unknown", "00100"],
        ),
    ],
)
def test_what_has_no_meaning_or_two_is_refused(edit: Callable, words: list[str], tmp_path: Path):
    with pytest.raises(AnnotationError) as raised:
        load_detection_dataset(edited(tmp_path, edit))
    for word in words:
        assert any(part in str(raised.value) for part in word.split("|")), word


JSON_FAULTS = {
    "comma at the end": ('{"images": [\n{"id": 1},\n], "annotations": []}', ["line 3", "comma"]),
    "comma in an object": ('{"images": [\n  {"id": 1,}\n], "annotations": []}', ["line 2", "comma"]),
    "a Python dict": ("{'images': [], 'annotations': []}", ["line 1", "double quotes", "json.dump"]),
    "cut": ('{"images": [{"id": 1}, {"id', ["cut"]),
    "JSON lines": ('{"images": [], "annotations": []}\n{"images": []}\n', ["line 2", "JSON lines"]),
    "no list": ('{"images": {"1": "a.jpg"}, "annotations": []}', ["'images' is a dict", "list"]),
    "empty": ("", ["line 1"]),
    "nothing in it": ('{"images": [], "annotations": []}', ["images", "empty"]),
    "annotations only": ('{"annotations": [{"id": 1}]}', ["images", "missing"]),
    "a list": ('[{"id": 1}]', ["expected '{'"]),
}


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_json_that_cannot_be_read_says_where_and_why(name: str, tmp_path: Path):
    text, words = JSON_FAULTS[name]
    path = layouts.write_coco(tmp_path) / "annotations_train.json"
    path.write_text(text)
    with pytest.raises(LayoutError) as raised:
        load_detection_dataset(path)
    assert [word for word in ("annotations_train.json", *words) if word not in str(raised.value)] == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_marks_of_the_encoding_are_read(encoding: str, tmp_path: Path):
    root = edited(tmp_path, lambda content: content["categories"][0].update(name="кошка"))
    for path in root.glob("*.json"):
        mark = "\ufeff" if encoding == "utf-16-le" else ""
        path.rename(path.with_name(f"pets_{path.name.partition('_')[2]}"))
        path = path.with_name(f"pets_{path.name.partition('_')[2]}")
        content = layouts.read_json(path)
        content["categories"][0]["name"] = "кошка"
        path.write_bytes((mark + json.dumps(content, ensure_ascii=False)).encode(encoding))
    assert load_detection_dataset(root).id2label[0] == "кошка"


def test_annotations_null_is_an_empty_list_with_a_word(tmp_path: Path):
    root = edited(tmp_path, lambda content: content.update(annotations=None), "annotations_val.json")
    counts = check(root).counts
    assert counts["value-repaired"] == 1 and counts["no-objects"] == 1


def test_pictures_under_another_name_are_compared_with_the_recorded_size(tmp_path: Path):
    def elsewhere(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"/home/me/{image['file_name']}"
        content["images"][1]["width"] = 999
        content["images"][1]["height"] = 999

    log = check(edited(tmp_path, elsewhere)).findings
    assert sum(finding.code == "file-name-repaired" for finding in log) == 4
    (other,) = [finding for finding in log if finding.code == "file-name-other-picture"]
    assert other.image_id == 101 and "999x999" in other.message and "48x64" in other.message
    with pytest.raises(AnnotationError, match="file-name-other-picture"):
        load_detection_dataset(tmp_path)


def test_a_recorded_size_may_be_that_of_the_turned_picture(tmp_path: Path):
    root = edited(tmp_path, lambda content: content["images"][0].update(file_name="/x/train_0.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    layouts.draw("train", 0).transpose(Image.Transpose.ROTATE_90).save(root / "train" / "train_0.png", exif=exif)
    assert check(root).errors == {}


@pytest.mark.parametrize("names", [("/x/train_0.png", "/y/train_0.png"), ("train_0.png", "C:\\y\\train_0.png")])
def test_two_entries_in_one_file_are_refused_both_unless_one_is_exact(names: tuple[str, str], tmp_path: Path):
    def meet(content: dict[str, Any]) -> None:
        for image, name in zip(content["images"][:2], names, strict=True):
            image.update(file_name=name, width=64, height=48)

    log = check(edited(tmp_path, meet)).findings
    refused = {finding.image_id for finding in log if finding.code == "file-name-ambiguous"}
    assert refused == ({100, 101} if names[0].startswith("/") else {101})


def test_names_of_two_splits_that_meet_in_one_file_are_refused(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    for split in layouts.SCENES:
        content = layouts.read_json(root / f"annotations_{split}.json")
        for image in content["images"]:
            image["file_name"] = f"/{split}/{image['file_name']}"
        content["images"][0]["file_name"] = f"/{split}/shared.png"
        content["images"][0] |= {"width": 64, "height": 48}
        layouts.write_json(root / f"annotations_{split}.json", content)
        for path in (root / split).iterdir():
            path.rename(root / path.name)
        (root / split).rmdir()
    layouts.draw("train", 0).save(root / "shared.png")
    log = check(root).findings
    assert [finding.split for finding in log if finding.code == "file-name-ambiguous"] == ["val"]


def test_pictures_that_no_entry_names_are_counted(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    for name in ("x.png", "more/y.JPG", ".hidden.png", "notes.txt"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        layouts.draw("val", 0).save(root / "train" / name, format="PNG")
    log = load_detection_dataset(root).findings
    unlisted = [finding for finding in log if finding.code == "image-unlisted"]
    assert [(finding.split, finding.file_name) for finding in unlisted] == [
        ("train", "more/y.JPG"),
        ("train", "x.png"),
    ]
    assert "image-unlisted" not in load_detection_dataset(root, "val").findings.counts


RUNS = [4 * 48 + 6, *[10, 38] * 19, 10]
RUNS.append(64 * 48 - sum(RUNS))


@pytest.mark.parametrize("size", [[48, 64], [48.0, 64.0]])
@pytest.mark.parametrize("counts", ["list", "text"])
def test_run_lengths_are_read_as_lists_and_as_text(counts: str, size: list, tmp_path: Path):
    from pycocotools import mask

    value = (
        RUNS if counts == "list" else mask.frPyObjects({"size": [48, 64], "counts": RUNS}, 48, 64)["counts"].decode()
    )
    root = edited(
        tmp_path, lambda content: content["annotations"][0].update(segmentation={"size": size, "counts": value})
    )
    masks = decode_masks(load_detection_dataset(root)["train"][0]["objects"]["segmentation"][:1], 48, 64, ["a"])
    assert masks.sum() == 200 and masks[0, 6:16, 4:24].all()


def test_run_lengths_of_swapped_sides_are_refused_as_such(tmp_path: Path):
    swapped = {"size": [64, 48], "counts": RUNS}
    root = edited(tmp_path, lambda content: content["annotations"][0].update(segmentation=swapped))
    with pytest.raises(AnnotationError, match="sides stand the wrong way round"):
        load_detection_dataset(root)
