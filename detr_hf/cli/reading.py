"""The flags that say how a data set is read, once for `check`, `train`, `eval` and `push`, and for what errors advise.

Messages of the library name arguments of Python (`image_root=`); within these verbs they name the flags.
"""

import functools
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

# An argument in a message: its name, and perhaps a value.
ARGUMENT = r"\b({})=(\{{[^{{}}]*\}}|\[[^\[\]]*\]|'[^']*'|[\w.-]*\w|\.\.\.)?"


# Where the flag is not called as Python's argument.
PYTHON_NAMES = {"split": "splits", "classes": "id2label"}


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _again(text: str) -> dict[str, str]:
    """Returns what is said of a flag that can be given more than once."""
    return {"help": f"{text} Again for others.", "action": "extend"}


@dataclass
class Reading:
    """How the data set is read; the same for every verb that reads one."""

    _argument_group_name = "how the data set is read"

    split: list[str] | None = field(
        default=None,
        metadata=_again("Read this split only; NEW=NAME gives it another name: train=default."),
    )
    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "Set this part of the training pictures aside for validation, as 0.1: the same ones each time.",
            "aliases": ["--val_fraction", "--val-fraction"],
        },
    )
    validation_seed: int = _flag(0, "Another draw of --validation_share.")
    format: str | None = _flag(None, "coco, yolo, voc or hf, where a folder could be several.")
    task: str | None = _flag(
        None, "detection, instance (a mask for each object) or panoptic; of COCO and datasets, instance of YOLO."
    )
    image_root: list[str] | None = field(
        default=None,
        metadata=_again("The folder that file names start from; SPLIT=FOLDER is for one split."),
    )
    box_format: str | None = _flag(None, "Of the data's boxes: xywh, xyxy, cxcywh, or one of them with _norm.")
    classes: list[str] | None = field(
        default=None,
        metadata=_again(
            "Class names where the data has none: in the order of their ids from 0 (cat,dog), as ID=NAME, or a "
            "file with a name a line or of JSON."
        ),
    )
    stuff: list[str] | None = field(
        default=None,
        metadata=_again("The stuff classes of panoptic data that does not say: sky,road, or a file as for --classes."),
    )
    masks: bool = _flag(False, "Read masks too; without, a mask that is faulty is a warning.")
    allow_missing_masks: bool = _flag(False, "Of an object without a mask the box is trained alone.")
    on_fault: str = _flag("raise", "'drop' leaves out what is faulty, with a warning: objects, pictures or masks.")

    def options(self) -> dict[str, Any]:
        """Returns the arguments of `load_detection_dataset` and `check`."""
        given = {PYTHON_NAMES.get(one.name, one.name): getattr(self, one.name) for one in fields(self)}
        given["splits"] = _pairs(self.split, whole=None)
        given["image_root"] = _pairs(self.image_root, whole="--image_root")
        given["id2label"] = class_names(self.classes)
        given["stuff"] = None if self.stuff is None else stuff_names(self.stuff)
        return given


# The flag of each argument of Python; `split` is evaluation's.
FLAG_OF = {PYTHON_NAMES.get(one.name, one.name): f"--{one.name}" for one in fields(Reading)} | {"split": "--split"}


def _pairs(words: list[str] | None, whole: str | None) -> Any:
    """Returns words `name=value` as a dict; a word without `=` stands for itself, or for all when `whole` names a
    flag that takes one such word."""
    if not words:
        return None
    pairs = [word.partition("=") for word in words]
    if whole and not pairs[0][1]:
        if len(words) > 1:
            raise typer.BadParameter(f"{whole} is given {len(words)} times; give SPLIT=FOLDER for each split.")
        return words[0]
    for word, (name, equals, value) in zip(words, pairs, strict=True):
        if not name or (equals and not value) or (whole and not equals):
            raise typer.BadParameter(f"{word!r} is no NAME=VALUE.")
    return {name: value if equals else name for name, equals, value in pairs}


def class_names(words: list[str] | None) -> dict[Any, str] | list[str] | None:
    """Returns the names of `--classes`: by id, or in order."""
    if not words:
        return None
    if len(words) == 1 and Path(words[0]).is_file():
        text = Path(words[0]).read_text(encoding="utf-8-sig")
        content = json.loads(text) if words[0].endswith(".json") else text.splitlines()
        return [line.strip() for line in content if line.strip()] if isinstance(content, list) else content
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    named = [name.partition("=") for name in names]
    if not any(equals for _, equals, _ in named):
        return names
    if not all(key and value for key, _, value in named):
        raise typer.BadParameter(f"--classes {' '.join(words)}: either each name has its id (ID=NAME), or none has.")
    return {int(key) if key.isdecimal() else key: value for key, _, value in named}


def stuff_names(words: list[str]) -> list[str | int]:
    """Returns names and ids of `--stuff`.

    Raises:
        typer.BadParameter: names have ids before them, which says something else.
    """
    names = class_names(words) or []
    if isinstance(names, dict):
        raise typer.BadParameter(f"--stuff {' '.join(words)}: expected names or ids of classes, not ID=NAME.")
    return [int(name) if name.isdecimal() else name for name in names]


def reads_data(verb: Callable[..., None]) -> Callable[..., None]:
    """Returns the verb with its parameter `reading` spread into the flags of `Reading`."""
    types = get_type_hints(Reading)
    spread = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[
                types[one.name],
                typer.Option(f"--{one.name}", *one.metadata.get("aliases", ())[:1], help=one.metadata["help"]),
            ],
        )
        for one in fields(Reading)
    ]

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        reading = Reading(**{one.name: given.pop(one.name) for one in fields(Reading)})
        with speaking_of_flags():
            verb(**given, reading=reading)

    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(verb, eval_str=True).parameters.values()
        if parameter.name != "reading"
    ]
    run.__signature__ = inspect.Signature([*own, *spread])
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *spread)}
    return run


@contextmanager
def speaking_of_flags(flags: Mapping[str, str] = FLAG_OF) -> Iterator[None]:
    """Within it errors and the log name flags instead of arguments, and what reading says is shown."""
    handler = _FlagHandler(sys.stderr, flags)
    package, data = logging.getLogger("detr_hf"), logging.getLogger("detr_hf.data")
    level = data.level
    package.addHandler(handler)
    data.setLevel(logging.INFO)
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (in_flags(str(error), flags), *error.args[1:])
        raise
    finally:
        package.removeHandler(handler)
        data.setLevel(level)


class _FlagHandler(logging.StreamHandler):
    def __init__(self, stream: Any, flags: Mapping[str, str]):
        super().__init__(stream)
        self.flags = flags

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return in_flags(text, self.flags) if record.levelno >= logging.WARNING else text


def in_flags(text: str, flags: Mapping[str, str] = FLAG_OF) -> str:
    """Returns a message of the library with flags in the place of arguments: `box_format='xyxy'` is
    `--box_format xyxy`."""
    text = re.sub(r"load_detection_dataset\(\.\.\., (.*?\}?)\)", r"\1", text)
    return re.sub(ARGUMENT.format("|".join(flags)), lambda found: _as_flag(flags[found[1]], found[2]), text)


def _as_flag(flag: str, value: str | None) -> str:
    if not value:
        return flag
    items = value.strip("{[]}").split(", ") if value[0] in "{[" else [value]
    pairs = [re.sub(r"'?: '?", "=", item, count=1).strip("'") for item in items if item != "..."]
    return " ".join(f"{flag} '{pair}'" if " " in pair else f"{flag} {pair}" for pair in pairs) or flag
