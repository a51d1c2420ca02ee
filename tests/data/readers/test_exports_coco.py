"""COCO as the tools export it, read without help; `check` has nothing to say but what is listed here."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

WIDTH, HEIGHT = 40, 30
BOX = [4.0, 6.0, 20.0, 10.0]
POLYGON = [4.0, 6.0, 24.0, 6.0, 24.0, 16.0, 4.0, 16.0]
NAMES = ("cat", "dog")


def pictures(folder: Path, names: Iterable[str]) -> None:
    """Writes pictures that all differ."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(str(path).encode())
        noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


def coco(names: Iterable[str], ids: tuple[int, int] = (1, 2), **fields: Any) -> dict[str, Any]:
    """A COCO object: a cat and a dog in each picture; `fields` go into the annotations."""
    images = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(names, 1)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for shift, category in enumerate(ids):
            box = [BOX[0] + shift * 10, *BOX[1:]]
            outline = [value + shift * 10 * (position % 2 == 0) for position, value in enumerate(POLYGON)]
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            annotation |= {"segmentation": [outline], "area": 200.0, "bbox": box, "iscrowd": 0}
            annotations.append(annotation | fields)
    categories = [{"id": key, "name": name, "supercategory": ""} for key, name in zip(ids, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def save(path: Path, content: Any, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(content).encode(encoding))


def cvat(pictures_in: str, subset: str = "default") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        pictures(root / pictures_in, ["a.jpg", "sub/b.jpg"])
        head = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "year": ""}}
        fields = {"attributes": {"occluded": False}}
        save(root / f"annotations/instances_{subset}.json", head | coco(["a.jpg", "sub/b.jpg"], **fields))
        save(root / f"annotations/person_keypoints_{subset}.json", coco(["a.jpg", "sub/b.jpg"], keypoints=[1, 1, 2]))

    return make


def cvat_brush(root: Path) -> None:
    pictures(root / "images" / "default", ["a.jpg", "b.jpg"])
    content = coco(["a.jpg", "b.jpg"])
    runs = [4 * HEIGHT + 6, *([10, 20] * 19), 10, HEIGHT * WIDTH - 4 * HEIGHT - 6 - 19 * 30 - 10]
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": runs, "size": [HEIGHT, WIDTH]}}
    save(root / "annotations/instances_default.json", content)


def cvat_by_split(root: Path) -> None:
    for split in ("train", "val"):
        pictures(root / split / "images", [f"{split}.jpg"])
        save(root / split / "annotations" / "instances_default.json", coco([f"{split}.jpg"]))


