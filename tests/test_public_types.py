import subprocess
import sys
from pathlib import Path

import pytest

import detr_hf
from detr_hf.lazy_names import _declared

from .public_types import USER, public_modules


def test_the_modules_of_all_public_names_are_checked():
    checked, folder = public_modules(), Path(detr_hf.__file__).parent
    assert (folder / "py.typed").exists()
    for room in sorted(folder.rglob("__init__.py")):
        source = room.read_text(encoding="utf-8")
        for name, module in _declared(source, room.parent.name).items() if "TYPE_CHECKING:" in source else ():
            file = room.parent.joinpath(*module.strip(".").split(".")).with_suffix(".py")
            assert file in checked, f"{name} of {room}"


@pytest.mark.slow
def test_types_are_clean(tmp_path):
    pytest.importorskip("mypy", reason="mypy comes with the extra dev")
    paths = map(str, (*public_modules(), USER))
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
