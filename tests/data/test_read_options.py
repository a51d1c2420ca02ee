"""Options that are seen, each for the formats that have a use for it; and the nearest for a wrong one."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, List, Value

from detr_hf.data import check, load_detection_dataset
from detr_hf.data.read_options import names_by_id
from detr_hf.errors import LayoutError

from ..bad_inputs.kinds import BOX, coco, picture, rows, voc, write, yolo
from . import layouts

WRITERS = {"coco": coco, "yolo": yolo, "voc": voc}


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("yolo", {"box_format": "xyxy"}),
        ("yolo", {"task": "panoptic"}),
        ("voc", {"box_format": "xyxy"}),
        ("voc", {"task": "detection"}),
        ("hf", {"image_root": "x"}),
        ("yolo", {"stuff": ["sky"]}),
        ("voc", {"task": "instance"}),
        ("voc", {"allow_missing_masks": True}),
    ],
)
def test_an_option_without_a_meaning_is_refused(format: str, options: dict[str, str], tmp_path: Path):
    source: Any = tmp_path
    if format == "hf":
        source = rows(tmp_path)
    else:
        WRITERS[format](tmp_path)
    with pytest.raises(LayoutError, match=f"is {format}, for which {next(iter(options))}= has no meaning"):
        load_detection_dataset(source, **options)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, None),
        (["cat", "dog"], {0: "cat", 1: "dog"}),
        ({"3": "cat", "5": "dog"}, {3: "cat", 5: "dog"}),
        ({"a": "cat", "5": "dog"}, {"a": "cat", "5": "dog"}),
        ({0: 1}, {0: "1"}),
    ],
)
def test_names_by_id(given: Any, names: Any):
    assert names_by_id(given) == names


@pytest.mark.parametrize("given", ["cat", {}, 3, []])
def test_what_is_no_names(given: Any):
    with pytest.raises(TypeError, match="names by id"):
        names_by_id(given)


def test_names_are_the_ids_of_rows_whose_classes_are_texts(tmp_path: Path):
    features = rows(tmp_path).features
    features["objects"]["category"] = List(Value("string"))
    data = Dataset.from_list(
        [{"image": str(picture(tmp_path / "a.png")), "image_id": 1, "objects": {"bbox": [BOX], "category": ["dog"]}}],
        features=features,
    )
    loaded = load_detection_dataset(data, id2label=["cat", "dog"])
    assert loaded.id2label == {0: "cat", 1: "dog"} and loaded["train"][0]["objects"]["category"] == [1]
    assert load_detection_dataset(data, id2label={"dog": "Hund"}).id2label == {0: "Hund"}


def test_options_of_reading_are_not_for_loaded_data(tmp_path: Path):
    coco(tmp_path)
    with pytest.raises(TypeError, match="loaded already: splits"):
        check(load_detection_dataset(tmp_path), splits=["train"])


def test_the_classes_of_voc_are_chosen_and_ordered_by_name(tmp_path: Path):
    voc(tmp_path)
    assert load_detection_dataset(tmp_path, id2label=["owl", "dog"]).id2label == {0: "owl", 1: "dog"}
    assert "category-unknown" in check(tmp_path, id2label=["owl"]).errors


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("renamed", [False, True])
def test_image_root_by_split(format: str, renamed: bool, tmp_path: Path):
    """The pictures lie elsewhere, each split's in a folder of its own; the split has its own name or the new one."""
    data, first, second = tmp_path / "data", tmp_path / "first", tmp_path / "second"
    if format == "coco":
        for split, place in (("train", first), ("val", second)):
            coco(data, split, folder=str(place))
    elif format == "voc":
        voc(data)
        for split, place in (("train", first), ("val", second)):
            place.mkdir()
            for path in (data / "JPEGImages").glob(f"{split}*"):
                path.rename(place / path.name)
        (data / "JPEGImages").rmdir()
    else:
        for split, place in (("train", first), ("val", second)):
            yolo(place, (split,))
        write(data / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(LayoutError, match="image_root="):
        load_detection_dataset(data)
    splits = {"training": "train", "checking": "val"} if renamed else None
    names = list(splits) if renamed else ["train", "val"]
    loaded = load_detection_dataset(data, splits, image_root=dict(zip(names, (first, second), strict=True)))
    assert [len(split) for split in loaded.values()] == [2, 2] and list(loaded) == names
    assert all(len(row["objects"]["bbox"]) == 1 for split in loaded.values() for row in split)
    with pytest.raises(LayoutError, match="image_root= is given for 'tset'"):
        load_detection_dataset(
            data, splits, image_root=dict(zip(names, (first, second), strict=True)) | {"tset": first}
        )


def test_folders_without_a_yaml_have_no_entries_to_start_elsewhere(tmp_path: Path):
    yolo(tmp_path).unlink()
    with pytest.raises(LayoutError, match=r"no data\.yaml"):
        load_detection_dataset(tmp_path, image_root=tmp_path, id2label=["cat", "dog"])


@pytest.mark.parametrize(
    ("options", "nearest"),
    [({"format": "yollo"}, "yolo"), ({"splits": ["trian"]}, "train"), ({"on_fault": "drpo"}, "drop")],
)
def test_the_nearest_value_is_named(options: dict[str, Any], nearest: str, tmp_path: Path):
    layouts.write_coco(tmp_path)
    with pytest.raises(LayoutError, match=f"Did you mean {nearest}\\?"):
        load_detection_dataset(tmp_path, **options)


@pytest.mark.parametrize(("road", "wrong"), [(load_detection_dataset, "imageroot"), (check, "imageroot")])
def test_the_nearest_option_is_named(road: Any, wrong: str, tmp_path: Path):
    layouts.write_coco(tmp_path)
    with pytest.raises(TypeError, match="Did you mean image_root"):
        road(tmp_path, **{wrong: "x"})
