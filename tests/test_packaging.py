"""The wheel carries all it needs."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import detr_hf

from .test_architecture import TRAVELLING, absolute_roots, imports

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "detr_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(PACKAGE, source / "detr_hf", ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        target,
        source,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


def test_the_wheel_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    modules = {f"detr_hf/{path.relative_to(PACKAGE).as_posix()}" for path in MODULES}
    assert modules <= names
    for name in ("py.typed", "assets/detr-digits/config.json", "assets/detr-digits/preprocessor_config.json"):
        assert f"detr_hf/{name}" in names
    assert any(name.startswith("detr_hf/assets/digits_scene.") for name in names)
    assert 1e5 < sizes["detr_hf/assets/detr-digits/model.safetensors"] <= 12e6
    assert {name.split("/")[0] for name in names} == {"detr_hf", f"detr_hf-{detr_hf.version.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_runs_elsewhere(wheel, tmp_path):
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    away = tmp_path / "away"
    away.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    where = [sys.executable, "-c", "import detr_hf; print(detr_hf.__file__)"]
    shown = subprocess.run(where, cwd=away, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(installed / "detr_hf" / "__init__.py")
    done = subprocess.run(
        [sys.executable, "-m", "detr_hf", "demo"],
        cwd=away,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (away / "demo_boxes.png").stat().st_size > 1000 and str(away / "demo_boxes.png") in done.stdout


def test_the_metadata_promises_what_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {
        requirement.replace(">", " ").replace("[", " ").split()[0].lower() for requirement in project["dependencies"]
    }
    at_import = {
        root.lower() for path in TRAVELLING for node, now in imports(path) if now for root in absolute_roots(node)
    }
    third_party = {"pillow" if root == "pil" else root for root in at_import} - set(sys.stdlib_module_names)
    assert third_party <= required
    assert project["scripts"] == {"detr-hf": "detr_hf.cli:main"}
