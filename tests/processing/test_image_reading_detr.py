"""Reading pictures: a table of what people have, and what is told of what cannot be read."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from detr_hf.processing.image_reading_detr import read_images

HW = (12, 20)
RGB = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(RGB)
GREY = PICTURE.convert("L")
SIXTEEN_BITS = (np.asarray(GREY).astype(np.uint16) * 257).astype(np.uint16)


def encoded(image: PIL.Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def gif() -> bytes:
    return encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)])


def transparent(alpha: int) -> PIL.Image.Image:
    image = PICTURE.convert("RGBA")
    image.putalpha(alpha)
    return image


def on_white(rgb: np.ndarray, alpha: int) -> np.ndarray:
    return np.round(255 + (rgb.astype(float) - 255) * alpha / 255).astype(np.uint8)


def rgb_of(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def read_one(image, **options) -> np.ndarray:
    (pixels,) = read_images(image, **options)
    return pixels.numpy()


READABLE = [
    ("PNG data, no name", encoded(PICTURE, "PNG"), RGB),
    ("CMYK", PICTURE.convert("CMYK"), rgb_of(PICTURE.convert("CMYK"))),
    ("CMYK JPEG", encoded(PICTURE.convert("CMYK"), "JPEG"), None),
    ("palette", PICTURE.quantize(16), rgb_of(PICTURE.quantize(16))),
    ("palette PNG", encoded(PICTURE.quantize(16), "PNG"), rgb_of(PICTURE.quantize(16))),
    ("grey", GREY, rgb_of(GREY)),
    ("grey JPEG", encoded(GREY, "JPEG"), None),
    ("grey and alpha", PIL.Image.merge("LA", (GREY, PIL.Image.new("L", GREY.size, 255))), rgb_of(GREY)),
    ("opaque RGBA", transparent(255), RGB),
    ("RGBA on white", transparent(100), on_white(RGB, 100)),
    ("RGBA array on white", np.asarray(transparent(100)), on_white(RGB, 100)),
    ("RGBA PNG on white", encoded(transparent(0), "PNG"), np.full_like(RGB, 255)),
    ("one bit", GREY.convert("1"), rgb_of(GREY.convert("1"))),
    ("16-bit grey", PIL.Image.fromarray(SIXTEEN_BITS), rgb_of(GREY)),
    ("16-bit grey PNG", encoded(PIL.Image.fromarray(SIXTEEN_BITS), "PNG"), rgb_of(GREY)),
    ("16-bit grey TIFF", encoded(PIL.Image.fromarray(SIXTEEN_BITS), "TIFF"), rgb_of(GREY)),
    ("I;16B", PIL.Image.frombytes("I;16B", GREY.size, SIXTEEN_BITS.astype(">u2").tobytes()), rgb_of(GREY)),
    ("YCbCr", PICTURE.convert("YCbCr"), rgb_of(PICTURE.convert("YCbCr"))),
    ("HSV", PICTURE.convert("HSV"), rgb_of(PICTURE.convert("HSV"))),
    ("GIF opened", PIL.Image.open(io.BytesIO(gif())), rgb_of(PIL.Image.open(io.BytesIO(gif())))),
    ("GIF bytes", gif(), rgb_of(PIL.Image.open(io.BytesIO(gif())))),
    ("1 x 1", PICTURE.crop((0, 0, 1, 1)), RGB[:1, :1]),
    ("3 px high", PIL.Image.fromarray(np.tile(RGB[:3], (1, 20, 1))), np.tile(RGB[:3], (1, 20, 1))),
    ("float 0..255", RGB.astype(np.float32), RGB.astype(np.float32)),
    ("float64", RGB.astype(np.float64), RGB.astype(np.float32)),
    ("uint16 RGB", RGB.astype(np.uint16) * 257, RGB),
    ("int64", RGB.astype(np.int64), RGB),
    ("bool", RGB > 127, (RGB > 127).astype(np.uint8) * 255),
    ("channels first", RGB.transpose(2, 0, 1).copy(), RGB),
    ("channels first tensor", torch.from_numpy(RGB.transpose(2, 0, 1).copy()), RGB),
    ("2-D grey", np.asarray(GREY), rgb_of(GREY)),
    ("2-D grey tensor", torch.tensor(np.asarray(GREY)), rgb_of(GREY)),
    ("float16", torch.from_numpy(RGB).half(), RGB.astype(np.float32)),
    ("negative strides", RGB[::-1, ::-1], RGB[::-1, ::-1]),
    ("not contiguous", RGB[::2, ::3], RGB[::2, ::3]),
    ("bytes", encoded(PICTURE, "BMP"), RGB),
    ("big-endian array", RGB.astype(">i4"), RGB),
    ("tensor with gradient", torch.from_numpy(RGB).float().requires_grad_(), RGB.astype(np.float32)),
]


@pytest.mark.parametrize(("image", "expected"), [row[1:] for row in READABLE], ids=[row[0] for row in READABLE])
def test_readable(image, expected):
    pixels = read_one(image)
    assert pixels.shape[-1] == 3
    if expected is None:
        assert pixels.shape == (*HW, 3)
    else:
        assert pixels.dtype == expected.dtype
        np.testing.assert_array_equal(pixels, expected)


def broken_jpeg() -> bytes:
    data = encoded(PIL.Image.fromarray(np.tile(RGB, (20, 20, 1))), "JPEG")
    return data[: len(data) // 2]


NAN = RGB.astype(np.float32) * np.where(np.arange(20) == 7, np.nan, 1)[:, None].astype(np.float32)
REFUSED = [
    (
        "truncated, opened lazily",
        PIL.Image.open(io.BytesIO(broken_jpeg())),
        ValueError,
        "image 0 cannot be decoded",
    ),
    ("truncated bytes", broken_jpeg(), ValueError, "image 0 .* cannot be decoded"),
    ("no bytes", b"", ValueError, r"image 0 \(0 bytes\) is empty\.$"),
    ("not an image", b"<html></html>", ValueError, "is not an image that can be read"),
    ("missing file", "no/such/file.jpg", FileNotFoundError, "no/such/file.jpg"),
    ("mode F", PIL.Image.fromarray(np.zeros(HW, np.float32)), ValueError, "mode 'F'"),
    ("mode I", PIL.Image.fromarray(np.zeros(HW, np.int32)), ValueError, "mode 'I'"),
    ("no height", np.zeros((0, 10, 3), np.uint8), ValueError, "height 0"),
    ("float 0..1", RGB / 255, ValueError, "do_rescale=False"),
    ("float -1..1", RGB / 127.5 - 1, ValueError, "do_rescale=False"),
    ("NaN", NAN, ValueError, "not finite"),
    ("infinity", np.where(RGB > 100, np.inf, 1.0), ValueError, "not finite"),
    ("uint16 up to 255", RGB.astype(np.uint16), ValueError, "no value above 255"),
    ("int64 beyond 255", RGB.astype(np.int64) * 3, ValueError, "expected 0..255"),
    ("negative int", RGB.astype(np.int16) - 5, ValueError, "expected 0..255"),
    ("normalised already", (RGB / 255 - 0.45) / 0.225, ValueError, "do_rescale=False"),
    ("three rows", RGB[:3], ValueError, "channels_last"),
    ("four rows", RGB[:4], ValueError, "channels_last"),
    ("one row", RGB[:1], ValueError, "channels_last"),
    ("five channels", np.zeros((*HW, 5), np.uint8), ValueError, r"\(12, 20, 5\)"),
    ("two channels", np.zeros((*HW, 2), np.uint8), ValueError, r"\(12, 20, 2\)"),
    ("one dimension", np.zeros(12, np.uint8), ValueError, r"shape \(12,\)"),
    ("empty list", [], ValueError, "no images"),
    ("None", None, TypeError, "image 0 is None"),
    ("None in a list", [PICTURE, None], TypeError, "image 1 is None"),
    ("base64", "iVBORw0KGgoAAAANSUhEUgAA" * 40, FileNotFoundError, "not as base64"),
    ("a number", 7, TypeError, "a int"),
    ("text array", np.array([["a", "b"]]), TypeError, "dtype"),
    ("complex tensor", torch.zeros(12, 20, 3, dtype=torch.complex64), TypeError, "dtype"),
    ("LAB", PIL.Image.new("LAB", (4, 4)), ValueError, "mode 'LAB'"),
]


@pytest.mark.parametrize(("image", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(image, error, message):
    with pytest.raises(error, match=message) as caught:
        read_images(image)
    assert len(str(caught.value)) < 600  # names and shapes, never a whole array


FILES = [
    ("truncated", broken_jpeg(), ValueError, "cannot be decoded"),
    ("empty", b"", ValueError, "empty file"),
    ("text", b"hello", ValueError, "not an image"),
]


@pytest.mark.parametrize(("data", "error", "message"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_bad_file_is_named(tmp_path, data, error, message, kind):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        read_images([PICTURE, kind(path)])
    assert "image 1" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_lazily_opened_bad_file_is_named(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(broken_jpeg())
    with pytest.raises(ValueError, match=r"image 0 .*picture\.jpg.* cannot be decoded"):
        read_images(PIL.Image.open(path))


def test_a_folder_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_images(tmp_path)


def test_a_decompression_bomb_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(PICTURE, "PNG"))
    with pytest.raises(ValueError, match=r"bomb\.png.*decompression bomb"):
        read_images(path)


@pytest.mark.parametrize("kind", [str, Path, lambda path: path.read_bytes(), PIL.Image.open])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])  # a PNG called .jpg is a PNG all the same
def test_roads_to_the_same_pixels(tmp_path, kind, suffix):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(PICTURE, "PNG"))
    np.testing.assert_array_equal(read_one(kind(path)), RGB)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("opened", [False, True])
def test_exif_orientation_is_applied(format, orientation, opened):
    """As Pillow's own transposition turns it, for encoded and for opened pictures alike."""
    data = encoded(PICTURE, format, exif=with_orientation(orientation))
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    image = PIL.Image.open(io.BytesIO(data)) if opened else data
    np.testing.assert_array_equal(read_one(image), np.asarray(expected))
    if orientation >= 5:
        assert read_one(image).shape[:2] == HW[::-1]


