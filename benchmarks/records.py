"""The records that are committed, `benchmarks/results/MACHINE/NAME.json`, and Markdown tables of them."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MACHINES = {
    "h100": "H100",
    "zen5": "Zen 5",
    "zen4": "Zen 4",
    "amx": "Xeon with AMX",
    "xeon16": "Xeon, 16 cores",
    "avx2": "AVX2",
}


@cache
def record(machine: str, name: str) -> dict[str, Any] | None:
    """Returns a record, or None where the machine has none of that name."""
    path = RESULTS / machine / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


__all__ = ["MACHINES", "RESULTS", "record", "table"]
