"""The notebooks: the cells of their scripts, outputs without an error, nothing of the machine that made them."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|usr|work|Users|opt)/|[A-Z]:\\\\|Traceback")


def cells_of(script: Path) -> list[tuple[str, str]]:
    """The cells of a script in percent format: kind and source."""
    cells = []
    for cell in re.split(r"^# %%", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, source = cell.partition("\n")
        markdown = "[markdown]" in head
        source = re.sub(r"^# ?", "", source, flags=re.MULTILINE) if markdown else source
        cells.append(("markdown" if markdown else "code", source.strip()))
    return cells


def notebook_of(script: Path) -> dict:
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def test_there_are_two():
    assert [script.stem for script in SCRIPTS] == ["fine_tune", "look_inside"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_outputs(script):
    """After a change: make notebooks"""
    notebook = notebook_of(script)
    kept = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert kept == cells_of(script)
    assert any(
        "image/png" in output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_shows_no_error_and_no_path_of_a_machine(script):
    notebook = script.with_suffix(".ipynb")
    assert notebook.stat().st_size < 1_500_000
    for cell in notebook_of(script)["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            said = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
            assert not OF_A_MACHINE.search(json.dumps([said, output.get("text", "")]))
