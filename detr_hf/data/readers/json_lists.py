"""A large JSON object, read element by element: 448 MB of annotations never stand in memory as Python objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from .text import read_text

LARGEST_JSON = 8 << 30  # bytes; the whole text stands in memory
SPACE = re.compile(r"[ \t\r\n]*")


def iterate_lists(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    """Yields key, element and its JSON text for the elements of an object's lists; any other value whole, with None.

    Raises:
        LayoutError: the file is not JSON, or no object at its top level; the message has line and column.
    """
    text = read_text(path, LARGEST_JSON)
    try:
        yield from _iterate_text(text)
    except json.JSONDecodeError as error:
        raise LayoutError(f"{path} is not JSON that can be read: {error}{_likely_cause(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(
            f"{path} is not JSON that can be read: {type(error).__name__}: {str(error)[:200]}."
        ) from error


def _likely_cause(error: json.JSONDecodeError) -> str:
    """Returns, to be added to the parser's words, what people usually did to bring this about."""
    before, at = error.doc[max(error.pos - 100, 0) : error.pos].rstrip(), error.doc[error.pos : error.pos + 1]
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return "; the file ends there: it was cut"
    if before.endswith(",") and at in ("]", "}"):
        return f"; there is a comma before the closing {at!r}: remove it"
    if at == "," and SPACE.sub("", error.doc[error.pos + 1 : error.pos + 100])[:1] in ("]", "}"):
        return "; there is a comma before a closing bracket: remove it"
    if at == "'":
        return "; texts stand in double quotes in JSON: it looks like a printed Python dict, write it with json.dump"
    return ""


def _iterate_text(text: str) -> Iterator[tuple[str, Any, str | None]]:
    decode = json.JSONDecoder().raw_decode

    def skip(position: int, expected: str) -> tuple[str, int]:
        position = SPACE.match(text, position).end()
        character = text[position : position + 1]
        if character not in expected or not character:
            found = repr(character) if character else "the end of the file"
            wanted = " or ".join(map(repr, expected))
            raise json.JSONDecodeError(f"expected {wanted}, found {found}", text, position)
        return character, position + 1

    _, position = skip(0, "{")
    position = SPACE.match(text, position).end()
    closed = text[position : position + 1] == "}"
    position += closed
    while not closed:
        skip(position, '"')
        key, position = decode(text, SPACE.match(text, position).end())
        _, position = skip(position, ":")
        position = SPACE.match(text, position).end()
        if text[position : position + 1] == "[":
            position = SPACE.match(text, position + 1).end()
            listed = text[position : position + 1] != "]"
            position += not listed
            while listed:
                start = SPACE.match(text, position).end()
                element, position = decode(text, start)
                yield key, element, text[start:position]
                character, position = skip(position, ",]")
                listed = character == ","
        else:
            value, position = decode(text, position)
            yield key, value, None
        character, position = skip(position, ",}")
        closed = character == "}"
    position = SPACE.match(text, position).end()
    if position < len(text):
        message = "expected the end of the file after the object: are these JSON lines, or two files in one"
        raise json.JSONDecodeError(message, text, position)
