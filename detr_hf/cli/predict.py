"""`detr-hf predict`: boxes and masks in files, folders, patterns and URLs; with `--out` in any number of pictures."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from . import predict_flags as flags
from .naming import split_model
from .predict_files import predict_files, search_pictures
from .predict_films import checked_films
from .predict_run import load_source, predict_run, process_device
from .predict_save import refuse_taken, refuse_wrong_save

if TYPE_CHECKING:
    from ..inference.detector import Detector


def predict(
    arguments: flags.Arguments = None,
    model: flags.Model = None,
    threshold: flags.Threshold = 0.7,
    task: flags.Task = None,
    save: flags.Save = None,
    attention: flags.Attention = False,
    font: flags.Font = None,
    json_file: flags.JsonFile = None,
    image_size: flags.ImageSize = None,
    limit: flags.Limit = None,
    batch_size: flags.BatchSize = 8,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    out: flags.Out = None,
    format: flags.Format = "jsonl",
    shard_size: flags.ShardSize = None,
    every: flags.Every = 1,
    dataset: flags.Dataset = None,
    config: flags.Config = None,
    split: flags.Split = None,
    image_column: flags.ImageColumn = None,
) -> None:
    """Detect objects in pictures, with their masks where the model has a mask head.

    A picture that cannot be read is named and left out; the exit code then is 1. With --save DIR a film becomes
    NAME_boxes.mp4, with its sound; of a damaged one the frames that are whole. With --save x.svg or x.html names and
    scores are under the pointer.

    What a folder holds besides pictures is counted and named. No picture that is given is written over. With --out
    the results go to a folder in parts, such a picture is in them with its error (the exit code is 1 only if none
    could be read), and a run that was stopped goes on when it is started again. Under torchrun or accelerate launch
    each process does its share.
    """
    model, paths = split_model(arguments or [], model, needs_paths=dataset is None)
    refuse_wrong_calls(out, save, json_file, font, attention, dataset)
    load = partial(load_detector, model, dtype=dtype, image_size=image_size)
    named = "detr-digits" if model is None else model
    if out is not None:
        from ..inference.runs.result_formats import FORMATS, suffix_of
        from ..inference.sources.base import SourceOptions
        from ..inference.sources.opening import is_film

        suffix_of(format, task)  # refuses what is wrong before the model is loaded
        options = SourceOptions(shard_size, image_column, every, config, split)
        source = load_source(paths, dataset, options, out)
        if every != 1 and not any(is_film(Path(piece.name)) for piece in source.pieces):
            typer.echo("No frames are left out: --every is of films, and there is none.", err=True)
        source = source if limit is None else source.first(limit)
        detector = load(process_device(device), task=task or FORMATS[format])
        settings = {"threshold": threshold, "batch_size": batch_size, "format": format, "options": options}
        predict_run(detector, source, out, model=named, **settings)
    else:
        found = search_pictures(paths, save, limit)
        found = checked_films(found, paths, {"--json": json_file, "--attention": attention, "--every": every != 1})
        refuse_taken(json_file, save, model, found)
        detector = load(device, task=task)
        if attention and not detector.gives_attention:
            raise typer.BadParameter("an exported model gives none: name the checkpoint", param_hint="--attention")
        predict_files(detector, found, threshold, save, json_file, batch_size, font, named, attention, limit)


def refuse_wrong_calls(
    out: Path | None,
    save: Path | None,
    json_file: Path | None,
    font: Path | None,
    attention: bool,
    dataset: str | None,
) -> None:
    """Raises a typer.BadParameter for options that contradict each other, and files that are not what they must be."""
    refuse_wrong_save(save, font, attention)
    if out is not None and os.path.lexists(out) and not out.is_dir():
        raise typer.BadParameter(f"{out} is not a folder", param_hint="--out")
    if font is not None and not font.is_file():
        raise typer.BadParameter(f"there is no file {font}", param_hint="--font")
    if out is not None and (save is not None or json_file is not None):
        raise typer.BadParameter("takes neither --save nor --json: they hold all results at once", param_hint="--out")
    if out is None and dataset is not None:
        raise typer.BadParameter("a data set needs a folder for its results, --out", param_hint="--dataset")


def load_detector(
    model: str | None, device: str | None, *, task: str | None, dtype: str | None, image_size: int | None
) -> "Detector":
    """Returns the detector, after saying on stderr which model it is, and what is done with one that has masks.

    Where no task is named, a model of things alone is asked for their masks, and one of stuff too for panoptic maps.
    """
    from ..checkpoints.embedded import ABOUT, EMBEDDED_MODEL
    from ..export.artefact import find_artefact
    from ..inference.detector import Detector
    from .console import quiet_loading

    named = EMBEDDED_MODEL if model is None else model
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
