"""Files that visitors give, and what the page says of each; used with and without a browser."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_hf.checkpoints.embedded import demo_scene_path


class Given(NamedTuple):
    """A file by its name, its content, and the words of the answer; none where it is looked at as any picture."""

    name: str
    content: Callable[[], bytes]
    error: tuple[str, ...] = ()
    note: str = ""


def scene() -> Image.Image:
    return Image.open(demo_scene_path()).convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


MAX_MB, MAX_MEGAPIXELS = 5, 70
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
GIVEN = [
    Given("empty.jpg", lambda: b"", ("empty.jpg", "0 bytes")),
    Given("cut short.jpg", lambda: encoded(scene(), "JPEG")[:9000], ("cut short.jpg", "cut short or damaged")),
    Given("text.png", lambda: b"no picture", ("text.png", "of no format that is known")),
    Given("drawing.svg", lambda: SVG, ("drawing.svg", "of no format that is known")),
    Given("large.bmp", lambda: encoded(noise(1400, 1400), "BMP"), ("large.bmp has 5.9 MB", "5 MB at most (--max-mb)")),
    Given(
        "wide.png",
        lambda: encoded(Image.new("1", (9000, 8000))),
        ("wide.png has 9000x8000 pixels, 72.0 megapixels", "70 at most (--max-megapixels)"),
    ),
    Given("grün 😀 <b>.png", lambda: encoded(scene())),
    Given("cmyk.jpg", lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95)),
    Given("sixteen.png", lambda: encoded(sixteen_bits())),
    Given(
        "moving.gif",
        lambda: encoded(scene(), "GIF", save_all=True, append_images=[scene().rotate(90)]),
        note="moving.gif is an animation: one frame of it is used, number 1.",
    ),
]
