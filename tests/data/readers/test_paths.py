"""Paths of annotation files: what a folder is searched for, and what stays inside it."""

from pathlib import Path

import pytest
from PIL import Image

from detr_hf.data import load_detection_dataset
from detr_hf.data.readers.paths import FileIndex, PictureFinder, list_pictures
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


@pytest.fixture
def said() -> list[tuple[str, str, str]]:
    return []


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("{folder}/sub/b.jpg", "sub/b.jpg"),
        ("/home/me/pictures/a.jpg", "a.jpg"),
        ("C:\\Users\\me\\sub\\b.jpg", "sub/b.jpg"),
        ("..\\..\\label-studio\\media\\upload\\4\\a.jpg", "a.jpg"),
        ("data/images/sub/b.jpg", "sub/b.jpg"),
        ("/data/local-files/?d=upload%2Fsub%2Fb.jpg", "sub/b.jpg"),
        ("https://host/bucket/with%20space.png?key=1", "with space.png"),
        ("file:///home/me/a.jpg", "a.jpg"),
        ("SUB/B.JPG", "sub/b.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
def test_a_listed_name_finds_its_picture_and_every_guess_is_said(listed: str, found: str, said: list, tmp_path: Path):
    touch(tmp_path, "a.jpg", "sub/b.jpg", "with space.png", "caf\u00e9.jpg")
    listed = listed.format(folder=tmp_path)
    assert PictureFinder(tmp_path).find(listed, lambda *finding: said.append(finding)) == found
    as_listed = listed in (found, f"./{found}", "cafe\u0301.jpg")
    assert [code for code, _, _ in said] == ([] if as_listed else ["file-name-repaired"])


@pytest.mark.parametrize(
    ("first", "second"),
    [("/x/a.jpg", "/y/a.jpg"), ("a.jpg", "other/a.jpg"), ("A.JPG", "a.jpg"), ("/x/a.jpg", "a.jpg")],
)
def test_two_names_that_would_be_one_file_are_refused(first: str, second: str, said: list, tmp_path: Path):
    finder = PictureFinder(touch(tmp_path, "a.jpg"))
    finder.find(first, lambda *finding: said.append(finding))
    assert finder.find(second, lambda *finding: said.append(finding)) is None
    assert said[-1][:2] == ("file-name-ambiguous", "error")


def test_names_of_two_splits_do_not_meet_in_one_file_either(said: list, tmp_path: Path):
    meant: dict = {}
    train, val = (
        PictureFinder(folder, meant=meant) for folder in (touch(tmp_path, "images/a.jpg"), tmp_path / "images")
    )
    assert train.find("images/a.jpg", lambda *finding: said.append(finding)) == "images/a.jpg"
    assert val.find("a.jpg", lambda *finding: said.append(finding)) == "a.jpg" and not said
    assert val.find("/x/a.jpg", lambda *finding: said.append(finding)) is None
    assert val.contested == {str(tmp_path / "images" / "a.jpg")}


def test_a_name_in_another_case_is_not_guessed_between_two_files(said: list, tmp_path: Path):
    finder = PictureFinder(touch(tmp_path, "a.jpg", "A.jpg"))
    assert finder.find("a.JPG", lambda *finding: said.append(finding)) == "a.JPG" and not said


def test_linked_folders_are_searched_once_and_loops_end(tmp_path: Path):
    touch(tmp_path / "disk", "c.jpg", "deep/d.jpg")
    root = touch(tmp_path / "data", "a.jpg", "sub/b.jpg", "sub/._b.jpg", "__MACOSX/a.jpg")
    for link, target in [("site", tmp_path / "disk"), ("again", tmp_path / "disk"), ("loop", root), ("up", tmp_path)]:
        (root / link).symlink_to(target)
    (root / "sub" / "twin").symlink_to(root / "sub")
    assert list_pictures(root) == ["a.jpg", "again/c.jpg", "again/deep/d.jpg", "sub/b.jpg"]
