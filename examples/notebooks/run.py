"""Runs the notebooks anew from their scripts, and keeps what they show: python examples/notebooks/run.py [NAME ...]

A notebook is written as a script in jupytext's percent format; `.ipynb` beside it is the same cells with outputs.
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
LONGEST = 1800  # seconds of a cell


def run(script: Path) -> Path:
    """Returns the notebook of a script, after running it."""
    notebook = jupytext.read(script)
    here = {"metadata": {"path": FOLDER}}
    NotebookClient(notebook, timeout=LONGEST, kernel_name="python3", resources=here).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # else drawn anew every time
        cell["metadata"] = {}
        if cell.cell_type == "code":
            cell["outputs"] = [output for output in cell["outputs"] if not is_noise(output)]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    return script.with_suffix(".ipynb")


def is_noise(output: nbformat.NotebookNode) -> bool:
    """Whether an output is what libraries say on stderr: bars and the paths of this machine."""
    return output.output_type == "stream" and output.name == "stderr"


def main(names: list[str]) -> None:
    """Runs those that are named, or all."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    for script in sorted(FOLDER.glob("*.py")):
        if script.name != Path(__file__).name and (not names or script.stem in names):
            began = time.perf_counter()
            written = run(script)
            print(f"{written.name}: {time.perf_counter() - began:.0f} s, {written.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
