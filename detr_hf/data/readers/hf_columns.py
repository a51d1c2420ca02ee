"""Which columns of a `datasets` source hold the objects, and a row's objects in one shape whichever they are.

Three shapes are read:

- `objects`: boxes and classes, masks as `segmentation` (polygons, run lengths, or JSON of them) or as pictures; with
  the column `panoptic` beside it, as data is saved here, the objects are its segments;
- `segments_info` and a picture of segment ids, R + 256 G + 65536 B, in any one other column (`label`, ...);
- a picture whose red is the class and whose green the instance, 0 for none, and `semantic_class_to_id`, as the example
  of transformers for instance segmentation has it. Its classes are countable: what has no instance is background.

Boxes that are not there are measured on the masks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Image as ImageFeature
from PIL import Image

from ...errors import LayoutError, PictureError
from ...processing.mask_annotations_detr import measure_segments, read_segment_ids
from ...processing.run_lengths_detr import run_length_mask, run_lengths
from ..detection_data import NO_MASK
from ..pictures import open_undecoded
from .mask_text import Faulty
from .text import parse_json

BOX_KEYS = ("bbox", "boxes", "bboxes", "box")
CATEGORY_KEYS = ("category", "category_id", "categories", "label", "labels", "class", "classes")
ID_KEYS = ("id", "bbox_id", "annotation_id")
MASK_KEYS = ("segmentation", "segmentations", "mask", "masks")
THING_KEYS = ("isthing", "is_thing")
CLASS_IDS = "semantic_class_to_id"
SECOND_PICTURES = ("panoptic", "label", "annotation", "mask", "segmentation")


class Columns(NamedTuple):
    """Where rows have their objects: the column, its fields of boxes (None: measured) and classes, and the picture."""

    objects: str | None
    box: str | None
    category: str
    picture: str | None = None

    @property
    def panoptic(self) -> bool:
        """Whether the picture holds the objects' segments."""
        return self.objects is not None and self.picture is not None


def find_columns(row_or_features: Mapping[str, Any], where: str, task: str | None = None) -> Columns:
    """Returns the columns of a split.

    Raises:
        LayoutError: one is missing, or two could be it.
    """
    columns = dict(row_or_features)
    seen = f"{where} has the columns {', '.join(map(str, columns))}"
    pictures = [name for name, value in columns.items() if name != "image" and _is_picture(name, value)]
    own = "objects" in columns and "panoptic" in pictures
    panoptic = own or ("segments_info" in columns and (task == "panoptic" or "objects" not in columns))
    painted = CLASS_IDS in columns or task == "instance"
    if "image" not in columns:
        raise LayoutError(f"{seen}; looked for `image`.")
    if task == "panoptic" and not panoptic:
        raise LayoutError(f"{seen}; looked for `segments_info`, and a picture of segment ids beside `image`.")
    if panoptic and task == "instance":
        raise LayoutError(f"{seen}: its masks are panoptic segments. Pass task='panoptic'.")
    if panoptic or (painted and "objects" not in columns):
        named = [name for name in pictures if name == "panoptic"] or pictures
        if len(named) != 1:
            found = ", ".join(named) or "none"
            raise LayoutError(f"{seen}; looked for one picture of segments beside `image`, found {found}.")
    if not panoptic and "objects" not in columns:
        if painted:
            return Columns(None, None, "category", named[0])
        raise LayoutError(
            f"{seen}; looked for `image`, and `objects` with boxes and classes in it, `segments_info` with a picture "
            f"of segment ids, or a picture of classes and instances with `{CLASS_IDS}`."
        )
    name = "objects" if own or not panoptic else "segments_info"
    fields = _fields(columns[name])
    if fields is None:
        raise LayoutError(f"{seen}; looked for `{name}` with boxes and classes in it.")
    chosen = []
    for keys in (BOX_KEYS, CATEGORY_KEYS):
        present = [key for key in keys if key in fields]
        if len(present) > 1 or (not present and (keys == CATEGORY_KEYS or not _measurable(name, fields))):
            raise LayoutError(
                f"{where}: `{name}` has the fields {', '.join(map(str, fields))}; looked for exactly one of "
                f"{', '.join(keys)}, found {', '.join(present) or 'none'}. Rename or remove columns first."
            )
        chosen.append(present[0] if present else None)
    return Columns(name, chosen[0], chosen[1], named[0] if panoptic else None)


def _measurable(name: str, fields: Mapping[str, Any]) -> bool:
    return name == "segments_info" or any(key in fields for key in MASK_KEYS)


def _fields(objects: Any) -> Mapping[str, Any] | None:
    """Returns the fields of the objects of a row, or of a split's features."""
    if isinstance(objects, list):
        objects = objects[0] if objects else {}
    elif hasattr(objects, "feature"):  # a List of structs
        objects = objects.feature
    return objects if isinstance(objects, Mapping) else None


def _is_picture(name: str, value: Any) -> bool:
    """Whether a column, by its feature or a row's value, holds pictures."""
    return isinstance(value, ImageFeature) or (
        _holds_picture(value) and (name in SECOND_PICTURES or isinstance(value, Image.Image))
    )


def _holds_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Mapping) and {"bytes", "path"} <= set(value))


def as_column(objects: Any, key: str | None) -> list[Any]:
    """Returns a field of an `objects` value as a list, whichever way round it is stored; empty where it is absent."""
    if isinstance(objects, Mapping):
        values = objects.get(key)
        return [] if values is None else list(values)
    return [entry.get(key) for entry in objects or []]


