"""`detr-hf verify`: whether the files of a checkpoint are those that were pushed."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    model: Annotated[str, typer.Argument(help="A folder, a Hub id, or detr-digits.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the manifest of a folder that you trust, instead of checking.")
    ] = False,
) -> None:
    """Compare every file of a checkpoint with its SHA-256 manifest. Exit code 1 names those that differ."""
    from ..hub.manifest import verify as verify_checkpoint, write_manifest

    if write:
        if not Path(model).is_dir():
            raise typer.BadParameter(f"{model} is not a folder", param_hint="MODEL")
        typer.echo(f"Written: {write_manifest(model)}")
        return
    found = verify_checkpoint(model, revision=revision)
    commit = f" (commit {found.commit})" if found.commit else ""
    typer.echo(f"{model}{commit}: {len(found.files)} files are whole.")
