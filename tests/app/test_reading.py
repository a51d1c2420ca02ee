"""What visitors give, read within limits: the reader's sentence, with the visitor's name of the file."""

import pytest

from detr_hf.app.reading import Limits, own_name, read_picture, shown_error
from detr_hf.inference.detector import read_pixels

from .inputs import GIVEN, MAX_MB, MAX_MEGAPIXELS, Given, encoded, scene

LIMITS = Limits(MAX_MB, MAX_MEGAPIXELS)


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.name)
def test_a_file_is_read_once_or_refused_by_its_name(given: Given, tmp_path):
    path = tmp_path / "stored"
    path.write_bytes(given.content())
    if given.error:
        with pytest.raises(ValueError) as caught:
            read_picture(path, given.name, LIMITS)
        said = shown_error(caught.value, given.name)
        assert all(words in said for words in given.error) and str(tmp_path) not in said and "object at" not in said
    else:
        picture = read_picture(path, given.name, LIMITS)
        assert (picture.pixels == read_pixels(path)).all() and picture.note == given.note
        assert (read_pixels(picture.source) == picture.pixels).all()


def test_a_picture_of_few_rows_is_not_taken_for_channels(tmp_path):
    path = tmp_path / "thin.png"
    path.write_bytes(encoded(scene().resize((60, 3))))
    picture = read_picture(path, "thin.png", LIMITS)
    assert read_pixels(picture.source).shape == (3, 60, 3)


def test_what_is_shown_is_smaller_by_a_whole_number(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene().resize((1000, 500))))
    assert read_picture(path, "a.png", LIMITS).shown(300).size == (334, 167)
    assert read_picture(path, "a.png", LIMITS).shown(2000).size == (1000, 500)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("street.jpg", "street.jpg"),
        ("/home/me/street.jpg", "street.jpg"),
        (r"C:\fakepath\street.jpg", "street.jpg"),
        ("a\nb\x07.png", "a?b?.png"),
        ("", "picture"),
        (None, "picture"),
        ("x" * 300 + ".jpeg", "x" * 68 + "...xxxx.jpeg"),
    ],
)
def test_a_name_is_the_visitors_own(given, name):
    assert own_name(given) == name


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("image 0 (12 bytes) is odd", "a.png is odd"),
        ("image 0: too thin", "a.png: too thin"),
        ("No such file: '/tmp/x/y/config.json'", "a.png: No such file: 'config.json'"),
        (r"No such file: C:\x\y\z.json", "a.png: No such file: z.json"),
        ("runs/best/model.safetensors is gone", "a.png: best/model.safetensors is gone"),
        ("see https://huggingface.co/a/b, or 3/4 of it", "a.png: see https://huggingface.co/a/b, or 3/4 of it"),
    ],
)
def test_an_error_has_the_visitors_name_and_no_folder_of_the_server(error, said):
    assert shown_error(ValueError(error), "a.png", {"runs/best": "best"}) == said


@pytest.mark.parametrize("limits", [{"max_mb": 0}, {"max_megapixels": -1}, {"max_mb": float("nan")}])
def test_a_limit_of_nothing_is_refused(limits):
    with pytest.raises(ValueError, match="more than 0"):
        Limits(**limits)
