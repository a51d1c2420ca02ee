"""What a single picture is: one decision, for whatever people hold in their hands; and the bytes behind it."""

import base64
import collections
import io
import mmap
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

from detr_hf.processing.image_reading_detr import read_images
from detr_hf.processing.image_sources_detr import is_single_picture

from .test_image_reading_detr import HW, PICTURE, RGB, SIXTEEN_BITS, encoded, transparent

PNG = encoded(PICTURE, "PNG")
PLANES = torch.from_numpy(RGB.transpose(2, 0, 1).copy())
BATCH = np.stack([RGB, RGB])


class OwnTensor(torch.Tensor):
    pass


class OwnArray(np.ndarray):
    pass


class OwnText(str):
    __slots__ = ()


class OwnPath:
    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Foreign:
    """An array of another library."""

    ndim, shape, dtype = 3, RGB.shape, RGB.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return RGB

    def __iter__(self):
        return iter(RGB)


class Upload:
    """As Starlette's and FastAPI's: `read` has to be awaited, and the file is in `file`."""

    filename = "street.png"

    def __init__(self):
        self.file = written(tempfile.SpooledTemporaryFile)

    async def read(self) -> bytes:
        return b""


class Pipe:
    """A file that cannot be sought in, as an answer of a server."""

    def read(self) -> bytes:
        return PNG


