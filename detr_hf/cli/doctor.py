"""`detr-hf doctor`: what is installed, what the machine can do, whether the shipped model finds its digits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..whole_files import is_result, refuse_overwriting, whole_file


def doctor(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER]...", help="Where else to look for what killed commands left."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write all of it here, to be read by programs.")] = None,
    self_test: Annotated[bool, typer.Option(help="Let the shipped model look at the shipped scene.")] = True,
) -> None:
    """Say what is installed and what this machine can do; to be pasted into a report. Exit code 1 names a fault.

    No token is shown, nor is one read.
    """
    refuse_overwriting({"--json": json}, [], is_result)
    missing = next((folder for folder in folders or () if not Path(folder).is_dir()), None)
    if missing is not None:
        raise typer.BadParameter(f"{missing} is no folder", param_hint="FOLDER")
    from ..inference.diagnosis import diagnose
    from .console import quiet_loading

    try:
        quiet_loading()
    except Exception as error:  # a broken torch or transformers is what a report is for
        typer.echo(f"transformers cannot be imported: {error}", err=True)
    found = diagnose(folders or (), self_test)
    typer.echo("\n".join(lines_of(found)))
    if json is not None:
        from json import dumps

        with whole_file(json) as unfinished:
            unfinished.write_text(dumps(found, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"Written: {json}")
    if found["faults"]:
        raise typer.Exit(1)


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """Yields a diagnosis as lines of text."""
    package, system = found["package"], found["system"]
    yield f"detr-hf {package['version']} in {package['folder']}; installed: {package['installed'] or 'no'}"
    yield f"{system['implementation']} {system['python']} in {system['prefix']}, {system['os']}"
    yield from (f"{name}={value}" for name, value in system["environment"].items())
    yield f"\npackages (bounds: {package['bounds_from']})"
    for each in found["packages"]:
        if each["version"] is not None or not each["extras"]:
            outside = "" if each["within"] else f"   outside {each['wanted']}" if each["version"] else "   is missing"
            yield f"  {each['name']:<18} {each['version'] or '-':<14} {each['wanted']}{outside}"
    for name, extra in found["extras"].items():
        if extra["missing"]:
            yield f"  extra {name}: {', '.join(extra['missing'])} missing, for which: {extra['install']}"
    yield "\nmachine"
    yield from _section(found["processor"], _processor)
    gpus = found["gpu"]
    names = [_list(", ".join(f"{key} {value}" for key, value in gpu.items())) for gpu in gpus if isinstance(gpu, dict)]
    yield from _section(gpus, lambda _: [f"GPU: {'; '.join(names) or gpus}"])
    yield "\nHub"
    yield from _section(found["hub"], _hub)
    yield "\nleft by killed commands: " + (", ".join(found["leftovers"]) or "nothing was found")
    if found["self_test"] is not None:
        yield "\nself-test"
        yield from _section(found["self_test"], _self_test)
    yield "\n" + ("\n".join(f"FAULT: {fault}" for fault in found["faults"]) or "No fault was found.")


def _section(found: Any, lines: Any) -> Iterator[str]:
    """Yields the lines of a part that could be asked, indented; else why it could not."""
    cannot = found.get("cannot") if isinstance(found, dict) else None
    yield from (f"  {line}" for line in ([f"cannot be asked: {cannot}"] if cannot else lines(found)))


def _processor(found: dict[str, Any]) -> Iterator[str]:
    limit = "no limit" if found["cores_limit"] is None else f"a limit of {found['cores_limit']:g}"
    yield f"{found['name']} ({found['machine']}), {_list(found['system_says'])}"
    yield f"{found['cores_usable']} of {found['cores']} cores, {limit} by the control group"
    most = (
        "" if found["memory_limit_gib"] is None else f", of which the control group allows {found['memory_limit_gib']}"
    )
    yield f"{found['memory_gib']} GiB of memory{most}"
    onednn = "oneDNN" if found["onednn"] else "no oneDNN"
    can = f"{found['torch_capability']}, {onednn}, {_list(found['torch_says'])}"
    yield f"torch: {found['torch_threads']} threads, {can}"
    yield f"bfloat16 is {'fast' if found['bfloat16'] else 'slow: no instructions for it that torch can use'}"


def _hub(found: dict[str, Any]) -> Iterator[str]:
    least = "" if found["cache_size_is_whole"] else "at least "
    yield f"cache {found['cache']}: {least}{found['cache_gib']} GiB; {found['free_gib']} GiB free" + (
        "" if found["writable"] else "; cannot be written"
    )
    line = "offline" if found["offline"] else "online"
    yield f"{found['endpoint']}, {line}, {'a' if found['token'] else 'no'} token"


def _self_test(found: dict[str, Any]) -> Iterator[str]:
    seen = ", ".join(found["found"]) or "nothing"
    yield f"{'passed' if found['passed'] else 'FAILED'}: {seen} found, on {found['device']}"
    yield f"imports {found['seconds_of_imports']} s, loading {found['seconds_of_loading']} s"
    yield f"first picture {found['ms_of_first_picture']} ms, next {found['ms_of_next_pictures']} ms"
    yield f"{found['memory_mib']} MiB in memory"


def _list(names: Any) -> str:
    return names if isinstance(names, str) else ", ".join(names) or "none of AVX-512's or AMX's instructions"
