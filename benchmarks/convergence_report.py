"""The tables and the curves of a convergence run, from its JSON file."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .convergence_record import THRESHOLDS, Run
from .forgiven import KINDS
from .records import table as markdown

SIZES = {"APs": "small: AP", "APm": "medium", "APl": "large"}


def summarise(path: Path) -> str:
    """Writes `path` with the suffixes .md (the tables) and .png (the curves), and returns the tables.

    The drawing is left out where matplotlib is not installed.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = [Run(**run) for run in record["runs"]]
    parts = [table(runs), by_class_and_size(runs), mistakes(runs), described(record["arms"]), _ground(record)]
    text = "\n\n".join(filter(None, parts))
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
    averaged = any("averaged" in point for run in runs for point in run.curve)
    head += ["ms a step", "AP50 at the end", "AP at the end", *(["AP50 of averaged weights"] if averaged else [])]
    rows = []
    for (arm, rate), members in grouped(runs).items():
        reached = {threshold: [run.reached(threshold) for run in members] for threshold in THRESHOLDS}
        row = [arm, f"{rate:g}"]
        row += [_listed([at and at["step"] for at in reached[threshold]], "{:.0f}") for threshold in THRESHOLDS]
        row.append(_listed([at and at["seconds"] for at in reached[0.5]], "{:.0f}"))
        ends = [run.curve[-1] for run in members]
        row.append(f"{statistics.median(1000 * end['seconds'] / end['step'] for end in ends):.0f}")
        diverged = [f"seed {run.seed} diverged by step {run.diverged}" for run in members if run.diverged]
        row += [_listed([end[name] for end in ends], "{:.3f}") for name in ("AP50", "AP")]
        row[-2] += f" ({'; '.join(diverged)})" if diverged else ""
        if averaged:
            row.append(_seeds(members, lambda end: end["averaged"]["AP50"]))
        rows.append(row)
    return markdown(head, rows)


def by_class_and_size(runs: Sequence[Run]) -> str:
    """Returns a Markdown table of AP50 by class and AP by size at the end, of every seed; "" for old records."""
    names = list(dict.fromkeys(name for run in runs for name in run.curve[-1].get("classes", ())))
    rows = []
    for (arm, rate), members in grouped(runs).items() if names else ():
        row = [arm, f"{rate:g}", _seeds(members, lambda end: min(_values(end["classes"])))]
        row += [_seeds(members, lambda end, name=name: end["classes"][name]["AP50"]) for name in names]
        row += [_seeds(members, lambda end, size=size: end[size]) for size in SIZES]
        rows.append(row)
    objects = {name: one["objects"] for run in runs for name, one in run.curve[-1].get("classes", {}).items()}
    heads = [f"{name} ({objects[name]} objects)" for name in names]
    return markdown(["arm", "lr", "worst class: AP50", *heads, *SIZES.values()], rows) if names else ""


def mistakes(runs: Sequence[Run]) -> str:
    """Returns a Markdown table of AP50 at the end with one kind of mistake forgiven, of every seed."""
    if not any("forgiven" in run.curve[-1] for run in runs):
        return ""
    rows = []
    for (arm, rate), members in grouped(runs).items():
        row = [arm, f"{rate:g}", _seeds(members, lambda end: end["AP50"])]
        rows.append(row + [_seeds(members, lambda end, kind=kind: end["forgiven"][kind]) for kind in KINDS])
    return markdown(["arm", "lr", "AP50", *(f"{kind} forgiven" for kind in KINDS)], rows)


def described(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what each arm of transformers' had put back, and what an arm that was given as data is."""
    lines = []
    for name, options in arms.items():
        if "mended" in options:
            lines.append(f"{name}: mended are {'; '.join(options['mended'])}.")
        elif "peer" in options:
            lines.append(f"{name}: as transformers ships it.")
        elif options:
            lines.append(f"{name}: {json.dumps(options)}")
    return "\n".join(f"- {line}" for line in lines)


def _ground(record: Mapping[str, Any]) -> str:
    """Returns the settings that the runs shared, and the versions of what ran them."""
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items() if name not in ("lr",))
    known = [run["environment"] for run in record["runs"] if run.get("environment")]
    found = {json.dumps([one.get("commit"), one["processor"], one["versions"]], sort_keys=True) for one in known}
    lines = []
    for commit, processor, versions in map(json.loads, sorted(found)):
        packages = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
        lines.append(f"On {processor} at {commit}: {packages}.")
    return "\n\n".join([f"All: {settings}.", *lines])


def _values(classes: Mapping[str, Mapping[str, float | None]]) -> list[float]:
    """Returns AP50 of the classes that have objects."""
    return [row["AP50"] for row in classes.values() if row["AP50"] is not None]


def _seeds(members: Sequence[Run], value: Callable[[dict[str, Any]], float | None]) -> str:
    """Returns a value of the last point of every seed; a dash where it has none."""
    found = []
    for run in members:
        try:
            number = value(run.curve[-1])
        except KeyError:  # of a run that diverged, or of an arm that is not averaged
            number = None
        found.append("-" if number is None else f"{number:.3f}")
    return "; ".join(found)


def _listed(values: Sequence[float | None], form: str) -> str:
    """Returns every seed's value and their mean; a dash for a threshold that was not reached."""
    listed = ", ".join("-" if value is None else form.format(value) for value in values)
    if len(values) == 1 or None in values:
        return listed
    return f"{listed} (mean {form.format(statistics.mean(values))})"


def draw(runs: Sequence[Run], settings: dict[str, Any], path: Path) -> None:
    """Draws AP50 over steps and over seconds, a line for every seed, a colour for every arm; after ten, dashed."""
    from detr_hf.visualize.plots import Line, Panel, draw_panels

    panels = []
    for unit, text in (("step", "steps"), ("seconds", "seconds of training")):
        lines = []
        for number, ((arm, rate), members) in enumerate(grouped(runs).items()):
            for nth, run in enumerate(members):
                points = [(point[unit], point["AP50"]) for point in run.curve]
                label = f"{arm}, lr {rate:g}" if nth == 0 else None
                lines.append(Line(points, label, f"C{number % 10}", dashed=number >= 10))
        panels.append(Panel("AP50 on the validation pictures", lines, x=text))
    title = f"{Path(settings['data']).name}, width {settings['hidden_dim']}, batch {settings['batch']}"
    draw_panels(panels, title=title, one_legend=True).save(path)


__all__ = ["by_class_and_size", "described", "draw", "grouped", "mistakes", "summarise", "table"]
