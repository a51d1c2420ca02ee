"""`detr-hf eval`: AP of boxes and masks and panoptic quality, of a checkpoint or of results, on a data set."""

from pathlib import Path
from typing import Annotated

import typer

from ..whole_files import is_result, refuse_overwriting
from .reading import Reading


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint folder, a .pth file, a Hub id (also of transformers' DETR), a results .json, or COCO "
            "panoptic results: their .json or the folder with it and its PNGs.",
        ),
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a COCO .json, a YOLO data.yaml, or a Hub id.")
    ],
    threshold: Annotated[
        float, typer.Option("--threshold", "-t", min=0, max=1, help="Score from which mistakes are counted.")
    ] = 0.5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file: also confusions and curves.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Write the detections to this file, as COCO results.")] = None,
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
    """Measure a model, on the split for validation or on --split: COCO's twelve numbers, AP by class, mistakes.

    Where model and data have masks, theirs too; on panoptic data (--task panoptic) also PQ, SQ and RQ of all classes,
    things, stuff and each class. Of results files the same, with the ids of the data; --masks asks for masks.
    """
    from ..checkpoints.model_classes import has_mask_head
    from ..data import load_detection_dataset
    from ..evaluation import (
        evaluate as measure,
        evaluate_panoptic_results,
        evaluate_results,
        panoptic_table,
        write_results,
    )
    from ..evaluation.from_files import kind_of_results
    from ..evaluation.report import write_json
    from .console import progress_bar, quiet_loading

    refuse_overwriting({"--json": json_file, "--results": results}, [model, data], is_result)
    quiet_loading()
    options = reading.options()
    asked = options["masks"]
    kind = kind_of_results(model)
    if kind == "panoptic":
        options["task"] = options["task"] or "panoptic"
        quality = evaluate_panoptic_results(model, load_detection_dataset(data, **options | {"masks": True}))
        typer.echo(panoptic_table(quality))
        if json_file is not None:
            write_json(json_file, {"model": model, "data": data, "panoptic": quality.to_dict()})
            typer.echo(f"All numbers: {json_file}", err=True)
        return
    is_file = model.lower().endswith(".json")
    has_masks = kind == "masks" if is_file else has_mask_head(model)
    loaded = load_detection_dataset(data, **options | {"masks": asked or has_masks})
    if is_file:
        found = evaluate_results(model, loaded, threshold=threshold, masks=asked)
    else:
        if asked and not has_masks:
            raise ValueError(
                f"{model} has no mask head, and --masks asks for masks: name a checkpoint with masks, train one "
                "(detr-hf train --task panoptic), or leave --masks out."
            )
        chosen = {"batch_size": batch_size, "num_workers": workers, "device": device}
        chosen |= {"rule": rule} | ({} if panoptic_threshold is None else {"panoptic_threshold": panoptic_threshold})
        with progress_bar() as show:
            chosen["on_batch"] = lambda count, total: show(advance=count, total=total)
            found = measure(model, loaded, threshold=threshold, **chosen)
        if results is not None:
            write_results(results, found.results())
            typer.echo(f"Detections: {results}", err=True)
    typer.echo(found.table())
    if json_file is not None:
        found.save(json_file, {"model": model, "data": data}, curves=True)
        typer.echo(f"All numbers: {json_file}", err=True)
