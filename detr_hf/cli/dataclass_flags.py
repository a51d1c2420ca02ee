"""The flags of `detr-hf train`: those of dataclasses, read by transformers' parser; errors are like other verbs'."""

from typing import Any, NoReturn

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .flags import nearest_flag, with_nearest


class Parser(HfArgumentParser):
    """transformers' parser of dataclasses, whose errors name the nearest flag or choice.

    A switch needs no value, also one that may be left undecided, for which transformers' parser wants one.
    """

    def __init__(self, dataclasses: Any, **options: Any):
        super().__init__(dataclasses, **options)
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:
                action.nargs, action.const = "?", True

    def parse(self, flags: list[str]) -> tuple[Any, ...]:
        """Returns the dataclasses; shows help or an error as argparse does, and leaves."""
        known = self._option_string_actions
        for flag in (word.partition("=")[0] for word in flags):
            if flag.startswith("--") and not any(option.startswith(flag) for option in known):
                nearest = nearest_flag(flag, [option for option in known if option.startswith("--")])
                self.error(f"there is no option {flag}" + (f"; did you mean {nearest}?" if nearest else ""))
        try:
            return self.parse_args_into_dataclasses(flags, look_for_args_file=False)
        except ValueError as error:
            raise ValueError(with_nearest(str(error))) from error

    def error(self, message: str) -> NoReturn:
        """Leaves with exit code 2 and the message, a wrong choice with the nearest."""
        super().error(with_nearest(message))
