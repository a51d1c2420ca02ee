"""`detr-hf benchmark`: milliseconds, pictures a second and memory of a model on this machine, by runtime."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..whole_files import is_result, refuse_overwriting, whole_file
from .export import fixed_size


def benchmark(
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint, a Hub id, or an exported model; by default the shipped digit detector."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH that the model gets; by default that of a 480x640 picture.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time; by default 1.")] = None,
    runs: Annotated[int, typer.Option(min=2, help="Timings of each runtime.")] = 10,
    runtimes: Annotated[
        str | None,
        typer.Option(help="Several with commas: torch, bfloat16, compiled, onnx, openvino; by default all that can."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That the model may use; by default as it likes.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")] = None,
    mask_queries: Annotated[
        int | None,
        typer.Option(min=0, help="Of a model with masks: for so many queries of a picture; 0: boxes. Else for all."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures, machine and versions here.")] = None,
) -> None:
    """Measure how fast a model is on this machine: milliseconds, pictures a second and memory, by runtime."""
    from ..inference.benchmarking import RUNTIMES, benchmark as measure
    from .console import quiet_loading

    names = [name.strip() for name in runtimes.split(",")] if runtimes is not None else None
    unknown = [name for name in names or () if name not in RUNTIMES]
    if unknown:
        raise typer.BadParameter(
            f"there is no {unknown[0]!r}; choose from {', '.join(RUNTIMES)}", param_hint="--runtimes"
        )
    refuse_overwriting({"--json": json}, [model], is_result)
    size_hw = fixed_size(size, None) if size is not None else None
    quiet_loading(model)
    options = {"size_hw": size_hw, "batch": batch, "runs": runs, "threads": threads, "device": device}
    options["mask_queries"] = mask_queries
    found = measure(model, names, announce=lambda text: typer.echo(text, err=True), **options)
    for line in table(found):
        typer.echo(line)
    if json is not None:
        from json import dumps

        with whole_file(json) as unfinished:
            unfinished.write_text(dumps(found, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"Written: {json}")


def table(found: dict[str, Any]) -> list[str]:
    """Returns the lines of what `benchmark` found: machine, settings, a row for each runtime, and what has none."""
    machine, settings = found["environment"], found["settings"]
    where = machine.get("gpu") or f"{machine['processor']}, {settings['threads'] or machine['threads']} threads"
    height, width = settings["size_hw"]
    cells = [("runtime", "ms", "quartiles", "pictures/s", "peak memory, MB")]
    for row in found["rows"]:
        times, peak = row["milliseconds"], row["peak_memory_bytes"]
        quartiles = f"{times['low']:.1f} to {times['high']:.1f}"
        speed, memory = f"{row['pictures_per_second']:.1f}", "unknown" if peak is None else f"{peak / 1e6:.0f}"
        cells.append((row["runtime"], f"{times['median']:.1f}", quartiles, speed, memory))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    masks = f", masks of {settings['mask_queries']} queries" if "mask_queries" in settings else ""
    what = f"{settings['batch']} x {height}x{width}{masks}, {settings['runs']} timings each"
    return [
        f"{settings['model']} on {where}: {what}",
        "",
        *("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells),
        *(f"{name} left out: {reason}" for name, reason in found["left_out"].items()),
    ]
