"""Flags that are written wrong: `-` for `_`, a flag or a value that there is not; the answer names the nearest."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import did_you_mean
from .reading import FLAG_OF

UsageError = typer.BadParameter.__mro__[1]  # typer keeps its click under a name that is not public
# How click, argparse, transformers' enumerations and this package word a value that is none of the choices.
NO_CHOICE = re.compile(
    r"'?([^'\s]+)'?(?: is not one of| is not a valid \w+, please select one of| \(choose from|"
    r"; (?:expected one of|choose|there are)) (.+)"
)
NEAR = 0.5
# How errors name an argument of Python, perhaps with a value, and its flag in brackets.
ARGUMENT_AND_FLAG = re.compile(r"\b(\w+)(=(?:'[^']*'|[\w.]*))? \((?:detr-hf \w+: )?(--[\w-]+)\)")
# What is said of --image-size.
IMAGE_SIZE = "Pixels of the shorter side of pictures, the longer in proportion; by default as the model has it."


def nearest_flag(flag: str, known: Iterable[str]) -> str | None:
    """Returns the flag that was meant: one that Python names so (`--id2label`), else the nearest in letters."""
    known = list(known)
    name = flag.lstrip("-").replace("-", "_")
    if FLAG_OF.get(name) in known:
        return FLAG_OF[name]
    ending = [option for option in known if name.endswith(f"_{option.lstrip('-')}")]  # --data_format
    return next(iter([*ending, *difflib.get_close_matches(flag, known, n=1, cutoff=NEAR)]), None)


def with_nearest(message: str) -> str:
    """Returns an error about a value with the choice that it is nearest to; any other message as it is."""
    found = None if "Did you mean" in message else NO_CHOICE.search(message)
    return message + (did_you_mean(found[1], re.findall(r"[\w.-]+", found[2])) if found else "")


def without_python(message: str) -> str:
    """Returns an error with the flag alone where it names an argument of Python and, in brackets, its flag; and with
    no name of Python where something lacks a package."""
    message = re.sub(r"^\w+(?= needs the package )", "This", message)
    return ARGUMENT_AND_FLAG.sub(
        lambda found: found[3] if found[2] or found[1].replace("_", "-") == found[3][2:] else found[0], message
    )


class Verb(TyperCommand):
    """A verb whose flags may be written with `-` or `_`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the flags; an error names the nearest one, or the nearest choice."""
        known = {option for parameter in self.params for option in (*parameter.opts, *parameter.secondary_opts)}
        try:
            return super().parse_args(ctx, spelled(args, known))
        except UsageError as error:
            if hasattr(error, "possibilities"):
                nearest = nearest_flag(error.option_name, [option for option in known if option.startswith("--")])
                error.possibilities = [nearest] if nearest else error.possibilities
            else:
                error.message = with_nearest(error.message)
            raise


def spelled(args: list[str], known: Iterable[str]) -> list[str]:
    """Returns the arguments with known flags as they are defined, whichever of `-` and `_` the user wrote."""
    defined = {option.replace("_", "-"): option for option in known if option.startswith("--")}
    result = []
    for position, argument in enumerate(args):
        if argument == "--":
            return result + args[position:]
        flag, equals, value = argument.partition("=")
        result.append(defined.get(flag.replace("_", "-"), flag) + equals + value)
    return result
