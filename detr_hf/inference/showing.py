"""What was found in a picture, as people look at it: pixels, an SVG, and a notebook's cell.

The picture is the one that was looked at: of one in memory a copy is kept, and a file that was changed since is
noticed.
"""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..visualize.saving import is_vector, refuse_ending, save_drawing, save_vector
from ..whole_files import refuse_overwriting
from .pictures import Stamp, stamp_of
from .segments import TASKS, SegmentMap, mask_crop

if TYPE_CHECKING:
    from ..visualize.lettering import Font
    from .results import BestBelow, Detections

SHOWN_IN_A_CELL = 12
SIDE_IN_A_CELL = 800


def shown_pixels(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (H, W, 3) as uint8; floats that end at 1 are in 0..1, as where nothing rescales them."""
    if pixels.dtype == np.uint8:
        return pixels
    brightest = float(pixels.max())
    return (pixels * 255 if brightest <= 1 else pixels).clip(0, 255).round().astype(np.uint8)


class Showing:
    """The faces of `Detections`, which has what is shown here."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    segmentations: list[dict[str, Any] | None] | None
    panoptic: SegmentMap | None
    semantic: SegmentMap | None
    best_below: "BestBelow | None"
    size_hw: tuple[int, int]
    path: Path | None
    source: Any
    stamp: Stamp | None

    @property
    def image(self) -> Image.Image:
        """The upright RGB image that was looked at, opened anew each time; an error where its file was changed."""
        source = self.path if self.source is None else self.source
        if source is None:
            raise ValueError(
                "These detections know neither a picture nor the path of one: make them with source= or path=."
            )
        from ..export.processing import read_pixels

        pixels = read_pixels(source, "the picture", takes_options=False)  # (H, W, 3)
        if pixels.shape[:2] != self.size_hw or (self.source is None and self.stamp not in (None, stamp_of(self.path))):
            raise ValueError(
                f"{self.path or 'The picture'} was changed since these objects were found in it (then {self.size_hw}, "
                f"now {pixels.shape[:2]}, height and width): detect in it again."
            )
        return Image.fromarray(shown_pixels(pixels))

    def draw(
        self,
        font: "Font | None" = None,
        what: str | None = None,
        labels: str = "clear",
        side: int | None = None,
    ) -> Image.Image:
        """Returns a copy of the picture with what was found drawn on it.

        Args:
            font: the file of a font, or an `ImageFont` loaded from one; by default one that has the letters of the
                names is looked for.
            what: `"detection"` for boxes with names and scores, `"instance"` for masks under them (the default where
                there are masks), `"panoptic"` or `"semantic"` for the map of the picture with names on the segments.
            labels: `"clear"` leaves names out that would cover better ones, or hide small objects; `"all"`, `"none"`.
            side: the picture is first made as large as a square of so many pixels allows, so that lines are sharp.

        Raises:
            ValueError: there is nothing of that kind, as in a slice, which has no map.
        """
        styles = {"font": font, "shown_names": labels, "side": side}
        map_, masks = self._shown(what)
        if map_ is not None:
            from ..visualize.segments import draw_segments

            return draw_segments(self.image, map_.segmentation, map_.segments_info, **styles)
        from ..visualize.boxes import draw_boxes

        return draw_boxes(
            self.image, self.boxes, self.names, labels=self.labels, scores=self.scores, masks=masks, **styles
        )

    def to_svg(
        self,
        image: Image.Image | None = None,
        *,
        what: str | None = None,
        threshold: float = 0.0,
        max_side: int | None = None,
        labels: str = "clear",
    ) -> str:
        """Returns what `draw` shows as one SVG that holds the picture, with names and scores under the pointer.

        It has no script and asks for nothing from outside. Each object is a `<g class="object">` with `data-index`
        (its number), `data-score` and `data-label`, which Tab reaches too; its coordinates are pixels of the
        picture. A name that would cover a better one's waits for the pointer. Names are in the fonts of whoever looks.

        Args:
            image: the picture where it is at hand, in any size; by default it is opened.
            what: as in `draw`.
            threshold: objects with a higher score are there.
            max_side: the picture is made smaller where a side of it has more pixels; by default 1280.
            labels: as in `draw`; those left out wait for the pointer.

        Raises:
            ValueError: there is nothing of that kind, or the image has other proportions than the picture.
        """
        image = self.image if image is None else image
        height, width = self.size_hw
        if abs(image.width * height - image.height * width) > max(height, width):  # a pixel, by rounding
            raise ValueError(f"The image is of {image.width}x{image.height} pixels, the picture of {width}x{height}.")
        from ..visualize.vector import MAX_SIDE, objects_svg, segments_svg

        kept = self.filter(threshold=threshold) if threshold else self
        map_, masks = (self if what in ("panoptic", "semantic") else kept)._shown(what)
        said = "" if map_ is not None and map_.segments_info else str(kept.best_below or "")
        layout = {"title": self._title(), "caption": said, "max_side": max_side or MAX_SIDE, "shown_names": labels}
        if map_ is not None:
            return segments_svg(image, map_.segmentation, map_.segments_info, **layout)
        return objects_svg(
            image,
            kept.boxes,
            kept.names,
            labels=kept.labels,
            scores=kept.scores,
            masks=masks,
            size_hw=self.size_hw,
            **layout,
        )

    def _title(self) -> str:
        return "" if self.path is None else self.path.name

    def _shown(self, what: str | None) -> tuple[SegmentMap | None, list[Any] | None]:
        """Returns the map to show in place of the objects, if it is one that is wanted, and the objects' masks."""
        what = what or ("detection" if self.segmentations is None else "instance")
        if what not in TASKS:
            raise ValueError(f"what must be one of {', '.join(TASKS)}, got {what!r}.")
        held = {"instance": self.segmentations, "panoptic": self.panoptic, "semantic": self.semantic}
        if what in held and held[what] is None:
            raise ValueError(
                f"These detections have nothing to draw for {what!r}. It comes from a checkpoint with masks, "
                f"Detector.from_pretrained(..., task={what!r}); slices and filter() keep no map of the picture."
            )
        if what == "instance":
            return None, [None if one is None else mask_crop(one) for one in self.segmentations or ()]
        return held.get(what), None

    def save(
        self, path: str | Path, font: "Font | None" = None, what: str | None = None, labels: str = "clear"
    ) -> Path:
        """Returns `path` after writing the picture with what was found there, whole; the ending decides the format.

        `.svg` and `.html` hold what `to_svg` gives, in the fonts of whoever looks; anything else the pixels of `draw`,
        which has the other arguments too. Folders are made as needed. The picture that was looked at is never written
        over.
        """
        refuse_ending(path)
        refuse_overwriting({"path": path}, [self.path])
        if is_vector(path):
            from ..visualize.vector import html_page

            svg = self.to_svg(what=what, labels=labels)
            is_page = Path(path).suffix.lower() != ".svg"
            return save_vector(html_page(svg, self._title()) if is_page else svg, path)
        return save_drawing(self.draw(font, what, labels), path)

    def _repr_html_(self, max_side: int | None = None) -> str:
        """Returns what a notebook's cell shows that ends in it: the picture, or why there is none."""
        try:
            return self.to_svg(max_side=max_side)
        except (ValueError, OSError) as error:
            return f"<pre>{escape(repr(self))}\n\nNo picture: {escape(str(error))}</pre>"


class DetectionsList(list["Detections"]):
    """A list of what was found in several pictures, which a notebook's cell that ends in it shows."""

    def _repr_html_(self) -> str:
        shown = [found._repr_html_(SIDE_IN_A_CELL) for found in self[:SHOWN_IN_A_CELL]]
        more = len(self) - len(shown)
        return "\n".join(shown) + f"\n<p>... and {more} pictures more</p>" * bool(more)
