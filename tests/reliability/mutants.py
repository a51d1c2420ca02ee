"""`make mutants`: changes the code that numbers hang on, one place at a time, and runs its tests on each change.

    python -m tests.reliability.mutants                          a sample of every module
    python -m tests.reliability.mutants matcher --count 1000     every change of one
    python -m tests.reliability.mutants matcher --only 24:5      one change, with what its tests say

All changes of all modules take hours; a sample of fixed seed is drawn: the same for the same text. A change is killed
if a test fails, or does not end. What no test notices is listed, and judged in `survivors.txt` beside this file. Exit
code 1 below 85 % killed, of all but those that are judged to change nothing ("equal").
"""

import argparse
import ast
import copy
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JUDGED = Path(__file__).with_name("survivors.txt")
LEAST = 0.85
PROCESSING = ("tests/processing/test_image_processing_detr.py",)
# A module, and the files of its tests, the quick ones first.
MODULES: dict[str, tuple[str, ...]] = {
    "model/box_ops": ("tests/model/test_parts.py", "tests/model/test_loss_detr.py"),
    "model/matcher": ("tests/model/test_loss_detr.py", "tests/model/test_fast_loss_detr.py"),
    "model/loss": ("tests/model/test_loss_detr.py", "tests/model/test_fast_loss_detr.py"),
    "model/mask_loss": ("tests/model/test_mask_loss_detr.py",),
    "processing/image_sizes": ("tests/processing/test_image_sizes_detr.py", *PROCESSING),
    "processing/pixel_batch": ("tests/processing/test_pixel_batch_detr.py", *PROCESSING),
    "processing/annotations": ("tests/processing/test_annotations_detr.py", *PROCESSING),
    "processing/image_processing_base": PROCESSING,
    "processing/post_processing": ("tests/processing/test_post_processing_detr.py", *PROCESSING),
    "processing/mask_post_processing": ("tests/processing/test_mask_post_processing_detr.py",),
    "processing/segments": ("tests/processing/test_mask_post_processing_detr.py",),
    "evaluation/panoptic": ("tests/evaluation/test_panoptic.py",),
}
# Imported before the first fork; all of it that is not detr_hf's own.
WARM = (
    *("torch", "torchvision.transforms.v2", "scipy.optimize", "timm", "PIL.Image", "pycocotools.mask", "hotcoco"),
    *("transformers.modeling_utils", "transformers.image_processing_utils_fast", "transformers.models.detr"),
    *("transformers.models.detr.modeling_detr", "transformers.models.auto.modeling_auto", "transformers.pipelines"),
    *("transformers.loss.loss_for_object_detection", "torch._dynamo", "datasets", "transformers.trainer"),
)
OTHER_SIGN = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}


def changes_of(node: ast.AST) -> list[ast.AST]:
    """Returns what may stand in a node's place."""
    other = copy.deepcopy(node)
    match other:
        case ast.Compare():
            other.ops[0] = OTHER_SIGN[type(other.ops[0])]()
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(other.op) in OTHER_SIGN:
            other.op = OTHER_SIGN[type(other.op)]()
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            return [other.operand]
        case ast.Constant(value=bool(value)):
            other.value = not value
        case ast.Constant(value=int(value) | float(value)):
            other.value = value + 1 if isinstance(value, int) else value * 2 + 0.1
        case ast.If() | ast.IfExp() if not isinstance(other.test, ast.Compare | ast.BoolOp):
            other.test = ast.UnaryOp(ast.Not(), other.test)
        case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
            other.value = ast.Constant(None)
        case ast.Expr(value=ast.Call()):
            return [ast.Pass()]
        case _:
            return []
    return [other]


def is_said(node: ast.AST) -> bool:
    """Whether a node only says something, or is a type: changes there are no changes of numbers."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="warning" | "info" | "warning_once"))):
            return True
        case ast.Assign(value=ast.BinOp(op=ast.BitOr())):
            return True  # of types
    return False


def places(node: ast.AST, path: tuple = ()) -> Iterator[tuple[tuple, ast.AST]]:
    """Yields each node that may be changed, with the way to it from the root."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not is_said(child):
                way = (*path, (name, index))
                if changes_of(child):
                    yield way, child
                yield from places(child, way)


