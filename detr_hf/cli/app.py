"""`detr-hf app`: the page to try models in a browser, served from here."""

from typing import Annotated

import typer


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            show_default=False,
            help="Checkpoints, exported models or Hub ids to choose from; by default the shipped digit detector.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is for whoever reaches this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 7860,
    max_mb: Annotated[float, typer.Option(help="Megabytes that a picture's file may have.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Megapixels that a picture may have.")] = 100,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
) -> None:
    """Serve a page to try models in a browser: boxes, a threshold that answers at once, attention at a click.

    Pictures stay on this machine, in memory. Ctrl+C ends it.
    """
    from ..app.reading import Limits
    from ..app.serving import serve
    from .console import quiet_loading

    limits = Limits(max_mb, max_megapixels)
    quiet_loading()
    serve(
        models or (),
        host=host,
        port=port,
        limits=limits,
        device=device,
        on_ready=lambda address: typer.echo(f"The page is at {address} (Ctrl+C ends it)."),
    )
