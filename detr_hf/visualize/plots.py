"""Plots: how a training went, which matplotlib draws here, and what an evaluation found, which are hotcoco's.

They need matplotlib, those of an evaluation hotcoco too; both are imported when something is drawn. hotcoco's are
changed where they would mislead: mistakes have the names of our tables, the mean of AP is that of all classes and not
of the bars that fit, and letters that its font lacks come from a font that has them.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..whole_files import whole_file
from .lettering import files_with_letters
from .saving import save_drawing

DPI = 110
LONGEST_PATH = 45  # letters of it in the PDF
FEW_BARS = 4  # fewer stand in the room of so many
MARKED = 30  # points of a line, from which on it has no marks
LOSSES = {"ce": "class", "bbox": "box, L1", "giou": "box, GIoU", "mask": "mask", "dice": "mask, dice"}
AIDS = {"": "", "_enc": ", encoder", "_dn": ", denoising"}
RATES = "learning_rate"
SCORES = {"ap": "AP", "ap50": "AP50", "mask_ap": "AP of masks", "pq": "PQ"}
SCORE = re.compile(rf"eval_(?:(.+)_)?({'|'.join(SCORES)})")


class Line(NamedTuple):
    """A line of a plot: its `points`, x and y, a label for the legend, and what tells it from others."""

    points: Sequence[tuple[float, float]]
    label: str | None = None
    color: str | None = None
    dashed: bool = False


class Panel(NamedTuple):
    """One of the plots of a figure; `best` marks the highest point of its first line."""

    title: str
    lines: Sequence[Line]
    x: str = "step"
    log: bool = False
    best: bool = False


# --- training ---


def draw_training(log_history: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Returns losses by part, rates by group and AP over the steps of a run, from Trainer's `log_history`.

    None where nothing was logged at two steps.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels = training_panels(log_history)
    if max((len({step for step, _ in line.points}) for panel in panels for line in panel.lines), default=0) < 2:
        return None
    return draw_panels(panels)


def training_panels(log_history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Returns the plots of a run, those that have something to show."""
    names = list(dict.fromkeys(name for entry in log_history for name in entry))
    loss = {"loss": "training", "eval_loss": "validation"}
    parts = {f"loss_{part}{aid}": f"{text}{of}" for aid, of in AIDS.items() for part, text in LOSSES.items()}
    rates = {name: name.removeprefix(RATES)[1:].replace("_", " ") for name in names if name.startswith(RATES)}
    rates = {name: text or "transformer" for name, text in rates.items()}
    found = [(name, SCORE.fullmatch(name)) for name in names]
    scores = {name: " of ".join(filter(None, (SCORES[one[2]], one[1]))) for name, one in found if one}
    panels = [
        Panel("loss", _lines(log_history, loss)),
        Panel("loss by part, in training", _lines(log_history, parts)),
        Panel("learning rate", _lines(log_history, rates, above=0.0), log=True),
        Panel("AP on the validation pictures", _lines(log_history, scores), best=True),
    ]
    return [panel for panel in panels if panel.lines]


def _lines(log_history: Sequence[Mapping[str, Any]], names: Mapping[str, str], above: float = -math.inf) -> list[Line]:
    """Returns a line for each name that was logged with finite numbers above this one."""
    points = {
        text: [(entry["step"], entry[name]) for entry in log_history if above < entry.get(name, math.nan) < math.inf]
        for name, text in names.items()
    }
    return [Line(values, text) for text, values in points.items() if values]


def draw_panels(panels: Sequence[Panel], columns: int = 2, title: str = "", one_legend: bool = False) -> Image.Image:
    """Returns plots side by side; with `one_legend` the first one's stands below them all, and they share their y."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=one_legend).flatten()
    for place, panel in zip(axes, panels, strict=False):
        for line in panel.lines:
            xs, ys = zip(*line.points, strict=True)
            marker = "o" if len(xs) < MARKED else None
            style = {"marker": marker, "ms": 3, "lw": 1.4, "linestyle": "--" if line.dashed else "-"}
            place.plot(xs, ys, label=line.label, color=line.color, **style)
        if panel.best:
            step, value = max(panel.lines[0].points, key=lambda point: point[1])
            text = f"best {panel.lines[0].label} {value:.3f}, {panel.x} {step:g}"
            place.plot([step], [value], "*", color="black", ms=9, label=text)
        place.set(title=panel.title, xlabel=panel.x, yscale="log" if panel.log else "linear")
        place.grid(alpha=0.3)
        if not one_legend and any(line.label for line in panel.lines):
            place.legend(fontsize=8)
    for place in axes[len(panels) :]:
        place.remove()
    if one_legend:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    if title:
        figure.suptitle(title)
    return _image(figure)


def _image(figure: Any, **options: Any) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, **options)
    return Image.open(buffer).convert("RGB")


# --- evaluation ---


def save_precision_recall(evaluation: Any, path: Path) -> None:
    """Writes precision by recall, the mean of all classes, at three IoUs.

    `evaluation` is hotcoco's `COCOeval`, summed up; so it is below.
    """

    def finish(axes: Any) -> None:  # the best F1 of a mean of curves is not that of the detections
        for mark in [*axes.texts, *(line for line in axes.lines if line.get_marker() == "o")]:
            mark.remove()
        for line in axes.lines:
            line.set_clip_on(False)  # one along an edge is seen whole
        axes.get_legend().set_loc("best")  # not across a line

    _save(
        path, "pr_curve", evaluation, "Precision by recall", "mean of all classes", finish, iou_thrs=[0.5, 0.75, 0.9]
    )


def save_confusion(matrix: Any, names: Sequence[str], threshold: float, path: Path) -> None:
    """Writes what was taken for what, in parts of the objects of each class; of more than 30 the 25 most confused."""
    import numpy as np

    counts = np.asarray(matrix, dtype=float)
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    content = {"matrix": counts, "normalized": parts, "cat_names": list(names)}

    def finish(axes: Any) -> None:
        for axis, text in ((axes.xaxis, "(missed)"), (axes.yaxis, "(nothing)")):
            axis.set_ticklabels([*(label.get_text() for label in axis.get_ticklabels()[:-1]), text])
        axes.set(xlabel="found", ylabel="there")
        axes.set_title(f"Confusion at scores from {threshold:g} on, in parts of each row", fontsize=11)

    _save(path, "confusion_matrix", content, finish=finish)


def save_mistakes(lost: Mapping[str, float], names: Mapping[str, str], ap50: float, path: Path) -> None:
    """Writes how much AP50 each kind of mistake costs, by hotcoco's `names` of the kinds of `lost`."""

    def finish(axes: Any) -> None:
        axes.set_yticklabels([names.get(label.get_text(), label.get_text()) for label in axes.get_yticklabels()])
        axes.set_xlabel("AP50 that it costs")

    content = {"delta_ap": {kind: lost[name] for kind, name in names.items()}, "ap_base": ap50}
    _save(path, "tide_errors", content, "What each kind of mistake costs", f"AP50 is {ap50:.3f}", finish)


