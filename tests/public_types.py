"""What `make types` checks: the modules that hold public names, and a user's code on them. Prints their paths."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
USER = Path(__file__).parent / "typed_use.py"


def public_modules() -> list[Path]:
    """Returns the modules of detr_hf that the `__init__.py` of the package and of its rooms take names from."""
    found = set()
    for room in sorted((ROOT / "detr_hf").rglob("__init__.py")):
        for node in ast.walk(ast.parse(room.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                module = room.parent.joinpath(*node.module.split("."))
                found.add(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))
    return sorted(found)


if __name__ == "__main__":
    print(*(path.relative_to(ROOT) for path in (*public_modules(), USER)), sep="\n")
