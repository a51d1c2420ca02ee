"""The one way in which text of a data set is read, and names are compared.

Text is UTF-8, with or without a byte-order mark, or UTF-16 with one; a code page is not guessed, since a wrong guess
changes class names without a word. YAML is read as the text that stands there: YAML 1.1 would turn the class `no` into
False and `010` into 8. Two names are the same when their Unicode normal forms (NFC) are: macOS writes é as two
characters, other systems as one.

A data set may be a stranger's: no file may cost more than in proportion to its size, and each has a limit. What YAML
repeats by aliases counts as often as it is repeated.
"""

import codecs
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from ...errors import LayoutError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NO_VALUE = ("", "~", "null", "Null", "NULL")
LARGEST_TEXT, LARGEST_XML, LARGEST_YAML = 256 << 20, 64 << 20, 1 << 20  # bytes
DEEPEST_YAML = 20
LARGEST_CONTENT = 4 << 20  # characters of a YAML file, with all that its aliases repeat


def read_bytes(path: Path, most: int) -> bytes:
    """Returns what a file holds.

    Raises:
        LayoutError: it cannot be read, or has more bytes than `most`.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise LayoutError(f"{path} has {size} bytes, and files of its kind may have {most}: it is not read.")
        return path.read_bytes()
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error}.") from error


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Returns what a text file of at most `most` bytes holds, without a byte-order mark.

    Raises:
        LayoutError: it cannot be read, or is neither UTF-8 nor UTF-16 with a byte-order mark.
    """
    content = read_bytes(path, most)
    encoding = "utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise LayoutError(
            f"{path} is not UTF-8: line {line} holds the byte 0x{content[error.start]:02x}, as files in another code "
            f"page do (cp1252, GBK, ...). Save it as UTF-8; for example: iconv -f CP1252 -t UTF-8 {path.name}."
        ) from error


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not blank, without the blanks around them."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path)) if line.strip()]


def read_yaml(path: Path) -> Any:
    """Returns what a YAML file holds as dicts, lists and texts: no word becomes a number, a truth value or a date.

    Raises:
        LayoutError: it is not YAML, a key stands twice in one mapping, or aliases make much of a little.
    """
    import yaml

    class TextLoader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST_YAML:
                raise ValueError(f"it is nested more than {DEEPEST_YAML} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
            if repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {repeated[0]!r} stands more than once", node.start_mark
                )
            return super().construct_mapping(node, deep)

    text = read_text(path, LARGEST_YAML)
    try:
        loader = TextLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _length(node, {}) > LARGEST_CONTENT:
            raise ValueError(f"with what its aliases repeat it has more than {LARGEST_CONTENT} characters")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is not YAML that can be read: {str(error)[:300]}.") from error


def _length(node: Any, known: dict[int, int]) -> int:
    """Returns the characters of a YAML node written out, its aliases too; one of itself has no end."""
    if id(node) not in known:
        known[id(node)] = LARGEST_CONTENT + 1  # while it is not known: where it is met again inside
        parts = [node.value] if isinstance(node.value, str) else node.value
        flat = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(len(each) if isinstance(each, str) else _length(each, known) for each in flat)
    return known[id(node)]


def parse_json(text: str) -> Any:
    """Returns what JSON text holds.

    Raises:
        ValueError: it is not JSON, or nested beyond what can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_no_value(value: Any) -> bool:
    """Whether a value of `read_yaml` stands for nothing: an empty one, `~`, `null`, an empty list."""
    return value in NO_VALUE if isinstance(value, str) else not value


def name_key(name: str) -> str:
    """Returns a name in the form in which names are compared (Unicode NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
