"""What the classes of a YOLO data set are called: `names` of a data.yaml, or a text file with one name a line.

Labelling tools put that file in the data set's folder, beside the label files, or into every folder of pictures. Files
that disagree about a class are refused: its number would mean two things.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from ..findings import FindingLog
from .text import is_no_value, name_key, read_text
from .yolo_lines import is_label_file

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "notes.json", "labels.txt", "predefined_classes.txt")
# labelImg's list of proposals, which says nothing about the labels that lie beside it while there is another file.
PROPOSALS = "predefined_classes.txt"
NO_NAME = ("", "~")
WHOLE_NUMBER = re.compile(r"\d+(\.0+)?")


def names_of_yaml(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Returns the names by id that a data.yaml gives; none where it has no `names`.

    Raises:
        LayoutError: `names` is no list and no mapping from integers, or does not name each class once.
    """
    names = content.get("names")
    if is_no_value(names):
        return {}
    expected = f"{path}: names is {str(names)[:80]!r}, expected a list of class names, or id: name for each class."
    if isinstance(names, list):
        names = dict(enumerate(names))
    elif isinstance(names, dict) and all(WHOLE_NUMBER.fullmatch(key) for key in names):
        keys = Counter(int(key.partition(".")[0]) for key in names)
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            raise LayoutError(f"{path}: names has the class {twice[0]} more than once; correct one of them.")
        names = {int(key.partition(".")[0]): name for key, name in names.items()}
    else:
        raise LayoutError(expected)
    nameless = [key for key, name in names.items() if not isinstance(name, str) or name.strip() in NO_NAME]
    if nameless:
        raise LayoutError(
            f"{expected} The class {nameless[0]} has {str(names[nameless[0]])[:40]!r}, which is no name."
        )
    return {key: name.strip() for key, name in names.items()}


def compare_count(count: Any, names: dict[int, str], path: Path) -> None:
    """Raises a LayoutError when a data.yaml or obj.data says another number of classes than there are names."""
    if is_no_value(count) or not names:
        return
    if not (isinstance(count, str) and WHOLE_NUMBER.fullmatch(count)):
        raise LayoutError(f"{path}: nc is {str(count)[:40]!r}, expected the number of classes.")
    if int(count.partition(".")[0]) not in (len(names), max(names) + 1):
        raise LayoutError(f"{path}: nc is {count} and there are {len(names)} names; correct one of them.")


def read_names_file(path: Path) -> dict[int, str]:
    """Returns the names by id of a file with a name a line (an empty line is a class that is not used), or of Label
    Studio's notes.json; none where a notes.json is something else.

    Raises:
        LayoutError: it cannot be read.
    """
    if path.suffix != ".json":
        lines = read_text(path).splitlines()
        return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    try:
        return {int(item["id"]): str(item["name"]) for item in json.loads(read_text(path))["categories"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def name_files(folders: Iterable[Path]) -> list[Path]:
    """Returns the files of class names in these folders, the first of `NAME_FILES` in each."""
    found = []
    for folder in folders:
        paths = [folder / name for name in NAME_FILES]
        found += [path for path in paths if path.is_file() and not is_label_file(path)][:1]
    return [path for path in found if path.name != PROPOSALS] or found


def find_names(folders: Iterable[Path]) -> dict[int, str]:
    """Returns the names by id that files in these folders give; none where there is no such file.

    Raises:
        LayoutError: two files give one id different names.
    """
    found: dict[int, str] = {}
    source = None
    for path in name_files(folders):
        names = read_names_file(path)
        if differing_ids(found, names):
            raise LayoutError(
                f"{source} and {path} disagree: {describe_difference(found, names)}. A number must mean one class: "
                "correct the labels, or leave one file, or pass id2label={0: 'name', ...}."
            )
        if len(names) > len(found):
            found, source = names, path
    return found


def differing_ids(first: dict[int, str], second: dict[int, str]) -> list[int]:
    """Returns the ids to which both give a name, and not the same."""
    return [key for key in first if key in second and name_key(first[key]) != name_key(second[key])]


def describe_difference(first: dict[int, str], second: dict[int, str]) -> str:
    """Returns the first class on which two lists of names differ, in words."""
    key = differing_ids(first, second)[0]
    return f"class {key} is {first[key]!r} in the one and {second[key]!r} in the other"


def check_repeated_names(names: dict[Any, str], log: FindingLog) -> None:
    """Logs names that two classes have."""
    for key, count in Counter(name_key(name) for name in names.values()).items():
        if count > 1:
            ids = [id_ for id_, name in names.items() if name_key(name) == key]
            message = f"the classes {', '.join(map(str, ids))} are all called {names[ids[0]]!r}: name them apart"
            log.add("category-name-duplicate", "error", message)
