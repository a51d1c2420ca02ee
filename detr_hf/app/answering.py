"""What the page answers: what a picture holds, what a model attended to, and the files to download.

Every answer is a dictionary that JSON holds. A picture goes through the model once, with a threshold so low that the
browser can pick what any higher one would keep.
"""

import base64
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..inference.results import Detections
from ..visualize.attention_maps import POINT_COLOR, Attention, Grid, heat_layer, shares
from ..visualize.colors import class_color, hex_color
from .keeping import Seen, Shelf
from .models import Models
from .reading import Limits, Picture, decoded, own_name, read_picture, shown_error

logger = logging.getLogger(__name__)

LOWEST = 0.05  # what scores less cannot be shown
SHOWN_PX = 1600  # of the longer side of the picture in the page
CELL_PX = 6  # of a cell of a map, which the browser smooths
EXPECTED = (ValueError, TypeError, OSError, FloatingPointError)


class Answers:
    """The page without its looks: models, limits, and what visitors' pictures gave."""

    def __init__(self, models: Models, limits: Limits | None = None, shelf: Shelf | None = None):
        self.models, self.limits = models, limits or Limits()
        self.shelf = Shelf() if shelf is None else shelf

    def told(self, kind: str, name: str, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns an answer with its `kind`, or with `error`, a sentence that a visitor may read."""
        try:
            return {"kind": kind, "name": name, **answer()}
        except EXPECTED as error:
            logger.info("%s: %s", name, error)
            return {"kind": kind, "name": name, "error": shown_error(error, name, self.models.known_as)}
        except Exception:
            logger.exception("The page failed on %s", name)
            return {"kind": kind, "name": name, "error": f"{name}: the page failed on it. Its log says where."}

    def of_kept(
        self, kind: str, visitor: str, number: int, answer: Callable[[Seen], dict[str, Any]]
    ) -> dict[str, Any]:
        """Returns an answer about a picture that is remembered, as `told` does."""
        try:
            seen = self.shelf.get(visitor, number)
        except ValueError as error:
            return {"kind": kind, "name": "", "error": str(error)}
        return self.told(kind, seen.name, lambda: answer(seen))

    # Pictures

    def look(self, visitor: str, path: Path, given_name: str | None, model: str) -> dict[str, Any]:
        """Returns the answer to a picture: the SVG, the objects, and the number under which it is remembered."""
        name = own_name(given_name)
        return self.told("picture", name, lambda: self._looked(visitor, read_picture(path, name, self.limits), model))

    def look_again(self, visitor: str, number: int, model: str) -> dict[str, Any]:
        """Returns the answer of another model to a picture that is remembered."""

        def answer(seen: Seen) -> dict[str, Any]:
            return self._looked(visitor, decoded(seen.content, seen.name, self.limits), model)

        return self.of_kept("picture", visitor, number, answer)

    def detect(self, path: Path, given_name: str | None, model: str, threshold: float) -> dict[str, Any]:
        """Returns the `Detections.record` of a picture; nothing is remembered.

        Raises:
            ValueError: with a sentence that whoever asked may read.
        """
        name = own_name(given_name)

        def answer() -> dict[str, Any]:
            picture = read_picture(path, name, self.limits)
            return {"record": self.models.detector(model)(picture.source, threshold).record()}

        told = self.told("record", name, answer)
        if "error" in told:
            raise ValueError(told["error"])
        return told["record"]

    def _looked(self, visitor: str, picture: Picture, model: str) -> dict[str, Any]:
        seen = self._seen(picture, model)
        found = seen.detections
        height, width = found.size_hw
        return {
            "number": self.shelf.put(visitor, seen),
            "name": seen.name,
            "model": seen.model,
            "note": picture.note,
            "width": width,
            "height": height,
            "svg": found.to_svg(picture.shown(SHOWN_PX)),
            "objects": [_plain(one) for one in found],
            "best": _best(found),
            "attention": seen.attention is not None,
        }

    def _seen(self, picture: Picture, model: str) -> Seen:
        detector = self.models.detector(model)
        attention = detector.attention(picture.source, LOWEST) if detector.gives_attention else None
        found = detector(picture.source, LOWEST) if attention is None else attention.detections
        # The bytes are small where the pixels are not; the name is a path for those who take a result home.
        found = replace(found, source=picture.content, path=Path(picture.name))
        if attention is not None:
            attention.detections = found
        return Seen(picture.name, model, picture.content, found, attention)

    # What is asked of a picture that was shown

    def object_attention(self, visitor: str, number: int, index: int) -> dict[str, Any]:
        """Returns the decoder's attention for an object: an image to lay over the picture, and a sentence."""

        def answer(seen: Seen) -> dict[str, Any]:
            attention = _attention(seen)
            if not 0 <= index < len(seen.detections):
                raise ValueError(f"{seen.name} has {len(seen.detections)} objects, 0 to {len(seen.detections) - 1}.")
            one, share = seen.detections[index], float(attention.in_boxes()[index])
            layer = _heat(attention.decoder[index], attention.grids[0], class_color(one.label))
            said = f"{one.name} {one.score:.2f}: {share:.0%} of its attention lies in its box"
            return {
                "number": number,
                "index": index,
                "heat": layer,
                "said": f"{said} ({attention.caption('decoder')}).",
            }

        return self.of_kept("attention", visitor, number, answer)

    def point_attention(self, visitor: str, number: int, x: float, y: float) -> dict[str, Any]:
        """Returns the encoder's attention from a point in pixels, as `object_attention` does."""

        def answer(seen: Seen) -> dict[str, Any]:
            attention = _attention(seen)
            map_ = attention.encoder(x, y)
            layer, where = _heat(map_, attention.grids[1], POINT_COLOR), attention.caption("encoder")
            said = f"What the place at {x:.0f}, {y:.0f} was mixed from: {shares(map_)} ({where})."
            return {"number": number, "x": x, "y": y, "heat": layer, "said": said}

        return self.of_kept("attention", visitor, number, answer)

    def download(
        self, visitor: str, number: int, kind: str, threshold: float, names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Returns a file's name and text: `to_dict()` ("json") or `to_svg()` ("svg") of what a threshold keeps.

        `names` are of the classes that are kept, by default all.
        """

        def answer(seen: Seen) -> dict[str, Any]:
            kept = seen.detections.filter(threshold=threshold, names=names)
            if kind == "json":
                text = json.dumps(kept.to_dict(), indent=1)
            elif kind == "svg":
                text = kept.to_svg()
            else:
                raise ValueError(f"A download is json or svg, not {kind!r}.")
            return {"file": f"{Path(seen.name).stem}_boxes.{kind}", "text": text}

        return self.of_kept("file", visitor, number, answer)


def _attention(seen: Seen) -> Attention:
    if seen.attention is None:
        raise ValueError(f"{seen.model} is an exported model, which gives no attention: take its checkpoint.")
    return seen.attention


def _plain(one: Any) -> dict[str, Any]:
    """Returns what the table shows of an object."""
    color = hex_color(class_color(one.label))
    return {"name": one.name, "score": one.score, "box": list(one.box), "color": color}


def _best(found: Detections) -> dict[str, Any] | None:
    """Returns name and score of the best object, also where it is under the lowest threshold."""
    best = found[0] if len(found) else found.best_below
    return None if best is None else {"name": best.name, "score": best.score}


def _heat(map_: np.ndarray, grid: Grid, color: tuple[int, int, int]) -> str:
    """Returns weights (h, w) as a PNG of light, to be stretched over the picture, as a `data:` address."""
    size = (round(grid.reach_hw[1] * CELL_PX), round(grid.reach_hw[0] * CELL_PX))
    light, alpha = heat_layer(size, map_, grid, color)
    with io.BytesIO() as file:
        rgba = np.concatenate([light, alpha * 255], axis=-1).round().astype(np.uint8)
        Image.fromarray(rgba).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
