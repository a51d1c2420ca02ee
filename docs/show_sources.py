"""Writes the code of classes and functions into pages: python docs/show_sources.py

Between `<!-- source: Joiner.forward -->` and `<!-- end of source -->` stands what `detr_hf.model` has there,
without docstrings, so that a page shows the real code. A test asks whether it still does.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from detr_hf import model
from detr_hf.model import segmentation_detr

DOCS = Path(__file__).resolve().parent
SHOWN = re.compile(r"(<!-- source: ([\w.]+) -->\n).*?(<!-- end of source -->)", re.DOTALL)


def source_of(name: str) -> str:
    """Returns the code of a class, function or method of `detr_hf.model`, without docstrings."""
    first, *rest = name.split(".")
    found: Any = getattr(model, first) if first in dir(model) else getattr(segmentation_detr, first)
    for part in rest:
        found = getattr(found, part)
    text = textwrap.dedent(inspect.getsource(found))
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            said = node.body[0]
            lines[said.lineno - 1 : said.end_lineno] = [None] * (said.end_lineno - said.lineno + 1)
    kept = "\n".join(line for line in lines if line is not None)
    return re.sub(r"(:\n)\n+", r"\1", kept)


def shown(text: str) -> str:
    """Returns a page with the code of today."""
    return SHOWN.sub(lambda place: f"{place[1]}```py\n{source_of(place[2])}\n```\n{place[3]}", text)


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := shown(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(f"Written: {page.relative_to(DOCS)}")
