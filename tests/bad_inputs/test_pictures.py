"""Pictures as people have them: one picture by every road, or a refusal by its type; and what is written where."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from typer.testing import CliRunner

from detr_hf import Detections, Detector
from detr_hf.checkpoints.embedded import demo_scene_path
from detr_hf.cli.main import app
from detr_hf.data.pictures import load_pixels

from .kinds import Holds, Kind, Refused, each, picture, try_out

DIGITS = 5  # in the scene that ships with the package


class OwnTensor(torch.Tensor):
    pass


class OwnArray(np.ndarray):
    pass


@pytest.fixture(scope="module", autouse=True)
def detector() -> Detector:
    found = Detector.from_pretrained()
    _Roads.detector = found
    return found


class _Roads:
    detector: Detector


def scene() -> Image.Image:
    return Image.open(demo_scene_path()).convert("RGB")


def looked_at(source: Any) -> Any:
    """The road: the size of the picture that was looked at and the number of objects; of several, a list."""
    found = _Roads.detector(source, threshold=0.5)
    if isinstance(found, Detections):
        return (found.image.size, len(found))
    return [len(one) for one in found]


def made(change: Callable[[Image.Image], Any]) -> Callable[[Path], Any]:
    """Returns a `make` that gives what `change` makes of the scene."""
    return lambda root: change(scene())


def saved(name: str, change: Callable[[Image.Image], Image.Image] = lambda image: image, **options: Any) -> Any:
    """Returns a `make` that writes the changed scene and gives its path."""

    def make(root: Path) -> Path:
        change(scene()).save(root / name, **options)
        return root / name

    return make


def as_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def array(image: Image.Image) -> np.ndarray:
    return np.array(image)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(array(image)).permute(2, 0, 1)


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(array(image.convert("L")).astype(np.uint16) * 257)


def upload(image: Image.Image) -> SimpleNamespace:
    return SimpleNamespace(file=io.BytesIO(as_bytes(image)), filename="x.png")


def two_objects(image: Image.Image) -> np.ndarray:
    both = np.empty(2, dtype=object)
    both[:] = [image, array(image)]
    return both


def reopened(change: Callable[[Image.Image], Any]) -> Callable[[Path], Image.Image]:
    """Returns a `make`: the scene opened from a file, and changed since."""

    def make(root: Path) -> Image.Image:
        scene().save(root / "a.jpg", quality=95)
        image = Image.open(root / "a.jpg")
        change(image)
        return image

    return make


WHOLE = ((512, 512), DIGITS)
ONE = [
    Kind("an opened file", lambda root: io.BytesIO(as_bytes(scene())), looked_at, WHOLE),
    Kind("an upload", made(upload), looked_at, WHOLE),
    Kind("a row of datasets", made(lambda image: {"bytes": as_bytes(image), "path": None}), looked_at, WHOLE),
    Kind("a memoryview", made(lambda image: memoryview(as_bytes(image))), looked_at, WHOLE),
    Kind("a tv_tensors.Image", made(lambda image: tv_tensors.Image(image)), looked_at, WHOLE),
    Kind("an own tensor class", made(lambda image: tensor(image).as_subclass(OwnTensor)), looked_at, WHOLE),
    Kind("a Parameter", made(lambda image: torch.nn.Parameter(tensor(image), requires_grad=False)), looked_at, WHOLE),
    Kind("an own array class", made(lambda image: array(image).view(OwnArray)), looked_at, WHOLE),
    Kind("a batch of one", made(lambda image: tensor(image)[None]), looked_at, [DIGITS]),
    Kind("an array of objects", made(two_objects), looked_at, [DIGITS] * 2),
    Kind("nothing", lambda root: [], looked_at, []),
    Kind("a number", lambda root: 7, looked_at, Refused("int")),
    Kind("a text that is no file", lambda root: str(root / "gone.png"), looked_at, Refused("gone.png")),
    Kind("a floating picture of 0..1", made(lambda image: tensor(image) / 255), looked_at, Refused("255")),
]
READ = [
    Kind("16 bits", saved("a.png", sixteen_bits), looked_at, WHOLE),
    Kind("a palette", saved("a.gif", lambda image: image.quantize(256)), looked_at, WHOLE),
    Kind("CMYK", saved("a.jpg", lambda image: image.convert("CMYK"), quality=95), looked_at, WHOLE),
]


def bomb(root: Path) -> Path:
    Image.new("1", (8000, 8000)).save(root / "bomb.png")
    return root / "bomb.png"


LARGE = [
    Kind("49 megapixels in 8 kB", bomb, looked_at, Refused("bomb.png", "8000x8000", "decompression bomb")),
    Kind("the same in memory", lambda root: bomb(root).read_bytes(), looked_at, Refused("decompression bomb")),
    Kind(
        "the same as training reads it", bomb, lambda path: load_pixels(path, "a row"), Refused("decompression bomb")
    ),
]


@each(ONE, READ, LARGE)
def test_pictures(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)


@pytest.mark.parametrize("change", ["thumbnail", "draft"])
def test_a_picture_that_changed_since_it_was_opened_is_shown_as_it_was_looked_at(change: str, tmp_path: Path):
    changes = {
        "thumbnail": lambda image: image.thumbnail((256, 256)),
        "draft": lambda image: image.draft("RGB", (256, 256)),
    }
    assert looked_at(reopened(changes[change])(tmp_path))[0] == (256, 256)


def predict(*words: str) -> Callable[[Any], str]:
    """Returns the road of `detr-hf predict` in the folder: what it says, its exit code, and which inputs changed."""

    def road(root: Path) -> str:
        before = {path: path.read_bytes() for path in root.rglob("*.png")}
        result = CliRunner().invoke(app, ["predict", *(str(root / word) if "." in word else word for word in words)])
        lost = sorted(path.name for path, content in before.items() if path.read_bytes() != content)
        return f"{' '.join(result.output.split())} exit {result.exit_code} lost {lost}"

    return road


def two(root: Path) -> None:
    picture(root / "a.png", (64, 64))
    picture(root / "a_boxes.png", (64, 64))


def linked(root: Path) -> None:
    two(root)
    (root / "b.png").hardlink_to(root / "a.png")


def unreadable(root: Path) -> None:
    (root / "a.png").write_bytes(b"no picture")


OUTPUTS = [
    Kind("JSON over the picture", two, predict("a.png", "--json", "a.png"), Holds("exit 1", "lost []")),
    Kind("JSON over the picture by another name", linked, predict("a.png", "--json", "b.png"), Holds("lost []")),
    Kind("drawings beside the pictures", two, predict("a.png", "a_boxes.png", "--save", "./."), Holds("lost []")),
    Kind("a drawing over its picture", two, predict("a.png", "--out", "a.png"), Holds("lost []")),
    Kind("nothing can be read", unreadable, predict("a.png"), Holds("exit 1")),
]


@each(OUTPUTS)
def test_outputs(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)
