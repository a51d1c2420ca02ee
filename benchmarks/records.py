"""The records that are committed, `benchmarks/results/MACHINE/NAME.json`, and Markdown tables of them."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

RESULTS = Path(__file__).parent / "results"
MACHINES = {
    "h100": "H100",
    "zen5": "Zen 5",
    "zen4": "Zen 4",
    "amx": "Xeon with AMX",
    "xeon16": "Xeon, 16 cores",
    "avx2": "AVX2",
}
# Options that say nothing of what was measured, or whose value is in the command's part of the name already.
NOT_IN_THE_NAME = {"out", "machine", "runs", "seconds", "part"}
# How the name of a record tells an option; any other as --OPTION-VALUE.
IN_THE_NAME = {
    "checkpoint": "{0.name}",
    "dtype": "{}",
    "peer_dtype": "peer-{}",
    "compile": "compiled",
    "compile_peer": "compiled-peer",
}


def name_of(context: typer.Context, name: str) -> str:
    """Returns the name of a record: the command's, and every option that is not at its default."""
    for option in context.command.params:
        value = context.params.get(option.name)
        if option.name in NOT_IN_THE_NAME or value == option.default:
            continue
        words = option.name.replace("_", "-")
        usual = {True: words, False: f"no-{words}"}[value] if isinstance(value, bool) else f"{words}-{{}}"
        text = IN_THE_NAME.get(option.name, usual).format(value)
        name += "-" + re.sub(r"[^\w.]+", "-", text)
    return name


@cache
def record(machine: str, name: str) -> dict[str, Any] | None:
    """Returns a record, or None where the machine has none of that name."""
    path = RESULTS / machine / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


__all__ = ["MACHINES", "RESULTS", "name_of", "record", "table"]
