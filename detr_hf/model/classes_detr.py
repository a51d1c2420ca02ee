"""What a user may write for classes and their weights, and the one form that a configuration keeps."""

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

UNUSED = "N/A"  # the name of ids that COCO never gave to a class; many may have it


def normal_labels(labels: Any) -> dict[int, str]:
    """Returns class names by index.

    Args:
        labels: a mapping whose keys are whole numbers or their text (as in JSON); a list or array of names; an Enum;
            or what has `names`, as `datasets.ClassLabel`.

    Raises:
        TypeError: for anything else.
        ValueError: for a key that is no whole number or is there twice, and for a class without a name.
    """
    if isinstance(labels, type) and issubclass(labels, Enum):
        whole = all(isinstance(member.value, int) for member in labels)
        labels = {member.value: member.name for member in labels} if whole else [member.value for member in labels]
    if not isinstance(labels, Mapping):
        labels = dict(enumerate(_as_list(getattr(labels, "names", labels))))
    named: dict[int, str] = {}
    for key, name in labels.items():
        index = _index(key)
        if index is None:
            raise ValueError(
                f"id2label maps {list(labels)[:3]}; its keys are the indices 0..K-1. Name to index is label2id."
            )
        if index in named:
            raise ValueError(f"id2label names class {index} twice: {named[index]!r} and {_text(name)!r}.")
        named[index] = _text(name)
    nameless = [index for index, name in named.items() if not name.strip()]
    if nameless:
        raise ValueError(f"id2label gives no name to class {nameless[:5]}; unused ids of COCO are called {UNUSED!r}.")
    return named


def indices_of(label2id: Any) -> Mapping[str, Any]:
    """Returns it; a TypeError where it maps nothing."""
    if not isinstance(label2id, Mapping):
        raise TypeError(
            f"label2id is {type(label2id).__name__} {str(label2id)[:60]!r}; expected a mapping from name to index. "
            "Names in order are id2label."
        )
    return label2id


def check_labels(id2label: dict[int, str], num_labels: int | None, label2id: Mapping[str, Any] | None) -> None:
    """Raises ValueError for classes with gaps and for what contradicts them; logs a name that several have."""
    count = len(id2label)
    if id2label and (min(id2label) != 0 or max(id2label) != count - 1):
        missing = [index for index in range(count + 1) if index not in id2label][:5]
        raise ValueError(
            f"id2label must map 0..K-1 without gaps to names; it has {count} ids from {min(id2label)} to "
            f"{max(id2label)} and lacks {missing}. Remap the ids to 0..{count - 1}, or name the unused ones (the COCO "
            f"checkpoints use {UNUSED!r})."
        )
    if num_labels is not None and num_labels != count:
        raise ValueError(
            f"num_labels={num_labels} disagrees with id2label, which names {count} classes. Give id2label alone."
        )
    other = {name: index for name, index in indices_of(label2id or {}).items() if id2label.get(_index(index)) != name}
    if other:
        raise ValueError(f"label2id disagrees with id2label about {list(other.items())[:3]}. Give id2label alone.")
    for name, times in Counter(id2label.values()).items():
        if times > 1 and name != UNUSED:
            same = [index for index, named in id2label.items() if named == name][:5]
            logger.warning_once(
                f"id2label gives the name {name!r} to the classes {same}: label2id has the last alone."
            )


def normal_class_weights(weights: Any, id2label: dict[int, str]) -> dict[str, float] | None:
    """Returns the weights of classes by name, for those that were given one; None where none was.

    Args:
        weights: a mapping from names or indices (or their text) to weights, or a list or array of all of them.
        id2label: the classes.

    Raises:
        TypeError: for anything else.
        ValueError: for a class that there is not, and for weights that cannot weigh.
    """
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        weights = _as_list(weights, "class_weights", "a mapping of class to weight, or a list of K weights")
        if len(weights) != len(id2label):
            raise ValueError(f"class_weights has {len(weights)} weights for {len(id2label)} classes (id2label).")
        weights = dict(enumerate(weights))
    named: dict[str, float] = {}
    known = set(id2label.values())
    for key, value in weights.items():
        name = key if key in known else id2label.get(_index(key))
        if name is None:
            nearest = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.0)
            raise ValueError(
                f"class_weights names {key!r}, which is no class; the nearest is {nearest[0]!r}. The weight of "
                "no-object is eos_coef."
            )
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0) or isinstance(value, bool):
            raise ValueError(f"class_weights[{key!r}] must be a finite number that is not negative, but is {value!r}.")
        if named.setdefault(name, weight) != weight:
            raise ValueError(f"class_weights gives {name!r} both {named[name]} and {weight}.")
    if named and not any(named.get(name, 1.0) for name in known):
        raise ValueError("All class_weights are 0, so that no class could be learnt.")
    return named or None


def whole_number(name: str, value: Any) -> int:
    """Returns an argument that counts, which may be numpy's or a whole float."""
    number = None if isinstance(value, str) else _index(value)
    if number is None:
        raise ValueError(f"{name} is {value!r}; expected a whole number.")
    return number


def _as_list(values: Any, what: str = "id2label", expected: str = "a mapping of index to name, or a list of names"):
    values = values.tolist() if hasattr(values, "tolist") else values  # an array, a tensor, a column of a table
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{what} is {values!r}; expected {expected}.")
    return list(values)


def _index(key: Any) -> int | None:
    """Returns the whole number that a key is or writes, else None."""
    key = key.value if isinstance(key, Enum) else key
    try:
        index = int(key)
    except (TypeError, ValueError, OverflowError):
        return None
    return index if isinstance(key, str) or index == key else None


def _text(name: Any) -> str:
    if isinstance(name, Enum):
        name = name.value if isinstance(name.value, str) else name.name
    return "" if name is None else str(name)
