"""`detr-hf push`: publish a checkpoint, with card, code and digests, in one commit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .convert import Layout
from .reading import Reading

if TYPE_CHECKING:
    from ..model.modeling_detr import DETRForObjectDetection


def push(
    model: Annotated[str, typer.Argument(help="A folder, a Hub id, an original .pth file, or detr-digits.")],
    repo: Annotated[str, typer.Argument(help="Where to: 'name', or 'owner/name'. It is made if it does not exist.")],
    to: Annotated[
        Layout,
        typer.Option(help="Who shall load it: this package (and, with trust_remote_code, anybody), or stock DETR."),
    ] = Layout.DETR_HF,
    data: Annotated[
        str | None,
        typer.Option(help="Its validation split is measured and drawn for the card: a data set, or digits."),
    ] = None,
    license: Annotated[str | None, typer.Option(help="An identifier of the Hub, as apache-2.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: for you alone.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; it is made if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a card that detr_hf did not write.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Write what would be pushed into this new folder, and push nothing."),
    ] = None,
    *,
    reading: Reading,
) -> None:
    """Push a checkpoint to the Hub. The token is that of `hf auth login`, or HF_TOKEN."""
    from .console import quiet_loading

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty", param_hint="--folder")
    quiet_loading(model)
    from ..checkpoints.model_classes import load_model
    from ..hub.pushing import Publication, lay_out, push as push_model

    detector = load_model(model)
    known = {"format": to.value, "license": license, **measured(detector, data, reading)}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        lay_out(folder, detector, repo, Publication(**known))
        typer.echo(f"What would be pushed to {repo} is in {folder}.")
        return
    commit = push_model(
        detector,
        repo,
        private=private or None,
        revision=revision,
        commit_message=message,
        overwrite_card=overwrite_card,
        **known,
    )
    typer.echo(f"{model} is now at {commit.commit_url}")


def measured(detector: "DETRForObjectDetection", data: str | None, reading: Reading) -> dict[str, object]:
    """Returns AP and pictures of a data set's validation split, as arguments of a push."""
    if data is None:
        if reading != Reading():
            raise typer.BadParameter("is missing, and there are options of how to read it", param_hint="--data")
        return {}
    from ..data import load_detection_dataset
    from ..evaluation import evaluate
    from ..hub.pushing import validation_rows

    loaded = load_detection_dataset(data, **reading.options())
    rows = validation_rows(loaded)
    if rows is None:
        raise typer.BadParameter(
            f"{data} has no validation or test split to measure on: there are {', '.join(map(repr, loaded))}. Name "
            f"one so, as in --split validation={next(iter(loaded))}, or give --validation_share",
            param_hint="--data",
        )
    return {"data": loaded, "examples": rows, "evaluation": evaluate(detector, rows)}
