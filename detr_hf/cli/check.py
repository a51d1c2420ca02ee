"""`detr-hf check`: what is wrong with a data set, before a night of training shows it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..whole_files import is_result, refuse_overwriting, whole_file
from .reading import FLAG_OF, Reading, in_flags


def check(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a COCO .json, a YOLO data.yaml, a Hub id, or digits.")
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings too give exit code 1.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything found to this file.")] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Draw what the model will see, with targets decoded back, into this file.")
    ] = None,
    augment: Annotated[str, typer.Option(help="The augmentation of the preview: none, paper or strong.")] = "none",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model whose queries, stride and sizes count.")
    ] = None,
    num_queries: Annotated[int | None, typer.Option(min=1, help="Instead of the model's; 100 without either.")] = None,
    shortest_edge: Annotated[
        int | None, typer.Option("--shortest_edge", min=1, help="Of resized pictures, instead of the model's.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Offenders shown of each kind; --json has all.")] = 5,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a core.")] = None,
    *,
    reading: Reading,
) -> None:
    """Check a data set: pictures, boxes, classes, duplicates, sizes. Exit code 0: no errors, 1: errors."""
    from ..data.checking.check import check as check_data
    from ..visualize.saving import is_marked, picture_format

    outputs = {"--json": json_file, "--preview": preview}
    given = [data, model, *(reading.image_root or ())]
    refuse_overwriting(outputs, given, lambda path: is_result(path) or is_marked(path))
    if preview is not None:
        picture_format(preview)
    config, processor = load_model_side(model)
    sides = None
    if processor is not None:
        from ..data.preparing.transform import model_sides

        sides = model_sides(processor)
    if shortest_edge is not None:
        sides = (shortest_edge, round(shortest_edge * 1333 / 800))
    report = check_data(data, config, num_queries=num_queries, size=sides, workers=workers, **reading.options())
    typer.echo(in_flags(report.text(limit), FLAG_OF | {"shortest_edge": "--shortest_edge"}))
    if json_file is not None:
        with whole_file(json_file) as unfinished:
            report.to_json(unfinished)
        typer.echo(f"Everything found: {json_file}", err=True)
    if preview is not None:
        draw_preview(data, reading.options() | {"on_fault": "drop"}, processor, augment, preview)
    raise typer.Exit(report.exit_code(strict))


def load_model_side(model: str | None) -> tuple[Any, Any]:
    """Returns configuration and image processor of a model, or None and None."""
    if model is None:
        return None, None
    from transformers import AutoConfig

    from ..checkpoints.finding import local_path, refuse_no_checkpoint
    from ..checkpoints.processors import processor_of
    from ..checkpoints.reading import read_checkpoint

    refuse_no_checkpoint(model)
    path = local_path(model)
    if path is not None and path.is_file():
        return read_checkpoint(path).config, processor_of(model)
    return AutoConfig.from_pretrained(path or model), processor_of(model)


def draw_preview(data: str, reading: dict[str, Any], processor: Any, augment: str, path: Path) -> None:
    """Writes the grid of the training split (or the first one); faulty annotations are left out of it."""
    from ..data import load_detection_dataset
    from ..data.checking.preview import preview
    from ..errors import LayoutError
    from ..processing.image_processing_detr import DETRImageProcessor
    from ..visualize.saving import save_drawing

    loaded = load_detection_dataset(data, **reading)
    try:
        split = loaded.split_for("train")
    except LayoutError:
        split = next(iter(loaded))
    grid = preview(loaded[split], processor or DETRImageProcessor(), loaded.id2label, augment)
    save_drawing(grid, path)
    typer.echo(f"What the model will see of split {split!r}: {path}", err=True)
