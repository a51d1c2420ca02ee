"""`detr-hf predict`: boxes and masks in files, folders, patterns and URLs; with `--out` in any number of pictures."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from ..whole_files import is_result, refuse_overwriting, refuse_unwritable, whole_file
from .flags import IMAGE_SIZE
from .naming import is_web_address, split_model

if TYPE_CHECKING:
    from ..inference.detector import Detector
    from ..inference.results import Detections
    from ..inference.sources.base import Source, SourceOptions


def predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] PATH...",
            show_default=False,
            help="Pictures: files, folders (searched with all folders below), patterns such as 'photos/*.jpg', URLs. "
            "Before them, optionally, a model: a checkpoint folder, a .pth file or a Hub id. Without one, the shipped "
            "digit detector, detr-digits, is used. With --out also tar files (WebDataset), Parquet files and videos.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model; then all arguments are pictures.")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", "-t", min=0, max=1, help="Keep higher scores.")] = 0.7,
    task: Annotated[
        str | None,
        typer.Option(
            help="detection (boxes), instance (masks too), panoptic (a map of segments too), or semantic (a map of "
            "classes); by default what the model has.",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Draw each picture into this folder.")] = None,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention", help="With --save: also draw what the model attended to for each object, NAME_attention."
        ),
    ] = False,
    font: Annotated[
        Path | None, typer.Option(help="With --save: the file of the font for names, if not one that is found.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all detections to this file.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help=IMAGE_SIZE)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many pictures at most, the first ones.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of equal size that run together.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float16.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write results to this folder, part by part; the same command goes on.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="With --out: jsonl, parquet, coco; coco-panoptic (PNGs of ids and panoptic.json), png (of labels: "
            "the task semantic)."
        ),
    ] = "jsonl",
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="With --out: pictures in a file of results; by default a 64th of them, 16 to 1000."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="With --out: take one in this many frames of a video.")] = 1,
    dataset: Annotated[
        str | None, typer.Option(help="With --out: a data set instead of PATHs; a Hub id (streamed) or a folder.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="With --dataset: its configuration.")] = None,
    split: Annotated[str | None, typer.Option(help="With --dataset: its split.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="With --out: the column of the pictures; in tar files their ending.")
    ] = None,
) -> None:
    """Detect objects in pictures, with their masks where the model has a mask head.

    A picture that cannot be read is named and left out; the exit code then is 1.

    What a folder holds besides pictures is counted and named. No picture that is given is written over. With --out
    the results go to a folder in parts, such a picture is in them with its error (the exit code is 1 only if none
    could be read), and a run that was stopped goes on when it is started again. Under torchrun or accelerate launch
    each process does its share.
    """
    model, paths = split_model(arguments or [], model, needs_paths=dataset is None)
    for option, folder in (("--out", out), ("--save", save)):
        if folder is not None and os.path.lexists(folder) and not folder.is_dir():
            raise typer.BadParameter(f"{folder} is not a folder", param_hint=option)
    if font is not None and not font.is_file():
        raise typer.BadParameter(f"there is no file {font}", param_hint="--font")
    if attention and save is None:
        raise typer.BadParameter("draws pictures, which need a folder: --save", param_hint="--attention")
    if out is not None:
        from ..inference.runs.prediction import predict_to_shards, read_predictions
        from ..inference.runs.result_formats import FORMATS, suffix_of
        from ..inference.sources.base import SourceOptions
        from .predict_run import ending, process_device, shown_progress

        if save is not None or json_file is not None:
            raise typer.BadParameter(
                "takes neither --save nor --json: they hold all results at once", param_hint="--out"
            )
        suffix_of(format, task)  # refuses what is wrong before the model is loaded
        options = SourceOptions(shard_size, image_column, every, config, split)
        source = load_source(paths, dataset, options, out)
        source = source if limit is None else source.first(limit)
        detector = load_detector(model, process_device(device), dtype, task or FORMATS[format], image_size)
        settings = {"threshold": threshold, "batch_size": batch_size, "format": format, "options": options}
        with shown_progress() as show:
            run = predict_to_shards(detector, source, out, **settings, model=model or "detr-digits", on_progress=show)
        typer.echo(ending(run), err=True)
        if run.complete and not any("error" not in record for record in read_predictions(out)):
            typer.echo("Nothing could be read: there is not one picture with a result.", err=True)
            raise typer.Exit(1)
    elif dataset is not None:
        raise typer.BadParameter("a data set needs a folder for its results, --out", param_hint="--dataset")
    else:
        found = search_pictures(paths, save, limit)
        refuse_overwriting({"--json": json_file}, [model, *found], is_result)
        if save is not None:
            refuse_unwritable("--save", save)
        detector = load_detector(model, device, dtype, task, image_size)
        if attention and not hasattr(detector.model, "transformer"):
            raise typer.BadParameter("an exported model gives none: name the checkpoint", param_hint="--attention")
        predict_files(detector, found, threshold, save, json_file, batch_size, font, model or "detr-digits", attention)


def search_pictures(paths: list[str], save: Path | None, limit: int | None) -> dict[Path | str, Path]:
    """Returns the pictures behind paths and URLs, each with its path below the folder that it was found in.

    Raises:
        typer.BadParameter: there is none, or a file that holds many.
    """
    from ..inference.sources.opening import OPENERS, holds_many
    from ..inference.sources.searching import PictureSearch

    search = PictureSearch([path for path in paths if not is_web_address(path)], results=save)
    files = dict(search)
    urls = {path: Path(unquote(urlsplit(path).path)).name or "picture" for path in paths if is_web_address(path)}
    pictures = {**files, **{url: Path(name if len(name) < 100 else "picture") for url, name in urls.items()}}
    if unopened := sorted(search.left_out.reasons & OPENERS.keys()):
        typer.echo(f"Files that end in {', '.join(unopened)} hold many pictures: --out looks into them.", err=True)
    if not pictures:
        raise typer.BadParameter(search.nothing(), param_hint="PATH")
    many = [str(path) for path in files if holds_many(path)]
    if many:
        raise typer.BadParameter(f"{many[0]} holds many pictures: name a folder for their results, --out")
    if limit is not None and len(pictures) > limit:
        typer.echo(f"The first {limit} of {len(pictures)} pictures (--limit).", err=True)
    return dict(islice(pictures.items(), limit))


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
) -> None:
    """Detects in pictures and writes a line for each; draws them and writes them to one file if asked."""
    from ..inference.results import Detections
    from ..inference.runs.drawings import DRAWING_OF, drawing_paths
    from ..inference.sources.searching import one_line

    targets = drawing_paths(pictures, save, json_file, DRAWING_OF[detector.task]) if save is not None else {}
    seen = drawing_paths(pictures, save, json_file, "attention") if attention and save is not None else {}
    failed: list[dict[str, str]] = []
    records: list[dict[str, Any]] = []
    outcomes = detector.outcomes(with_progress(pictures, failed), threshold, batch_size)
    for picture, outcome in zip(pictures, outcomes, strict=True):
        if not isinstance(outcome, Detections):
            failed.append({"path": str(picture), "error": str(outcome.error)})
            continue
        typer.echo(f"{one_line(picture)}: {summary(outcome)}")
        if save is not None:
            outcome.save(targets[picture], font, what=detector.task)
        if picture in seen:
            detector.attention(picture, threshold).save(seen[picture], font=font)
        if json_file is not None:
            records.append(outcome.to_dict() | {"path": str(picture)})
    if json_file is not None:
        tasked = {} if detector.task == "detection" else {"task": detector.task}
        content = {"model": model, **tasked, "threshold": threshold}
        content |= {"pictures": records, "failed": failed}
        with whole_file(json_file) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    finish(len(pictures), failed, save, json_file)


def load_source(paths: list[str], dataset: str | None, options: "SourceOptions", out: Path) -> "Source":
    """The pictures to detect in: those behind the paths, or a data set."""
    if dataset is None:
        from ..inference.sources.opening import open_source

        return open_source(paths, options, results=out)
    if paths:
        raise typer.BadParameter(f"takes the place of {', '.join(paths)}; give one of both", param_hint="--dataset")
    from ..inference.sources.tables import load_dataset_source

    return load_dataset_source(dataset, options)


def load_detector(
    model: str | None, device: str | None, dtype: str | None, task: str | None, image_size: int | None = None
) -> "Detector":
    """Returns the detector, after saying on stderr which model it is, and what is done with one that has masks.

    Where no task is named, a model of things alone is asked for their masks, and one of stuff too for panoptic maps.
    """
    from ..checkpoints.embedded import ABOUT, EMBEDDED_MODEL
    from ..export.artefact import find_artefact
    from ..inference.detector import Detector
    from .console import quiet_loading

    named = model or EMBEDDED_MODEL
    typer.echo(f"Model: {ABOUT if named == EMBEDDED_MODEL else named}", err=True)
    if find_artefact(named) is None:  # an exported model needs no transformers
        quiet_loading(named)
    detector = Detector.from_pretrained(named, task=task, device=device, dtype=dtype)
    if image_size is not None:
        detector.resize_to(image_size)
    if task is None and detector.task != "detection":
        if not detector.stuff_labels:
            detector.backend.task = "instance"
        typer.echo(f"Task: {detector.task} (name another with --task)", err=True)
    return detector


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


def finish(total: int, failed: list[dict[str, str]], save: Path | None, json_file: Path | None) -> None:
    """Says where the results are and what failed; leaves with exit code 1 if anything did."""
    from ..inference.sources.searching import one_line

    if save is not None and len(failed) < total:
        typer.echo(f"Drawn pictures: {save}", err=True)
    if json_file is not None:
        typer.echo(f"Detections: {json_file}", err=True)
    for failure in failed:
        typer.echo(one_line(f"Left out {failure['path']}: {failure['error']}"), err=True)
    if failed:
        typer.echo(f"{len(failed)} of {total} pictures could not be read.", err=True)
        raise typer.Exit(1)
