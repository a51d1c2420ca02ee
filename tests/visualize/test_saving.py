"""Drawings are told from photographs by what is in them."""

import pytest
from PIL import Image

from detr_hf.visualize.saving import is_drawing, is_marked, picture_format, save_drawing

IMAGE = Image.new("RGB", (30, 20), "red")


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "tiff", "avif"])
def test_a_drawing_is_known_by_its_mark(tmp_path, ending):
    path = save_drawing(IMAGE, tmp_path / "new" / f"a_boxes.{ending}")
    assert is_drawing(path) and Image.open(path).size == (30, 20)
    IMAGE.save(tmp_path / f"b_boxes.{ending}")
    assert not is_drawing(tmp_path / f"b_boxes.{ending}")


def test_only_what_is_called_as_a_drawing_is_opened(tmp_path, monkeypatch):
    path = save_drawing(IMAGE, tmp_path / "street.png")
    assert is_marked(path)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    assert not is_drawing(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_opened_is_no_drawing(tmp_path, content):
    (tmp_path / "boxes.png").write_bytes(content)
    assert not is_drawing(tmp_path / "boxes.png") and not is_drawing(tmp_path / "gone_boxes.png")


@pytest.mark.parametrize("name", ["boxes", "boxes.txt", "boxes.pn"])
def test_an_ending_of_no_format_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"end it in \.png"):
        picture_format(tmp_path / name)


def test_a_format_without_a_place_for_the_mark_is_written_all_the_same(tmp_path):
    assert Image.open(save_drawing(IMAGE, tmp_path / "boxes.bmp")).size == (30, 20)
