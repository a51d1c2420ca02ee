"""The table and the curves of a convergence run, from its JSON file."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .convergence import THRESHOLDS, Run


def summarise(path: Path) -> str:
    """Writes `path` with the suffixes .md (the table) and .png (the curves), and returns the table.

    The drawing is left out where matplotlib is not installed.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = [Run(**run) for run in record["runs"]]
    text = table(runs)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return f"{text}\n\nNo drawing: `pip install matplotlib` for one."
    draw(runs, record["settings"], path.with_suffix(".png"))
    return text


def grouped(runs: Sequence[Run]) -> dict[tuple[str, float], list[Run]]:
    """Returns the runs of each arm and learning rate, by seed, in the order of their appearance."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault((run.arm, run.lr), []).append(run)
    return groups


def table(runs: Sequence[Run]) -> str:
    """Returns a Markdown table: of every seed the steps to AP50 thresholds, the seconds, and the last AP."""
    head = ["arm", "lr", *(f"steps to AP50 {threshold:g}" for threshold in THRESHOLDS), "seconds to AP50 0.5"]
    head += ["ms a step", "AP50 at the end", "AP at the end"]
    lines = [head, ["---"] * len(head)]
    for (arm, rate), members in grouped(runs).items():
        reached = {threshold: [run.reached(threshold) for run in members] for threshold in THRESHOLDS}
        row = [arm, f"{rate:g}"]
        row += [_listed([at and at["step"] for at in reached[threshold]], "{:.0f}") for threshold in THRESHOLDS]
        row.append(_listed([at and at["seconds"] for at in reached[0.5]], "{:.0f}"))
        ends = [run.curve[-1] for run in members]
        row.append(f"{statistics.median(1000 * end['seconds'] / end['step'] for end in ends):.0f}")
        row += [_listed([end[name] for end in ends], "{:.3f}") for name in ("AP50", "AP")]
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(values: Sequence[float | None], form: str) -> str:
    """Returns every seed's value and their mean; a dash for a threshold that was not reached."""
    listed = ", ".join("-" if value is None else form.format(value) for value in values)
    if len(values) == 1 or None in values:
        return listed
    return f"{listed} (mean {form.format(statistics.mean(values))})"


def draw(runs: Sequence[Run], settings: dict[str, Any], path: Path) -> None:
    """Draws AP50 over steps and over seconds, a line for every seed, a colour for every arm; after ten, dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for number, ((arm, rate), members) in enumerate(grouped(runs).items()):
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "lw": 1.3}
        for nth, run in enumerate(members):
            label = f"{arm}, lr {rate:g}" if nth == 0 else None
            for axis, unit in zip(axes, ("step", "seconds"), strict=True):
                xs = [point[unit] for point in run.curve]
                axis.plot(xs, [point["AP50"] for point in run.curve], label=label, **style)
    for axis, unit in zip(axes, ("steps", "seconds of training"), strict=True):
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("AP50 on the validation pictures")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{Path(settings['data']).name}, width {settings['hidden_dim']}, batch {settings['batch']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


__all__ = ["draw", "grouped", "summarise", "table"]
