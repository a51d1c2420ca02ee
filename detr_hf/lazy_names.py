"""Lets a package export names whose modules are imported when a name is first used (PEP 562).

A package declares its public names once, as imports that only type checkers see:

    if TYPE_CHECKING:
        from .reading import Checkpoint as Checkpoint

    __getattr__, __dir__ = lazy_names(__name__)

The block is read from the package's own text when the first name is asked for. `as` with the same name is how type
checkers know that an import is meant for others.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module

from .errors import lacking


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns the `__getattr__` and the `__dir__` of the package of that `__name__`; `__all__` is among its names."""
    namespace = vars(sys.modules[package])

    @cache
    def module_of() -> dict[str, str]:
        return _declared(namespace["__spec__"].loader.get_source(package), package)

    def get(name: str) -> object:
        if name == "__all__":
            return sorted(module_of())
        if name.startswith("__") or name not in module_of():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(module_of()[name], package), name)
        except ModuleNotFoundError as error:
            sentence = lacking(error, name)
            if sentence is None:
                raise
            raise ImportError(sentence) from error
        namespace[name] = value
        return value

    return get, lambda: sorted({*namespace, *module_of()})


def _declared(source: str, package: str) -> dict[str, str]:
    """Returns public name to relative module, from the imports under `if TYPE_CHECKING:`."""
    for node in ast.parse(source, filename=package).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return {
                alias.asname or alias.name: "." * statement.level + (statement.module or "")
                for statement in node.body
                if isinstance(statement, ast.ImportFrom)
                for alias in statement.names
            }
    raise ImportError(f"{package} declares no names under `if TYPE_CHECKING:`.")
