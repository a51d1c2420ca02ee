"""The flags of `detr-hf train`: those of dataclasses, read by transformers' parser; errors are like other verbs'."""

import argparse
from typing import Any, NoReturn

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .flags import nearest_flag, with_nearest
from .train_help import other_name, short_help, show


class Parser(HfArgumentParser):
    """transformers' parser of dataclasses, whose errors name the nearest flag or choice.

    A switch needs no value, also one that may be left undecided, for which transformers' parser wants one.
    """

    def __init__(self, dataclasses: Any, **options: Any):
        super().__init__(dataclasses, add_help=False, **options)
        self.add_argument("-h", "--help", action="store_true", help="Show the flags that people need.")
        self.add_argument("--help-all", action="help", help="Show all flags.")
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:
                action.nargs, action.const = "?", True

    def parse(self, flags: list[str]) -> tuple[Any, ...]:
        """Returns the dataclasses; shows help or an error as argparse does, and leaves."""
        if {"-h", "--help"} & set(flags):
            show(short_help({action.dest: action for action in self._actions if not action.dest.startswith("help")}))
        self.check(flags)
        try:
            # the switches of help are no dataclass's, and the fourth is what no flag is
            return self.parse_args_into_dataclasses(flags, look_for_args_file=False)[: len(self.dataclass_types)]
        except ValueError as error:
            raise ValueError(with_nearest(str(error))) from error

    def check(self, flags: list[str]) -> None:
        """Leaves with an error that names the flag that was meant, where one is not known."""
        known = self._option_string_actions
        for flag in (word.partition("=")[0] for word in flags):
            if not flag.startswith("--") or flag in known:
                continue
            if meant := other_name(flag):
                self.error(f"there is no option {flag}; here it is {meant}")
            if not any(option.startswith(flag) for option in known):
                nearest = nearest_flag(flag, [option for option in known if option.startswith("--")])
                self.error(f"there is no option {flag}" + (f"; did you mean {nearest}?" if nearest else ""))

    def given(self, flags: list[str]) -> dict[str, Any]:
        """Returns the values of the flags that are given, by name."""
        for action in self._actions:
            action.default = argparse.SUPPRESS
            action.required = False
        return vars(self.parse_known_args(flags)[0])

    def error(self, message: str) -> NoReturn:
        """Leaves with exit code 2 and the message, a wrong choice with the nearest; not with every flag that is."""
        self.exit(2, f"{self.prog}: error: {with_nearest(message)}\n")
