"""`detr-hf predict`: boxes and masks in files, folders and glob patterns; with `--out` in any number of pictures."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..whole_files import is_result, refuse_overwriting, refuse_unwritable, whole_file

if TYPE_CHECKING:
    from ..inference.detector import Detector
    from ..inference.results import Detections
    from ..inference.sources.base import Source, SourceOptions

CHECKPOINT_SUFFIXES = (".pth", ".pt")


def predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] PATH...",
            show_default=False,
            help="Pictures: files, folders (searched with all folders below) and patterns such as 'photos/*.jpg'. "
            "Before them, optionally, a model: a checkpoint folder, a .pth file or a Hub id. Without one, the "
            "shipped digit detector is used. With --out also tar files (WebDataset), Parquet files and videos.",
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
    font: Annotated[
        Path | None, typer.Option(help="With --save: the file of the font for names, if not one that is found.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all detections to this file.")] = None,
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
        detector = load_detector(model, process_device(device), dtype, task or FORMATS[format])
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
        predict_files(model, paths, threshold, save, json_file, batch_size, device, dtype, font, task)


def predict_files(
    model: str | None,
    paths: list[str],
    threshold: float,
    save: Path | None,
    json_file: Path | None,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    font: Path | None = None,
    task: str | None = None,
) -> None:
    """Detects in pictures and writes a line for each; draws them and writes them to one file if asked."""
    from ..inference.runs.drawings import DRAWING_OF, drawing_paths
    from ..inference.sources.opening import OPENERS, holds_many
    from ..inference.sources.searching import PictureSearch, one_line

    search = PictureSearch(paths, results=save)
    pictures = dict(search)  # path -> path below the folder it was found in
    if unopened := sorted(search.left_out.reasons & OPENERS.keys()):
        typer.echo(f"Files that end in {', '.join(unopened)} hold many pictures: --out looks into them.", err=True)
    if not pictures:
        raise typer.BadParameter(search.nothing(), param_hint="PATH")
    many = [str(path) for path in pictures if holds_many(path)]
    if many:
        raise typer.BadParameter(f"{many[0]} holds many pictures: name a folder for their results, --out")
    refuse_overwriting({"--json": json_file}, [model, *pictures], is_result)
    if save is not None:
        refuse_unwritable("--save", save)
    detector = load_detector(model, device, dtype, task)
    targets = drawing_paths(pictures, save, json_file, DRAWING_OF[detector.task]) if save is not None else {}
    failed: list[dict[str, str]] = []
    records: list[dict[str, Any]] = []

    def on_error(path: Path, error: Exception) -> None:
        failed.append({"path": str(path), "error": str(error)})

    stream = detector.stream(with_progress(pictures, failed), threshold, batch_size, on_error)
    for detections in stream:
        typer.echo(f"{one_line(detections.path)}: {summary(detections)}")
        if save is not None:
            detections.save(targets[detections.path], font, what=detector.task)
        if json_file is not None:
            records.append(detections.to_dict())
    if json_file is not None:
        tasked = {} if detector.task == "detection" else {"task": detector.task}
        content = {"model": model or "detr-digits", **tasked, "threshold": threshold}
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


def split_model(arguments: list[str], model: str | None, needs_paths: bool = True) -> tuple[str | None, list[str]]:
    """The model and the pictures among the arguments. Where no paths are needed, a single argument is the model.

    The first argument is the model if it is a checkpoint (a folder with a config.json, or a .pth file) or exported, or
    if it is no existing path and more arguments follow that can be the pictures, and it is no pattern and has no
    ending of a picture: a Hub id.
    """
    if needs_paths and not arguments:
        raise typer.BadParameter("no picture is named", param_hint="PATH")
    if model is not None or not arguments:
        return model, arguments
    if not needs_paths:
        return arguments[0], arguments[1:]
    first, rest = arguments[0], arguments[1:]
    if is_checkpoint(first):
        if not rest:
            raise typer.BadParameter(f"{first} is a model; the pictures are missing after it", param_hint="PATH")
        return first, rest
    if rest and looks_like_hub_id(first):
        return first, rest
    return None, arguments


def is_checkpoint(argument: str) -> bool:
    """Whether this existing path holds a model, of training or exported."""
    from ..export.artefact import FORMAT_OF, OPENVINO_GRAPH

    path = Path(argument)
    if (path / "config.json").is_file() or (path / OPENVINO_GRAPH).is_file():
        return True
    return path.suffix.lower() in (*CHECKPOINT_SUFFIXES, *FORMAT_OF) and path.is_file()


def looks_like_hub_id(argument: str) -> bool:
    """Whether this is `name` or `owner/name` rather than the path of a picture."""
    from ..inference.sources.searching import GLOB_SIGNS
    from ..processing.image_opening_detr import PICTURE_SUFFIXES

    path = Path(argument)
    return (
        not path.exists()
        and path.suffix.lower() not in PICTURE_SUFFIXES
        and not GLOB_SIGNS.search(argument)
        and argument.count("/") <= 1
        and not argument.startswith((".", "/", "~"))
        and not argument.endswith("/")
    )


def load_detector(model: str | None, device: str | None, dtype: str | None, task: str | None) -> "Detector":
    """The detector, after saying on stderr which model it is, and what is done with one that has masks.

    Where no task is named, a model of things alone is asked for their masks, and one of stuff too for panoptic maps.
    """
    from ..export.artefact import find_artefact
    from ..inference.detector import Detector
    from .console import quiet_loading

    if model is None or find_artefact(model) is None:  # an exported model needs no transformers
        quiet_loading()
    typer.echo(f"Model: {model or 'detr-digits, the shipped digit detector (name another with --model)'}", err=True)
    detector = Detector.from_pretrained(model, task=task, device=device, dtype=dtype)
    if task is None and detector.task != "detection":
        if not detector.stuff_labels:
            detector.backend.task = "instance"
        typer.echo(f"Task: {detector.task} (name another with --task)", err=True)
    return detector


def with_progress(pictures: Collection[Path], failed: list[dict[str, str]]) -> Iterator[Path]:
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
    """`3 person, 1 dog`, or `nothing`; of segments where there are any, and of classes their part of the picture."""
    if detections.semantic is not None:
        height, width = detections.size_hw
        classes = sorted(detections.semantic.segments_info, key=lambda one: -one["area"])
        return ", ".join(f"{one['area'] / (height * width):.0%} {one['name']}" for one in classes)
    counts = detections.count()
    if detections.panoptic is not None:
        counts = dict(Counter(one["name"] for one in detections.panoptic.segments_info).most_common())
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing"


def finish(total: int, failed: list[dict[str, str]], save: Path | None, json_file: Path | None) -> None:
    """Says where the results are and what failed; leaves with exit code 1 if anything did."""
    from ..inference.sources.searching import one_line

    if save is not None:
        typer.echo(f"Drawn pictures: {save}", err=True)
    if json_file is not None:
        typer.echo(f"Detections: {json_file}", err=True)
    for failure in failed:
        typer.echo(one_line(f"Left out {failure['path']}: {failure['error']}"), err=True)
    if failed:
        typer.echo(f"{len(failed)} of {total} pictures could not be read.", err=True)
        raise typer.Exit(1)