def changed(tree: ast.Module, way: tuple, by: ast.AST) -> ast.Module:
    """Returns a copy of the tree with another node at the end of the way."""
    tree = copy.deepcopy(tree)
    parent = tree
    for name, index in way[:-1]:
        parent = getattr(parent, name) if index is None else getattr(parent, name)[index]
    name, index = way[-1]
    if index is None:
        setattr(parent, name, by)
    else:
        getattr(parent, name)[index] = by
    return ast.fix_missing_locations(tree)


class Mutant:
    """A change of a module: its place, and its text before and after."""

    def __init__(self, module: str, tree: ast.Module, way: tuple, node: ast.AST):
        (after,) = changes_of(node)
        self.tree, self.place = changed(tree, way, ast.copy_location(after, node)), f"{node.lineno}:{node.col_offset}"
        self.before, self.after = (ast.unparse(one).split("\n")[0][:60] for one in (node, after))
        self.module = module

    def __str__(self) -> str:
        """What a line of `survivors.txt` begins with: it outlives edits elsewhere in the module."""
        return f"{self.module}: {self.before} -> {self.after}"


def mutants_of(module: str) -> list[Mutant]:
    """Returns every change of a module, in the order of its text."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    return [Mutant(module, tree, way, node) for way, node in places(tree)]


def file_of(module: str) -> Path:
    """Returns the module's file."""
    flat = ROOT / "detr_hf" / f"{module}_detr.py"
    return flat if flat.exists() else flat.with_name(flat.name.replace("_detr", ""))


def tested(mutant: Mutant | None, module: str, seconds: float, is_told: bool = False) -> str:
    """Returns what the module's tests say, in a child process: "killed", "survived" or "no end"."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        if not is_told:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
        if mutant is not None:
            stand_in(file_of(module), mutant.tree)
        plain = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *MODULES[module])
        os._exit(0 if pytest.main(list(plain)) == 0 else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "no end"


def stand_in(file: Path, tree: ast.Module) -> None:
    """Has a file's module made of another tree, in this process."""
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def code(self: importlib.machinery.SourceFileLoader, name: str) -> object:
        return compile(tree, str(file), "exec") if Path(self.path) == file else get_code(self, name)

    loader.get_code = code


def judged_equal() -> set[str]:
    """Returns the changes that `survivors.txt` judges to change nothing: lines that end in "= equal: why"."""
    lines = JUDGED.read_text(encoding="utf-8").splitlines() if JUDGED.exists() else []
    return {line.split(" = equal")[0] for line in lines if " = equal" in line}


def run(module: str, count: int, seed: str) -> tuple[int, int, list[Mutant]]:
    """Returns how many changes were tried and killed, and the others."""
    known = judged_equal()
    every = [mutant for mutant in mutants_of(module) if str(mutant) not in known]
    chosen = random.Random(f"{seed} {module}").sample(every, min(count, len(every)))
    began = time.monotonic()
    if tested(None, module, 3600) != "survived":
        raise SystemExit(f"{module}: its tests fail without a change; run {' '.join(MODULES[module])}.")
    limit = 60 + 10 * (time.monotonic() - began)
    alive = [mutant for mutant in chosen if tested(mutant, module, limit) == "survived"]
    print(
        f"{module:34} {len(every):5} changes  {len(chosen):4} tried  {len(chosen) - len(alive):4} killed", flush=True
    )
    for mutant in alive:
        print(f"    {mutant.place:>8}  {mutant}", flush=True)
    return len(chosen), len(chosen) - len(alive), alive


def main(arguments: list[str] | None = None) -> int:
    """Runs the modules and prints their lines; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"by default all: {', '.join(MODULES)}")
    parser.add_argument("--count", type=int, default=20, help="changes tried of a module")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", help="the place LINE:COLUMN of one change, whose tests are shown")
    given = parser.parse_args(arguments)
    chosen = [name for name in MODULES if not given.modules or name.split("/")[1] in given.modules]
    for name in WARM:
        importlib.import_module(name)
    if given.only:
        for mutant in mutants_of(chosen[0]):
            if mutant.place == given.only:
                print(mutant, tested(mutant, chosen[0], 3600, is_told=True))
        return 0
    results = [run(module, given.count, given.seed) for module in chosen]
    tried, killed = (sum(result[place] for result in results) for place in (0, 1))
    print(f"{killed} of {tried} killed ({killed / tried:.0%}; wanted {LEAST:.0%})")
    return 0 if killed >= LEAST * tried else 1


if __name__ == "__main__":
    sys.exit(main())
