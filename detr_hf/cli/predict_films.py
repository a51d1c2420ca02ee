"""Films in `detr-hf predict --save`: a film each with what was found drawn on it, and what there is to say of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .console import progress_bar

if TYPE_CHECKING:
    from ..inference.detector import Detector


def draw_films(
    detector: "Detector",
    targets: dict[Path, Path],
    threshold: float,
    batch_size: int,
    font: Path | None,
    limit: int | None,
    failed: list[dict[str, str]],
) -> int:
    """Draws each film and writes a line for it; returns how many are damaged, and adds those without a whole frame.

    `limit` is how many frames they have together at most.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from ..inference.films import draw_film
    from ..inference.sources.base import SourceOptions
    from ..inference.sources.searching import one_line
    from ..inference.sources.video import video_piece

    damaged = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("frames of {task.description}"))
    for film, target in targets.items():
        if limit == 0:
            typer.echo(one_line(f"{film}: not looked at (--limit)."), err=True)
            continue
        try:
            with progress_bar(*columns) as show:
                piece = video_piece(film, SourceOptions())
                show(total=(piece if limit is None else piece.first(limit)).size, description=one_line(film.name))
                drawn = draw_film(
                    detector,
                    film,
                    target,
                    threshold=threshold,
                    batch_size=batch_size,
                    font=font,
                    limit=limit,
                    on_progress=lambda frames, show=show: show(completed=frames),
                )
        except ValueError as error:
            failed.append({"path": str(film), "error": str(error)})
            continue
        limit = None if limit is None else limit - drawn.frames
        found = ", ".join(f"{name} in {count:,}" for name, count in drawn.frames_with.most_common()) or "nothing"
        typer.echo(one_line(f"{film}: {drawn.frames:,} frames; {found}"))
        for change in drawn.changes:
            typer.echo(one_line(f"{target}: {change}."), err=True)
        for fault in drawn.faults:
            typer.echo(one_line(f"{film}: {fault}."), err=True)
        damaged += bool(drawn.faults)
    return damaged
