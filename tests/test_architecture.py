"""The house keeps its shape: two folders that travel, a workshop above them, and arrows that go one way."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "detr_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
TRAVELLING_ROOMS = ("model", "processing")
TRAVELLING = sorted(path for room in TRAVELLING_ROOMS for path in (PACKAGE / room).glob("*_detr.py"))

# What a checkpoint's code may ask of a machine where this package is absent.
TRAVELLERS_MAY_IMPORT = {"torch", "torchvision", "timm", "transformers", "huggingface_hub", "scipy", "numpy", "PIL"}
# Heavy or optional in travelling code: only inside the function that needs it.
TRAVELLERS_MAY_IMPORT_LAZILY = TRAVELLERS_MAY_IMPORT | {"pycocotools"}

# Files at the package's root: what ties all together, and what everybody in the workshop may import.
TIES = {"__init__.py", "__main__.py", "registration.py"}
FOR_ALL = {"errors.py", "lazy_names.py", "reaching.py", "version.py", "whole_files.py"}
# Room -> the rooms that it may import from. Every arrow that is not here is a fault.
ARROWS = {
    "model": (),
    "processing": (),
    "checkpoints": ("model", "processing"),
    "visualize": (),
    "data": ("processing", "visualize"),
    "evaluation": ("checkpoints", "data", "model", "processing", "visualize"),
    "export": ("model", "processing"),
    "inference": ("checkpoints", "export", "model", "processing", "visualize"),
    "hub": ("checkpoints", "data", "inference", "model", "processing", "visualize"),
    "training": ("checkpoints", "data", "evaluation", "hub", "model", "processing", "visualize"),
    "app": ("checkpoints", "export", "inference", "processing", "visualize"),
    "cli": (
        "app",
        "checkpoints",
        "data",
        "evaluation",
        "export",
        "hub",
        "inference",
        "model",
        "processing",
        "training",
        "visualize",
    ),
}


def identifier(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path, for_type_checkers: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement of a file, also inside functions, and whether it runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = inside(tree, lambda node: isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    types = inside(tree, lambda node: isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and (for_type_checkers or id(node) not in types):
            yield node, id(node) not in lazy | types


def inside(tree: ast.AST, wanted) -> set[int]:
    return {id(node) for outer in ast.walk(tree) if wanted(outer) for node in ast.walk(outer)}


def absolute_roots(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [] if node.level else [node.module.partition(".")[0]]


def imported_files(path: Path) -> set[Path]:
    """The files of this package that a file imports when it runs, at any time."""
    found = set()
    for node, _ in imports(path, for_type_checkers=False):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            options = (base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py")
            found |= {next(option for option in options if option.is_file())}
    return found - {path}


def room(path: Path) -> str:
    """The room of a file, or the file's name at the package's root."""
    return path.relative_to(PACKAGE).parts[0]


def test_every_room_has_its_arrows():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ARROWS), "give the room its place in ARROWS, in CONTRIBUTING and in DESIGN"
    assert {room(path) for path in MODULES if path.parent != PACKAGE} == rooms
    assert {path.name for path in PACKAGE.glob("*.py")} == TIES | FOR_ALL


def test_the_travelling_rooms_hold_travellers_only():
    for name in TRAVELLING_ROOMS:
        assert {path.name for path in (PACKAGE / name).glob("*.py") if not path.stem.endswith("_detr")} == {
            "__init__.py"
        }
    assert len({path.name for path in TRAVELLING}) == len(TRAVELLING), "they lie in one folder on the Hub"


@pytest.mark.parametrize("path", TRAVELLING, ids=identifier)
def test_travelling_code_imports_flat_siblings_and_few_packages(path):
    siblings = {sibling.stem for sibling in path.parent.glob("*_detr.py")}
    for node, at_import in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, (
                f"line {node.lineno}: only `from .x_detr import name` travels"
            )
        allowed = TRAVELLERS_MAY_IMPORT if at_import else TRAVELLERS_MAY_IMPORT_LAZILY
        for root in absolute_roots(node):
            assert root in allowed or root in sys.stdlib_module_names, (
                f"line {node.lineno}: {root} may not be imported here"
            )


@pytest.mark.parametrize("path", TRAVELLING, ids=identifier)
def test_transformers_finds_every_file_that_has_to_travel(path):
    """Its scanner reads text: a docstring that looks like an import would make saving fail."""
    truly = {node.module for node, _ in imports(path) if isinstance(node, ast.ImportFrom) and node.level}
    assert set(get_relative_imports(str(path))) == truly


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in TIES or path.parent != PACKAGE], ids=identifier
)
def test_imports_follow_the_arrows(path):
    own = room(path)
    for target in imported_files(path):
        there = room(target)
        assert there == own or there in ARROWS.get(own, ()) or there in FOR_ALL, f"{own} may not import {there}"
    for node, _ in imports(path):
        assert "detr_hf" not in absolute_roots(node), f"line {node.lineno}: inside the package, import relatively"


def test_no_circles():
    """Neither of rooms nor of files, imports inside functions included."""
    try:
        TopologicalSorter(ARROWS).prepare()
        TopologicalSorter({path: imported_files(path) for path in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_library_code_does_not_print_or_unpickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name != "print", f"line {node.lineno}: use logging, or typer.echo in a verb"
            if name == "torch.load":
                safe = {keyword.arg: keyword.value for keyword in node.keywords}.get("weights_only")
                assert isinstance(safe, ast.Constant) and safe.value is True, f"line {node.lineno}: weights_only=True"
