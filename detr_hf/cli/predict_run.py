"""What `detr-hf predict --out` does, a run of batch prediction, and tells of it: throughput, time left, the end."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import progress_bar
from .export import DIGITS

if TYPE_CHECKING:
    from ..inference.detector import Detector
    from ..inference.runs.prediction import PredictionRun, Progress
    from ..inference.sources.base import Source, SourceOptions

SECONDS_BETWEEN_LINES = 30


def predict_run(detector: "Detector", source: "Source", out: Path, **settings: Any) -> None:
    """Does the run, which goes on where it was; leaves with exit code 1 where nothing at all could be read."""
    from ..inference.runs.prediction import predict_to_shards, read_predictions

    with shown_progress() as show:
        run = predict_to_shards(detector, source, out, **settings, on_progress=show)
    typer.echo(ending(run), err=True)
    if run.complete and settings["format"] == "coco" and settings["threshold"] > 0:
        typer.echo(
            f"coco_results.json has what scores over {settings['threshold']:g}; AP counts all: --threshold 0. The ids "
            "of pictures are those of coco_images.json.",
            err=True,
        )
    if run.complete and not any("error" not in record for record in read_predictions(out)):
        typer.echo("Nothing could be read: there is not one picture with a result.", err=True)
        raise typer.Exit(1)


def load_source(paths: list[str], dataset: str | None, options: "SourceOptions", out: Path) -> "Source":
    """The pictures to detect in: those behind the paths, or a data set."""
    if dataset is None:
        from ..inference.sources.opening import open_source

        return open_source(paths, options, results=out)
    if paths:
        raise typer.BadParameter(f"takes the place of {', '.join(paths)}; give one of both", param_hint="--dataset")
    from ..inference.sources.tables import from_dataset, load_dataset_source

    if dataset == DIGITS and not Path(dataset).exists():
        from ..data import load_detection_dataset
        from ..data.readers.digit_data import SCENES

        if options.split not in SCENES:
            raise typer.BadParameter(f"{DIGITS} has the splits {', '.join(SCENES)}: choose one", param_hint="--split")
        drawn = load_detection_dataset(DIGITS, splits=[options.split])
        return from_dataset({options.split: drawn[options.split]}, options, DIGITS)
    return load_dataset_source(dataset, options)


def process_device(device: str | None) -> str | None:
    """The device of this process: under torchrun each of a machine takes a GPU of its own, unless one is named."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device is None and local_rank is not None:
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(local_rank) % torch.cuda.device_count()}"
    return device


def process_name() -> str:
    """`[1 of 4] ` for the second of four processes, nothing where there is one."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return f"[{rank} of {world_size}] " if world_size > 1 else ""


@contextmanager
def shown_progress() -> Iterator[Callable[["Progress"], None]]:
    """What shows progress on stderr: a bar where one process has a terminal, a line every half minute otherwise."""
    from rich.console import Console

    if process_name() or not Console(stderr=True).is_terminal:
        last = time.monotonic()

        def say(progress: "Progress") -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                typer.echo(process_name() + progress_text(progress), err=True)

        yield say
        return
    from rich.progress import BarColumn, TextColumn

    with progress_bar(BarColumn(), TextColumn("{task.description}")) as show:

        def update(progress: "Progress") -> None:
            done = progress.before + progress.done
            show(total=progress.total, completed=done, description=progress_text(progress))

        yield update


def progress_text(progress: "Progress") -> str:
    """`1,200 of 5,000 pictures, 85.1 a second, 0:00:45 left, 2 could not be read`."""
    done = f"{progress.before + progress.done:,}"
    parts = [f"{done} of {progress.total:,} pictures" if progress.total is not None else f"{done} pictures"]
    parts.append(f"{progress.per_second:.1f} a second")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.failed:
        parts.append(f"{progress.failed:,} could not be read")
    return ", ".join(parts)


def ending(run: "PredictionRun") -> str:
    """What this process did, and whether the run is complete."""
    progress = run.progress
    lines = [
        f"{process_name()}{progress.done:,} pictures in {duration(progress.seconds)}, "
        f"{progress.per_second:.1f} a second"
        + (f"; {progress.before:,} were done before." if progress.before else ".")
    ]
    if progress.failed:
        lines.append(f"{progress.failed:,} of them could not be read: their results hold an error.")
    if run.complete:
        lines.append(f"Complete: {run.folder}")
    elif process_name():
        lines.append(f"Other processes are still at work in {run.folder}, or were stopped: start it again then.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
