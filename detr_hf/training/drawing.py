"""The figures of a run: curves of its log, and the plots of its last evaluation. No run fails for one of them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import lacking
from ..visualize.plots import draw_training
from ..visualize.saving import save_drawing

logger = logging.getLogger(__name__)

FIGURES, CURVES = "figures", "curves.png"  # a folder in the output folder, and a file in it


def save_figures(trainer: Any, folder: str | Path | None = None) -> list[str]:
    """Returns what is to be said of the figures that it wrote, in lines; see `StreamingEvaluation.save_figures`."""
    from ..evaluation.plotting import missing_for_plots, save_plots

    missing = missing_for_plots()
    if missing:
        logger.warning("Not all figures of this training are drawn. %s", missing)
    folder = Path(trainer.args.output_dir, FIGURES) if folder is None else Path(folder)
    about = {"model": str(trainer.args.output_dir), "step": trainer.state.global_step}
    lines = []
    if "matplotlib" not in (missing or ""):
        lines += _tried("The curves", lambda: _save_curves(trainer.state.log_history, folder / CURVES))
    if missing:
        return lines
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {None: trainer.eval_dataset}
    for name, rows in sets.items():
        place, of_set = (folder, about) if name is None else (folder / name, {**about, "set": name})

        def draw(name: str | None = name, rows: Any = rows, place: Path = place, of_set: Any = of_set) -> str | None:
            found = trainer.whole_evaluation(name)
            return found and save_plots(found, place, getattr(rows, "rows", rows), of_set).text()

        lines += _tried("The plots of the evaluation", draw)
    return lines


def _save_curves(log_history: list[dict[str, Any]], path: Path) -> str:
    drawn = draw_training(log_history)
    if drawn is None:
        return f"No {path.name}: nothing was logged at two steps (logging_steps, eval_steps)."
    return f"Curves: {save_drawing(drawn, path)}."


def _tried(what: str, draw: Callable[[], str | None]) -> list[str]:
    """Returns what `draw` says; nothing where it fails, which the log says then."""
    try:
        return [text] if (text := draw()) else []
    except Exception as error:  # whatever it is, the model is trained
        logger.warning("%s were not drawn: %s", what, lacking(error, "It") or error)
        return []
