"""How latency and memory grow with the side of a picture, the batch and the number of queries, on both sides."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from .forward import tolerance_in_float32
from .measuring import check_device, compare, differences, environment, peak_memory, require_agreement
from .models import dtype_named, random_pair, random_pixels

SIDE = 400  # of the pictures, where the batch or the queries grow
LABELS = {"side": "side in pixels, batch 1", "batch": f"batch, side {SIDE}", "queries": f"queries, side {SIDE}"}


def compare_growth(
    axes: dict[str, list[int]], device: str, dtype: str, runs: int, out: Path | None = None, **config: Any
) -> dict[str, Any]:
    """Returns the record, a point for every value of every axis; draws `growth.png` in `out` if that is given.

    Args:
        axes: values of "side", "batch" and "queries".
        device, dtype, runs: as in the other comparisons.
        out: a folder.
        **config: of the model.

    Raises:
        ValueError: for a device that is not there, or outputs that do not agree.
        ImportError: when there is to be a drawing and matplotlib is missing.
    """
    check_device(device)
    record: dict[str, Any] = {
        "environment": environment(device),
        "settings": {"device": device, "dtype": dtype, **config},
    }
    pair = random_pair(device, **config) if axes.get("side") or axes.get("batch") else ()
    for name in ("side", "batch"):
        points = []
        for value in axes.get(name, []):
            size, batch = (value, 1) if name == "side" else (SIDE, value)
            points.append({name: value, **_point(*pair, size, batch, device, dtype, runs)})
        record[name] = points
    record["queries"] = []
    for value in axes.get("queries", []):
        pair = random_pair(device, **{**config, "num_queries": value})
        record["queries"].append({"queries": value, **_point(*pair, SIDE, 1, device, dtype, runs)})
    if out is not None:
        draw_growth(record, out / "growth.png")
    return record


@torch.no_grad()  # a model made or converted in inference mode is not folded
def _point(ours: Any, peer: Any, side: int, batch: int, device: str, dtype: str, runs: int) -> dict[str, Any]:
    pixel_values, _ = random_pixels(batch, (side, side), device)
    found = differences(ours.float()(pixel_values), peer.float()(pixel_values))
    require_agreement(found, tolerance_in_float32(device))
    low = pixel_values.to(dtype_named(dtype))
    calls = [partial(model.to(dtype_named(dtype)), low) for model in (ours, peer)]
    point: dict[str, Any] = compare(*calls, runs, device)
    ours.backbone[0].inference_body.memory.release()  # what it keeps between calls counts too
    memory = [peak_memory(call, device) for call in calls]
    if None not in memory:
        point |= {"ours_peak_bytes": memory[0], "peer_peak_bytes": memory[1]}
    return point


def draw_growth(record: dict[str, Any], path: Path) -> None:
    """Draws latency and peak memory of both sides against every axis."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: pip install matplotlib") from error
    names = [name for name in LABELS if record.get(name)]
    figure = Figure(figsize=(4 * len(names), 6), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        points = record[name]
        for row, (unit, factor, keys) in enumerate(
            (("seconds", 1, ("ours_s", "peer_s")), ("peak MB", 1e-6, ("ours_peak_bytes", "peer_peak_bytes")))
        ):
            axes = grid[row][column]
            for key, label in zip(keys, ("detr_hf", "transformers"), strict=True):
                shown = [(point[name], point[key] * factor) for point in points if key in point]
                axes.plot(*zip(*shown, strict=True) if shown else ([], []), marker="o", label=label)
            axes.set(xlabel=LABELS[name], ylabel=unit, ylim=(0, None))
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


__all__ = ["compare_growth", "draw_growth"]
