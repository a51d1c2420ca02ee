r"""Teaches the digit detector that ships with detr_hf masks: instances of digits, then panoptic segments of scenes.

    python examples/panoptic.py --freeze_detector --use_cpu
    python examples/panoptic.py --use_cpu
    python examples/panoptic.py --freeze_detector --use_cpu --model runs/panoptic --output_dir runs/panoptic-masks \
        --max_steps 900 --seed 42 --card detr-digits-panoptic.md

On 300 validation scenes the first reached mask AP 0.664 in 12 minutes on one core that other work shared. The second
took 30 minutes more (PQ 0.763) and the third 11: PQ 0.817 (things 0.799, stuff 0.906), mask AP 0.673. Box AP is 0.687,
and 0.685 where the second trains `--boxes_only`.

The first command trains the mask head alone, on the detector as it is: ten classes, and scenes whose objects are
digits. The second goes on from there with boxes and masks together; two kinds of background are stuff, classes that
the detector did not have. The third settles the masks on boxes that stay. With `--boxes_only` the second trains the
same model on the same scenes without masks. Further flags are those of `DETRTrainingArguments`.

The output folder holds the model (for others, in `detr-digits-panoptic`), `metrics.json`, `curves.json` (losses and
measurements over the steps) and `scenes.png` (ten validation scenes, truth and segments); `--card` names the card to
write. The measured weights are those of the last step, averaged: the validation scenes choose nothing. Needs the
extras `train` and `eval`.
"""

import json
import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from detr_hf import (
    Detector,
    DETRConfig,
    DETRForObjectDetection,
    DETRForSegmentation,
    DETRImageProcessor,
    DETRTrainer,
    DETRTrainingArguments,
    Evaluation,
    evaluate,
)
from detr_hf.data import DigitScenes, prepare
from detr_hf.hub import facts_of, render_card, write_manifest
from detr_hf.visualize import draw_segments, grid

logger = logging.getLogger("panoptic")

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 40,
    "seed": 0,
    "augment": "none",  # no scene comes twice
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_total_limit": 1,
    "load_best_model_at_end": False,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "report_to": "none",
}
# The mask head is new and the rest stays; then all learns, and nothing is new but two rows of the class head.
HEAD_ONLY = {"output_dir": "runs/instances", "max_steps": 800, "learning_rate": 2e-3, "ema_decay": 0.99}
JOINT = {
    "output_dir": "runs/panoptic",
    "max_steps": 1300,
    "learning_rate": 4e-4,
    "backbone_learning_rate": 2e-4,
    "head_learning_rate": 1e-3,
    "ema_decay": 0.998,
}
# Of the class in matching, while boxes learn. The boxes of both backgrounds are nearly the whole picture: with the
# usual 1 they decide, either query gets either background, and both stay undecided.
COST_CLASS = 10.0
NAME = "detr-digits-panoptic"
CARD_TEXT = Path(__file__).parent / "panoptic" / "card.md"
DETECTOR_FACTS = Path(__file__).parent.parent / "model_cards" / "facts" / "detr-digits.json"
SHIPPED = "detr_hf/assets/detr-digits"
SETTINGS = ("learning_rate", "backbone_learning_rate", "head_learning_rate", "ema_decay", "train_batch_size")


@dataclass
class Task:
    """What learns, from what, and on how many scenes it is measured."""

    model: str | None = field(
        default=None,
        metadata={"help": "A checkpoint to start from: by default the shipped detector, then runs/instances."},
    )
    boxes_only: bool = field(default=False, metadata={"help": "No masks: what boxes reach without them."})
    mask_weight: float = field(default=2.0, metadata={"help": "Of both mask losses, where boxes learn too."})
    scenes: int = field(default=300, metadata={"help": "Validation scenes to measure in the end."})
    scenes_for_curves: int = field(default=60, metadata={"help": "And the first of them, while it learns."})
    card: str | None = field(default=None, metadata={"help": "The model card to write."})


class DigitsAlone(Dataset):
    """Scenes whose objects are digits; the backgrounds are no objects."""

    def __init__(self, scenes: DigitScenes):
        self.scenes = scenes
        self.id2label = dict(list(scenes.id2label.items())[: len(scenes.classes)])

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        digits = [number for number, label in enumerate(scene["objects"]["category"]) if label in self.id2label]
        objects = {name: [values[number] for number in digits] for name, values in scene["objects"].items()}
        return {**scene, "objects": objects}


