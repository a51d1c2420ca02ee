"""Which pictures a command line names, and what counts as one picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf.inference.pictures import find_pictures, is_single_picture, path_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/deeper/d.tiff", ".hidden.jpg", ".cache/e.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def relative_names(*paths, **options) -> list[str]:
    return [relative.as_posix() for _, relative in find_pictures(paths, **options)]


def test_a_folder_is_searched_in_order_without_hidden_and_other_files(folder):
    assert relative_names(folder) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deeper/d.tiff"]


def test_patterns(folder):
    assert relative_names(f"{folder}/*.PNG") == ["a.PNG"]
    assert relative_names(f"{folder}/[ab].*") == ["a.PNG", "b.jpg"]
    assert relative_names(f"{folder}/**/*.tiff") == ["sub/deeper/d.tiff"]
    assert relative_names(f"{folder}/s*") == ["c.webp", "deeper/d.tiff"]
    assert relative_names(f"{folder}/*.bmp") == []


def test_a_named_file_is_taken_as_it_is_even_if_missing(folder):
    assert relative_names(folder / "notes.txt", folder / "missing.jpg") == ["notes.txt", "missing.jpg"]


def test_a_picture_comes_once(folder):
    assert relative_names(folder / "b.jpg", folder, f"{folder}/b*") == [
        "b.jpg",
        "a.PNG",
        "sub/c.webp",
        "sub/deeper/d.tiff",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "a[1].jpg").write_bytes(b"")
    assert relative_names(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_the_folder_of_results_is_not_searched(folder):
    assert relative_names(folder, results=folder / "sub") == ["a.PNG", "b.jpg"]
    assert len(relative_names(folder, results=folder)) == 4
    assert relative_names(folder / "sub" / "c.webp", results=folder / "sub") == ["c.webp"]


@pytest.mark.parametrize(
    ("images", "single"),
    [
        ("a.jpg", True),
        (Path("a.jpg"), True),
        (b"..", True),
        (Image.new("L", (2, 2)), True),
        (np.zeros((4, 5, 3)), True),
        (torch.zeros(3, 4, 5), True),
        (np.zeros((4, 5)), True),
        (np.zeros((2, 4, 5, 3)), False),
        (torch.zeros(2, 3, 4, 5), False),
        (["a.jpg"], False),
        ((path for path in "ab"), False),
    ],
)
def test_one_picture_or_several(images, single):
    assert is_single_picture(images) is single


@pytest.mark.parametrize("images", [None, 3, 2.5])
def test_what_is_no_picture_is_refused(images):
    with pytest.raises(TypeError, match=type(images).__name__):
        is_single_picture(images)


def test_paths_are_remembered(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert path_of(image) == path_of(str(tmp_path / "a.png")) == tmp_path / "a.png"
    assert path_of(np.zeros((4, 4))) is None and path_of(Image.new("L", (2, 2))) is None
    assert path_of("https://example.org/a.jpg") is None
