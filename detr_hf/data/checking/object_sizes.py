"""How large objects are to the model: in pixels once pictures are resized, and in cells of its feature map.

Where many are small, a larger size is looked for at which few are, and what it costs is said.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..detection_data import Categories, split_kind
from ..readers.recognising import ReadData
from ..readers.records import JudgedSplit

DEFAULT_QUERIES = 100
STRIDE = 32
# Share of objects below one feature cell: worth a note, worth a warning.
SMALL_NOTE, SMALL_WARNING = 0.05, 0.25
# Sizes that are proposed, and how far pictures may be enlarged: beyond, a larger copy shows nothing new.
SIZES = (320, 480, 640, 800, 1066, 1333)
LARGEST_ENLARGEMENT = 2.0


@dataclass(frozen=True)
class ModelSide:
    """What a check must know of the model: queries, pixels of the finest feature cells, and the sides of images."""

    num_queries: int = DEFAULT_QUERIES
    stride: int = STRIDE
    shortest: int = 800
    longest: int = 1333

    def scales(self, sizes_wh: np.ndarray, shortest: int | None = None) -> np.ndarray:
        """Returns by how much pictures (N, 2) are resized; to another shortest side with a longest in proportion."""
        shortest = shortest or self.shortest
        longest = shortest * self.longest / self.shortest
        return np.minimum(shortest / sizes_wh.min(axis=1), longest / sizes_wh.max(axis=1))


@dataclass(frozen=True)
class ClassSize:
    """The objects of a class: how many, their median width and height in pixels of resized pictures, and the share
    that is smaller than a cell."""

    objects: int
    width: float
    height: float
    under_cell: float


def fitting_size(judged: dict[str, JudgedSplit], stride: int) -> int | None:
    """Returns the shortest side at which a new model should see the training pictures; None where none tells its size.

    It is about their own, between the least of `SIZES` and the paper's 800: larger copies cost time and show nothing
    new. Where many objects would be smaller than a cell of `stride` pixels it is more, 800 at most.
    """
    split = judged.get(_training_split(judged))
    sizes_wh, boxes, _ = _of_known_size(split) if split is not None else ([], [], [])
    if not len(sizes_wh):
        return None
    own = 32 * round(float(np.median(sizes_wh.min(axis=1))) / 32)
    side = ModelSide(stride=stride)
    side = replace(side, shortest=min(max(own, SIZES[0]), side.shortest))
    share = _share_under_cell(boxes, sizes_wh, side, side.shortest)
    larger = larger_size(boxes, sizes_wh, side, share) if share >= SMALL_NOTE else None
    return min(larger[0], ModelSide.shortest) if larger else side.shortest


def _training_split(judged: dict[str, JudgedSplit]) -> str | None:
    return next((name for name in judged if split_kind(name) == "train"), next(iter(judged), None))


def _of_known_size(split: JudgedSplit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the objects that can be used in pictures whose size is known: the pictures' sizes (N, 2), boxes (N, 4)
    and classes (N,)."""
    rows = np.array(split.records.rows, dtype=np.int64)[split.used]
    sizes_wh = split.records.sizes_wh()[rows]
    known = (sizes_wh > 0).all(axis=1)
    return sizes_wh[known], split.boxes[split.used][known], split.indices[split.used][known]


def check_object_sizes(read: ReadData, judged: dict[str, JudgedSplit], side: ModelSide) -> dict[str, ClassSize]:
    """Logs splits with many objects below a cell, and returns the sizes of the training split's by class."""
    training = _training_split(judged)
    sizes: dict[str, ClassSize] = {}
    for name, split in judged.items():
        sizes_wh, boxes, indices = _of_known_size(split)
        if not len(boxes) or any(code.startswith("boxes-look") for code in split.records.log.counts):
            continue
        share = _share_under_cell(boxes, sizes_wh, side, side.shortest)
        if share >= SMALL_NOTE:
            severity = "warning" if share >= SMALL_WARNING else "info"
            read.log.add("objects-small", severity, _small_message(boxes, sizes_wh, side, share), split=name)
        if name == training:
            scaled = boxes[:, 2:] * side.scales(sizes_wh)[:, None]
            sizes = _by_class(scaled, indices, read.categories, side.stride)
    return sizes


def _share_under_cell(boxes: np.ndarray, sizes_wh: np.ndarray, side: ModelSide, shortest: int) -> float:
    """Returns the share of objects whose longer side is below a cell when pictures are resized so."""
    return float((boxes[:, 2:].max(axis=1) * side.scales(sizes_wh, shortest) < side.stride).mean())


def _small_message(boxes: np.ndarray, sizes_wh: np.ndarray, side: ModelSide, share: float) -> str:
    half = float(np.median(boxes[:, 2:].max(axis=1) * side.scales(sizes_wh)))
    text = (
        f"{share:.0%} of the objects are smaller than one {side.stride}-pixel cell of the feature map when pictures "
        f"are resized to a shortest side of {side.shortest}, half are under {half:.0f} pixels. DETR finds such "
        "objects badly"
    )
    larger = larger_size(boxes, sizes_wh, side, share)
    if larger:
        shortest, left, cost = larger
        text += f". shortest_edge={shortest} leaves {left:.0%}, for up to {cost:.1f} times the time of a step"
    finer = " or finer maps (preset='precise')" if side.stride >= STRIDE // 2 else ""
    return f"{text}{'; otherwise' if larger else ':'} tiles{finer} help"


def larger_size(
    boxes: np.ndarray, sizes_wh: np.ndarray, side: ModelSide, share: float
) -> tuple[int, float, float] | None:
    """Returns a larger shortest side, the share that it leaves below a cell, and how many times the pixels it has, by
    which a step takes longer at most; None where no larger one helps.

    It is the least at which a warning is a note, or a note is nothing; else the largest to which pictures may be
    enlarged.
    """
    wanted = SMALL_WARNING if share >= SMALL_WARNING else SMALL_NOTE
    most = LARGEST_ENLARGEMENT * float(np.median(sizes_wh.min(axis=1)))
    best = None
    for shortest in SIZES:
        if not side.shortest < shortest <= most:
            continue
        left = _share_under_cell(boxes, sizes_wh, side, shortest)
        cost = float((side.scales(sizes_wh, shortest) ** 2).mean() / (side.scales(sizes_wh) ** 2).mean())
        if left < share:
            best = (shortest, left, cost)
        if left < wanted:
            break
    return best


def _by_class(scaled: np.ndarray, indices: np.ndarray, categories: Categories, stride: int) -> dict[str, ClassSize]:
    """Returns the sizes (N, 2) of objects by class name, the smallest first."""
    found = {}
    for index, name in enumerate(categories.names):
        of_class = scaled[indices == index]
        if len(of_class):
            width, height = np.median(of_class, axis=0).tolist()
            under = float((of_class.max(axis=1) < stride).mean())
            found[name] = ClassSize(len(of_class), width, height, under)
    return dict(sorted(found.items(), key=lambda item: item[1].width * item[1].height))
