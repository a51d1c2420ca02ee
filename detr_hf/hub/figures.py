"""The pictures of a repository: ten examples with what the model finds in them, and the curves of its training."""

import logging
from io import BytesIO
from typing import Any

from PIL import Image

from ..visualize.grids import grid

logger = logging.getLogger(__name__)

COUNT, COLUMNS, TILE_PX, GAP_PX = 10, 5, 240, 4
LOSS, AP, AP50 = "loss", "eval_ap", "eval_ap50"


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


def draw_curves(log_history: list[dict[str, Any]]) -> Image.Image | None:
    """Returns loss and AP over the steps of a run, from Trainer's `log_history`; None where there is too little."""
    series = {
        name: [(entry["step"], entry[name]) for entry in log_history if name in entry] for name in (LOSS, AP, AP50)
    }
    if max(len(points) for points in series.values()) < 2:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("The training curves are left out: they need `pip install matplotlib`.")
        return None
    shown = [[LOSS], [AP, AP50]] if series[AP] or series[AP50] else [[LOSS]]
    figure = Figure(figsize=(4.5 * len(shown), 3), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name in names:
            steps, values = zip(*series[name], strict=True) if series[name] else ((), ())
            axes.plot(steps, values, marker="o" if len(steps) < 30 else None, label=name.removeprefix("eval_").upper())
        axes.set_xlabel("step")
        axes.set_title("loss in training" if names == [LOSS] else "AP on the validation split")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")
