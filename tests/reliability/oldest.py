"""The core of the suite with the oldest versions that pyproject.toml names (`make test-oldest`).

Makes a virtual environment in which every lower bound is the version itself, all together as pip resolves them; what
they need besides is pip's choice. Imports every module there, since one name that an old version lacks is enough, and
runs the core. Arguments are handed on to pytest, in place of the core.
"""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("train", "eval", "video", "test")
CORE = (
    *("tests/model/test_modeling_detr.py", "tests/model/test_loss_detr.py", "tests/model/test_parts.py"),
    *("tests/processing", "tests/inference/test_detector.py", "tests/checkpoints", "tests/training/test_trainer.py"),
)

IMPORT_ALL = """
import importlib, pkgutil, detr_hf
found = [module.name for module in pkgutil.walk_packages(detr_hf.__path__, "detr_hf.")]
names = [name for name in found if not name.startswith(("detr_hf.app", "detr_hf.__main__"))]  # the page needs gradio
for name in names:
    importlib.import_module(name)
print(len(names), "modules are imported")
"""


def lower_bounds() -> list[str]:
    """Returns `name==version` for each lower bound of the package and of the extras that the core needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})


def main(arguments: list[str]) -> int:
    """Returns pytest's exit code in the environment `--venv FOLDER`, which is made where there is none."""
    folder = ROOT / ".venv-oldest"
    if arguments[:1] == ["--venv"]:
        folder, arguments = Path(arguments[1]).absolute(), arguments[2:]
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *lower_bounds()]
        subprocess.run(command, check=True)
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "check"], check=True)
        (folder / ".installed").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([python, "-c", IMPORT_ALL], cwd=ROOT, env=environment, check=True)
    line = [python, "-m", "pytest", "-q", "-m", "not slow", *(arguments or CORE)]
    return subprocess.run(line, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
