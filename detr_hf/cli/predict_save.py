"""Where `detr-hf predict --save` draws: into a folder, or the one picture or film that is given into a file."""

import os
from collections.abc import Collection
from pathlib import Path

import typer

from ..whole_files import is_result, refuse_overwriting, refuse_unwritable

FILM_ENDING = ".mp4"


def is_one_file(save: Path | None) -> bool:
    """Whether `--save` names a file: by its ending, where no folder has that name."""
    return save is not None and bool(save.suffix) and not save.is_dir()


def refuse_wrong_save(save: Path | None, font: Path | None, attention: bool) -> None:
    """Raises a typer.BadParameter where `--save` names nothing that can be drawn into; for before the work."""
    from ..visualize.saving import is_vector, refuse_ending

    if attention and (save is None or is_one_file(save)):
        raise typer.BadParameter("draws a second picture, which needs a folder: --save DIR", param_hint="--attention")
    if save is None:
        return
    if not is_one_file(save):
        if os.path.lexists(save) and not save.is_dir():
            raise typer.BadParameter(f"{save} is not a folder", param_hint="--save")
    elif save.suffix.lower() != FILM_ENDING:
        try:
            refuse_ending(save)
        except ValueError as error:
            folder = "Or make the folder first, if it is to be one with a dot in its name."
            raise typer.BadParameter(f"{error} {folder}", param_hint="--save") from None
        if font is not None and is_vector(save):
            raise typer.BadParameter(f"{save} is shown in the fonts of whoever looks", param_hint="--font")


def refuse_taken(json_file: Path | None, save: Path | None, model: str | None, found: Collection[Path | str]) -> None:
    """Raises where what was found does not fit into the one file, or a file to write would replace what shall stay.

    Raises:
        typer.BadParameter: there are several pictures, or a film for a picture's file, or a picture for a film's.
        ValueError: a file is one of those looked at, or one that this package did not write.
        OSError: one that cannot be written.
    """
    from ..inference.runs.drawings import is_drawn
    from ..inference.sources.opening import is_film

    file = save if is_one_file(save) else None
    if file is not None:
        if len(found) > 1:
            raise typer.BadParameter(
                f"{file} is one file, and there are {len(found)} pictures: name a folder, --save {file.stem}",
                param_hint="--save",
            )
        (only,) = found
        if is_film(only) != (file.suffix.lower() == FILM_ENDING):
            ending = FILM_ENDING if is_film(only) else ".png, .svg or .html"
            raise typer.BadParameter(f"{file} cannot hold {only}: end it in {ending}", param_hint="--save")
    outputs = {"--json": json_file, "--save": file}
    refuse_overwriting(outputs, [model, *found], lambda path: (is_drawn if path == file else is_result)(path))
    if save is not None and file is None:
        refuse_unwritable("--save", save)
