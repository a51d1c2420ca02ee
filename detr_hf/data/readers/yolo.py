"""YOLO data sets: a `data.yaml` (or `images/` and `labels/` folders) and one text file of objects for each picture.

A line is `class x y width height` (the box's centre and size as fractions of the picture), or `class x y x y x y ...`
(a polygon). A picture without a text file is a background picture. Paths in `data.yaml` start from its own folder and
stay inside; Roboflow's `../train/images`, which points one folder too high, is read as `train/images` where that
exists.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import AnnotationError, LayoutError
from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ..detection_data import Categories
from ..pictures import upright_size
from .paths import join_inside, list_pictures, looked_in, unsafe_reason
from .records import SplitRecords

SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt")
# Numbers may exceed the picture by this fraction: tools round to six digits.
FRACTION_SLACK = 0.01


@dataclass
class YoloLayout:
    """Pictures by split as (folder, names below it), and the class names by id."""

    root: Path
    pictures: dict[str, list[tuple[Path, str]]]
    names: dict[int, str] = field(default_factory=dict)


def find_yaml(root: Path) -> Path | None:
    """Returns the data.yaml of a folder, or None.

    Raises:
        LayoutError: several YAML files could be it.
    """
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    found = [path for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if _is_yolo_yaml(path)]
    if len(found) > 1:
        raise LayoutError(
            f"{root} is ambiguous: {', '.join(path.name for path in found)} all describe data. Pass the path of one."
        )
    return found[0] if found else None


def _is_yolo_yaml(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")[:100_000]
    return "names:" in text and any(f"{key}:" in text for key in SPLIT_KEYS)


def has_yolo_folders(root: Path) -> bool:
    """Whether a folder holds YOLO's `images/` and `labels/`, at its top or in its split folders."""
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return next((root / "labels").glob("**/*.txt"), None) is not None
    return any(
        (folder / "images").is_dir() and next((folder / "labels").glob("*.txt"), None)
        for folder in root.iterdir()
        if folder.is_dir()
    )


