"""`detr-hf eval`: COCO's numbers of a checkpoint, or of a results file, on a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np


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
    split: Annotated[
        str | None, typer.Option(help="The split; by default the one named for validation, or the only one.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="coco, yolo, voc or hf, where a folder could be several.")] = None,
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
) -> None:
    """Measure a model: COCO's twelve numbers, AP by class, kinds of mistakes."""
    from ..data import load_detection_dataset
    from ..evaluation import count_mistakes, evaluate_boxes, metrics_table, precision_recall, write_results
    from ..evaluation.report import metrics_dict
    from .console import quiet_loading
    from .predict import write_json

    quiet_loading()
    loaded = load_detection_dataset(data, format=format)
    rows = loaded[choose_split(loaded, split)]
    if model.lower().endswith(".json"):
        truth, found = from_results(Path(model), rows, loaded)
    else:
        evaluator = run_model(model, rows, loaded, batch_size, workers, device)
        truth, found = evaluator.coco_ground_truth(), evaluator.coco_detections()
        if results is not None:
            write_results(results, evaluator.results(loaded.source_category_ids))
            typer.echo(f"Detections: {results}", err=True)
    metrics, mistakes = evaluate_boxes(truth, found), count_mistakes(truth, found, threshold)
    typer.echo(metrics_table(metrics, mistakes))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            json_file,
            {"model": model, "data": data, **metrics_dict(metrics, mistakes, precision_recall(truth, found))},
        )
        typer.echo(f"All numbers: {json_file}", err=True)


def choose_split(data: Any, split: str | None) -> str:
    """The split to evaluate on."""
    if split is not None:
        if split not in data:
            raise typer.BadParameter(
                f"there is no split {split!r}; there are {', '.join(map(repr, data))}", param_hint="--split"
            )
        return split
    return next(iter(data)) if len(data) == 1 else data.split_for("validation")


def from_results(path: Path, rows: Any, data: Any) -> "tuple[dict[str, Any], np.ndarray]":
    """Ground truth and detections of a results file, whose ids are the source's."""
    from ..evaluation.results import read_results, results_array
    from ..evaluation.truth import ground_truth_of

    truth = ground_truth_of(rows, data.id2label)
    if truth is None:
        raise typer.BadParameter(
            "a results file can be evaluated on a data set that is read whole, not on a stream", param_hint="DATA"
        )
    plain = rows.with_format(None)
    sources = plain["source_image_id"] if "source_image_id" in rows.column_names else plain["image_id"]
    image_ids = dict(zip(sources, plain["image_id"], strict=True))
    return truth, results_array(read_results(path), image_ids, data.mapping, str(path))


def run_model(model: str, rows: Any, data: Any, batch_size: int, workers: int, device: str | None) -> Any:
    """The detections of a checkpoint."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from ..checkpoints.processors import processor_of
    from ..evaluation import evaluate_model
    from ..model.modeling_detr import DETRForObjectDetection

    detector = DETRForObjectDetection.from_pretrained(model)
    detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(rows) if hasattr(rows, "__len__") else None)
        advance = lambda count: progress.update(task, advance=count)  # noqa: E731
        return evaluate_model(detector, processor_of(detector), rows, data.id2label, batch_size, workers, advance)
