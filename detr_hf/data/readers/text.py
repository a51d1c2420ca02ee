"""The one way in which text of a data set is read, and names are compared.

Text is UTF-8, with or without a byte-order mark, or UTF-16 with one; a code page is not guessed, since a wrong guess
changes class names without a word. YAML is read as the text that stands there: YAML 1.1 would turn the class `no` into
False and `010` into 8. Two names are the same when their Unicode normal forms (NFC) are: macOS writes é as two
characters, other systems as one.
"""

import codecs
import re
import unicodedata
from pathlib import Path
from typing import Any

from ...errors import LayoutError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NO_VALUE = ("", "~", "null", "Null", "NULL")


def read_text(path: Path) -> str:
    """Returns what a text file holds, without a byte-order mark.

    Raises:
        LayoutError: it cannot be read, or is neither UTF-8 nor UTF-16 with a byte-order mark.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error}.") from error
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
        LayoutError: it is not YAML, or a key stands twice in one mapping.
    """
    import yaml

    class TextLoader(yaml.BaseLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            if repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {repeated[0]!r} stands more than once", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(read_text(path), Loader=TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"{path} is not YAML that can be read: {str(error)[:300]}.") from error


def is_no_value(value: Any) -> bool:
    """Whether a value of `read_yaml` stands for nothing: an empty one, `~`, `null`, an empty list."""
    return value in NO_VALUE if isinstance(value, str) else not value


def name_key(name: str) -> str:
    """Returns a name in the form in which names are compared (Unicode NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
