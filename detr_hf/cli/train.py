"""`detr-hf train`: fine-tune or train on a data set, with every argument of `DETRTrainingArguments` as a flag.

What is trained is what `--task` says, by which the data is read as well; without it, what the checkpoint has: boxes,
or boxes and masks.
"""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import typer

from .reading import FLAG_OF, Reading, in_flags, speaking_of_flags

if TYPE_CHECKING:
    from ..training.arguments import DETRTrainingArguments
    from ..training.trainer import DETRTrainer

# typer hands everything on: the flags are those of a dataclass, which argparse reads.
TRAIN_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@dataclass
class DataArguments:
    """What `detr-hf train` asks for beside the training's own arguments."""

    data: str = field(
        metadata={"help": "A folder, a COCO .json, a YOLO data.yaml, or a Hub id with train and validation splits."}
    )
    model: str | None = field(
        default="facebook/detr-resnet-50",
        metadata={"help": "Where to start: a folder, a .pth file or a Hub id. 'scratch' builds a new ResNet-50 DETR."},
    )
    shortest_edge: int | None = field(
        default=None, metadata={"help": "Resize pictures so; the checkpoint's by default, else 800."}
    )
    longest_edge: int | None = field(default=None, metadata={"help": "At most this; in proportion by default."})
    num_queries: int | None = field(
        default=None,
        metadata={"help": "Another number of object queries: the first are kept, or all are tiled."},
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop when the check of the data finds anything, not only errors."}
    )
    skip_check: bool = field(default=False, metadata={"help": "Do not check the data first."})

    @property
    def from_scratch(self) -> bool:
        """Whether a new model is trained."""
        return self.model in (None, "scratch")


def train(context: typer.Context) -> None:
    """Train on a data set: --data DATA --model M --output_dir OUT and every TrainingArguments flag (--help lists
    them); --task instance or panoptic for masks."""
    data_args, reading, args = parse(context.args)
    from .console import quiet_loading

    quiet_loading()
    arguments = {one.name: f"--{one.name}" for one in (*fields(DataArguments), *fields(args))}
    with speaking_of_flags(FLAG_OF | arguments):
        trainer = build(data_args, reading, args)
    result = trainer.train(resume_from_checkpoint=resume_choice(args.resume_from_checkpoint))
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            from ..evaluation import metrics_table

            typer.echo(metrics_table(trainer.last_evaluation))
    if args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        typer.echo(f"Model: {args.output_dir}", err=True)


def parse(flags: list[str]) -> "tuple[DataArguments, Reading, DETRTrainingArguments]":
    """Returns the arguments from flags; shows help or a wrong flag as argparse does, and leaves."""
    from ..training.arguments import DETRTrainingArguments
    from .dataclass_flags import Parser

    return Parser([DataArguments, Reading, DETRTrainingArguments], prog="detr-hf train").parse(flags)


def resume_choice(value: str | None) -> str | bool | None:
    """Returns `--resume_from_checkpoint` as the trainer wants it: True, "auto", a path, or None."""
    return {"true": True, "false": None}.get(str(value).lower(), value) if value else None


def build(data_args: DataArguments, reading: Reading, args: "DETRTrainingArguments") -> "DETRTrainer":
    """Returns the trainer: data read and checked, model loaded."""
    from ..data import load_detection_dataset
    from ..training.trainer import DETRTrainer

    with_masks = needs_masks(data_args, reading.task)
    options = reading.options()
    options["masks"] |= with_masks
    if reading.task == "detection":
        options["task"] = None  # boxes are in every format, and in panoptic data too
    data = load_detection_dataset(data_args.data, **options)
    data.split_for("train")  # says what to do where there is none
    model = load_model(data_args, data.id2label, with_masks)
    if not data_args.skip_check and args.process_index == 0:
        report_check(data, model, data_args.strict)
    return DETRTrainer(model, args, data, processing_class=sized_processor(data_args, model))


def needs_masks(data_args: DataArguments, task: str | None) -> bool:
    """Whether masks are trained: as the task says, and without one where the checkpoint has a mask head."""
    from ..checkpoints.model_classes import has_mask_head

    if task is not None:
        return task != "detection"
    return not data_args.from_scratch and has_mask_head(data_args.model)


def load_model(data_args: DataArguments, id2label: dict[int, str], with_masks: bool) -> Any:
    """Returns the model with the data's classes, and with a mask head, which is new on a detector, or without."""
    from ..model.configuration_detr import DETRConfig
    from ..model.modeling_detr import DETRForObjectDetection, DETRForSegmentation

    model_class = DETRForSegmentation if with_masks else DETRForObjectDetection
    changes: dict[str, Any] = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    if data_args.num_queries is not None:
        changes["num_queries"] = data_args.num_queries
    if data_args.from_scratch:
        return model_class(DETRConfig(**changes))
    return model_class.from_pretrained(data_args.model, **changes)


def sized_processor(data_args: DataArguments, model: Any) -> Any:
    """Returns the checkpoint's image processor, at another size where one is given."""
    from ..checkpoints.processors import processor_of
    from ..processing.image_processing_detr import DETRImageProcessor

    processor = DETRImageProcessor() if data_args.from_scratch else processor_of(model)
    if data_args.shortest_edge or data_args.longest_edge:
        shortest = data_args.shortest_edge or round(data_args.longest_edge * 800 / 1333)
        processor.size = {
            "shortest_edge": shortest,
            "longest_edge": data_args.longest_edge or round(shortest * 1333 / 800),
        }
    return processor


def report_check(data: Any, model: Any, strict: bool) -> None:
    """Prints what the check finds, and leaves with exit code 1 where training would suffer from it."""
    from ..data.checking.check import check

    report = check(data, model.config)
    typer.echo(in_flags(report.text(5)), err=True)
    if report.exit_code(strict):
        typer.echo("detr-hf train: the data has faults, see above. --skip_check trains all the same.", err=True)
        raise typer.Exit(1)
