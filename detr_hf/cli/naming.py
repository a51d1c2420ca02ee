"""Which argument of `detr-hf predict` is the model and which are pictures; what is neither is refused by name.

Without a model the shipped digit detector answers. So whatever could have been meant as a model must not be taken for
a picture: a checkpoint folder that is empty or unfinished, one that is mistyped, one that stands after the pictures.
"""

from pathlib import Path

import typer


def split_model(arguments: list[str], model: str | None, needs_paths: bool = True) -> tuple[str | None, list[str]]:
    """Returns the model and the pictures among the arguments; where no paths are needed, a single one is the model.

    The first argument is the model if it is a checkpoint (a folder with a config.json, or a weight file), exported, or
    the shipped one's name; or if more arguments follow, and it is no existing path, no pattern and has no ending of a
    picture: a Hub id.

    Raises:
        typer.BadParameter: nothing is named, or an empty name; no picture after a model, or without a model something
            that is no picture.
    """
    if "" in (model, *arguments):
        raise typer.BadParameter("a name is empty, as that of an unset variable is", param_hint="[MODEL] PATH")
    if needs_paths and not arguments:
        raise typer.BadParameter("no picture is named", param_hint="PATH")
    if model is not None or not arguments:
        return model, arguments
    if not needs_paths:
        return arguments[0], arguments[1:]
    first, rest = arguments[0], arguments[1:]
    if is_checkpoint(first):
        if not rest:
            raise typer.BadParameter(f"{first} is a model; the pictures are missing after it", param_hint="PATH")
        return first, rest
    if rest and looks_like_hub_id(first):
        return first, rest
    for argument in arguments:
        refuse_no_picture(argument)
    return None, arguments


def is_checkpoint(argument: str) -> bool:
    """Whether this is a model, of training or exported, that is here."""
    from ..checkpoints.embedded import shipped
    from ..checkpoints.finding import FILE_SUFFIXES
    from ..export.artefact import FORMAT_OF, OPENVINO_GRAPH

    path = Path(shipped(argument))
    if (path / "config.json").is_file() or (path / OPENVINO_GRAPH).is_file():
        return True
    return path.suffix.lower() in (*FILE_SUFFIXES, *FORMAT_OF) and path.is_file()


def looks_like_hub_id(argument: str) -> bool:
    """Whether this is `name` or `owner/name` rather than the path of a picture."""
    return (
        not Path(argument).exists()
        and not _reads_like_pictures(argument)
        and argument.count("/") <= 1
        and not argument.startswith((".", "/", "~"))
        and not argument.endswith("/")
    )


def is_web_address(argument: str) -> bool:
    """Whether a picture is to be fetched: `Path` would eat one of the slashes."""
    from ..inference.pictures import path_of

    return path_of(argument) is None


def refuse_no_picture(argument: str) -> None:
    """Raises a typer.BadParameter for what holds no picture, where a model is not named."""
    from ..checkpoints.finding import FILE_SUFFIXES, nearest
    from ..inference.sources.opening import OPENERS
    from ..inference.sources.searching import PictureSearch
    from ..processing.image_opening_detr import PICTURE_SUFFIXES

    path = Path(argument)
    if is_checkpoint(argument):
        seen = f"{argument} is a model: name it before the pictures, or with --model"
    elif path.is_dir():
        search = PictureSearch([path], suffixes=(*PICTURE_SUFFIXES, *OPENERS))
        weights = sorted(file.name for file in path.iterdir() if file.suffix.lower() in FILE_SUFFIXES)
        inside = sorted(config.parent for config in path.glob("*/config.json"))
        if weights:
            seen = f"{argument} holds {weights[0]} and no config.json: as a model it is not whole"
        elif inside:
            seen = f"{argument} is no model, and holds some: name {inside[-1]}" + (
                f" or another of {len(inside)}" if len(inside) > 1 else ""
            )
        elif next(iter(search), None) is None:
            seen = f"{argument} holds no checkpoint (no config.json), and {search.nothing()}"
        else:
            return
    elif path.exists() or _reads_like_pictures(argument):
        return
    else:
        seen = f"there is no file or folder {argument!r}.{nearest(argument)} A model of the Hub stands before pictures"
    raise typer.BadParameter(seen, param_hint="[MODEL] PATH")


def _reads_like_pictures(argument: str) -> bool:
    """Whether a name is a picture's, a pattern, a web address, or of a file that holds many pictures."""
    from ..inference.sources.opening import OPENERS
    from ..inference.sources.searching import GLOB_SIGNS
    from ..processing.image_opening_detr import PICTURE_SUFFIXES

    endings = (*PICTURE_SUFFIXES, *OPENERS)
    return is_web_address(argument) or bool(GLOB_SIGNS.search(argument)) or argument.lower().endswith(endings)
