"""What is wrong with one value of a stranger's annotation, in words: an id, a number, a box; and what is only odd.

Odd is what has one meaning all the same: 3.0 for an id, "3" where 3 is meant, as programs write that turn tables into
JSON.
"""

import re
from collections.abc import Iterable
from typing import Any

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
WHOLE = re.compile(r"\s*[-+]?\d{1,18}\s*")


def id_fault(value: Any) -> str | None:
    """Returns why a value cannot be an id, or None: ids are integers below 2**63 or texts."""
    if type(value) is int:
        return None if -(2**63) <= value < 2**63 else f"{str(value)[:40]} is too large"
    if type(value) is str:
        return None if value else "it is an empty text"
    return f"{str(value)[:60]!r} is a {type(value).__name__}, expected an integer or a text"


def number_fault(value: Any) -> str | None:
    """Returns why a value is no plain number, or None (NaN and infinities are numbers here)."""
    if type(value) is float or type(value) is int:
        return None
    return f"{str(value)[:60]!r} ({type(value).__name__})"


def box_fault(bbox: Any) -> str | None:
    """Returns why a value is not four numbers, or None."""
    if not isinstance(bbox, list | tuple):
        return f"bbox is {str(bbox)[:60]!r} ({type(bbox).__name__}), expected four numbers"
    if len(bbox) != 4:
        return f"bbox has {len(bbox)} numbers, expected four"
    for value in bbox:
        fault = number_fault(value)
        if fault:
            return f"bbox holds {fault}, expected numbers"
        if type(value) is int and abs(value) > 2**53:
            return "bbox holds a number beyond 2**53"
    return None


def plain_id(value: Any) -> Any:
    """Returns a whole float as the integer that it is; any other value as it stands."""
    return int(value) if type(value) is float and value.is_integer() else value


def plain_number(value: Any) -> Any:
    """Returns the number that a text is (whole ones as integers); any other value as it stands."""
    if type(value) is str and NUMBER.fullmatch(value):
        return int(value) if WHOLE.fullmatch(value) else float(value)
    return value


def plain_flag(value: Any) -> Any:
    """Returns 0 or 1 for a truth value, a number or text of that meaning, or None; any other value as it stands."""
    if value is None:
        return 0
    number = plain_number(value)
    words = {"false": 0, "true": 1}
    number = words.get(value.strip().lower(), number) if type(value) is str else number
    return int(number) if type(number) in (int, float, bool) and number in (0, 1) else value


def thing_flag(value: Any) -> int | str | None:
    """Returns 0 or 1 of an `isthing`, None where there is none, and the words for anything else."""
    flag = None if value is None else plain_flag(value)
    return flag if flag is None or flag in (0, 1) else f"{str(value)[:60]!r}"


def plain_box(value: Any) -> Any:
    """Returns a box whose numbers, or which as a whole, is text ("[1, 2, 3, 4]") as numbers; others as they stand."""
    parts = value
    if type(value) is str:
        parts = [part for part in re.split(r"[\s,;]+", value.strip().strip("[]()").strip()) if part]
    numbers = [plain_number(number) for number in parts] if type(parts) is list else []
    return numbers if numbers and not any(map(number_fault, numbers)) else value


class IdsByNumber:
    """Finds the id that another one means that is equal as a number: 3 for "3", "007" for 7, where only one is."""

    def __init__(self, known: Iterable[int | str]) -> None:
        self.known: dict[Any, list[int | str]] = {}
        for value in known:
            self.known.setdefault(self._number(value), []).append(value)

    def find(self, value: int | str) -> int | str | None:
        """Returns the one known id that is equal as a number; None where none or several are."""
        number = self._number(value)
        found = self.known.get(number, []) if number is not None else []
        return found[0] if len(found) == 1 else None

    @staticmethod
    def _number(value: int | str) -> int | None:
        number = plain_number(value)
        return number if type(number) is int else None
