"""What a model attended to, on the picture: the decoder's attention for each object (the DETR paper's figure 6), and
the encoder's from points (figure 3).

The detector runs itself (`Detector.attention`): nothing here knows a model, only arrays and what was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..whole_files import refuse_overwriting
from .boxes import draw_boxes
from .colors import WHITE, class_color, mixed, relative_luminance
from .grids import fit_image, grid
from .lettering import beside_text
from .saving import picture_format, save_drawing

if TYPE_CHECKING:
    from ..inference.detector import Detector
    from ..inference.results import Detections

WIDEST_CAPTION = 320
LONGEST_NAME = 20  # letters above a tile, so that what follows is never cut
DIMMED = 0.6  # of the picture's light, where there is no attention
LEAST_LIGHT = 0.25  # of a colour that shows attention, as WCAG 2 measures it
POINT_COLOR = (255, 190, 20)


class Grid(NamedTuple):
    """Cells of a feature map over a picture: `cells_hw` of them see it, and `reach_hw`, in cells, is how far it goes.

    The last row and column may lie beyond the picture in part.
    """

    cells_hw: tuple[int, int]
    reach_hw: tuple[float, float]

    def edges(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the rows (h + 1,) and columns (w + 1,) of cells begin and end in a picture, in its pixels."""
        rows, columns = (
            np.minimum(np.arange(cells + 1) / reach, 1) * side
            for cells, reach, side in zip(self.cells_hw, self.reach_hw, size_hw, strict=True)
        )
        return rows, columns


def attention(
    detector: "Detector", picture: Any, threshold: float = 0.7, layer: int = -1, head: int | None = None
) -> "Attention":
    """Returns the objects found in one picture, and what the model attended to for each of them.

    Args:
        detector: on a checkpoint; an exported model gives no attention.
        picture: as `Detector` takes it.
        threshold: objects with a higher score are kept.
        layer: of the decoder and of the encoder, from 0, or from the end.
        head: from 0; None is the mean of all heads.

    A map says how a layer mixed: with which weights, 1 in sum, it added up the encoder's tokens for an object. It is
    no explanation: the tokens were mixed by the layers before, so that a cell's token tells of other places too; and
    what is weighed and what that does to the answer are two things. What is seen depends on the model: the three
    layers of the digit detector that ships do not repeat the paper's figure 3, in which the encoder parts instances.

    Of box queries the decoder reads maps of several sizes. They are shown as one, in the cells of the finest: the
    weight of a coarser cell is spread evenly over the cells in it, and all are added up.

    Raises:
        ValueError: an exported model, a layer or a head that there is not, or a picture that cannot be read.
    """
    return detector.attention(picture, threshold, layer, head)


