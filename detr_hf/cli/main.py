"""The typer application behind `detr-hf`, with every verb, and what an error looks like on the command line."""

import os
import sys
from pathlib import Path
from traceback import extract_tb
from typing import Annotated

import typer

from ..errors import lacking
from ..version import __version__
from .app import app as serve_page
from .benchmark import benchmark
from .check import check
from .convert import convert
from .demo import demo
from .doctor import doctor
from .eval import evaluate
from .export import export
from .flags import Verb, with_nearest, without_python
from .inspect import inspect
from .predict import predict
from .push import push
from .reading import reads_data
from .train import TRAIN_SETTINGS, train
from .verify import verify

app = typer.Typer(
    name="detr-hf",
    help="DETR for Hugging Face: detect objects, check data, train, measure, convert, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Verb)(demo)
app.command(cls=Verb)(predict)
app.command(cls=Verb)(reads_data(check))
app.command(context_settings=TRAIN_SETTINGS, add_help_option=False)(train)
app.command("eval", cls=Verb)(reads_data(evaluate))
app.command(cls=Verb)(convert)
app.command(cls=Verb)(reads_data(push))
app.command(cls=Verb)(verify)
app.command(cls=Verb)(export)
app.command(cls=Verb)(benchmark)
app.command(cls=Verb)(inspect)
app.command("app", cls=Verb)(serve_page)
app.command(cls=Verb)(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"detr-hf {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """DETR for Hugging Face: detect objects, check data, train, measure, convert, publish."""


def _is_said(error: Exception) -> bool:
    """Whether an error is one that users make; any other is a fault of the program, whose place is wanted.

    That of a configuration's field is known by its name, as huggingface_hub is not loaded; and a TypeError is one
    where this package raised it.
    """
    kinds = (FloatingPointError, ImportError, OSError, RuntimeError, ValueError)
    if isinstance(error, kinds) or any(base.__name__ == "StrictDataclassError" for base in type(error).__mro__):
        return True
    last = extract_tb(error.__traceback__)[-1]
    is_own = Path(last.filename).is_relative_to(Path(__file__).parents[1])
    return isinstance(error, TypeError) and is_own and (last.line or "").startswith("raise ")


def main() -> None:
    """Runs the command. An error is one line and exit code 1; `DETR_HF_TRACEBACK=1` shows where it arose."""
    try:
        app()
    except Exception as error:
        if os.environ.get("DETR_HF_TRACEBACK") or not _is_said(error):
            raise
        typer.echo(f"detr-hf: {with_nearest(without_python(lacking(error) or str(error)))}", err=True)
        sys.exit(1)
