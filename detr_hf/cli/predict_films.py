"""Films in `detr-hf predict --save`: a film each with what was found drawn on it, and what there is to say of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import progress_bar

if TYPE_CHECKING:
    from ..inference.detector import Detector

# Option -> why no film can have it.
NOT_OF_FILMS = {
    "--json": "holds all results at once; those of a film go to a folder, --out",
    "--attention": "draws pictures, not films",
    "--every": "is of --out; a film is drawn with all its frames",
}


def checked_films(
    found: dict[Path | str, Path], paths: Iterable[str], options: Mapping[str, Any]
) -> dict[Path | str, Path]:
    """Returns what was found, without films that cannot be read here; what they are drawn without is said.

    Raises:
        typer.BadParameter: an option of `options` is set that a film cannot have which is named, not in a folder.
        ImportError: PyAV is missing, and a film is named, or nothing else is there.
    """
    from ..inference.sources.opening import is_film
    from ..inference.sources.video import require_pyav

    films = [path for path in found if is_film(path)]
    if not films:
        return found
    pictures = {path: below for path, below in found.items() if path not in films}
    named = [film for film in films if str(film) in set(paths)]
    try:
        require_pyav()
    except ImportError as error:
        if named or not pictures:
            raise
        typer.echo(f"{len(films)} films are left out. {error}", err=True)
        return pictures
    for option in [option for option, is_set in options.items() if is_set]:
        if named:
            raise typer.BadParameter(f"{NOT_OF_FILMS[option]} ({named[0]})", param_hint=option)
        typer.echo(f"{option} {NOT_OF_FILMS[option]}: {len(films)} films are drawn without it.", err=True)
    return found


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
        found = ", ".join(f"{name} in {count:,}" for name, count in drawn.frames_with.most_common())
        typer.echo(one_line(f"{film}: {drawn.frames:,} frames; {found or drawn.best_below or 'nothing'}"))
        for change in drawn.changes:
            typer.echo(one_line(f"{target}: {change}."), err=True)
        for fault in drawn.faults:
            typer.echo(one_line(f"{film}: {fault}."), err=True)
        damaged += bool(drawn.faults)
    return damaged