def parse() -> tuple[Task, DETRTrainingArguments]:
    """Returns the command line, with the defaults of the stage for what it does not say."""
    parser = HfArgumentParser([Task, DETRTrainingArguments], description=(__doc__ or "").partition("\n")[0])
    parser.set_defaults(**{**DEFAULTS, **JOINT})
    frozen = next(action for action in parser._actions if action.dest == "freeze_detector")
    frozen.nargs, frozen.const = "?", True  # a flag without a value, as others are
    if parser.parse_known_args()[0].freeze_detector:
        parser.set_defaults(**HEAD_ONLY)
    task, args = parser.parse_args_into_dataclasses()
    if args.freeze_detector and task.boxes_only:
        parser.error("--freeze_detector and --boxes_only leave nothing to train.")
    task.model = task.model or (SHIPPED if args.freeze_detector else HEAD_ONLY["output_dir"])
    return task, args


def scenes(split: str, count: int, task: Task, args: DETRTrainingArguments) -> Dataset:
    """Returns the first scenes of a split; a frozen detector keeps its classes, which may be digits alone."""
    drawn = DigitScenes(split, length=count, masks=True)
    labels = DETRConfig.from_pretrained(task.model).num_labels if args.freeze_detector else len(drawn.id2label)
    return DigitsAlone(drawn) if labels == len(drawn.classes) else drawn


def build_model(task: Task, args: DETRTrainingArguments, id2label: dict[int, str]) -> nn.Module:
    """Returns the checkpoint with the classes of the scenes."""
    changes: dict[str, Any] = {} if args.freeze_detector else {"set_cost_class": COST_CLASS}
    if task.boxes_only:
        return DETRForObjectDetection.from_pretrained(task.model, id2label=id2label, **changes)
    changes["freeze_detector"] = bool(args.freeze_detector)
    weight = 1.0 if args.freeze_detector else task.mask_weight
    changes |= dict.fromkeys(("mask_loss_coef", "dice_loss_coef"), weight)
    return DETRForSegmentation.from_pretrained(task.model, id2label=id2label, **changes)


def draw(folder: Path, rows: Dataset, processor: DETRImageProcessor, count: int = 10) -> Image.Image:
    """Returns the first scenes, each with the truth on its left and what the model finds on its right."""
    detector, targets, tiles = Detector.from_pretrained(str(folder)), prepare(rows, processor, masks=True), []
    for number in range(min(count, len(rows))):
        image, labels = rows[number]["image"], targets[number]["labels"]
        ids = sum(place * mask for place, mask in enumerate(labels["masks"].byte(), start=1))
        ids = np.array(Image.fromarray(ids.numpy()).resize(image.size, Image.Resampling.NEAREST))
        classes = enumerate(labels["class_labels"].tolist(), start=1)
        truth = [{"id": place, "label_id": label, "name": rows.id2label[label]} for place, label in classes]
        tiles += [draw_segments(image, ids, truth), detector(image, threshold=0.5).draw(what="panoptic")]
    return grid(tiles, heads=("truth", "found") * 2, side=max(tiles[0].size), gap=4)


def report(task: Task, trainer: DETRTrainer, minutes: float) -> None:
    """Measures the saved model, and writes numbers, curves, picture and card."""
    args, processor, folder = trainer.args, trainer.processing_class, Path(trainer.args.output_dir)
    rows = scenes("validation", task.scenes, task, args)
    reached = evaluate(trainer.model, rows, processor=processor)
    logger.info("%s", reached.table())
    run = {"seed": args.seed, "steps": trainer.state.global_step, "freeze_detector": bool(args.freeze_detector)}
    run |= {"minutes": round(minutes, 1), "processes": args.world_size, "threads": torch.get_num_threads()}
    run |= {"device": torch.cuda.get_device_name() if args.device.type == "cuda" else "a CPU"}
    run |= {"mask_weight": task.mask_weight, **{name: getattr(args, name) for name in SETTINGS}}
    reached.save(folder / "metrics.json", {**vars(task), **run})
    (folder / "curves.json").write_text(json.dumps(trainer.state.log_history, indent=0) + "\n")
    if task.boxes_only:
        return
    trainer.model.freeze_detector(False)  # whoever trains it further decides anew
    trainer.model.save_pretrained(folder / NAME)
    processor.save_pretrained(folder / NAME)
    write_manifest(folder / NAME)
    draw(folder / NAME, rows, processor).quantize(128).save(folder / "scenes.png", optimize=True)
    if task.card:
        facts = card_facts(trainer.model, processor, reached, stages(folder))
        card = Path(task.card)
        (card.parent / "facts").mkdir(parents=True, exist_ok=True)
        (card.parent / "facts" / f"{card.stem}.json").write_text(json.dumps(facts, indent=2) + "\n")
        card.write_text(render_card(facts), encoding="utf-8")


