"""What is wrong with one value of a stranger's annotation, in words: an id, a number, a box."""

from typing import Any


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
