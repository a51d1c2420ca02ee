"""What `detr-hf predict` does without `--out`: a line for each picture, drawings, and one file of all results."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import typer

from ..whole_files import whole_file
from .naming import is_web_address
from .predict_films import draw_films
from .predict_save import is_one_file

if TYPE_CHECKING:
    from ..inference.detector import Detector
    from ..inference.results import Detections


def search_pictures(paths: list[str], save: Path | None, limit: int | None) -> dict[Path | str, Path]:
    """Returns the pictures behind paths and URLs, each with its path below the folder that it was found in.

    Where drawings are to be saved, films too, behind the pictures; `limit` is of the pictures alone.

    Raises:
        typer.BadParameter: there is none, or a file that holds many.
    """
    from ..inference.sources.opening import FILM_SUFFIXES, OPENERS, holds_many, is_film
    from ..inference.sources.searching import PictureSearch
    from ..processing.image_opening_detr import PICTURE_SUFFIXES

    suffixes = PICTURE_SUFFIXES if save is None else (*PICTURE_SUFFIXES, *FILM_SUFFIXES)
    search = PictureSearch([path for path in paths if not is_web_address(path)], results=save, suffixes=suffixes)
    files = dict(search)
    films = {path: files.pop(path) for path in list(files) if save is not None and is_film(path)}
    urls = {path: Path(unquote(urlsplit(path).path)).name or "picture" for path in paths if is_web_address(path)}
    pictures = {**files, **{url: Path(name if len(name) < 100 else "picture") for url, name in urls.items()}}
    if unopened := sorted(search.left_out.reasons & OPENERS.keys()):
        typer.echo(f"Files that end in {', '.join(unopened)} hold many pictures: --out looks into them.", err=True)
    if not pictures and not films:
        raise typer.BadParameter(search.nothing(), param_hint="PATH")
    many = [path for path in files if holds_many(path)]
    if many:
        also = ", or one for its drawings, --save" if is_film(many[0]) else ""
        raise typer.BadParameter(f"{many[0]} holds many pictures: name a folder for their results, --out{also}")
    if limit is not None and len(pictures) > limit:
        typer.echo(f"The first {limit} of {len(pictures)} pictures (--limit).", err=True)
    return dict(islice(pictures.items(), limit)) | films


def predict_files(
    detector: "Detector",
    pictures: dict[Path | str, Path],
    threshold: float,
    save: Path | None,
    json_file: Path | None,
    batch_size: int,
    font: Path | None,
    model: str,
    attention: bool = False,
    limit: int | None = None,
) -> None:
    """Detects in pictures and writes a line for each; draws them and writes them to one file if asked.

    Films come last, and take what the pictures leave of `limit`.
    """
    from ..inference.batching import Failure
    from ..inference.runs.drawings import DRAWING_OF, drawing_paths
    from ..inference.sources.opening import is_film
    from ..inference.sources.searching import one_line

    if save is None or is_one_file(save):
        targets = {} if save is None else dict.fromkeys(pictures, save)
    else:
        targets = drawing_paths(pictures, save, json_file, DRAWING_OF[detector.task])
    films = {path: targets[path] for path in pictures if path in targets and is_film(path)}
    pictures = {path: below for path, below in pictures.items() if path not in films}
    seen = drawing_paths(pictures, save, json_file, "attention") if attention and save is not None else {}
    failed: list[dict[str, str]] = []
    records: list[dict[str, Any]] = []
    shown = with_progress(pictures, failed)
    if attention:
        from ..inference.looking import look

        outcomes = (look(detector, picture, threshold) for picture in shown)  # each goes through the model once
    else:
        outcomes = detector.outcomes(shown, threshold, batch_size)
    for picture, outcome in zip(pictures, outcomes, strict=True):
        if isinstance(outcome, Failure):
            failed.append({"path": str(picture), "error": str(outcome.error)})
            continue
        found = outcome.detections if attention else outcome
        typer.echo(f"{one_line(picture)}: {summary(found)}")
        if save is not None:
            found.save(targets[picture], font, what=detector.task)
        if attention:
            outcome.save(seen[picture], font=font)
        if json_file is not None:
            records.append(found.to_dict() | {"path": str(picture)})
    if json_file is not None:
        tasked = {} if detector.task == "detection" else {"task": detector.task}
        content = {"model": model, **tasked, "threshold": threshold}
        content |= {"pictures": records, "failed": failed}
        with whole_file(json_file) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    left = None if limit is None else limit - len(pictures)
    damaged = draw_films(detector, films, threshold, batch_size, font, left, failed) if films else 0
    finish(len(pictures) + len(films), failed, save, json_file, damaged)


def with_progress(pictures: Collection[Any], failed: list[dict[str, str]]) -> Iterator[Any]:
    """Yields the pictures and shows on stderr, if that is a terminal, how far they are and how long the rest takes."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from .console import progress_bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns) as show:
        show(total=len(pictures))
        for path in pictures:
            yield path
            show(advance=1, description=f"{len(failed)} failed" if failed else "")


def summary(detections: "Detections") -> str:
    """`3 person, 1 dog`, or what came nearest; segments if there are any; of classes their part of the picture."""
    if detections.semantic is not None:
        height, width = detections.size_hw
        classes = sorted(detections.semantic.segments_info, key=lambda one: -one["area"])
        return ", ".join(f"{one['area'] / (height * width):.0%} {one['name']}" for one in classes)
    counts = detections.count()
    if detections.panoptic is not None:
        counts = dict(Counter(one["name"] for one in detections.panoptic.segments_info).most_common())
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or str(detections.best_below or "nothing")


def finish(
    total: int, failed: list[dict[str, str]], save: Path | None, json_file: Path | None, damaged: int = 0
) -> None:
    """Says where the results are and what failed; leaves with exit code 1 if anything did, or a film is damaged."""
    from ..inference.sources.searching import one_line

    if save is not None and len(failed) < total:
        typer.echo(f"Drawn pictures: {save}", err=True)
    if json_file is not None:
        typer.echo(f"Detections: {json_file}", err=True)
    for failure in failed:
        typer.echo(one_line(f"Left out {failure['path']}: {failure['error']}"), err=True)
    if failed:
        typer.echo(f"{len(failed)} of {total} pictures could not be read.", err=True)
    if damaged:
        typer.echo(f"{damaged} of the films are damaged: the frames that are whole are drawn.", err=True)
    if failed or damaged:
        raise typer.Exit(1)