def label_studio(listed: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        names = ["4c5f81c7-a.jpg", "9b1f0c2d-b.jpg"]
        pictures(root / "images", names)
        content = coco([listed.format(name) for name in names], ids=(0, 1), ignore=0)
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        save(root / "result.json", content | {"info": {"year": 2024, "contributor": "Label Studio"}})

    return make


def roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        names = [f"{split}_jpg.rf.0a1b2c.jpg"]
        pictures(root / split, names)
        content = coco(names, ids=(1, 2))
        content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
        save(root / split / "_annotations.coco.json", content)
        create_ml = [{"image": names[0], "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 1}}]}]
        save(root / split / "_annotations.createml.json", create_ml)
    (root / "README.roboflow.txt").write_text("pets - v1")


def fiftyone(root: Path) -> None:
    pictures(root / "data", ["a.jpg", "b.jpg"])
    save(root / "labels.json", {"info": {}, "licenses": []} | coco(["a.jpg", "b.jpg"], ids=(0, 1)))


def fiftyone_splits(root: Path) -> None:
    for split in ("train", "validation"):
        pictures(root / split / "data", [f"{split}.jpg"])
        save(root / split / "labels.json", coco([f"{split}.jpg"], ids=(0, 1)))


def makesense(root: Path) -> None:
    pictures(root, ["a.jpg", "b.jpg"])
    content = coco(["a.jpg", "b.jpg"])
    save(root / "labels_my-project-name_2024-05-01-10-20-30.json", {"info": {"description": "my-project"}} | content)


def supervisely(root: Path) -> None:
    for name in ("train", "val"):
        pictures(root / name / "images", [f"{name}.png"])
        save(root / name / "annotations" / "instances.json", coco([f"{name}.png"]))
    save(root / "meta.json", {"classes": [], "tags": []})


def darwin(root: Path) -> None:
    pictures(root / "images", ["site/a.png", "b.png"])
    content = coco(["a.png", "b.png"], ids=(312, 871), extra={"instance_id": None})
    for image in content["images"]:
        image |= {"license": 0, "coco_url": "n/a", "darwin_url": "https://darwin.v7labs.com/x", "tag_ids": []}
    save(root / "output.json", {"info": {}, "licenses": [], "tag_categories": []} | content)


def rectlabel(root: Path) -> None:
    pictures(root, ["a.jpg", "b.jpg"])
    save(root / "annotations.json", coco(["a.jpg", "b.jpg"]))


def datumaro(root: Path) -> None:
    for split in ("train", "val"):
        pictures(root / "images" / split, [f"{split}.jpg"])
        save(root / f"annotations/instances_{split}.json", coco([f"{split}.jpg"]))
        content = coco([f"{split}.jpg"])
        content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1}]
        save(root / f"annotations/labels_{split}.json", content)


def labelme2coco(root: Path) -> None:
    pictures(root / "JPEGImages", ["a.jpg", "b.jpg"])
    save(root / "annotations.json", coco(["JPEGImages/a.jpg", "JPEGImages/b.jpg"], ids=(0, 1)))


def coco2017(root: Path) -> None:
    for split in ("train2017", "val2017"):
        pictures(root / split, [f"{split}.jpg"])
        save(root / f"annotations/instances_{split}.json", coco([f"{split}.jpg"]))
        for task in ("captions", "person_keypoints"):
            save(root / f"annotations/{task}_{split}.json", {"images": [], "annotations": []})


def folder_in_names(root: Path) -> None:
    for split in ("train2017", "val2017"):
        pictures(root / split, [f"{split}.jpg"])
        save(root / f"annotations/instances_{split}.json", coco([f"{split}/{split}.jpg"]))


def taco(root: Path) -> None:
    pictures(root / "data", ["batch_1/000006.jpg", "batch_2/000006.jpg"])
    save(root / "data/annotations.json", coco(["batch_1/000006.jpg", "batch_2/000006.jpg"]))


def several_folders(root: Path) -> None:
    pictures(root, ["train/a.jpg", "val/b.jpg", "extra/site/c.jpg"])
    save(root / "annotations/all.json", coco(["a.jpg", "b.jpg", "site/c.jpg"]))


def two_names(first: str, second: str, folder: str = "images") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split, name in (("train", first), ("val", second)):
            pictures(root / folder / split, [f"{split}.jpg"])
            save(root / name, coco([f"{split}.jpg"]))

    return make


class Export(NamedTuple):
    """What makes it; pictures by split; and the codes and counts of what is said besides infos."""

    make: Callable[[Path], None]
    splits: dict[str, int]
    said: Mapping[str, int] = MappingProxyType({})
    infos: Iterable[str] = ()


PAIR = {"train": 1, "val": 1}
UNREAD = ["annotation-file-unread"]
REPAIRED = {"file-name-repaired": 2}
EXPORTS = {
    "CVAT, images/default": Export(cvat("images/default"), {"default": 2}, infos=UNREAD),
    "CVAT, images": Export(cvat("images"), {"default": 2}, infos=UNREAD),
    "CVAT, a subset": Export(cvat("images/Train", "Train"), {"Train": 2}, infos=UNREAD),
    "CVAT, one export a split": Export(cvat_by_split, PAIR),
    "CVAT, brush masks": Export(cvat_brush, {"default": 2}),
    "Label Studio": Export(label_studio("images/{}"), {"train": 2}),
    "Label Studio on Windows": Export(label_studio("images\\{}"), {"train": 2}),
    "Label Studio, uploads": Export(label_studio("../../label-studio/data/media/upload/1/{}"), {"train": 2}, REPAIRED),
    "Label Studio, local files": Export(label_studio("/data/local-files/?d=pets/{}"), {"train": 2}, REPAIRED),
    "Roboflow": Export(roboflow, {"test": 1, "train": 1, "valid": 1}, infos=["category-left-out", *UNREAD]),
    "FiftyOne": Export(fiftyone, {"train": 2}),
    "FiftyOne, splits": Export(fiftyone_splits, {"train": 1, "validation": 1}),
    "makesense": Export(makesense, {"train": 2}),
    "Supervisely": Export(supervisely, PAIR),
    "V7 Darwin": Export(darwin, {"train": 2}, REPAIRED),
    "RectLabel": Export(rectlabel, {"train": 2}),
    "Datumaro": Export(datumaro, PAIR, infos=UNREAD),
    "LabelMe2COCO": Export(labelme2coco, {"train": 2}),
    "COCO 2017": Export(coco2017, {"train2017": 1, "val2017": 1}, infos=UNREAD),
    "folders in the names": Export(folder_in_names, {"train2017": 1, "val2017": 1}),
    "TACO": Export(taco, {"train": 2}),
    "one JSON, several folders": Export(several_folders, {"train": 3}, {"file-name-repaired": 3}),
    "train.json, val.json": Export(two_names("train.json", "val.json"), PAIR),
    "train_annotations.json": Export(two_names("train_annotations.json", "val_annotations.json"), PAIR),
    "_annotations/": Export(two_names("_annotations/pets_train.json", "_annotations/pets_val.json"), PAIR),
    "annotations_coco.json": Export(two_names("train/annotations_coco.json", "val/annotations_coco.json", ""), PAIR),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_read_without_help(name: str, tmp_path: Path):
    export = EXPORTS[name]
    export.make(tmp_path)
    data = load_detection_dataset(tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == export.splits
    assert list(data.id2label.values()) == list(NAMES)
    for rows in data.values():
        for row in rows:
            assert row["image"].size == (WIDTH, HEIGHT)
            assert row["objects"]["category"] == [0, 1]
            assert row["objects"]["bbox"] == [BOX, [BOX[0] + 10, *BOX[1:]]]
    report = check(tmp_path)
    said = report.errors | report.warnings
    assert {code: count for code, count in said.items() if not code.startswith("objects-")} == export.said
    about_files = {
        "annotation-file-unread",
        "category-left-out",
        "image-unlisted",
        "image-size-unknown",
        "area-from-box",
    }
    assert about_files & set(report.counts) == set(export.infos), report.text()


def wrong_tool(name: str, content: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        pictures(root, ["a.jpg"])
        save(root / name, content)

    return make


LABEL_STUDIO = [{"id": 1, "annotations": [{"result": [{"from_name": "label", "value": {}}]}], "data": {"image": "x"}}]
VGG = {"a.jpg": {"filename": "a.jpg", "size": 1, "regions": {"0": {"shape_attributes": {"name": "rect"}}}}}
VIA = {"_via_settings": {"ui": {}}, "_via_img_metadata": VGG, "_via_attributes": {}}
LABELME = {"version": "5.4", "flags": {}, "shapes": [{"label": "cat", "points": []}], "imagePath": "a.jpg"}
VOTT = {"name": "pets", "securityToken": "t", "assets": {"1": {"asset": {}, "regions": [{"boundingBox": {}}]}}}
CREATE_ML = [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1}}]}]
SUPERVISELY = {"description": "", "size": {}, "objects": [{"classTitle": "cat", "points": {}}]}
DARWIN = {"version": "2.0", "schema_ref": "https://darwin-public/x", "item": {"name": "a"}, "annotations": [{"id": 1}]}
DATUMARO = {"dm_format_version": "1.0", "info": {}, "categories": {"label": {}}, "items": [{"id": "a"}]}
PREDICTIONS = [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_tool("project-1.json", LABEL_STUDIO), ["Label Studio", "COCO"]),
        (wrong_tool("labels_my-project.json", VGG), ["VGG", "COCO"]),
        (wrong_tool("via_project.json", VIA), ["VIA", "COCO format"]),
        (wrong_tool("a.json", LABELME), ["LabelMe", "labelme2coco"]),
        (wrong_tool("vott-json-export/pets-export.json", VOTT), ["VoTT", "Pascal VOC"]),
        (wrong_tool("_annotations.createml.json", CREATE_ML), ["CreateML", "COCO JSON"]),
        (wrong_tool("ann/a.jpg.json", SUPERVISELY), ["Supervisely", "COCO"]),
        (wrong_tool("a.json", DARWIN), ["Darwin", "COCO"]),
        (wrong_tool("annotations/default.json", DATUMARO), ["Datumaro", "coco"]),
        (wrong_tool("results.json", PREDICTIONS), ["predictions"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_tools_json_is_named_with_the_export_to_choose(
    make: Callable[[Path], None], words: list[str], tmp_path: Path
):
    make(tmp_path)
    (path,) = tmp_path.rglob("*.json")
    for source in (tmp_path, path):
        with pytest.raises(LayoutError) as raised:
            load_detection_dataset(source)
        assert [word for word in words if word not in str(raised.value)] == []


def test_a_table_and_an_archive_are_named(tmp_path: Path):
    (tmp_path / "pets-export.csv").write_text('"image","xmin","ymin","xmax","ymax","label"\n"a.jpg",1,1,2,2,"cat"\n')
    (tmp_path / "coco.zip").write_bytes(b"PK")
    with pytest.raises(LayoutError, match=r"(?s)pets-export.csv is a table of boxes.*Pascal VOC.*coco.zip.*unpack"):
        load_detection_dataset(tmp_path)
    with pytest.raises(LayoutError, match="unpack it"):
        load_detection_dataset(tmp_path / "coco.zip")
