"""`detr-hf eval`: COCO's numbers of a checkpoint, or of a results file, on a data set."""

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
            help="A checkpoint folder, a .pth file, a Hub id (also of transformers' DETR), or a results .json.",
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    *,
    reading: Reading,
) -> None:
    """Measure a model, on the split for validation or on --split: COCO's twelve numbers, AP by class, mistakes."""
    from ..data import load_detection_dataset
    from ..evaluation import evaluate as measure, evaluate_results, write_results
    from .console import progress_bar, quiet_loading

    refuse_overwriting({"--json": json_file, "--results": results}, [model, data], is_result)
    quiet_loading()
    loaded = load_detection_dataset(data, **reading.options())
    if model.lower().endswith(".json"):
        found = evaluate_results(model, loaded, threshold=threshold)
    else:
        options = {"batch_size": batch_size, "num_workers": workers, "device": device}
        with progress_bar() as show:
            options["on_batch"] = lambda count, total: show(advance=count, total=total)
            found = measure(model, loaded, threshold=threshold, **options)
        if results is not None:
            write_results(results, found.results())
            typer.echo(f"Detections: {results}", err=True)
    typer.echo(found.table())
    if json_file is not None:
        found.save(json_file, {"model": model, "data": data}, curves=True)
        typer.echo(f"All numbers: {json_file}", err=True)
