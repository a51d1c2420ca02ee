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
    src: Annotated[str, typer.Argument(help="A folder, a Hub id, or an original .pth file.")],
    dst: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        Layout, typer.Option(help="Who shall load it: this package, or transformers' own DETR.")
    ] = Layout.DETR_HF,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in a folder that has files.")
    ] = False,
) -> None:
    """Convert a checkpoint of the original (.pth), transformers' DETR, Table Transformer, or this package."""
    from ..checkpoints.conversion import convert as convert_checkpoint
    from .console import quiet_loading

    quiet_loading()
    convert_checkpoint(src, dst, to=to.value, overwrite=overwrite)
    typer.echo(f"{src} is now in {dst}, for {to.value}.")
