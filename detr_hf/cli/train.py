"""`detr-hf train`: fine-tune or train on a data set, with every argument of `DETRTrainingArguments` as a flag.

What is trained is what `--task` says, by which the data is read as well; without it, what the checkpoint has: boxes,
or boxes and masks. What it starts from is `train_start.py`'s, and what the same command does again `train_again.py`'s.
"""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from .reading import FLAG_OF, Reading, in_flags, speaking_of_flags
from .train_again import command_of, resume_choice
from .train_start import Start, refuse_no_start

if TYPE_CHECKING:
    from ..training.arguments import DETRTrainingArguments
    from ..training.trainer import DETRTrainer

# typer hands everything on: the flags are those of a dataclass, which argparse reads.
TRAIN_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@dataclass
class DataArguments(Start):
    """What `detr-hf train` asks for beside the training's own arguments."""

    data: str = field(
        kw_only=True,
        metadata={
            "help": "A folder, a COCO .json, a YOLO data.yaml, a Hub id, or digits: with train and validation splits."
        },
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop when the check of the data finds anything, not only errors."}
    )
    figures: bool = field(
        default=True,
        metadata={
            "help": "Draw curves of the run and plots of its last evaluation into 'figures' in output_dir; 'false' "
            "for none. What cannot be drawn is said, and hinders nothing."
        },
    )
    skip_check: bool = field(default=False, metadata={"help": "Do not check the data first."})


def train(context: typer.Context) -> None:
    """Train on a data set: --data DATA --model M (or --backbone NAME) --output_dir OUT; --help lists the flags that
    people need, --help-all every one; --task instance or panoptic for masks."""
    refuse_no_start(context.args)
    data_args, reading, args = parse(context.args)
    from .console import quiet_loading

    quiet_loading()
    with speaking_of_flags(flags_of(args)):
        command = command_of(parser().given(context.args))
        resume = resume_choice(args, command)
        trainer = build(data_args, reading, args)
        trainer.command = command
        result = trainer.train(resume_from_checkpoint=resume)
        finish(trainer, result.metrics, data_args.figures)


def finish(trainer: "DETRTrainer", metrics: dict[str, float], figures: bool = True) -> None:
    """Saves and measures what was trained, prints the numbers, draws, and publishes it where that is wanted."""
    trainer.save_model()
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
        if trainer.is_world_process_zero():
            sets = trainer.last_evaluations or [None]
            typer.echo("\n\n".join(found.table() for found in map(trainer.whole_evaluation, sets) if found))
    for line in trainer.save_figures() if figures else ():
        typer.echo(line, err=True)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        typer.echo(f"Model: {trainer.args.output_dir}", err=True)


def parse(flags: list[str]) -> "tuple[DataArguments, Reading, DETRTrainingArguments]":
    """Returns the arguments from flags; shows help or a wrong flag as argparse does, and leaves."""
    return parser().parse(flags)


def parser() -> Any:
    """Returns the parser of the flags."""
    from ..training.arguments import DETRTrainingArguments
    from .dataclass_flags import Parser

    return Parser([DataArguments, Reading, DETRTrainingArguments], prog="detr-hf train")


def flags_of(args: "DETRTrainingArguments") -> dict[str, str]:
    """Returns the flag of each argument that a message of the library may name."""
    return FLAG_OF | {one.name: f"--{one.name}" for one in (*fields(DataArguments), *fields(args))}


def build(data_args: DataArguments, reading: Reading, args: "DETRTrainingArguments") -> "DETRTrainer":
    """Returns the trainer: start looked at, data read and checked, model loaded."""
    from ..data import load_detection_dataset
    from ..training.trainer import DETRTrainer

    flags = flags_of(args)
    data_args.choose_preset(args.recipe)
    try:
        data_args.check()
    except OSError as error:
        raise OSError(in_flags(str(error), flags)) from error
    with_masks = data_args.needs_masks(reading.task)
    options = reading.options()
    options["masks"] |= with_masks
    if reading.task == "detection":
        options["task"] = None  # boxes are in every format, and in panoptic data too
    data = load_detection_dataset(data_args.data, **options)
    data.split_for("train")  # says what to do where there is none
    model = data_args.load_model(data.id2label, with_masks)
    if data_args.choose_size(data, model.config) and args.process_index == 0:
        typer.echo(
            f"A new model sees pictures at a shortest side of {data_args.shortest_edge}, which suits these and their "
            "objects; --shortest_edge N for another.",
            err=True,
        )
    processor = data_args.processor(model)
    trainer = DETRTrainer(model, args, data, processing_class=processor)
    trainer.watch.words = partial(in_flags, flags=flags)
    if not data_args.skip_check and args.process_index == 0:
        report_check(data, model, processor, data_args.strict, flags)
    return trainer


def report_check(data: Any, model: Any, processor: Any, strict: bool, flags: dict[str, str]) -> None:
    """Prints what the check finds at the size of the run, and leaves with exit code 1 where training would suffer."""
    from ..data.checking.check import check
    from ..data.preparing.transform import model_sides

    report = check(data, model.config, size=model_sides(processor))
    typer.echo(in_flags(report.text(5), flags), err=True)
    if report.exit_code(strict):
        typer.echo("detr-hf train: the data has faults, see above. --skip_check trains all the same.", err=True)
        raise typer.Exit(1)