def save_ap_by_class(per_class: Mapping[str, float], path: Path) -> None:
    """Writes AP of each class, the best first; of more than 25 the 20 best and the 5 worst."""
    mean = sum(per_class.values()) / len(per_class)

    def finish(axes: Any) -> None:
        axes.lines[0].set(xdata=[mean, mean], zorder=0)
        axes.get_legend().remove()
        low, high = axes.get_ylim()
        room = max(FEW_BARS - len(per_class), 0) / 2 * (1 if low < high else -1)
        axes.set_ylim(low - room, high + room)  # one bar is no wall
        classes = "1 class" if len(per_class) == 1 else f"{len(per_class)} classes"
        axes.set_title(f"AP by class; the line is the mean of {classes}, {mean:.3f}", fontsize=11)

    _save(path, "per_category_ap", {"per_class": dict(per_class)}, finish=finish)


def save_calibration(calibration: Mapping[str, Any], path: Path) -> None:
    """Writes how often detections of a score are right, beside that score; `calibration` is hotcoco's."""
    count = calibration["num_detections"]
    text = f"a detection is right from an IoU of {calibration['iou_threshold']:g} on; {count:,} detection"
    _save(path, "reliability_diagram", dict(calibration), "How often a score is right", text + "s" * (count != 1))


def save_report(evaluation: Any, model: str | None, data: str | None, names: Iterable[str], path: Path) -> None:
    """Writes a page with the numbers, precision by recall and AP by class, as PDF."""
    import hotcoco.plot

    with _letters_of(names), whole_file(path) as unfinished:
        about = {"gt_path": data and data[-LONGEST_PATH:], "dt_path": model and model[-LONGEST_PATH:]}
        hotcoco.plot.report(evaluation, save_path=unfinished, title="Evaluation", **about)


def _save(
    path: Path,
    kind: str,
    content: Any,
    title: str | None = None,
    subtitle: str | None = None,
    finish: Callable[[Any], None] | None = None,
    **options: Any,
) -> None:
    """Writes one of hotcoco's plots, with our titles where it has two, after `finish` has changed its axes."""
    import hotcoco.plot
    from matplotlib import pyplot

    with _letters_of(_names_in(content)):
        figure, axes = getattr(hotcoco.plot, kind)(content, paper_mode=True, **options)
        try:
            if finish is not None:
                finish(axes)
            if title is not None:
                figure.suptitle(title, y=0.98, fontsize=12, fontweight=600)  # where its own stands
                figure.texts[-1].set_text(subtitle)
            save_drawing(_image(figure, bbox_inches="tight"), path)
        finally:
            pyplot.close(figure)


def _names_in(content: Any) -> list[str]:
    return [*content.get("cat_names", ()), *content.get("per_class", ())] if isinstance(content, dict) else []


@contextmanager
def _letters_of(names: Iterable[str]) -> Iterator[None]:
    """Within it hotcoco's plots have fonts with the letters of these names, where the system has some."""
    from hotcoco.plot import core
    from matplotlib import font_manager

    family: list[Any] = getattr(core, "_resolve_font_family", list)()  # what its plots go by; nothing public says it
    talker = logging.getLogger("matplotlib.font_manager")  # of each weight that a font lacks
    level = talker.level
    before = list(family)
    talker.setLevel(logging.ERROR)
    for file in files_with_letters("".join(names)):
        font_manager.fontManager.addfont(file)
        family.append(font_manager.FontProperties(fname=file).get_name())
    try:
        yield
    finally:
        family[:] = before
        talker.setLevel(level)
