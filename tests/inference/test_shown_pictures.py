"""What `Detections` shows is the picture that was looked at, whatever became since of the object or file behind it."""

import io
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detr_hf import Detections, Detector, DETRImageProcessor

from ..conftest import tiny_model

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_model(), DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the picture in several formats, in some after a black one."""
    PICTURE.save(tmp_path / "a.png")
    Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1)).save(tmp_path / "large.jpg", quality=95)
    for name in ("pages.tif", "film.gif", "film.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / name, save_all=True, append_images=[PICTURE.copy()])
    turned = Image.Exif()
    turned[0x0112] = 6
    PICTURE.save(tmp_path / "turned.png", exif=turned)
    return tmp_path


def opened(path: Path, change) -> Image.Image:
    image = Image.open(path)
    change(image)
    return image


CHANGED = {
    "thumbnail": ("large.jpg", lambda image: image.thumbnail((100, 100))),
    "draft": ("large.jpg", lambda image: image.draft("RGB", (100, 100))),
    "grey draft": ("large.jpg", lambda image: image.draft("L", (640, 480))),
    "page": ("pages.tif", lambda image: image.seek(1)),
    "frame": ("film.gif", lambda image: image.seek(1)),
    "frame of a PNG": ("film.png", lambda image: image.seek(1)),
    "painted over": ("a.png", lambda image: image.paste((255, 0, 0), (0, 0, 80, 30))),
    "drawn on": ("a.png", lambda image: ImageDraw.Draw(image).rectangle((0, 0, 80, 30), fill="red")),
    "one pixel": ("a.png", lambda image: image.putpixel((0, 0), (1, 2, 3))),
    "transparent": ("a.png", lambda image: image.putalpha(0)),
    "no longer turned": ("turned.png", lambda image: image.getexif().pop(0x0112)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_an_opened_picture_that_was_changed(detector, files, change):
    name, make = CHANGED[change]
    image = opened(files / name, make)
    found = detector(image, threshold=0)
    expected = np.asarray(opened(files / name, make).convert("RGBA").convert("RGB"))
    shown = np.asarray(found.image)
    assert shown.shape[:2] == found.size_hw
    np.testing.assert_array_equal(shown, np.full_like(expected, 255) if change == "transparent" else expected)
    assert found.path == files / name and found.draw().size == found.size_hw[::-1]


def test_an_opened_picture_that_was_not_changed_is_not_kept(detector, files):
    found = detector([Image.open(files / name) for name in ("a.png", "large.jpg", "turned.png")], threshold=0)
    assert all(one.source is None and one.stamp is not None for one in found)
    assert [one.image.size for one in found] == [(80, 60), (640, 480), (60, 80)]


def floats(pixels):
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)


BUFFERS = {
    "array": (lambda: PIXELS.copy(), lambda image: image.fill(0)),
    "tensor": (lambda: torch.from_numpy(PIXELS.copy()), lambda image: image.zero_()),
    "planes": (lambda: torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()), lambda image: image.zero_()),
    "floats": (lambda: floats(PIXELS), lambda image: image.zero_()),
    "PIL image": (PICTURE.copy, lambda image: image.paste(0, (0, 0, 80, 60))),
    "bytearray": (lambda: bytearray(encoded()), lambda image: image.__setitem__(slice(None), bytes(len(image)))),
}


def encoded() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_buffer_that_is_used_again_shows_what_was_in_it(detector, kind):
    make, wipe = BUFFERS[kind]
    image = make()
    found = detector(image, threshold=0)
    wipe(image)
    np.testing.assert_array_equal(np.asarray(found.image), PIXELS)


def test_frames_of_one_buffer_are_frames_of_their_own(detector):
    buffer = np.empty_like(PIXELS)

    def frames():
        for brightness in range(3):
            buffer.fill(brightness)
            yield buffer

    shown = [np.asarray(found.image) for found in detector(frames())]
    assert [int(pixels.max()) for pixels in shown] == [0, 1, 2]


def test_an_upload_that_was_closed_is_shown(detector):
    with tempfile.SpooledTemporaryFile() as file:
        file.write(encoded())
        found = detector(file, threshold=0)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(found[:1])).image), PIXELS)


@pytest.mark.parametrize("opening", [str, Path, Image.open])
def test_a_file_that_was_written_anew_is_noticed(detector, files, opening):
    path = files / "a.png"
    found = detector(opening(path), threshold=0)
    np.testing.assert_array_equal(np.asarray(found[:1].image), PIXELS)
    Image.new("RGB", (80, 60)).save(path)
    os.utime(path, ns=(0, found.stamp[0] + 1))
    for show in (lambda: found.image, found.draw, lambda: found[:1].save(files / "drawn.png")):
        with pytest.raises(ValueError, match=r"a\.png was changed since .* detect in it again"):
            show()


def test_boxes_of_another_size_than_the_file_are_not_drawn(files):
    with pytest.raises(ValueError, match=r"then \(10, 10\), now \(60, 80\)"):
        Detections([], [], [], [], size_hw=(10, 10), path=files / "a.png").draw()


IDS = [np.int64(7), np.uint8(7), np.float64(7), np.array(7), np.array([7]), torch.tensor(7), 7.0, 7]


@pytest.mark.parametrize("image_id", [*IDS, np.str_("a7"), "a7"], ids=lambda image_id: type(image_id).__name__)
def test_ids_of_other_libraries_become_plain(image_id):
    (record,) = Detections([[0, 0, 4, 4]], [0.5], [1], ["cat"], size_hw=(8, 8)).to_coco(image_id)
    assert (type(record["image_id"]), record["image_id"]) in ((int, 7), (str, "a7"))


@pytest.mark.parametrize("image_id", [None, True, 1.5, float("nan"), Path("a"), np.array([1, 2])], ids=str)
def test_what_is_no_id_is_refused(image_id):
    with pytest.raises(TypeError, match="whole number or a text"):
        Detections([], [], [], [], size_hw=(8, 8)).to_coco(image_id)
