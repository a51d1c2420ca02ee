"""What the verbs share in talking to a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


def quiet_loading(model: str | Path | None = None) -> None:
    """Keeps transformers' progress bars for loading and saving weights out of the output; its warnings stay.

    Raises:
        OSError, ValueError: the model is nowhere, or none, which is said before seconds of imports.
    """
    if model is not None:
        from ..checkpoints.finding import refuse_no_checkpoint
        from ..export.artefact import find_artefact

        if find_artefact(model) is None:
            refuse_no_checkpoint(model)
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def progress_bar(*columns: Any) -> Iterator[Callable[..., None]]:
    """Within it a terminal shows a bar with these columns on stderr; gives what changes it, by rich's names."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield partial(bar.update, bar.add_task("", total=None))