def stages(folder: Path) -> list[dict[str, Any]]:
    """Returns what each stage noted of itself, from the first, which began with the detector, to that of `folder`."""
    file = folder / "metrics.json"
    if not file.is_file():
        return []
    noted = json.loads(file.read_text(encoding="utf-8"))
    return [*stages(Path(noted["model"])), noted]


def stage_text(number: int, run: dict[str, Any]) -> str:
    """Returns a stage as an item of the card's list."""
    learnt = "The mask head alone" if run["freeze_detector"] else "Boxes and masks together"
    rates = f"AdamW {run['learning_rate']:g}"
    if not run["freeze_detector"]:
        rates += f" (backbone {run['backbone_learning_rate']:g}, class head {run['head_learning_rate']:g})"
    reached = f"box AP {run['AP']:.3f}, mask AP {run['masks']['AP']:.3f}"
    reached += f", PQ {run['panoptic']['PQ']:.3f}" if "panoptic" in run else ""
    steps = f"{run['steps']} steps of {run['train_batch_size']} scenes, {run['minutes']} minutes on {run['device']}"
    return (
        f"{number}. {learnt}, {len(run['per_class'])} classes: {steps} (threads: {run['threads']}; another process "
        f"drew the scenes), seed {run['seed']}. {rates}, average of weights {run['ema_decay']:g}. Then {reached}."
    )


def card_facts(
    model: DETRForSegmentation, processor: DETRImageProcessor, reached: Evaluation, noted: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what the card says: numbers measured here, and the texts of `panoptic/card.md`."""
    facts = facts_of(model, NAME, processor, reached, license="apache-2.0")
    detector = json.loads(DETECTOR_FACTS.read_text(encoding="utf-8"))
    counts = {name: int(row["objects"]) for name, row in reached.per_class.items()}
    listed = "\n".join(stage_text(number, run) for number, run in enumerate(noted, start=1))
    values = {"images": reached.coco.num_images, "objects": sum(counts.values()), "stages": listed}
    text = CARD_TEXT.read_text(encoding="utf-8").format(**values)
    parts = re.split(r"^# (\w+)\n", text, flags=re.MULTILINE)
    texts = {name: part.strip() for name, part in zip(parts[1::2], parts[2::2], strict=True)}
    measured = {"dataset": "digit scenes with masks (validation)", "type": "digit-scenes", "text": texts["score"]}
    return {
        **facts,
        "summary": texts["summary"],
        "use": texts["use"],
        "base_model": None,
        "megabytes": round(4 * model.num_parameters() / 1e6, 1),
        "evaluation": {**facts["evaluation"], **measured},
        "data": {"name": "digit scenes", "text": f"{texts['data']}\n\n{detector['data']['text']}"},
        "training": {"text": texts["training"]},
        "limits": texts["limits"],
        "licence_text": detector["licence_text"],
    }


def main() -> None:
    """Trains, measures, draws and writes the card."""
    task, args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    disable_progress_bar()
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    data = {
        "train": scenes("train", int(args.max_steps) * batch, task, args),
        "validation": scenes("validation", task.scenes_for_curves, task, args),
    }
    torch.manual_seed(args.seed)
    model = build_model(task, args, data["train"].id2label)
    processor = DETRImageProcessor.from_pretrained(task.model)
    trainer = DETRTrainer(model, args, data, processing_class=processor)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    minutes = (time.perf_counter() - began) / 60
    trainer.save_model()  # every process takes part
    if trainer.is_world_process_zero():
        report(task, trainer, minutes)


if __name__ == "__main__":
    main()
