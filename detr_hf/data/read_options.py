"""How a data set is to be read: one set of options for loading, for `check`, and for the verbs of the command line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LayoutError, did_you_mean

FORMATS = ("coco", "yolo", "voc", "hf")
TASKS = ("detection", "instance", "panoptic")
# What can be said of the task, by format; the rest have one.
TASKS_OF = {"coco": TASKS, "hf": TASKS, "yolo": ("instance",), "voc": ()}
BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "xywh_norm", "xyxy_norm", "cxcywh_norm")
ON_FAULT = ("raise", "drop")
# What a format has no use for, and why: given all the same, it would be overlooked.
USELESS = {
    "coco": {},
    "yolo": {"stuff": "its objects are things", "box_format": "its numbers are fractions of the picture"},
    "voc": {
        "stuff": "its objects are things",
        "allow_missing_masks": "its objects have no masks",
        "box_format": "its boxes are named corners",
    },
    "hf": {"image_root": "the rows hold their pictures"},
}


@dataclass
class ReadOptions:
    """How to read; see `load_detection_dataset`.

    Raises:
        LayoutError: a value is none of those that there are.
        TypeError: `id2label` is neither names by id nor names in order.
    """

    splits: Any = None
    format: str | None = None
    task: str | None = None
    image_root: Any = None
    box_format: str | None = None
    id2label: Any = None
    stuff: Any = None
    masks: bool = True
    allow_missing_masks: bool = False
    validation_share: float | None = None
    validation_seed: int = 0
    on_fault: str = "raise"
    streaming: bool = False
    load_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"format": FORMATS, "task": TASKS, "box_format": BOX_FORMATS}
        for name, known in {**choices, "on_fault": ON_FAULT}.items():
            value = getattr(self, name)
            if value not in known and (value is not None or name == "on_fault"):
                raise LayoutError(f"{name}= is {value!r}; there are {', '.join(known)}.{did_you_mean(value, known)}")
        if self.stuff is not None and self.task not in (None, "panoptic"):
            raise LayoutError(f"stuff= is for panoptic data, and the task is {self.task}. Leave one of them out.")
        if self.allow_missing_masks and self.task == "panoptic":
            raise LayoutError("allow_missing_masks= has no meaning for task='panoptic': a segment is its pixels.")
        self.masks = self.masks or self.allow_missing_masks or self.task == "instance"
        share = self.validation_share
        if share is not None and not 0 < share < 1:
            raise LayoutError(f"validation_share= is {share!r}; expected a part of the pictures between 0 and 1: 0.1.")
        if isinstance(self.splits, Mapping):
            self.splits = dict(self.splits)
        elif self.splits is not None:
            self.splits = [self.splits] if isinstance(self.splits, str) else list(self.splits)
        if isinstance(self.image_root, Mapping):
            self.image_root = {split: Path(root) for split, root in self.image_root.items()}
        elif self.image_root is not None:
            self.image_root = Path(self.image_root)
        self.id2label = names_by_id(self.id2label)
        if self.stuff is not None:
            self.stuff = [self.stuff] if isinstance(self.stuff, str | int) else list(self.stuff)

    @property
    def boxes_alone(self) -> bool:
        """Whether of an object without a mask the box is learnt alone."""
        return self.allow_missing_masks or (self.task == "instance" and self.on_fault == "drop")

    @property
    def common_root(self) -> Path | None:
        """Returns the folder of the pictures of all splits, where one was given."""
        return None if isinstance(self.image_root, dict) else self.image_root

    def roots(self, chosen: Mapping[str, str]) -> dict[str, Path]:
        """Returns the picture folder by the source's name of a split; `chosen` are those names by the new ones.

        Raises:
            LayoutError: a folder was given for a split that is not there.
        """
        if not isinstance(self.image_root, dict):
            return {} if self.image_root is None else dict.fromkeys(chosen.values(), self.image_root)
        known = {**{source: source for source in chosen.values()}, **chosen}
        for split in self.image_root:
            if split not in known:
                shown = ", ".join(map(repr, known))
                raise LayoutError(f"image_root= is given for {split!r}; the splits are {shown}.")
        return {known[split]: root for split, root in self.image_root.items()}

    def refuse_useless(self, format: str, source: str) -> None:
        """Raises a LayoutError for an option that data of this format has no use for."""
        useless = dict(USELESS[format])
        if self.task not in TASKS_OF[format]:
            useless["task"] = "the format has one"
        for name, reason in useless.items():
            if getattr(self, name) not in (None, False):
                raise LayoutError(f"{source} is {format}, for which {name}= has no meaning: {reason}. Leave it out.")


def names_by_id(given: Any) -> dict[Any, str] | None:
    """Returns class names by id of such a mapping, or of names in order from 0; numbers that are texts become numbers.

    Raises:
        TypeError: it is neither.
    """
    if given is None:
        return None
    if isinstance(given, Iterable) and not isinstance(given, str | Mapping):
        given = dict(enumerate(given))
    if not isinstance(given, Mapping) or not given:
        raise TypeError(f"id2label= is {str(given)[:80]!r}; expected names by id, or a list of names.")
    if all(isinstance(key, str) and key.isdecimal() for key in given):
        given = {int(key): name for key, name in given.items()}
    return {key: str(name) for key, name in given.items()}
