"""`detr-hf inspect`: the way of a picture through a model, step by step, with shapes, parameters, operations, time."""

from pathlib import Path
from typing import Annotated

import typer

from ..whole_files import is_result, refuse_overwriting, whole_file
from .export import fixed_size


def inspect(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint or a Hub id; by default the shipped digit detector.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="A picture, prepared as the model's are; by default a blank one of 480x640.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH that the model gets, in place of a picture.")] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Draw the paper's figure 2 with this model's numbers here, as SVG.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write every number, machine and versions here.")] = None,
) -> None:
    """Show a picture's way through a model: each step's shape, parameters, GFLOP, milliseconds and file."""
    if image is not None and size is not None:
        raise typer.BadParameter("give a picture or a size, not both", param_hint="--image, --size")
    from ..visualize.saving import is_marked_svg

    refuse_overwriting({"--svg": svg}, [model, image], is_marked_svg)
    refuse_overwriting({"--json": json, "--svg": svg}, [model, image], lambda path: path == svg or is_result(path))
    size_hw = fixed_size(size, None) if size is not None else None
    from ..inference.inspecting import inspect_model
    from .console import quiet_loading

    quiet_loading(model)
    found = inspect_model(model, image, size_hw=size_hw)
    typer.echo(str(found))
    if svg is not None:
        with whole_file(svg) as unfinished:
            unfinished.write_text(found.to_svg(), encoding="utf-8")
        typer.echo(f"Written: {svg}")
    if json is not None:
        from json import dumps

        with whole_file(json) as unfinished:
            unfinished.write_text(dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"Written: {json}")
