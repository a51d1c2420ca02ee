"""`detr-hf eval`: AP of boxes and masks and panoptic quality, of a checkpoint or of results, on a data set."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..whole_files import file_identity, is_result, refuse_overwriting, refuse_unwritable
from .flags import IMAGE_SIZE
from .reading import Reading

if TYPE_CHECKING:
    from ..data import DetectionData
    from ..evaluation import Evaluation


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint folder, a .pth file, a Hub id (also of transformers' DETR), detr-digits, an exported "
            "model, a results .json, or COCO panoptic results: their .json or the folder with it and its PNGs.",
        ),
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a COCO .json, a YOLO data.yaml, a Hub id, or digits.")
    ],
    threshold: Annotated[
        float, typer.Option("--threshold", "-t", min=0, max=1, help="Score from which mistakes are counted.")
    ] = 0.5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file: also confusions and curves.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Draw into this folder: precision by recall, confusions, kinds of mistakes, AP by class, "
            "calibration, a page as PDF, the worst and the best pictures; and write all numbers."
        ),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Write the detections to this file, as COCO results.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help=IMAGE_SIZE)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure on so many pictures at most, the first.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    rule: Annotated[str, typer.Option(help="Of panoptic segments: confident, or original (published figures).")] = (
        "confident"
    ),
    panoptic_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Score from which a query contests the pixels of panoptic segments; by default the one that "
            "post_process_panoptic_segmentation has.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    *,
    reading: Reading,
) -> None:
    """Measure a model, on the split for validation or on --split: COCO's twelve numbers, AP by class, mistakes, and
    the thresholds with the best F1.

    Where model and data have masks, theirs too; on panoptic data (--task panoptic) also PQ, SQ and RQ of all classes,
    things, stuff and each class. Of results files the same, with the ids of the data; --masks asks for masks.
    """
    from .console import quiet_loading

    refuse_overwriting({"--json": json_file, "--results": results}, [model, data], is_result)
    if plots is not None:
        check_plots(plots, data)
    kind = None
    if Path(model).is_dir() or model.lower().endswith(".json"):
        from ..evaluation.from_files import kind_of_results

        kind = kind_of_results(model)
    is_file = kind is not None or model.lower().endswith(".json")
    quiet_loading(None if is_file else model)
    from ..evaluation.coco import choose_backend

    choose_backend()  # says what to install before pictures are looked at
    from ..data import load_detection_dataset
    from ..evaluation import (
        evaluate_panoptic_results,
        evaluate_results,
        panoptic_table,
        write_results,
    )
    from ..evaluation.report import write_json

    options = reading.options()
    asked = options["masks"]
    if is_file and (image_size, limit) != (None, None):
        raise typer.BadParameter(f"is for a model, and {model} holds results", param_hint="--image-size, --limit")
    if kind == "panoptic" and plots is not None:
        raise typer.BadParameter(f"draws what was found as boxes, and {model} holds segments", param_hint="--plots")
    if kind == "panoptic":
        options["task"] = options["task"] or "panoptic"
        quality = evaluate_panoptic_results(model, load_detection_dataset(data, **options | {"masks": True}))
        typer.echo(panoptic_table(quality))
        if json_file is not None:
            write_json(json_file, {"model": model, "data": data, "panoptic": quality.to_dict()})
            typer.echo(f"All numbers: {json_file}", err=True)
        return
    if is_file:
        loaded = load_detection_dataset(data, **options | {"masks": asked or kind == "masks"})
        found = evaluate_results(model, loaded, threshold=threshold, masks=asked)
    else:
        chosen = {"batch_size": batch_size, "num_workers": workers, "device": device, "threshold": threshold}
        chosen |= {"rule": rule} | ({} if panoptic_threshold is None else {"panoptic_threshold": panoptic_threshold})
        found, loaded = measured(model, data, options, image_size, limit, chosen)
        if results is not None:
            write_results(results, found.results())
            typer.echo(f"Detections: {results}", err=True)
    typer.echo(found.table())
    about = {"model": model, "data": data}
    if json_file is not None:
        found.save(json_file, about, curves=True)
        typer.echo(f"All numbers: {json_file}", err=True)
    if plots is not None:
        from ..evaluation import save_plots
        from ..evaluation.running import rows_of

        typer.echo(save_plots(found, plots, rows_of(loaded), about).text(), err=True)


def check_plots(folder: Path, data: str) -> None:
    """Raises where plots cannot be drawn into a folder, which is said before anything is read.

    Raises:
        ImportError: what draws them is not installed.
        OSError: the folder cannot be written, or is a file.
        ValueError: it is the data set's: pictures would be among its pictures.
    """
    for module in ("hotcoco", "matplotlib"):
        if find_spec(module) is None:
            raise ImportError(f"--plots needs {module}, not installed here: pip install 'detr-hf[eval,viz]'.")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--plots {folder} is a file: name a folder.")
    if file_identity(folder) is not None and file_identity(folder) == file_identity(data):
        raise ValueError(
            f"--plots {folder} is the folder of the data: name another, where no pictures are looked for."
        )
    refuse_unwritable("--plots", folder)


def measured(
    model: str, data: str, reading: dict[str, Any], image_size: int | None, limit: int | None, chosen: dict[str, Any]
) -> "tuple[Evaluation, DetectionData]":
    """Returns what a checkpoint or an exported model reaches on a data set, and that data set.

    `chosen` are arguments of `evaluate`.
    """
    from ..checkpoints.model_classes import has_mask_head
    from ..checkpoints.processors import processor_of
    from ..data import load_detection_dataset
    from ..evaluation import evaluate as measure
    from ..export.artefact import find_artefact
    from ..inference.detector import Detector
    from ..processing.image_sizes_detr import scaled_size
    from .console import progress_bar

    finder: Any = model
    if find_artefact(model) is not None:
        finder = Detector.from_pretrained(model, device=chosen.pop("device"))
        if image_size is not None:
            finder.resize_to(image_size)
    elif image_size is not None:
        chosen["processor"] = processor_of(model)
        chosen["processor"].size = scaled_size(chosen["processor"].to_dict(), image_size)
    has_masks = has_mask_head(model) if finder is model else finder.task != "detection"
    if reading["masks"] and not has_masks:
        raise ValueError(
            f"{model} has no mask head, and --masks asks for masks: name a checkpoint with masks, train one "
            "(detr-hf train --task panoptic), or leave --masks out."
        )
    loaded = load_detection_dataset(data, **reading | {"masks": has_masks})
    if limit is not None:
        loaded = first_pictures(loaded, limit)
    with progress_bar() as show:
        chosen["on_batch"] = lambda count, total: show(advance=count, total=total)
        return measure(finder, loaded, **chosen), loaded


def first_pictures(data: "DetectionData", limit: int) -> "DetectionData":
    """Returns the split that is measured on alone, cut to its first pictures, after saying so."""
    from dataclasses import replace

    from ..evaluation.running import rows_of

    rows = rows_of(data)
    name = next(name for name in data if data[name] is rows)
    if hasattr(rows, "__len__"):
        cut = rows.select(range(min(limit, len(rows))))
        typer.echo(f"The first {len(cut)} of {len(rows)} pictures of split {name!r} (--limit).", err=True)
    else:
        cut = rows.take(limit)
    return replace(data, splits={name: cut})