def layout_from_yaml(
    path: Path, image_root: Path | None = None, roots: Mapping[str, Path] | None = None
) -> YoloLayout:
    """Returns what a data.yaml describes; the entries of a split in `roots` start there.

    Raises:
        LayoutError: it is no YAML, has no split, or names folders that do not exist or lie outside.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is not YAML that can be read: {str(error)[:300]}.") from error
    if not isinstance(content, dict):
        raise LayoutError(f"{path} holds a {type(content).__name__}, expected the keys train, val and names.")
    root = image_root or path.parent
    base = root
    if image_root is None and isinstance(content.get("path"), str) and content["path"].strip(". /"):
        base = _inside(root, content["path"], path, default=root)
    pictures = {}
    for key in SPLIT_KEYS:
        value = content.get(key)
        if value in (None, "", []):
            continue
        entries = value if isinstance(value, list) else [value]
        pictures[key] = [pair for entry in entries for pair in _pictures_of((roots or {}).get(key, base), entry, path)]
    if not pictures:
        raise LayoutError(
            f"{path} names no split; looked for {', '.join(SPLIT_KEYS)}, found {', '.join(map(str, content))}."
        )
    return YoloLayout(root, pictures, _names_of(content, path))


def _inside(base: Path, entry: Any, yaml_path: Path, default: Path | None = None) -> Path:
    """Returns the file or folder that an entry of a data.yaml means, kept below the folder of the YAML."""
    if not isinstance(entry, str):
        raise LayoutError(f"{yaml_path}: {str(entry)[:80]!r} is no path.")
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    # Ultralytics' `path: ../datasets/coco8` names the folder itself, as its author had it.
    looked = [base.joinpath(*parts[skip:]) for skip in range(len(parts))] if parts else []
    for candidate in looked:
        if candidate.exists():
            return candidate
    if default is not None:
        return default
    raise LayoutError(
        f"{yaml_path} names {entry!r}, which is not below {base}; looked for "
        f"{', '.join(map(str, looked)) or 'nothing'}. Paths outside of the data set's folder are not followed: "
        "correct the file, or pass image_root=, the folder to start from."
    )


def _pictures_of(base: Path, entry: Any, yaml_path: Path) -> list[tuple[Path, str]]:
    place = _inside(base, entry, yaml_path)
    if place.is_dir():
        return [(place, name) for name in list_pictures(place)]
    if place.suffix.lower() != ".txt":
        raise LayoutError(f"{yaml_path} names {entry!r}, which is neither a folder nor a .txt list of pictures.")
    lines = place.read_text(encoding="utf-8").splitlines()
    names = [line.strip().removeprefix("./") for line in lines if line.strip()]
    for name in names:
        reason = unsafe_reason(name)
        if reason:
            raise LayoutError(f"{place} lists a picture that is refused: {reason}.")
    return [(base, name) for name in names]


def _names_of(content: dict[str, Any], path: Path) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(key) is int and key >= 0 for key in names):
        raise LayoutError(
            f"{path}: names is {str(names)[:80]!r}, expected a list of class names, or id: name for each class."
        )
    count = content.get("nc")
    if count is not None and count != len(names):
        raise LayoutError(f"{path}: nc is {count} and there are {len(names)} names; correct one of them.")
    return {key: str(name) for key, name in names.items()}


def layout_from_folders(root: Path) -> YoloLayout:
    """Returns what folders without a YAML hold: `images/train` and `labels/train`, `train/images` and `train/labels`.

    Pictures that lie in `images` itself are one split, `train`.
    """
    pictures: dict[str, list[tuple[Path, str]]] = {}
    if (root / "images").is_dir():
        folders = [folder for folder in sorted((root / "images").iterdir()) if folder.is_dir()]
        loose = [path for path in (root / "images").iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
        if folders and loose:
            raise LayoutError(
                f"{root / 'images'} is ambiguous: it holds pictures and folders. Move the pictures into the folder of "
                "a split."
            )
        for folder in folders or [root / "images"]:
            name = folder.name if folders else "train"
            pictures[name] = [(folder, picture) for picture in list_pictures(folder)]
    else:
        for folder in sorted(path.parent for path in root.glob("*/images") if path.is_dir()):
            pictures[folder.name] = [(folder / "images", name) for name in list_pictures(folder / "images")]
    names: dict[int, str] = {}
    for candidate in [root / name for name in NAME_FILES] + [root / "labels" / name for name in NAME_FILES]:
        if candidate.is_file():
            lines = candidate.read_text(encoding="utf-8").splitlines()
            names = dict(enumerate(line.strip() for line in lines if line.strip()))
            break
    return YoloLayout(root, pictures, names)


def label_path(folder: Path, name: str) -> Path:
    """Returns the text file of a picture: in `labels` instead of the last `images` of its path, else beside it."""
    path = Path(join_inside(folder, name)).with_suffix(".txt")
    return Path(re.sub(r"^(.*/)?images/", r"\1labels/", path.as_posix()))


def read_yolo(layout: YoloLayout, split: str, keep_masks: bool = True) -> SplitRecords:
    """Returns the pictures and objects of a split as records; boxes become x, y, width, height in pixels."""
    records = SplitRecords(split, keep_masks=keep_masks)
    for number, (folder, name) in enumerate(layout.pictures[split], start=1):
        path = join_inside(folder, name)
        row = records.add_image(number, name, path, *upright_size(path, name))
        _read_labels(records, row, label_path(folder, name))
    records.labels_from = looked_in(label_path(folder, name).parent for folder, name in layout.pictures[split])
    return records


def _read_labels(records: SplitRecords, row: int, path: Path) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        records.fault("label-file-unreadable", f"{path.name}: {type(error).__name__}: {error}", row)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            category, values = _parse_line(line)
        except AnnotationError as error:
            records.fault("label-malformed", f"line {number} of {path.name}: {error}", row)
            continue
        _add_line(records, row, f"line {number} of {path.name}", category, values)


def _parse_line(line: str) -> tuple[int, list[float]]:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise AnnotationError(f"{line[:80]!r} holds something that is not a number") from None
    polygon = len(values) >= 7 and len(values) % 2
    if not (len(values) == 5 or polygon):
        raise AnnotationError(
            f"it has {len(values)} numbers, expected 5 (class, centre, size) or a class and 3 points or more"
        )
    if not values[0].is_integer() or not 0 <= values[0] < 2**31:
        raise AnnotationError(f"the class is {words[0][:40]!r}, expected an integer from 0")
    return int(values[0]), values[1:]


def _add_line(records: SplitRecords, row: int, place: str, category: int, values: list[float]) -> None:
    """Adds a line's object; its id is its number in the split."""
    width, height = records.widths[row], records.heights[row]
    finite = all(math.isfinite(value) for value in values)
    outside = finite and any(value < -FRACTION_SLACK or value > 1 + FRACTION_SLACK for value in values)
    if outside:
        shown = ", ".join(f"{value:g}" for value in values[:6])
        message = f"{place}: {shown}: YOLO's numbers are fractions of the picture, from 0 to 1"
        records.fault("box-not-normalised", message, row)
        return
    if not width:
        return  # the picture cannot be read, which the picture check reports
    segmentation = None
    if len(values) == 4:
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        box = [x - w / 2, y - h / 2, w, h]
    else:
        polygon = [value * (height if index % 2 else width) for index, value in enumerate(values)]
        xs, ys = polygon[0::2], polygon[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        segmentation = [polygon]
    records.add_object(row, len(records.object_ids) + 1, category, box, segmentation=segmentation)


def yolo_categories(layout: YoloLayout, id2label: dict[Any, str] | None) -> Categories:
    """Returns the classes of a YOLO data set.

    Raises:
        LayoutError: no file names them, and `id2label` was not given.
    """
    names = id2label or layout.names
    if not names:
        raise LayoutError(
            f"{layout.root} does not say what its classes are called; looked for data.yaml, {', '.join(NAME_FILES)}. "
            "Write a data.yaml with `names:`, or pass id2label={0: 'name', ...}."
        )
    return Categories.of(names)
