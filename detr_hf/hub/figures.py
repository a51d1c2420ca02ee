"""Ten examples for a repository, with what the model finds in them."""

from typing import Any

from PIL import Image

from ..visualize.grids import grid

COUNT, COLUMNS, TILE_PX, GAP_PX = 10, 5, 240, 4


def draw_examples(model: Any, processor: Any, rows: Any, threshold: float = 0.5) -> Image.Image:
    """Returns a grid of up to ten pictures of a split, drawn evenly from it, with boxes that score over `threshold`.

    Raises:
        ValueError: the split has no rows.
    """
    from ..inference.detector import Detector

    pictures = _pictures(rows)
    if not pictures:
        raise ValueError("There is no picture to draw: examples is empty. Leave it out, or give a split with rows.")
    training = model.training
    try:
        found = Detector(model, processor)(pictures, threshold=threshold)
    finally:
        model.train(training)
    return grid(found, COLUMNS, side=TILE_PX, gap=GAP_PX)


def _pictures(rows: Any) -> list[Any]:
    """Returns up to ten pictures of a split as a `Detector` takes them, before any preparation."""
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)  # without the transform that makes tensors of them
    if hasattr(rows, "__len__"):
        count = min(COUNT, len(rows))
        chosen = [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]
    else:
        chosen = list(rows.take(COUNT))
    pictures = [row["image"] for row in chosen]
    # not decoded where the rows are those of a training: {"bytes", "path"}
    return [(item["bytes"] or item["path"]) if isinstance(item, dict) else item for item in pictures]
