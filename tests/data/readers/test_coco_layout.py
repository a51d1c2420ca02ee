"""Where COCO files lie: found by name or named by the user."""

from pathlib import Path

import pytest

from detr_hf.data import load_detection_dataset
from detr_hf.data.readers.coco_layout import MOST_FILES, find_coco
from detr_hf.errors import LayoutError

from .. import layouts


def test_one_json_with_its_folder_and_string_ids(tmp_path: Path):
    layouts.save_pictures(tmp_path / "images", "train")
    content = layouts.coco_content("train")
    for image in content["images"]:
        image["id"] = f"img_{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"img_{annotation['image_id']}"
        annotation["id"] = f"a{annotation['id']}"
        annotation["category_id"] = f"c{annotation['category_id']}"
    for category in content["categories"]:
        category["id"] = f"c{category['id']}"
    layouts.write_json(tmp_path / "labels.json", content)
    for path in (tmp_path, tmp_path / "labels.json"):
        data = load_detection_dataset(path)
        assert data.mapping == {"c3": 0, "c5": 1, "c9": 2}
        assert data["train"]["source_image_id"][0] == "img_100"
        assert data["train"]["image_id"][:] == [1, 2, 3, 4]


SPLITS = {
    "my_project_train.json my_project_val.json": ["train", "val"],
    "pets.json": ["train"],
    "labels_pets_2024-01-02.json": ["train"],
    "instances_default.json": ["default"],
    "annotations/instances_all.json": ["all"],
    "pets/annotations/instances.json": ["train"],
    "annotations/instances_val2017.json": ["val2017"],
    "annotations/instances_train2014.json annotations/instances_train2017.json": ["train2014", "train2017"],
    "fold1_train.json fold2_train.json": ["fold1_train", "fold2_train"],
    "train/annotations/instances_default.json test/annotations/instances_default.json": ["test", "train"],
    "_annotations/x_train.json _annotations/x_valid.json": ["train", "valid"],
    "ds0/annotations/instances.json ds1/annotations/instances.json": ["ds0", "ds1"],
    "train/pets.json valid/pets.json": ["train", "valid"],
}


@pytest.mark.parametrize("files", SPLITS)
def test_splits_are_told_by_names_and_folders(files: str, tmp_path: Path):
    for name in files.split():
        layouts.write_json(tmp_path / name, layouts.coco_content("train"))
    layouts.write_json(tmp_path / "meta.json", {"classes": []})
    assert sorted(source.split for source in find_coco(tmp_path)) == SPLITS[files]


def test_a_name_that_was_made_shorter_still_chooses_the_split(tmp_path: Path):
    for split in layouts.SCENES:
        layouts.save_pictures(tmp_path / split, split)
        layouts.write_json(tmp_path / f"pets_{split}.json", layouts.coco_content(split))
    for wanted in ("pets_val", ["val"], {"val": "pets_val"}):
        assert list(load_detection_dataset(tmp_path, wanted)) == ["val"]


@pytest.mark.parametrize("parts", [("train", "train_2"), ("train-1", "train-2"), ("val", "val_part2")])
def test_a_split_in_several_files_is_refused_unless_one_is_chosen(parts: tuple[str, str], tmp_path: Path):
    layouts.save_pictures(tmp_path / "images", "train")
    for part in parts:
        layouts.write_json(tmp_path / "annotations" / f"instances_{part}.json", layouts.coco_content("train"))
    with pytest.raises(LayoutError, match=r"parts of one split.*splits="):
        load_detection_dataset(tmp_path)
    assert list(load_detection_dataset(tmp_path, {"train": parts[1].replace("-", "_")})) == ["train"]


def test_a_folder_of_one_json_a_picture_is_not_searched(tmp_path: Path):
    layouts.write_coco(tmp_path)
    for number in range(MOST_FILES + 1):
        layouts.write_json(tmp_path / "train" / f"{number}.json", layouts.coco_content("train"))
    assert [source.split for source in find_coco(tmp_path)] == ["train", "val"]
