"""Paths of annotation files: what a folder is searched for, and what stays inside it."""

from pathlib import Path

import pytest
from PIL import Image

from detr_hf.data import load_detection_dataset
from detr_hf.data.readers.paths import FileIndex, list_pictures
from detr_hf.errors import AnnotationError
from detr_hf.processing.image_opening_detr import PICTURE_SUFFIXES

from .. import layouts


def test_a_folder_is_searched_for_every_ending_that_counts_as_a_picture(tmp_path: Path):
    wanted = [f"a{suffix}" for suffix in PICTURE_SUFFIXES] + ["sub/b.PNG", "sub/deeper/c.Jpg"]
    for name in [*wanted, "notes.txt", "data.yaml", ".hidden.png", ".cache/d.png", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_pictures(tmp_path) == sorted(wanted)


def test_pillow_knows_every_ending_that_counts_as_a_picture():
    assert set(Image.registered_extensions()) >= PICTURE_SUFFIXES


def test_a_file_index_knows_files_and_no_folders(tmp_path: Path):
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    index = FileIndex()
    assert str(tmp_path / "a.png") in index
    assert str(tmp_path / "folder.png") not in index and str(tmp_path / "none" / "a.png") not in index


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a/../../b.png", "C:\\x.png", "..\\x.png", "http://host/x.png", "", "a\0b"],
)
def test_file_names_cannot_leave_the_folder(name: str, tmp_path: Path):
    root = layouts.write_coco(tmp_path / "data")
    layouts.draw("train", 0).save(tmp_path / "secret.png")
    content = layouts.read_json(root / "annotations_train.json")
    content["images"][0]["file_name"] = name
    layouts.write_json(root / "annotations_train.json", content)
    with pytest.raises(AnnotationError, match="file-name-unsafe"):
        load_detection_dataset(root)
