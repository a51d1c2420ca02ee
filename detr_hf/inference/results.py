"""What a detector found in one picture.

Boxes are `(x0, y0, x1, y1)` in pixels of the upright picture (turned as its EXIF tag says), cut at its edges; masks
are of its size, and kept as run lengths. Everything is NumPy, so reading results needs no torch, and no picture is
kept that can be opened again from its file: the results of 100,000 files are small. What is shown is the picture that
was looked at: of one in memory a copy is kept, and a file that was changed since is noticed.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from ..errors import did_you_mean, install_hint
from ..processing.run_lengths_detr import run_length_mask
from .pictures import Stamp
from .segments import SegmentMap, mask_crop
from .showing import Showing

if TYPE_CHECKING:
    import pandas
    import supervision


class _Object(NamedTuple):
    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]


class Detection(_Object):
    """One object: its class, the model's score in [0, 1], and its box `(x0, y0, x1, y1)` in pixels.

    Unpacks into these four. `segmentation` is its mask as COCO run lengths, None where the model has no masks; `query`
    the number of the object query that found it.
    """

    segmentation: dict[str, Any] | None = None
    query: int | None = None

    def __new__(
        cls, *args: Any, segmentation: dict[str, Any] | None = None, query: int | None = None, **kwargs: Any
    ) -> Detection:
        """Returns the tuple, with its mask and its query beside it."""
        one = super().__new__(cls, *args, **kwargs)
        one.segmentation, one.query = segmentation, query
        return one


class BestBelow(NamedTuple):
    """The best object that did not score more than a threshold."""

    name: str
    score: float
    threshold: float

    def __str__(self) -> str:
        digits = 2 if f"{self.score:.2f}" != f"{self.threshold:.2f}" else 4
        return f"nothing over {self.threshold:.{digits}f}; the best is {self.score:.{digits}f} {self.name}"


def plain_value(value: Any, digits: int | None) -> Any:
    """Returns a value of a `Detection` as JSON holds it, rounded to `digits` decimals, or not where that is None."""
    if isinstance(value, tuple):
        return [plain_value(part, digits) for part in value]
    return value if digits is None else round(value, digits)


def _mask_column(arrow: Any) -> Any:
    return arrow.struct({"size": arrow.list_(arrow.int32(), 2), "counts": arrow.string()})


def plain_id(value: Any) -> int | str:
    """Returns the id of an image as JSON holds it: whole numbers as int, from whatever library, and texts.

    Raises:
        TypeError: it is neither.
    """
    plain = value.item() if getattr(value, "shape", None) in ((), (1,)) else value
    if isinstance(plain, str):
        return str(plain)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real) or plain % 1 != 0:  # also true for NaN
        raise TypeError(f"The id of an image must be a whole number or a text, got {value!r}.")
    return int(plain)  # type: ignore[call-overload]  # a Real of the standard library is said to have no int


def coco_results(
    image_id: int | str, objects: Sequence[Mapping[str, Any]], digits: int | None = None
) -> list[dict[str, Any]]:
    """Returns COCO result records of `plain_objects`; the size of a box has so many decimals, or all."""
    results = []
    for one in objects:
        x0, y0, x1, y1 = one["box"]
        size = [plain_value(x1 - x0, digits), plain_value(y1 - y0, digits)]
        record = {"image_id": image_id, "category_id": one["label"], "bbox": [x0, y0, *size], "score": one["score"]}
        masked = {} if one.get("segmentation") is None else {"segmentation": one["segmentation"]}
        results.append(record | masked)
    return results


@dataclass(frozen=True)
class Field:
    """What is known of every object, in all the forms that results have; declared in `Detections`.

    Attributes:
        one: its name in `Detection`, in dictionaries, records and tables, where a single object is meant.
        held: makes what `Detections` holds, of what is given for all objects.
        value: makes of one of these what `Detection` holds.
        column: returns its type in a table, given the module `pyarrow`; None for what is in no file and no dictionary.
        digits: the decimals that the results of a run keep; None for what is not rounded.
        plain: makes of the value what JSON holds, rounded to so many decimals or not (None).
    """

    one: str
    held: Callable[[Any], Any]
    value: Callable[[Any], Any]
    column: Callable[[Any], Any] | None = None
    digits: int | None = None
    plain: Callable[[Any, int | None], Any] = plain_value


def _array(dtype: type, shape: tuple[int, ...]) -> Callable[[Any], np.ndarray]:
    return lambda values: np.asarray(values, dtype=dtype).reshape(shape)


@dataclass(eq=False, repr=False)
class Detections(Showing):
    """The objects found in one picture, best first; iterates over `Detection`, and slices like an array.

    `boxes (N, 4)` float32 xyxy pixels, `scores (N,)` float32, `labels (N,)` int64, `names` a list of N class names,
    `size_hw` the picture's `(height, width)`, `path` its file if it came from one, `stamp` how that file stood, and
    `source` the picture itself (PIL image, array, tensor or bytes) if no file shows it.

    `queries (N,)` int64 are the object queries that found them, None where nobody told: beside a model's outputs for
    one picture they say which row belongs to which object.

    A model with masks gives `segmentations`, a list of N COCO run lengths (`masks` are they as arrays; one may have no
    pixel, or be None), and `panoptic` or `semantic`, `SegmentMap`s of the whole picture. These are made of more than
    the objects that a slice or `filter()` keeps, so that what is selected has none.

    Where nothing scored more than the threshold, `best_below` says what came nearest. `id2label` are the model's
    class names by label, None where nobody told.
    """

    boxes: np.ndarray = field(
        metadata={
            "of_each": Field(
                "box",
                _array(np.float32, (-1, 4)),
                lambda box: tuple(float(edge) for edge in box),
                lambda arrow: arrow.list_(arrow.float32(), 4),
                digits=3,
            )
        }
    )
    scores: np.ndarray = field(
        metadata={"of_each": Field("score", _array(np.float32, (-1,)), float, lambda arrow: arrow.float32(), digits=6)}
    )
    labels: np.ndarray = field(
        metadata={"of_each": Field("label", _array(np.int64, (-1,)), int, lambda arrow: arrow.int64())}
    )
    names: list[str] = field(metadata={"of_each": Field("name", list, str, lambda arrow: arrow.string())})
    segmentations: list[dict[str, Any] | None] | None = field(
        default=None,
        kw_only=True,
        metadata={"of_each": Field("segmentation", list, lambda run_lengths: run_lengths, _mask_column)},
    )
    queries: np.ndarray | None = field(
        default=None, kw_only=True, metadata={"of_each": Field("query", _array(np.int64, (-1,)), int)}
    )
    panoptic: SegmentMap | None = field(default=None, kw_only=True)
    semantic: SegmentMap | None = field(default=None, kw_only=True)
    best_below: BestBelow | None = field(default=None, kw_only=True)
    id2label: Mapping[int, str] | None = field(default=None, kw_only=True)
    size_hw: tuple[int, int] = field(kw_only=True)
    path: Path | None = field(default=None, kw_only=True)
    source: Any = field(default=None, kw_only=True)
    stamp: Stamp | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.size_hw = (int(self.size_hw[0]), int(self.size_hw[1]))
        self.path = None if self.path is None else Path(self.path)
        counts = {}
        for name, each in self._known():
            setattr(self, name, each.held(getattr(self, name)))
            counts[name] = len(getattr(self, name))
        if len(set(counts.values())) > 1:
            *names, last = [entry.name for entry in fields(self) if entry.name in counts]
            raise ValueError(
                f"{', '.join(names)} and {last} must be of one length, got "
                f"{', '.join(str(counts[name]) for name in names)} and {counts[last]}."
            )
        sizes = {tuple(one["size"]) for one in self.segmentations or () if one is not None}
        sizes |= {map_.size_hw for map_ in (self.panoptic, self.semantic) if map_ is not None}
        if sizes - {self.size_hw}:
            raise ValueError(f"There are masks of (height, width) {sizes} in a picture of {self.size_hw}.")

    def _known(self) -> list[tuple[str, Field]]:
        """Returns the fields that there are, with their names here."""
        return [(name, each) for name, each in _OF_EACH.items() if getattr(self, name) is not None]

    @property
    def masks(self) -> np.ndarray | None:
        """The masks (N, H, W) bool in the picture, made anew each time; None where the model has none."""
        if self.segmentations is None:
            return None
        masks = np.zeros((len(self), *self.size_hw), dtype=bool)
        for mask, run_lengths in zip(masks, self.segmentations, strict=True):
            if run_lengths is not None:
                mask[:] = run_length_mask(run_lengths, self.size_hw)
        return masks

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self._one(index) for index in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | np.ndarray) -> Detections: ...

    def __getitem__(self, key: int | np.integer | slice | Sequence[int] | np.ndarray) -> Detection | Detections:
        """Returns one `Detection` for a number; the chosen `Detections` for a slice, numbers or a boolean mask."""
        if isinstance(key, int | np.integer):
            return self._one(key)
        if not isinstance(key, slice | np.ndarray):
            key = np.asarray(key) if len(key) else np.empty(0, dtype=np.int64)  # NumPy makes an empty list float
        chosen = np.arange(len(self))[key]
        held: dict[str, Any] = {name: getattr(self, name) for name, _ in self._known()}
        for name, values in held.items():
            held[name] = values[chosen] if isinstance(values, np.ndarray) else [values[index] for index in chosen]
        return replace(self, panoptic=None, semantic=None, best_below=None, **held)

    def _one(self, index: int | np.integer) -> Detection:
        return Detection(**{each.one: each.value(getattr(self, name)[index]) for name, each in self._known()})

    def filter(self, *, threshold: float = 0.0, names: str | Sequence[str] | None = None) -> Detections:
        """Returns those that score more than `threshold` and, where `names` is given, are of one of these classes.

        Raises:
            ValueError: the model has no class of one of the names.
        """
        keep = self.scores > threshold
        if names is not None:
            wanted = {names} if isinstance(names, str) else set(names)
            self._refuse_unknown(wanted)
            keep &= np.array([name in wanted for name in self.names], dtype=bool)
        kept = self[keep]
        if not len(kept) and names is None:
            best = None if not len(self) else self[int(self.scores.argmax())]
            kept.best_below = self.best_below if best is None else BestBelow(best.name, best.score, threshold)
        return kept

    def _refuse_unknown(self, names: set[str]) -> None:
        classes = names if self.id2label is None else dict.fromkeys(self.id2label.values())
        for name in sorted(names.difference(classes, self.names)):
            some = ", ".join(list(classes)[:10]) + (", ..." if len(classes) > 10 else "")
            hint = did_you_mean(name, classes)
            raise ValueError(f"No class is named {name!r}; the model's {len(classes)} are {some}.{hint}")

    def count(self) -> dict[str, int]:
        """Returns how many there are of each class, the most frequent first."""
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def __repr__(self) -> str:
        where = f" in {self.path.name!r}" if self.path is not None else ""
        height, width = self.size_hw
        head = f"Detections({len(self)} object{'' if len(self) == 1 else 's'}{where}, {width}x{height} px)"
        lines = [f"  {self.best_below}"] if self.best_below else []
        for one in self[:10]:
            mask = "" if one.segmentation is None else f"  mask of {mask_crop(one.segmentation).pixels.sum()} px"
            lines.append(
                f"  {one.name:<20.20} {one.score:.2f}  [{', '.join(f'{edge:.1f}' for edge in one.box)}]{mask}"
            )
        return "\n".join([head, *lines, *([f"  ... and {len(self) - 10} more"] if len(self) > 10 else [])])

    # What others read

    def plain_objects(self, rounded: bool = False) -> list[dict[str, Any]]:
        """Returns the objects as dictionaries ready for JSON, with xyxy boxes; rounded as the results of a run are."""
        known = [(each, each.digits if rounded else None) for name, each in self._known() if name in FIELDS]
        return [{each.one: each.plain(getattr(one, each.one), digits) for each, digits in known} for one in self]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers, lists and strings, ready for JSON: path, and what `record` says."""
        return {"path": None if self.path is None else str(self.path), **self.record()}

    def record(self, rounded: bool = False) -> dict[str, Any]:
        """Returns width, height and `objects`, ready for JSON, and of a map what is there: `segments`, `classes`.

        Rounded, it is the record of a run.
        """
        height, width = self.size_hw
        record = {"width": width, "height": height, "objects": self.plain_objects(rounded)}
        for key, map_ in (("segments", self.panoptic), ("classes", self.semantic)):
            if map_ is not None:
                record[key] = map_.plain(FIELDS["scores"].digits if rounded else None)
        return record

    def to_coco(self, image_id: Any) -> list[dict[str, Any]]:
        """Returns COCO result records: `bbox` is `[x, y, width, height]` in pixels, `category_id` the label.

        `segmentation` is there for models with masks. `image_id` is a whole number or a text, also one of NumPy,
        pandas or torch.
        """
        return coco_results(plain_id(image_id), self.plain_objects())

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a pandas table, one row an object: name, label, score, x0, y0, x1, y1."""
        with install_hint("to_pandas() needs pandas: pip install pandas, or pip install 'detr-hf[viz]'."):
            import pandas
        edges = {name: self.boxes[:, column] for column, name in enumerate(("x0", "y0", "x1", "y1"))}
        return pandas.DataFrame({"name": self.names, "label": self.labels, "score": self.scores, **edges})

    def to_supervision(self) -> supervision.Detections:
        """Returns the same as `supervision.Detections`, for its trackers, zones and annotators."""
        with install_hint(
            "to_supervision() needs supervision: pip install supervision, or pip install 'detr-hf[viz]'."
        ):
            import supervision
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            mask=self.masks,
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


_OF_EACH: dict[str, Field] = {
    entry.name: entry.metadata["of_each"] for entry in fields(Detections) if "of_each" in entry.metadata
}
_ORDER = [*Detection._fields, "segmentation", "query"]
_OF_EACH = dict(sorted(_OF_EACH.items(), key=lambda item: _ORDER.index(item[1].one)))
# The fields of an object by their names in `Detections`, in the order of `Detection`: all forms of results that others
# read are made of them.
FIELDS = {name: each for name, each in _OF_EACH.items() if each.column is not None}