class Column(collections.abc.Sequence):
    """A lazy column, as `datasets` has them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return [PICTURE, PICTURE][index]


def written(kind) -> object:
    file = kind()
    file.write(PNG)  # and it stands at its end
    return file


def mapped(path: Path) -> np.ndarray:
    np.save(path.with_suffix(".npy"), RGB)
    return np.load(path.with_suffix(".npy"), mmap_mode="c")


def mapped_bytes(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


SINGLE = {
    "text": str,
    "path": Path,
    "subclass of str": lambda path: OwnText(path),
    "text of NumPy": lambda path: np.array([str(path)])[0],
    "PathLike": OwnPath,
    "bytes": lambda path: PNG,
    "bytearray": lambda path: bytearray(PNG),
    "memoryview": lambda path: memoryview(PNG),
    "BytesIO": lambda path: io.BytesIO(PNG),
    "BytesIO at its end": lambda path: written(io.BytesIO),
    "opened file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "spooled file": lambda path: written(tempfile.SpooledTemporaryFile),
    "temporary file": lambda path: written(tempfile.NamedTemporaryFile),
    "upload": lambda path: Upload(),
    "answer of a server": lambda path: Pipe(),
    "mapped bytes": lambda path: mapped_bytes(path),
    "data URL": lambda path: "data:image/png;base64," + base64.b64encode(PNG).decode(),
    "row with bytes": lambda path: {"bytes": PNG, "path": "not/here.png"},
    "row with a path": lambda path: {"bytes": None, "path": str(path)},
    "row of another class": lambda path: collections.UserDict(bytes=PNG),
    "PIL image": PIL.Image.open,
    "tv_tensors.Image": lambda path: tv_tensors.Image(PLANES),
    "subclass of Tensor": lambda path: PLANES.as_subclass(OwnTensor),
    "parameter": lambda path: torch.nn.Parameter(PLANES.float()),
    "subclass of ndarray": lambda path: RGB.view(OwnArray),
    "mapped array": mapped,
    "array with no mask": lambda path: np.ma.array(RGB),
    "array of another library": lambda path: Foreign(),
    "channels last": lambda path: RGB,
    "alpha": lambda path: np.dstack([RGB, np.full(HW, 255, np.uint8)]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize("kind", SINGLE)
def test_one_picture(kind, path):
    source = SINGLE[kind](path)
    assert is_single_picture(source)
    (pixels,) = read_images(source)
    assert type(pixels) is torch.Tensor
    np.testing.assert_array_equal(pixels.numpy(), RGB)
    assert len(read_images([source, source])) == 2  # a file is left as it stood


def objects(*items) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


SEVERAL = {
    "list": lambda path: [PICTURE, path],
    "tuple": lambda path: (PICTURE, PNG),
    "generator": lambda path: (picture for picture in (PICTURE, io.BytesIO(PNG))),
    "values of a dict": lambda path: {"a": PICTURE, "b": path}.values(),
    "lazy column": lambda path: Column(),
    "array of objects": lambda path: objects(PICTURE, RGB),
    "array of texts": lambda path: np.array([str(path)] * 2),
    "array of four dimensions": lambda path: BATCH,
    "tensor of four dimensions": lambda path: torch.stack([PLANES, PLANES]),
    "tv_tensors of four dimensions": lambda path: tv_tensors.Video(torch.stack([PLANES, PLANES])),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_pictures(kind, path):
    assert not is_single_picture(SEVERAL[kind](path))
    read = read_images(SEVERAL[kind](path))
    assert len(read) == 2 and all(np.array_equal(pixels.numpy(), RGB) for pixels in read)


def test_a_series_of_pandas_is_several(path):
    pandas = pytest.importorskip("pandas")
    assert len(read_images(pandas.Series([str(path), str(path)]))) == 2


def test_a_batch_of_one_is_several_by_itself_and_one_in_a_list():
    assert not is_single_picture(BATCH[:1])
    assert len(read_images([BATCH[:1], PICTURE])) == 2


def closed() -> io.BytesIO:
    file = io.BytesIO(PNG)
    file.close()
    return file


class Awaited:
    async def read(self) -> bytes:
        return PNG


class Frames:
    """As cv2.VideoCapture."""

    def read(self) -> tuple[bool, np.ndarray]:
        return True, RGB


REFUSED = [
    ("text file", lambda path: path.open(encoding="latin-1"), TypeError, "gives str when it is read.*'rb'"),
    ("awaited upload", lambda path: Awaited(), TypeError, "Awaited.*await"),
    ("closed file", lambda path: closed(), ValueError, "BytesIO.*cannot be read.*closed"),
    ("read of something else", lambda path: Frames(), TypeError, "Frames.*gives tuple"),
    ("row with another key", lambda path: {"image": PICTURE, "id": 3}, TypeError, r"dict with the keys.*row\[\"image"),
    ("empty row", lambda path: {"bytes": None, "path": None}, ValueError, "neither bytes nor a path"),
    ("row with no picture", lambda path: {"bytes": b""}, ValueError, "0 bytes"),
    ("masked array", lambda path: np.ma.masked_less(RGB, 9), ValueError, "masked pixels"),
    ("data URL of text", lambda path: "data:text/plain,hello", ValueError, "data: URL"),
    ("pixels as objects", lambda path: RGB.astype(object), TypeError, "dtype object"),
    ("an object", lambda path: object(), TypeError, "a object"),
    ("array of no dimension", lambda path: np.array(7), ValueError, r"shape \(\)"),
]


@pytest.mark.parametrize(("make", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_by_its_type_and_place(make, error, message, path):
    with pytest.raises(error, match=message) as caught:
        read_images([PICTURE, make(path)])
    assert "image 1" in str(caught.value)


@pytest.fixture
def address():
    """A server that has a 16-bit and a transparent picture."""
    content = {
        "/16.png": encoded(PIL.Image.fromarray(SIXTEEN_BITS), "PNG"),
        "/clear.png": encoded(transparent(0), "PNG"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in content else 404)
            self.end_headers()
            self.wfile.write(content.get(self.path, b"<html>gone</html>"))

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url_is_read_by_the_same_rules(address):
    deep, clear = read_images([f"{address}/16.png", f"{address}/clear.png"])
    np.testing.assert_array_equal(deep[..., 0].numpy(), np.asarray(PICTURE.convert("L")))
    assert (clear == 255).all()
    with pytest.raises(ValueError, match=r"image 0 \(http.*gone\.png\) could not be fetched and decoded: .*404"):
        read_images(f"{address}/gone.png")
