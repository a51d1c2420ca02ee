"""The one schema that every reader fills, its errors, and `DetectionData`: named splits with their label map.

A row holds

- `image`: `datasets.Image`, a path (or bytes), decoded when it is read;
- `image_id`: int64, unique in its split. Ids that are not integers are numbered, and kept in `source_image_id`;
- `file_name`, `width`, `height` (pixels; the frame that the boxes are in);
- `objects`: a dict of equally long lists: `id` (int64), `bbox` (x, y, width, height in pixels, float64, as the source
  has it), `category` (0..K-1), `area` (square pixels), `iscrowd` (0 or 1), `segmentation` (JSON of polygons or of a
  COCO RLE; None where there is none, `NO_MASK` where that is allowed: of such an object a segmentation model learns
  the box);
- `panoptic`: `datasets.Image` of the segment ids, only where the source is panoptic; objects then have `isthing`
  (0 or 1) too, so that data which was saved or pushed tells things from stuff.

Different on purpose from the usual `Dataset` of COCO rows: category ids are always 0..K-1 and the mapping back is kept
beside the data, because ids with gaps are the first thing that people trip over.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Features, Image, List, Value

from ..errors import LayoutError, did_you_mean
from .findings import FindingLog

logger = logging.getLogger(__name__)

NO_MASK = "null"

SPLIT_NAMES = {
    "train": "train|training|train[-_ ]?val",
    "validation": "val|valid|validate|validation|dev|development|eval|evaluation",
    "test": "test|testing",
}
# What people put after it: `train2017`, `train_set`, `train-v2`, `valid-split`.
SPLIT_SUFFIX = r"([-_ ]?(set|split|data|images))?([-_ ]?v?\d+(\.\d+)*)?"


@dataclass
class Categories:
    """The classes of a data set: names by index 0..K-1, and the id that the source uses for each."""

    names: list[str]
    source_ids: list[int | str]
    is_thing: list[bool] | None = None

    def __post_init__(self) -> None:
        self.index_of = {source: index for index, source in enumerate(self.source_ids)}

    @classmethod
    def of(cls, id2label: Mapping[Any, str]) -> "Categories":
        """Returns the classes of names by id, in the order of the ids: numbers, then texts."""
        ids = sorted(id2label, key=lambda value: (isinstance(value, str), value))
        return cls([str(id2label[key]) for key in ids], ids)

    def call_stuff(self, stuff: list[str | int], source: str) -> None:
        """Sets `is_thing` where the user says which classes, by name or the source's id, are stuff.

        Raises:
            LayoutError: there is no such class.
        """
        known: dict[Any, int] = {**{name: index for index, name in enumerate(self.names)}, **self.index_of}
        unknown = [value for value in stuff if value not in known]
        if unknown:
            raise LayoutError(
                f"stuff= names {unknown[0]!r}, which is no class of {source}.{did_you_mean(unknown[0], self.names)}"
            )
        called = {known[value] for value in stuff}
        self.is_thing = [index not in called for index in range(len(self.names))]

    @property
    def changed(self) -> bool:
        """Whether an id of the source differs from its index."""
        return self.source_ids != list(range(len(self.source_ids)))


def detection_features(names: list[str], source_ids: bool = False, panoptic: bool = False) -> Features:
    """Returns the features of a split, see the module."""
    objects = {
        "id": List(Value("int64")),
        "bbox": List(List(Value("float64"), length=4)),
        "category": List(ClassLabel(names=names)),
        "area": List(Value("float64")),
        "iscrowd": List(Value("int8")),
        "segmentation": List(Value("large_string")),
    }
    if panoptic:
        objects["isthing"] = List(Value("int8"))
    features = {
        "image": Image(),
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "objects": objects,
    }
    if source_ids:
        features["source_image_id"] = Value("string")
    if panoptic:
        features["panoptic"] = Image()
    return Features(features)


def split_kind(name: str) -> str | None:
    """Returns what a split's name says it is for: `"train"`, `"validation"`, `"test"` or None."""
    for kind, names in SPLIT_NAMES.items():
        if re.fullmatch(rf"({names}){SPLIT_SUFFIX}", name, re.IGNORECASE):
            return kind
    return None


@dataclass(repr=False)
class DetectionData(Mapping):
    """Splits by name (each a `datasets.Dataset`, or an `IterableDataset` when streaming) that share one label map.

    `mapping` goes from the source's category id to 0..K-1, `source_category_ids` goes back (a list by index):
    evaluation writes results with it. `is_thing` (by index) is known for panoptic data only. `findings` are the faults
    that were tolerated.
    """

    splits: dict[str, Any]
    categories: Categories
    format: str
    source: str
    findings: FindingLog = field(default_factory=FindingLog)
    box_format: str | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self.splits:
            raise KeyError(
                f"There is no split {name!r} in {self.source}; there are {', '.join(map(repr, self.splits))}."
            )
        return self.splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def id2label(self) -> dict[int, str]:
        """Returns the name by index, as a model's config wants it."""
        return dict(enumerate(self.categories.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Returns the index by name."""
        return {name: index for index, name in enumerate(self.categories.names)}

    @property
    def mapping(self) -> dict[int | str, int]:
        """Returns the index 0..K-1 by the source's category id."""
        return dict(self.categories.index_of)

    @property
    def source_category_ids(self) -> list[int | str]:
        """Returns the source's category id by index."""
        return list(self.categories.source_ids)

    @property
    def is_thing(self) -> list[bool] | None:
        """Returns, for panoptic data and by index, whether the class is countable."""
        return self.categories.is_thing

    def split_for(self, kind: str) -> str:
        """Returns the name of the one split for `kind` (`"train"`, `"validation"` or `"test"`), say `train2017`.

        Raises:
            LayoutError: no split is named so, or several are.
        """
        found = [name for name in self.splits if name == kind] or [
            name for name in self.splits if split_kind(name) == kind
        ]
        if len(found) == 1:
            return found[0]
        likely = [name for name in found or self.splits if name.startswith(kind[:3])] or list(found or self.splits)
        share = " A part of the training pictures serves too: validation_share=0.1." if kind == "validation" else ""
        raise LayoutError(
            f"{len(found) or 'No'} splits of {self.source} are named for {kind}: there are "
            f"{', '.join(map(repr, self.splits))}. Rename one when loading, as in "
            f"load_detection_dataset(..., splits={{{kind!r}: {likely[0]!r}}}).{share}"
        )

    def mapping_text(self) -> str:
        """Returns the label map as lines `index <- source id: name`."""
        pairs = zip(self.categories.source_ids, self.categories.names, strict=True)
        return "\n".join(f"{index} <- {source!r}: {name}" for index, (source, name) in enumerate(pairs))

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}: {len(split) if hasattr(split, '__len__') else 'streamed'}" for name, split in self.splits.items()
        )
        classes = len(self.categories.names)
        return f"DetectionData({self.source!r}, format={self.format!r}, splits={{{sizes}}}, classes={classes})"