@dataclass(eq=False, repr=False)
class Attention:
    """Where a model looked in one picture.

    Attributes:
        detections: the objects, best first.
        decoder: (N, h, w) float32, for each object the weights of its query over the picture's cells, 1 in sum.
        encoder_weights: (S, S) float32, of every cell of the encoder's map over all; None where it has no such layer.
        grids: the decoder's and the encoder's cells.
        layer, head: as asked for.
        counts: layers of the encoder, layers of the decoder, heads.
        threshold: of the detections.
    """

    detections: "Detections"
    decoder: np.ndarray
    encoder_weights: np.ndarray | None
    grids: tuple[Grid, Grid]
    layer: int
    head: int | None
    counts: tuple[int, int, int]
    threshold: float

    def encoder(self, x: float, y: float) -> np.ndarray:
        """Returns the weights (h, w) by which the encoder mixed all cells for the one at a point in pixels, 1 in sum.

        Raises:
            ValueError: the point is not in the picture, or the encoder has no such layer.
        """
        height, width = self.detections.size_hw
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"The point ({x}, {y}) is not in the picture of {width}x{height} pixels (x, y from 0).")
        if self.encoder_weights is None:
            raise ValueError(f"The encoder has {self.counts[0]} layers, and layer {self.layer} was asked for.")
        grid = self.grids[1]
        row, column = (
            min(int(place / side * reach), cells - 1)
            for place, side, reach, cells in zip((y, x), (height, width), grid.reach_hw, grid.cells_hw, strict=True)
        )
        return self.encoder_weights[row * grid.cells_hw[1] + column].reshape(grid.cells_hw)

    def in_boxes(self) -> np.ndarray:
        """Returns (N,): which part of each object's attention lies in its box, of cells at its border in part."""
        rows, columns = self.grids[0].edges(self.detections.size_hw)
        shares = []
        for map_, (x0, y0, x1, y1) in zip(self.decoder, self.detections.boxes, strict=True):
            shares.append(_covered(rows, y0, y1) @ map_ @ _covered(columns, x0, x1))
        return np.array(shares, dtype=np.float32)

    def draw(
        self,
        points: Sequence[tuple[float, float]] | None = None,
        *,
        tile: int = 320,
        columns: int = 4,
        font: str | Path | None = None,
    ) -> Image.Image:
        """Returns what was found, and beside it a tile for each object: the brighter, the more attention.

        Every tile has light from its own smallest weight to its largest, and is smoothed between cells. The line above
        says how much of the attention lies in the box, or from what to what part of an even share the weights for a
        point go. Where nothing was found it says how near the best came.

        Args:
            points: x, y in pixels of the picture; instead of the objects' the encoder's attention from each.
            tile: pixels of the longer side of a tile.
            columns: tiles in a row.
            font: the file of the font for the names; by default one that has their letters is looked for.
        """
        found, small = self.detections, fit_image(self.detections.image, tile)
        height, width = found.size_hw
        ratios = np.array([small.width / width, small.height / height] * 2)
        boxes = found.boxes * ratios
        styles: dict[str, Any] = {"labels": found.labels, "font": font}
        tiles = [draw_boxes(small, boxes, found.names, scores=found.scores, **styles)]
        captions = [self.caption("encoder" if points else "decoder")]
        if points:
            for x, y in points:
                map_ = self.encoder(x, y)
                drawn = heat_image(small, map_, self.grids[1], POINT_COLOR)
                tiles.append(_with_point(drawn, x * ratios[0], y * ratios[1]))
                captions.append(f"from ({x:g}, {y:g}): {shares(map_)}")
        else:
            for index, (one, share) in enumerate(zip(found, self.in_boxes(), strict=True)):
                color = class_color(one.label)
                drawn = heat_image(small, self.decoder[index], self.grids[0], color)
                ImageDraw.Draw(drawn).rectangle(tuple(boxes[index]), outline=(255, 255, 255))
                tiles.append(drawn)
                name = one.name if len(one.name) <= LONGEST_NAME else f"{one.name[: LONGEST_NAME - 1]}…"
                captions.append(f"{beside_text(name)}  {one.score:.2f}: {share:.0%} in its box")
            if not len(found):
                captions = [str(found.best_below)]
        columns = -(-len(tiles) // -(-len(tiles) // columns))  # no row much shorter than the others
        return grid(tiles, columns, captions=captions, side=max(tile, WIDEST_CAPTION), font=font)

    def caption(self, kind: str) -> str:
        """Returns which layer and heads the maps of the `"decoder"` or the `"encoder"` are of."""
        count = self.counts[0 if kind == "encoder" else 1]
        heads = f"mean of {self.counts[2]} heads" if self.head is None else f"head {self.head}"
        return f"{kind} layer {self.layer % count} (0 to {count - 1}), {heads}"

    def save(self, path: str | Path, points: Sequence[tuple[float, float]] | None = None, **options: Any) -> Path:
        """Returns `path` after writing the drawing there, whole; the ending decides the format.

        The other arguments are those of `draw`. The picture that was looked at is never written over.
        """
        picture_format(path)
        refuse_overwriting({"path": path}, [self.detections.path])
        return save_drawing(self.draw(points, **options), path)

    def __repr__(self) -> str:
        height, width = self.decoder.shape[1:]
        return f"Attention({self.caption('decoder')}, {height}x{width} cells) of {self.detections!r}"


def _covered(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns which part of each cell between `edges` lies between `low` and `high`; 0 for one without a width."""
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.clip(inside, 0, None) / np.maximum(np.diff(edges), 1e-9)


def shares(map_: np.ndarray) -> str:
    """Returns from what to what the weights of a map go, as parts of what each had if all were equal."""
    return f"{map_.min() * map_.size:.1f} to {map_.max() * map_.size:.1f} times an even share"


def heat_image(image: Image.Image, map_: np.ndarray, grid: Grid, color: tuple[int, int, int]) -> Image.Image:
    """Returns the image in dark grey, lit in `color` where the weights (h, w) are, not where they are least."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * DIMMED
    bright, alpha = heat_layer(image.size, map_, grid, color)
    return Image.fromarray((grey * (1 - alpha) + bright * alpha).round().astype(np.uint8))


def heat_layer(
    size: tuple[int, int], map_: np.ndarray, grid: Grid, color: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the light (H, W, 3) of weights (h, w), and how much it covers (H, W, 1): nothing where they are least.

    `size` is the (width, height) of the whole picture's drawing. Of equal weights all cells are lit.
    """
    least, largest = float(map_.min()), float(map_.max())
    least = least if least < largest else 0.0
    reach = (0, 0, grid.reach_hw[1], grid.reach_hw[0])
    smooth = Image.fromarray(np.asarray(map_, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR, box=reach)
    heat = (np.asarray(smooth) - least) / max(largest - least, 1e-12)
    heat = heat.clip(0, 1)[..., None]
    while relative_luminance(color) < LEAST_LIGHT:  # brown and blue would be lost on grey
        color = mixed(color, WHITE, 0.2)
    light = np.asarray(color, dtype=np.float32)
    bright = light * (1 - heat**2 * 0.6) + 255 * heat**2 * 0.6  # white at the top
    return bright, heat**0.6 * 0.9


def _with_point(image: Image.Image, x: float, y: float) -> Image.Image:
    """Returns the image with a ring around a point."""
    draw = ImageDraw.Draw(image)
    for radius, color in ((6, (0, 0, 0)), (5, (255, 255, 255)), (3, (0, 0, 0)), (2, (255, 255, 255))):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return image
