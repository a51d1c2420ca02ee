"""Where COCO files lie: found by name or named by the user."""

from pathlib import Path

from detr_hf.data import load_detection_dataset

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
