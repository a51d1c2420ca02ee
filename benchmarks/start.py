"""Cold starts: what a new process pays before it does anything, each run in a process of its own."""

import subprocess
import sys
import time
from typing import Any

from .measuring import environment, spread

# What each side runs. The second of a pair is what its ratio or difference is taken to.
COMMANDS = {
    "nothing": ["-c", "pass"],
    "import_detr_hf": ["-c", "import detr_hf"],
    "import_our_model": ["-c", "from detr_hf import DETRForObjectDetection"],
    "import_their_model": ["-c", "from transformers import DetrForObjectDetection"],
    "help": ["-m", "detr_hf", "--help"],
}


def compare_starts(runs: int) -> dict[str, Any]:
    """Returns the record: seconds of each command, and what this package's model adds to transformers'.

    Raises:
        RuntimeError: when a command fails.
    """
    for command in COMMANDS.values():  # writes the bytecode, and reads the files into the cache of the system
        _run(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(_run(command))
    extra = [
        ours - theirs for ours, theirs in zip(times["import_our_model"], times["import_their_model"], strict=True)
    ]
    return {
        "environment": environment(),
        "settings": {"runs": runs, "unit": "seconds of a whole process"},
        "seconds": {name: spread(values) for name, values in times.items()},
        "our_model_over_theirs_s": spread(extra),
    }


def _run(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - start


__all__ = ["COMMANDS", "compare_starts"]
