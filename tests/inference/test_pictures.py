"""What counts as one picture, and where it came from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf.inference.pictures import is_single_picture, path_of
from detr_hf.inference.sources.opening import refuse_many


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


@pytest.mark.parametrize("name", ["photos", "photos/*.jpg", "photos/**", "film.MP4", "photos.tar", "table.parquet"])
def test_what_holds_many_pictures_is_answered_with_the_way_to_go(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for file in ("film.MP4", "photos.tar", "table.parquet", "a[1].jpg", "b"):
        (tmp_path / file).touch()
    for source in (name, Path(name)):
        with pytest.raises(OSError, match=r"image 0 is a .* and not one picture.*predict_to_shards.*--out") as caught:
            refuse_many(source, "image 0")
        assert f"detr-hf predict MODEL {name} " in str(caught.value)
    for picture in ("a[1].jpg", "b", "gone.mp4", b"bytes", Image.new("L", (2, 2))):
        refuse_many(picture, "image 0")
