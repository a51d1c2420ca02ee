"""The folder of a COCO file's pictures, and pictures that lie in several."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from detr_hf.data import check, load_detection_dataset
from detr_hf.errors import LayoutError

from .. import layouts

Names = Callable[[str, Path], str]
WRITTEN: dict[str, Names] = {
    "as they are": lambda name, _: name,
    "with a dot": lambda name, _: f"./{name}",
    "with the folder": lambda name, folder: f"./{folder.name}/{name}",
    "absolute, here": lambda name, folder: str(folder / name),
    "absolute, elsewhere": lambda name, _: f"/home/me/train/{name}",
    "with a drive": lambda name, _: f"D:\\pets\\{name}",
    "a file URL": lambda name, _: f"file:///home/me/{name}",
    "of a bucket": lambda name, _: f"s3://pets/{name}",
    "in upper case": lambda name, _: name.upper(),
    "in another Unicode form": lambda name, _: unicodedata.normalize("NFD", name),
    "quoted as in URLs": lambda name, _: name.replace("é", "%C3%A9"),
}


@pytest.mark.parametrize("place", ["train", "images/train", "images", "Images", "data", "", "train/images"])
@pytest.mark.parametrize("written", WRITTEN)
def test_names_find_their_folder_however_they_are_written(written: str, place: str, tmp_path: Path):
    folder = tmp_path / place
    names = []
    for name in layouts.save_pictures(folder, "train"):
        (folder / name).rename(folder / f"é_{name}")
        names.append(WRITTEN[written](f"é_{name}", folder))
    layouts.write_json(tmp_path / "annotations" / "instances_train.json", layouts.coco_content("train", names))
    for source in (tmp_path, tmp_path / "annotations" / "instances_train.json"):
        data = load_detection_dataset(source)
        assert [name.rpartition("/")[2] for name in data["train"]["file_name"]] == [
            f"é_train_{number}.png" for number in range(4)
        ]
        repaired = data.findings.counts.get("file-name-repaired", 0)
        silent = written in ("as they are", "with a dot", "in another Unicode form")
        silent |= written == "with the folder" and place != ""
        assert repaired == (0 if silent else 4)
        assert set(data.findings.of("error")) == set()


def spread(root: Path, names: list[str], places: list[str]) -> Path:
    """One JSON over pictures in several folders."""
    for number, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        layouts.draw("train", number % 4).save(root / place)
    content = layouts.coco_content("train", [*names, *["absent.png"] * 4][:4])
    layouts.write_json(root / "annotations.json", content)
    return root


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["a.png", "b.png", "c.png", "d.png"], ["x/a.png", "x/b.png", "y/c.png", "z/deep/d.png"]),
        (["s/a.png", "s/b.png", "t/a.png", "t/b.png"], ["x/s/a.png", "x/s/b.png", "y/t/a.png", "y/t/b.png"]),
    ],
)
def test_pictures_in_several_folders_are_found_where_each_name_fits_one(
    names: list[str], places: list[str], tmp_path: Path
):
    data = load_detection_dataset(spread(tmp_path, names, places))
    assert data["train"]["file_name"][:] == places
    assert data.findings.counts["file-name-repaired"] == 4


def test_a_name_that_fits_pictures_in_two_folders_is_refused(tmp_path: Path):
    names = ["a.png", "b.png", "c.png", "d.png"]
    spread(tmp_path, names, ["x/a.png", "x/b.png", "y/c.png", "y/d.png", "y/a.png"])
    report = check(tmp_path)
    (finding,) = [finding for finding in report.findings if finding.code == "file-name-ambiguous"]
    assert "x/a.png" in finding.message and "y/a.png" in finding.message and "image_root=" in finding.message


def test_a_folder_is_not_dropped_from_a_name_to_find_another_picture(tmp_path: Path):
    spread(tmp_path, ["s/a.png", "s/b.png", "s/c.png", "t/d.png"], ["s/a.png", "s/b.png", "s/c.png", "u/d.png"])
    assert check(tmp_path).errors == {"image-missing": 1}


def test_pictures_of_another_split_are_not_taken(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    (root / "train" / "train_0.png").rename(root / "val" / "train_0.png")
    assert check(root).errors["image-missing"] == 1


def test_image_root_is_searched_for_spread_pictures_too(tmp_path: Path):
    names = ["a.png", "b.png", "c.png", "d.png"]
    spread(tmp_path, names, ["x/s/a.png", "x/s/b.png", "x/t/c.png", "x/d.png", "y/a.png"])
    data = load_detection_dataset(tmp_path, image_root=tmp_path / "x")
    assert data["train"]["file_name"][:] == ["s/a.png", "s/b.png", "t/c.png", "d.png"]


def test_nothing_found_names_the_places(tmp_path: Path):
    layouts.write_json(tmp_path / "train.json", layouts.coco_content("train"))
    (tmp_path / "images").mkdir()
    with pytest.raises(LayoutError, match=r"train_0.png.*images.*image_root="):
        load_detection_dataset(tmp_path)
