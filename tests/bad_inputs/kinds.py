"""What people bring, as data: what they made, the road they take with it, and what should come of it.

The next case is a line in a table of one of the test modules here:

    Kind("a picture is listed twice", made_of(coco, repeat_image), load, Refused("file-listed-twice"))

- `name` says what is odd about it, and is the test's id;
- `make(root)` writes files below an empty folder; what it returns goes on the road (None: the folder itself);
- `road(what)` is what the user calls; it returns something to compare;
- `should` is the right value, or `Refused(words, ...)`: an error of ours that names all of these, or `Holds(...)`:
  a text or collection with all of these in it;
- `says` are words that the log must hold at the level of a warning (empty: anything may be said).

`coco`, `yolo`, `voc` and `rows` write one small sound data set each (pictures of 96 x 64, one object each at
x, y, width, height = 10, 10, 40, 30 of the class "dog" of "cat", "dog"), to be broken by the case.
"""

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 96, 64
BOX = [10, 10, 40, 30]
CLASSES = ("cat", "dog")
OURS = (ValueError, TypeError, OSError, RuntimeError)


class Refused(tuple):
    """The words that the error must hold."""

    def __new__(cls, *words: str) -> "Refused":
        return super().__new__(cls, words)


class Holds(Refused):
    """What the value must hold."""


@dataclass(frozen=True)
class Kind:
    """One case, see the module."""

    name: str
    make: Callable[[Path], Any]
    road: Callable[[Any], Any]
    should: Any
    says: Sequence[str] = ()


def each(*tables: Sequence[Kind]) -> Any:
    """Returns the mark that runs a test once for each kind of the tables."""
    kinds = [kind for table in tables for kind in table]
    return pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in kinds])


def try_out(kind: Kind, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Makes the case, takes the road, and compares with what should be."""
    made = kind.make(root)
    what = root if made is None else made
    with caplog.at_level(logging.WARNING, logger="detr_hf"):
        if type(kind.should) is Refused:
            with pytest.raises(OURS) as raised:
                kind.road(what)
            found = str(raised.value)
        else:
            found = kind.road(what)
    if isinstance(kind.should, Refused):
        missing = [word for word in kind.should if word not in found]
        assert not missing, f"{missing} not in: {found}"
    else:
        assert found == kind.should
    for words in kind.says:
        assert words in caplog.text, f"{words!r} was not said: {caplog.text}"


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Writes a picture of noise, another one for each name, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    """Writes bytes as they are, text as UTF-8 and anything else as JSON; the folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return path


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes the content of a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write(path, content)


def coco(
    root: Path,
    split: str = "train",
    names: Sequence[str] = ("a.png", "b.png"),
    folder: str | None = None,
    json_path: str | None = None,
    **annotation: Any,
) -> Path:
    """Writes pictures and a COCO file with ids from 1; `annotation` goes into each; returns the file."""
    size = {"width": WIDTH, "height": HEIGHT}
    content: dict[str, Any] = {
        "images": [{"id": number, "file_name": name, **size} for number, name in enumerate(names, 1)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 2, "bbox": BOX, "iscrowd": 0, **annotation}
            for number in range(1, len(names) + 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    for name in names:
        picture(root / (folder or split) / name)
    return write(root / (json_path or f"annotations/instances_{split}.json"), content)


def coco_with(change: Callable[[dict[str, Any]], Any], **options: Any) -> Callable[[Path], None]:
    """Returns a `make`: a COCO data set whose content is changed by `change`."""
    return lambda root: edit(coco(root, **options), change)


def yolo_line(box: Sequence[float] = BOX, label: int = 1) -> str:
    """Returns a YOLO line of a box in pixels."""
    x, y, w, h = box
    return f"{label} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"


def yolo(
    root: Path, splits: Sequence[str] = ("train", "val"), names: Sequence[str] = ("a.png", "b.png"), yaml: str = ""
) -> Path:
    """Writes `images/` and `labels/` by split and a data.yaml (with further lines `yaml`); returns the YAML."""
    for split in splits:
        for name in names:
            picture(root / "images" / split / name)
            write((root / "labels" / split / name).with_suffix(".txt"), yolo_line())
    entries = "".join(f"{split}: images/{split}\n" for split in splits)
    return write(root / "data.yaml", f"{entries}names: [{', '.join(CLASSES)}]\n{yaml}")


def voc(root: Path, splits: Sequence[str] = ("train", "val"), names: Sequence[str] = ("a.png", "b.png")) -> None:
    """Writes `Annotations`, `JPEGImages` and `ImageSets/Main`; pictures are named by split: `train_a.png`."""
    x, y, w, h = BOX
    corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    found = f"<object><name>{CLASSES[1]}</name><bndbox>{corners}</bndbox></object>"
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    for split in splits:
        stems = [f"{split}_{Path(name).stem}" for name in names]
        for stem, name in zip(stems, names, strict=True):
            path = picture(root / "JPEGImages" / f"{stem}{Path(name).suffix}")
            text = f"<annotation><filename>{path.name}</filename>{size}{found}</annotation>"
            write(root / "Annotations" / f"{stem}.xml", text)
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems))


def rows(root: Path, count: int = 2, **changes: Sequence[Any]) -> Any:
    """Returns a `datasets.Dataset` of the schema of the Hub; `changes` are columns instead of the sound ones."""
    from datasets import ClassLabel, Dataset, Features, Image as Picture, List, Value

    objects = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=list(CLASSES)))}
    features = Features({"image": Picture(), "image_id": Value("int64"), "objects": objects})
    columns = {
        "image": [str(picture(root / f"{number}.png")) for number in range(count)],
        "image_id": list(range(count)),
        "objects": [{"bbox": [BOX], "category": [1]}] * count,
    }
    return Dataset.from_dict(columns | changes, features=features)
