"""What a detector found in one picture.

Boxes are `(x0, y0, x1, y1)` in pixels of the upright picture (turned as its EXIF tag says), cut at its edges.
Everything is NumPy, so reading results needs no torch, and no picture is kept that can be opened again from its file:
the results of 100,000 files are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import pandas
    import supervision


class Detection(NamedTuple):
    """One object: its class, the model's score in [0, 1], and its box `(x0, y0, x1, y1)` in pixels."""

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]


class Detections:
    """The objects found in one picture, best first; iterates over `Detection`, and slices like an array.

    `boxes (N, 4)` float32 xyxy pixels, `scores (N,)` float32, `labels (N,)` int64, `names` a list of N class names,
    `size_hw` the picture's `(height, width)`, `path` its file if it came from one, and `source` the picture itself
    (PIL image, array, tensor or bytes) if it did not.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        *,
        size_hw: tuple[int, int],
        path: str | Path | None = None,
        source: Any = None,
    ):
        self.boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        self.scores = np.asarray(scores, dtype=np.float32).reshape(-1)
        self.labels = np.asarray(labels, dtype=np.int64).reshape(-1)
        self.names = list(names)
        self.size_hw = (int(size_hw[0]), int(size_hw[1]))
        self.path = None if path is None else Path(path)
        self.source = source
        counts = {len(self.boxes), len(self.scores), len(self.labels), len(self.names)}
        if len(counts) > 1:
            raise ValueError(
                f"boxes, scores, labels and names must be of one length, got {len(self.boxes)}, {len(self.scores)}, "
                f"{len(self.labels)} and {len(self.names)}."
            )

    @property
    def image(self) -> Image.Image:
        """The upright RGB picture, opened anew at each access."""
        source = self.path if self.source is None else self.source
        if source is None:
            raise ValueError(
                "These detections know neither a picture nor the path of one: make them with source= or path=."
            )
        from .pictures import open_picture

        return open_picture(source)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for name, label, score, box in zip(self.names, self.labels, self.scores, self.boxes, strict=True):
            yield Detection(name, int(label), float(score), tuple(float(edge) for edge in box))

    def __getitem__(self, key: int | slice | Sequence[int] | np.ndarray) -> Detection | Detections:
        """One `Detection` for a number; the chosen `Detections` for a slice, a list of numbers or a boolean mask."""
        if isinstance(key, int | np.integer):
            return Detection(
                self.names[key],
                int(self.labels[key]),
                float(self.scores[key]),
                tuple(float(edge) for edge in self.boxes[key]),
            )
        if not isinstance(key, slice | np.ndarray):
            key = np.asarray(key) if len(key) else np.empty(0, dtype=np.int64)  # NumPy makes an empty list float
        chosen = np.arange(len(self))[key]
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.labels[chosen],
            [self.names[i] for i in chosen],
            size_hw=self.size_hw,
            path=self.path,
            source=self.source,
        )

    def filter(self, *, threshold: float = 0.0, names: str | Sequence[str] | None = None) -> Detections:
        """The detections that score more than `threshold` and, where `names` is given, are of one of these classes."""
        keep = self.scores > threshold
        if names is not None:
            wanted = {names} if isinstance(names, str) else set(names)
            keep &= np.array([name in wanted for name in self.names], dtype=bool)
        return self[keep]

    def count(self) -> dict[str, int]:
        """How many of each class, the most frequent first."""
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def __repr__(self) -> str:
        where = f" in {self.path.name!r}" if self.path is not None else ""
        height, width = self.size_hw
        head = f"Detections({len(self)} object{'' if len(self) == 1 else 's'}{where}, {width}x{height} px)"
        lines = [
            f"  {name:<20.20} {score:.2f}  [{', '.join(f'{edge:.1f}' for edge in box)}]"
            for name, _, score, box in self
        ]
        return "\n".join([head, *lines[:10], *([f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else [])])

    # What others read

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, ready for JSON: path, width, height, and `objects` with xyxy boxes."""
        height, width = self.size_hw
        return {
            "path": None if self.path is None else str(self.path),
            "width": width,
            "height": height,
            "objects": [
                {"name": name, "label": label, "score": score, "box": list(box)} for name, label, score, box in self
            ],
        }

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result records: `bbox` is `[x, y, width, height]` in pixels, `category_id` the model's label."""
        return [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for _, label, score, (x0, y0, x1, y1) in self
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas table, one row an object: name, label, score, x0, y0, x1, y1."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas() needs pandas: pip install pandas, or pip install 'detr-hf[viz]'."
            ) from error
        edges = {name: self.boxes[:, column] for column, name in enumerate(("x0", "y0", "x1", "y1"))}
        return pandas.DataFrame({"name": self.names, "label": self.labels, "score": self.scores, **edges})

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`, for its trackers, zones and annotators."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs supervision: pip install supervision, or pip install 'detr-hf[viz]'."
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    # What people look at

    def draw(self) -> Image.Image:
        """A copy of the picture with the boxes, names and scores drawn on it."""
        from ..visualize.boxes import draw_boxes

        return draw_boxes(self.image, self.boxes, self.names, labels=self.labels, scores=self.scores)

    def save(self, path: str | Path) -> Path:
        """Draws the boxes, writes the picture to `path` (its ending decides the format), and returns the path.

        Folders are made as needed. The picture that was looked at is never written over.
        """
        path = Path(path)
        Image.init()
        if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
            raise ValueError(f"Cannot tell the picture format from {str(path)!r}: end it in .png, .jpg or .webp.")
        if self.path is not None and path.exists() and self.path.exists() and path.samefile(self.path):
            raise ValueError(f"{path} is the picture that was looked at; choose another name to keep it unharmed.")
        drawn = self.draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}))
        return path
