"""What a single picture is, and what lies behind it: decided once, for image processors, `Detector` and pipelines.

A single picture is a path, a URL, encoded bytes, an opened file or an upload that holds one, the dict of a row of
`datasets` (`{"bytes", "path"}`), a PIL image, or an array or tensor of any number of dimensions but four; whatever
class it was made a subclass of. Several are the images of an array of four dimensions, the entries of a
one-dimensional array of objects or texts, and what anything else gives that can be iterated over. Nothing here needs
torch.
"""

import base64
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image

ENCODED = (bytes, bytearray, memoryview)


def is_single_picture(images: Any) -> bool:
    """Whether `images` is one picture, as opposed to several.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(images, (str, os.PathLike, Mapping, PIL.Image.Image, *ENCODED)) or file_in(images) is not None:
        return True
    if is_array(images):
        return not (images.ndim == 4 or _is_list(images))
    if not isinstance(images, Iterable):
        raise TypeError(
            "Expected a picture (path, bytes, opened file, PIL image, array, tensor) or a list of pictures, "
            f"got {type(images).__name__}."
        )
    return False


def pictures_in(images: Any) -> Iterator[Any]:
    """Yields the single pictures in a picture, in several, and in lists of several; what is neither as it is."""
    if not isinstance(images, Iterable) or is_single_picture(images):
        yield images
    else:
        for image in images:
            yield from pictures_in(image)


def is_array(image: Any) -> bool:
    """Whether this is a NumPy array, a torch tensor, or what another library has in their place."""
    if isinstance(image, PIL.Image.Image):
        return False
    return is_tensor(image) or (hasattr(image, "__array__") and hasattr(image, "ndim"))


def is_tensor(image: Any) -> bool:
    """Whether this is a tensor of torch, which need not be loaded to say no."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _is_list(array: Any) -> bool:
    """Whether an array holds pictures in the place of numbers."""
    return array.ndim == 1 and getattr(array.dtype, "kind", "") in "OUT"


def file_in(source: Any) -> Any:
    """Returns the opened file that a source is, or holds as an upload does; None for anything else."""
    for file in (getattr(source, "file", None), source):
        if callable(getattr(file, "read", None)):
            return file
    return None


def plain_source(source: Any, name: str, timeout: float | None = None) -> tuple[Any, str]:
    """Returns the path or the encoded bytes behind a source, and the name to use in errors; others as they are.

    A file is read from its start and left where it stood, so that it can be read again. `timeout` is in seconds, for
    a URL.

    Raises:
        ValueError, TypeError: nothing can be read from it.
    """
    if isinstance(source, Mapping):
        return plain_source(_picture_of_row(source, name), name, timeout)
    if isinstance(source, ENCODED):
        return bytes(source), _named(name, f"{len(source)} bytes")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        name = _named(name, _shorten(source))
        return _fetched(source, name, timeout), name
    if isinstance(source, str) and source.startswith("data:") and "," in source:
        return _decoded_url(source, name), _named(name, _shorten(source))
    if isinstance(source, (str, os.PathLike)):
        return source, _named(name, _shorten(os.fspath(source)))
    if isinstance(source, PIL.Image.Image) or is_array(source) or (file := file_in(source)) is None:
        return source, name
    title = getattr(source, "filename", None) or getattr(file, "name", None)
    kind = f"a {type(source).__name__}"
    name = _named(name, f"{kind} of {_shorten(title)}" if isinstance(title, str) and title else kind)
    return _content(file, name), name


def _named(name: str, what: str) -> str:
    """Returns a picture's name with what it is, unless it says so already."""
    return name if "(" in name else f"{name} ({what})"


def _picture_of_row(row: Mapping[str, Any], name: str) -> Any:
    """Returns the bytes, else the path, of a row of `datasets.Image`."""
    if not {"bytes", "path"} & set(row):
        raise TypeError(
            f"{name} is a {type(row).__name__} with the keys {sorted(map(str, row))[:10]}, not an image. Pass the "
            'picture in it, such as row["image"].'
        )
    found = row.get("path") if row.get("bytes") is None else row["bytes"]
    if found is None:
        raise ValueError(f"{name} is a row with neither bytes nor a path.")
    return found


def _fetched(url: str, name: str, timeout: float | None) -> bytes:
    from transformers.image_utils import httpx

    try:
        answer = httpx.get(url, timeout=timeout, follow_redirects=True)
        answer.raise_for_status()
    except Exception as error:  # httpx, sockets, TLS: the address is what helps, whatever went wrong
        raise ValueError(f"{name} could not be fetched and decoded: {error}") from error
    return answer.content


def _decoded_url(url: str, name: str) -> bytes:
    """Returns the bytes that a `data:image/png;base64,...` URL holds."""
    head, _, text = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{name} is a data: URL that cannot be decoded: {error}.") from error


def _content(file: Any, name: str) -> bytes:
    """Returns all bytes of an opened file."""
    try:
        place = file.tell() if _can_seek(file) else None
        if place is not None:
            file.seek(0)
        content = file.read()
        if place is not None:
            file.seek(place)
    except Exception as error:  # closed, or a read() that is not a file's
        raise ValueError(f"{name} cannot be read: {error}") from error
    if isinstance(content, ENCODED):
        return bytes(content)
    if hasattr(content, "__await__"):
        content.close()
        raise TypeError(f"{name} has a read() that has to be awaited: pass the bytes, `await upload.read()`.")
    raise TypeError(
        f"{name} gives {type(content).__name__} when it is read, not bytes. Open files with mode 'rb', or pass their "
        "path."
    )


def _can_seek(file: Any) -> bool:
    """Whether a file can be read from its start again; a `SpooledTemporaryFile` of Python 3.10 does not say."""
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek") and hasattr(file, "tell")


def as_array(image: Any, name: str) -> np.ndarray:
    """Returns an array of NumPy or of another library as one of NumPy.

    Raises:
        ValueError: it has masked pixels.
        TypeError: its library does not hand it over.
    """
    if np.ma.is_masked(image):
        raise ValueError(f"{name} has masked pixels, which have no value: fill them in first, with image.filled(...).")
    if type(image) is np.ndarray:
        return image
    try:
        return np.asarray(image)
    except Exception as error:  # arrays of a device that need a call of their own
        raise TypeError(f"{name} is a {type(image).__name__} that gives no NumPy array: {error}") from error


def _shorten(text: str | bytes) -> str:
    text = os.fsdecode(text)
    return text if len(text) <= 200 else f"{text[:120]}... ({len(text)} characters)"
