"""What `detr-hf train` starts from: a checkpoint, or a new model on a backbone's weights; and its image processor."""

import logging
from argparse import ArgumentError, ArgumentParser
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DEFAULT_MODEL = "facebook/detr-resnet-50"
DEFAULT_BACKBONE = "resnet50"
OF_NEW = ("backbone", "backbone_weights", "backbone_kwargs", "preset")  # the flags that only a new model has


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Start:
    """What is trained, and on pictures of which size."""

    _argument_group_name = "what to start from"

    model: str | None = _flag(
        None,
        f"A checkpoint to start from: a folder, a .pth file, a Hub id or detr-digits; {DEFAULT_MODEL} by default. "
        "'scratch' builds a new model, as --backbone does.",
    )
    backbone: str | None = _flag(
        None, f"Build a new model on this backbone of timm's ({DEFAULT_BACKBONE} for 'scratch')."
    )
    backbone_weights: str | None = _flag(
        None,
        "A new model's backbone starts from these: 'imagenet' (timm's, the default), a FILE with the state dict of "
        "timm's model, or 'none', random ones.",
    )
    backbone_kwargs: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=VALUE of timm's model, as dynamic_img_size=True. Again for others.",
            "action": "extend",
        },
    )
    preset: str | None = _flag(
        None,
        "Build a new model of this kind: 'precise', which learns from a few hundred pictures, or 'detr', the paper's, "
        "which needs thousands. 'precise' by default, 'detr' where --recipe is one for it (scratch, detr, fast, ...).",
    )
    num_queries: int | None = _flag(None, "Another number of object queries: the first are kept, or all are tiled.")
    shortest_edge: int | None = _flag(
        None, "Resize pictures so; by default the checkpoint's, of a new model what suits the data."
    )
    longest_edge: int | None = _flag(None, "At most this; in proportion by default.")

    @property
    def is_new(self) -> bool:
        """Whether a new model is built."""
        return self.model == "scratch" or (self.model is None and bool(self.of_new))

    @property
    def of_new(self) -> list[str]:
        """Returns the flags that are given of those that only a new model has."""
        return [f"--{name}" for name in OF_NEW if getattr(self, name) is not None]

    @property
    def checkpoint(self) -> str | None:
        """Returns the checkpoint to start from; None for a new model."""
        return None if self.is_new else DEFAULT_MODEL if self.model is None else self.model

    def choose_preset(self, recipe: str) -> None:
        """Fills in the preset of a new model where none is given: one that can learn from what people have."""
        from ..training.arguments import MODEL_OPTIONS

        if self.is_new and self.preset is None:
            self.preset = "detr" if recipe in ("scratch", *MODEL_OPTIONS) else "precise"

    def check(self) -> None:
        """Raises where there is nothing to start from: before the data are read, which may take long.

        Raises:
            ValueError: arguments contradict each other, or a name is not known, or of no checkpoint.
            OSError: the checkpoint is nowhere, or the backbone's weights cannot be had.
        """
        if self.is_new:
            from ..model.timm_body_detr import create_timm_body

            config = self.new_config()
            with _quiet_timm():
                create_timm_body(config, (-1,), load_weights=config.backbone_weights is not None)
        elif self.of_new:
            raise ValueError(
                f"{', '.join(self.of_new)} build{'s' * (len(self.of_new) == 1)} a new model, and --model "
                f"{self.model} is a whole one, with a backbone and of a kind: give one of the two."
            )
        else:
            from ..checkpoints.finding import refuse_no_checkpoint

            refuse_no_checkpoint(self.checkpoint)

    def new_config(self, **changes: Any) -> Any:
        """Returns the configuration of a new model."""
        from ..model.configuration_detr import DETRConfig

        weights = self.backbone_weights or "imagenet"
        fields = {"backbone": self.backbone or DEFAULT_BACKBONE, "backbone_kwargs": self.backbone_options() or None}
        fields |= changes | {"backbone_weights": None if weights == "none" else weights}
        return DETRConfig.from_preset(self.preset, **fields)

    def backbone_options(self) -> dict[str, Any]:
        """Returns --backbone_kwargs by name, with values as Python reads them; any other is a text.

        Raises:
            ValueError: one is no NAME=VALUE.
        """
        options = {}
        for word in self.backbone_kwargs or ():
            name, equals, value = word.partition("=")
            if not (name and equals):
                raise ValueError(f"--backbone_kwargs {word!r} is no NAME=VALUE.")
            try:
                options[name] = literal_eval(value)
            except (ValueError, SyntaxError):
                options[name] = value
        return options

    def needs_masks(self, task: str | None) -> bool:
        """Whether masks are trained: as the task says, and without one where the checkpoint has a mask head."""
        from ..checkpoints.model_classes import has_mask_head

        if task is not None:
            return task != "detection"
        return not self.is_new and has_mask_head(self.checkpoint)

    def load_model(self, id2label: dict[int, str], with_masks: bool) -> Any:
        """Returns the model with the data's classes, and with a mask head, which is new on a detector, or without."""
        from ..model.modeling_detr import DETRForObjectDetection, DETRForSegmentation

        model_class = DETRForSegmentation if with_masks else DETRForObjectDetection
        changes: dict[str, Any] = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
        if self.num_queries is not None:
            changes["num_queries"] = self.num_queries
        if self.is_new:
            with _quiet_timm():
                return model_class(self.new_config(**changes))
        return model_class.from_pretrained(self.checkpoint, **changes)

    def choose_size(self, data: Any, config: Any) -> bool:
        """Fills in the size of pictures for a new model where none is given and the data tells one; whether it did."""
        from ..data.checking.check import fitting_shortest_edge

        if self.is_new and not (self.shortest_edge or self.longest_edge):
            self.shortest_edge = fitting_shortest_edge(data, config)
            return self.shortest_edge is not None
        return False

    def processor(self, model: Any) -> Any:
        """Returns the checkpoint's image processor, or one for the backbone's weights, at the size of the run."""
        from ..checkpoints.processors import new_processor, processor_of

        processor = new_processor(model.config) if self.is_new else processor_of(model)
        if self.shortest_edge or self.longest_edge:
            shortest = self.shortest_edge or round(self.longest_edge * 800 / 1333)
            longest = self.longest_edge or round(shortest * 1333 / 800)
            processor.size = {"shortest_edge": shortest, "longest_edge": longest}
        return processor


def refuse_no_start(words: list[str]) -> None:
    """Raises where the checkpoint that is named is none, by the words of the command: before seconds of imports.

    What the parser has something to say of is left to it.
    """
    from ..checkpoints.finding import refuse_no_checkpoint

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("model", *OF_NEW):
        parser.add_argument(f"--{name}", *{f"--{name.replace('_', '-')}"} - {f"--{name}"})
    try:
        known, others = parser.parse_known_args(words)
    except ArgumentError:
        return
    start = Start(**vars(known))
    asks = {"-h", "--help", "--help-all"} & set(others)
    if start.model is not None and not (start.is_new or start.of_new or asks):
        refuse_no_checkpoint(start.model)


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keeps out of the output what timm says of weights of a classifier's head, which no detector has."""
    timm_logger = logging.getLogger("timm")
    level = timm_logger.level
    timm_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        timm_logger.setLevel(level)
