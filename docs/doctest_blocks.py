"""A Markdown extension: examples that docstrings begin with `>>>` are code blocks, not quotes of quotes of quotes."""

import re
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?! *\n| *$).+)*", re.MULTILINE)


class DoctestBlocks(Preprocessor):
    """Puts fences around an example and what it prints, up to the next empty line."""

    def run(self, lines: list[str]) -> list[str]:
        """Returns the lines with fences."""
        text = "\n".join(lines)
        return EXAMPLE.sub(lambda found: f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```", text).split(
            "\n"
        )


class DoctestExtension(Extension):
    """Registers it before fences are looked for."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Adds the step."""
        md.preprocessors.register(DoctestBlocks(md), "doctest_blocks", 35)


def makeExtension(**options: Any) -> DoctestExtension:
    """Returns the extension, as Markdown asks for it."""
    return DoctestExtension(**options)