def test_a_damaged_exif_block_is_no_reason_to_refuse_a_picture():
    data = encoded(PICTURE, "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    np.testing.assert_array_equal(read_one(data), rgb_of(PIL.Image.open(io.BytesIO(data))))


def test_a_transparent_palette_is_laid_on_white():
    palette = PICTURE.quantize(8)
    data = encoded(palette, "PNG", transparency=3)
    pixels, indices = read_one(data), np.asarray(palette)
    assert (indices == 3).any()
    assert (pixels[indices == 3] == 255).all()
    np.testing.assert_array_equal(pixels[indices != 3], rgb_of(palette)[indices != 3])


def test_mixed_lists_and_batches_are_flat():
    """Modes, kinds and nesting may mix; a 4-D batch is as many images."""
    batch = torch.from_numpy(np.stack([RGB, RGB]).transpose(0, 3, 1, 2).copy())
    images = read_images([PICTURE, GREY, [RGB, RGB.astype(np.float32)], batch])
    assert [tuple(image.shape) for image in images] == [(*HW, 3)] * 6
    assert len(read_images(np.stack([RGB] * 4))) == 4


def test_layouts_that_only_the_caller_knows():
    np.testing.assert_array_equal(read_one(RGB[:3], input_data_format="channels_last"), RGB[:3])
    first = RGB[:, :3].transpose(2, 0, 1)
    np.testing.assert_array_equal(read_one(first, input_data_format="channels_first"), RGB[:, :3])


def test_read_only_memory_map(tmp_path):
    """Torch can share no memory that is read-only."""
    np.save(tmp_path / "pixels.npy", RGB)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    np.testing.assert_array_equal(read_one(mapped), RGB)


def test_without_rescaling_floats_are_taken_as_they_are():
    np.testing.assert_array_equal(read_one(RGB / 255, expects_0_255=False), (RGB / 255).astype(np.float32))
    white = read_one(np.dstack([RGB / 255, np.zeros(HW)]), expects_0_255=False)
    np.testing.assert_array_equal(white, np.ones_like(white))


def test_a_black_float_image_is_no_mistake():
    assert not read_one(np.zeros((*HW, 3), np.float32)).any()


def test_own_channels_without_conversion():
    assert read_one(GREY, do_convert_rgb=False).shape == (*HW, 1)
    assert read_one(transparent(9), do_convert_rgb=False).shape == (*HW, 4)
    five = np.zeros((*HW, 5), np.uint8)
    assert read_one(five, do_convert_rgb=False, input_data_format="channels_last").shape == (*HW, 5)
    with pytest.raises(ValueError, match="mode 'P'"):
        read_images(PICTURE.quantize(4), do_convert_rgb=False)


def test_an_opened_picture_is_left_as_it_was():
    image = PIL.Image.open(io.BytesIO(encoded(PICTURE, "JPEG", exif=with_orientation(6))))
    read_images(image)
    assert image.size == PICTURE.size
    assert image.getexif()[0x0112] == 6


def test_an_address_that_does_not_answer_is_named():
    """Whatever kept it from answering."""
    with pytest.raises(ValueError, match=r"image 0 \(http://127\.0\.0\.1:9/x\.jpg\) could not be fetched"):
        read_images("http://127.0.0.1:9/x.jpg")


def test_fuzzed_files_are_read_or_refused_by_name(tmp_path):
    """Whatever a damaged file does to the decoder, it is a ValueError that names the file."""
    generator = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    sources = [
        encoded(PIL.Image.fromarray(np.tile(RGB, (4, 4, 1))), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP")
    ]
    for trial in range(200):
        data = bytearray(sources[trial % len(sources)])
        for position in generator.integers(0, len(data), 20):
            data[position] = generator.integers(256)
        path = tmp_path / f"{trial}.img"
        path.write_bytes(data[: generator.integers(1, len(data) + 1)] if trial % 3 else data)
        try:
            (pixels,) = read_images(path)
            assert pixels.shape[-1] == 3
            outcomes["read"] += 1
        except ValueError as error:
            assert f"{trial}.img" in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


PAGES = {
    "TIFF": "several pages: one page of it is used, number 1",
    "GIF": "animation",
    "WEBP": "animation",
    "PNG": "anim",
}


@pytest.mark.parametrize("format", PAGES)
def test_of_several_pages_the_first_is_read_and_it_is_said(format, tmp_path, caplog):
    other = PICTURE.rotate(180)
    options = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / f"pages.{format.lower()}"
    PICTURE.save(path, format, save_all=True, append_images=[other], **options)
    image = PIL.Image.open(path)
    np.testing.assert_array_equal(read_one(path), rgb_of(image))
    assert PAGES[format] in caplog.text and path.name in caplog.text
    image.seek(1)
    np.testing.assert_array_equal(read_one(image), rgb_of(image))  # the page that an opened picture stands at


def test_the_preview_in_a_phones_picture_is_no_page(tmp_path, caplog):
    PICTURE.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[PICTURE])
    read_one(tmp_path / "a.jpg")
    assert not caplog.text
