"""`detr-hf convert`: from one checkpoint layout to another."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    """Who shall be able to load the result."""

    DETR_HF = "detr_hf"
    TRANSFORMERS = "transformers"


def convert(
    src: Annotated[str, typer.Argument(help="A folder, a Hub id, an original .pth file, or detr-digits.")],
    dst: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        Layout, typer.Option(help="Who shall load it: this package, or transformers' own DETR.")
    ] = Layout.DETR_HF,
    dilation: Annotated[
        bool | None,
        typer.Option(
            "--dilation/--no-dilation", help="Of a weight file that does not say: whether it is a DC5 model."
        ),
    ] = None,
    nheads: Annotated[int | None, typer.Option(min=1, help="Of such a file: its attention heads; else 8.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in a folder that has files.")
    ] = False,
) -> None:
    """Convert a checkpoint of the original (.pth), transformers' DETR, Table Transformer, or this package."""
    from .console import quiet_loading

    quiet_loading(src)
    from ..checkpoints.conversion import convert as convert_checkpoint

    told = {name: value for name, value in (("dilation", dilation), ("nheads", nheads)) if value is not None}
    convert_checkpoint(src, dst, to=to.value, overwrite=overwrite, **told)
    typer.echo(f"{src} is now in {dst}, for {to.value}.")