class RowObjects(NamedTuple):
    """The objects of a row in equally long columns (if the source's are), each None or empty where it has none."""

    boxes: list[Any]
    categories: list[Any]
    ids: list[Any]
    areas: list[Any]
    crowds: list[Any]
    masks: list[Any]
    things: list[Any]


def objects_of(
    row: Mapping[str, Any], columns: Columns, size_wh: tuple[int, int], keep_masks: bool = True
) -> RowObjects:
    """Returns the objects of a row; masks as JSON would hold them, `Faulty` where they cannot be read.

    Without `keep_masks`, masks that are pictures are passed over where boxes are there.

    Raises:
        PictureError: the picture of segments, or of classes and instances, cannot be read or has another size.
    """
    if columns.objects is None:
        return _instances(row, columns, size_wh)
    objects = row[columns.objects]
    boxes, categories = (as_column(objects, key) for key in (columns.box, columns.category))
    count = len(boxes) if columns.box else len(categories)

    def optional(*keys: str) -> list[Any]:
        there = ([*as_column(objects, key)] for key in keys)
        whole = (values for values in there if len(values) == count and any(value is not None for value in values))
        return next(whole, [None] * count)

    ids, masks = optional(*ID_KEYS), [None] * count
    if columns.panoptic and not columns.box:
        found, _, measured = measure_segments(segment_ids_of_row(row, columns, size_wh))
        place = {identity: box for identity, box in zip(found.tolist(), measured.tolist(), strict=True)}
        boxes = [_as_xywh(place.get(identity, (0, 0, 0, 0))) for identity in ids]
    elif not columns.panoptic:
        needed = keep_masks or not columns.box
        masks = [
            as_segmentation(value) if needed or not _holds_picture(value) else None for value in optional(*MASK_KEYS)
        ]
        if not columns.box:
            boxes = [_box_of(mask, size_wh) for mask in masks]
    return RowObjects(boxes, categories, ids, optional("area"), optional("iscrowd"), masks, optional(*THING_KEYS))


def segment_ids_of_row(row: Mapping[str, Any], columns: Columns, size_wh: tuple[int, int]) -> np.ndarray:
    """Returns the segment ids (H, W) of a row's second picture.

    Raises:
        PictureError: it cannot be read, or has another size.
    """
    name = f"`{columns.picture}`"
    try:
        return read_segment_ids(open_undecoded(row[columns.picture], name), size_wh[::-1], "the picture", name)
    except ValueError as error:
        raise PictureError(str(error)) from error


def _instances(row: Mapping[str, Any], columns: Columns, size_wh: tuple[int, int]) -> RowObjects:
    """Returns the objects of a picture of classes (red) and instances (green)."""
    ids = segment_ids_of_row(row, columns, size_wh) & 0xFFFF
    found, areas, boxes = measure_segments(np.where(ids >> 8, ids, 0))
    masks = [run_lengths(ids == identity) for identity in found]
    rest = [None] * len(found)
    boxes = [_as_xywh(box) for box in boxes.tolist()]
    return RowObjects(boxes, (found & 0xFF).tolist(), rest, areas.tolist(), rest, masks, rest)


def as_segmentation(value: Any) -> Any:
    """Returns a mask of a row as COCO's JSON has it (`NO_MASK` as it stands), or None."""
    if isinstance(value, str) and value != NO_MASK:
        try:
            value = parse_json(value)
        except ValueError as error:
            return Faulty(f"the segmentation is a text and no JSON ({error})")
    if _holds_picture(value):
        return _of_picture(value)
    if isinstance(value, Mapping):
        counts = value.get("counts")
        return {**value, "counts": counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list) and value and all(type(number) in (int, float) for number in value):
        return [value]  # one polygon without the list around it
    return value if isinstance(value, list | str) else None


def _of_picture(value: Any) -> Any:
    """Returns the run lengths of a mask that is a picture of two values, nothing and object."""
    try:
        with open_undecoded(value, "the mask") as image:
            pixels = np.asarray(image if image.mode in ("1", "L", "P", "I", "I;16", "F") else image.convert("RGB"))
    except Exception as error:  # Pillow raises a dozen kinds
        return Faulty(f"the picture of the mask cannot be read: {error}")
    pixels = pixels.reshape(*pixels.shape[:2], -1).any(axis=2) if pixels.ndim == 3 else pixels
    values = np.unique(pixels)
    if len(values[values != 0]) > 1:
        return Faulty(f"the picture of the mask has {len(values)} values, expected 0 and one other")
    return run_lengths(pixels != 0)


def _box_of(mask: Any, size_wh: tuple[int, int]) -> list[float]:
    """Returns the box (x, y, width, height) of a mask in pixels; without area where there is none to measure."""
    if isinstance(mask, Mapping):
        try:
            ids = run_length_mask(mask, size_wh[::-1]).astype(np.int32)
        except (ValueError, TypeError, OverflowError):
            return [0.0, 0.0, 0.0, 0.0]  # told as the mask's fault
        boxes = measure_segments(ids)[2].tolist()
        return _as_xywh(boxes[0] if boxes else (0, 0, 0, 0))
    points = [point for polygon in mask if isinstance(polygon, list) for point in polygon] if mask else []
    if isinstance(mask, str) or not points or not all(type(value) in (int, float) for value in points):
        return [0.0, 0.0, 0.0, 0.0]
    across, down = points[0::2], points[1::2]
    return _as_xywh((min(across), min(down), max(across), max(down))) if down else [0.0, 0.0, 0.0, 0.0]


def _as_xywh(box_xyxy: Any) -> list[float]:
    left, top, right, bottom = map(float, box_xyxy)
    return [left, top, right - left, bottom - top]
