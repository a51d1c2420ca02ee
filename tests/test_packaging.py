"""The wheel carries all it needs, and the package keeps its architecture: a flat bundle below a layered workshop."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

import detr_hf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "detr_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
BUNDLE = sorted(PACKAGE.glob("*_detr.py"))

# What a checkpoint's code may ask of a machine where this package is absent.
BUNDLE_MAY_IMPORT = {"torch", "torchvision", "timm", "transformers", "huggingface_hub", "scipy", "numpy", "PIL"}
# Heavy or optional in the bundle: only inside the function that needs it.
BUNDLE_MAY_IMPORT_LAZILY = BUNDLE_MAY_IMPORT | {"pycocotools"}

# An import goes to a lower layer, or stays in its own. The package's own __init__, __main__ and registration tie all
# together.
LAYERS = {
    "data": 1,
    "evaluation": 1,
    "visualize": 1,
    "checkpoints": 1,
    "training": 2,
    "inference": 2,
    "export": 2,
    "hub": 2,
    "benchmarking": 2,
    "cli": 3,
}
TIES = {"__init__.py", "__main__.py", "lazy_names.py", "registration.py"}


def identifier(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement of a file, and whether it runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, id(node) not in lazy


def absolute_roots(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [] if node.level else [node.module.partition(".")[0]]


def imported_parts(path: Path) -> set[str]:
    """The subpackages (or flat modules) of this package that a file imports, whenever it does."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node, _ in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - (node.level - 1)]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(".".join((*base, name))).partition(".")[0] for name in names}
    return found


def layer(part: str) -> int:
    """The layer of a subpackage; flat modules are the lowest."""
    return LAYERS.get(part, 0)


def test_every_subpackage_has_a_layer():
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found <= set(LAYERS), "give the new subpackage its place in LAYERS, and in DESIGN"
    assert {
        path.relative_to(PACKAGE).parts[0] for path in MODULES if len(path.relative_to(PACKAGE).parts) > 1
    } == found


def test_the_flat_modules_are_the_bundle():
    assert {path.name for path in PACKAGE.glob("*.py")} - {path.name for path in BUNDLE} == TIES


@pytest.mark.parametrize("path", BUNDLE, ids=identifier)
def test_the_bundle_imports_flat_siblings_and_few_packages(path):
    siblings = {sibling.stem for sibling in BUNDLE}
    for node, at_import in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, (
                f"line {node.lineno}: only `from .x_detr import name` travels"
            )
        allowed = BUNDLE_MAY_IMPORT if at_import else BUNDLE_MAY_IMPORT_LAZILY
        for root in absolute_roots(node):
            assert root in allowed or root in sys.stdlib_module_names, (
                f"line {node.lineno}: {root} may not be imported here"
            )


@pytest.mark.parametrize("path", BUNDLE, ids=identifier)
def test_transformers_finds_every_file_that_has_to_travel(path):
    """Its scanner reads text: a docstring that looks like an import would make saving fail."""
    truly = {node.module for node, _ in imports(path) if isinstance(node, ast.ImportFrom) and node.level}
    assert set(get_relative_imports(str(path))) == truly


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in TIES or path.parent != PACKAGE], ids=identifier
)
def test_imports_go_down_the_layers(path):
    parts = path.relative_to(PACKAGE).parts
    own = parts[0] if len(parts) > 1 else path.stem
    for part in imported_parts(path) - {own, "__version__"}:
        assert layer(part) <= layer(own), f"{own} may not import {part}"
    for node, _ in imports(path):
        assert "detr_hf" not in absolute_roots(node), f"line {node.lineno}: inside the package, import relatively"


def test_subpackages_do_not_import_each_other_in_circles():
    graph: dict[str, set[str]] = {part: set() for part in LAYERS}
    for path in MODULES:
        own = path.relative_to(PACKAGE).parts[0]
        if own in graph:
            graph[own] |= imported_parts(path) & graph.keys() - {own}
    while free := [part for part, needs in graph.items() if not needs & graph.keys()]:
        for part in free:
            del graph[part]
    assert not graph, f"these import each other: {graph}"


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_library_code_does_not_print_or_unpickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name != "print", f"line {node.lineno}: use logging, or typer.echo in a verb"
            if name == "torch.load":
                safe = {keyword.arg: keyword.value for keyword in node.keywords}.get("weights_only")
                assert isinstance(safe, ast.Constant) and safe.value is True, f"line {node.lineno}: weights_only=True"


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
    assert {name.split("/")[0] for name in names} == {"detr_hf", f"detr_hf-{detr_hf.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


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
        root.lower() for path in BUNDLE for node, now in imports(path) if now for root in absolute_roots(node)
    }
    third_party = {"pillow" if root == "pil" else root for root in at_import} - set(sys.stdlib_module_names)
    assert third_party <= required
    assert project["scripts"] == {"detr-hf": "detr_hf.cli:main"}


def commands_in_readme() -> list[tuple[str, str]]:
    """What the README says to run with pytest: path and -k expression."""
    return re.findall(r"`pytest (\S+?)(?: -k \"?([^\"`]+)\"?)?`", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "words"), commands_in_readme())
def test_the_readme_names_tests_that_exist(path, words):
    files = [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py")
    names = [
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    for word in words.split(" or ") if words else [""]:
        assert any(word in name for name in names), f"no test in {path} is called *{word}*"


def test_the_readme_has_commands():
    assert len(commands_in_readme()) >= 5
