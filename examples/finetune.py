r"""Fine-tunes a DETR on a folder of pictures and boxes, measures it, and draws what it finds.

    python examples/finetune.py --data cards --backbone_weights tf_efficientnet_lite0.safetensors
    python examples/finetune.py --data cards --model facebook/detr-resnet-50 --output_dir runs/cards
    accelerate launch --num_processes 4 examples/finetune.py --data cards ...

On 296 photographs of playing cards (6 classes, 67 photographs to validate) it reached AP 0.264 and AP50 0.405 in 5
minutes on two cores with bfloat16, from the digit detector that ships with detr_hf:

    python examples/finetune.py --data cards --model detr_hf/assets/detr-digits --options fast --shortest_edge 256 \
        --max-steps 1150 --warmup_steps 60 --learning_rate 4e-4 --backbone_learning_rate 2e-4 \
        --head_learning_rate 4e-4 --lr_scheduler_type cosine --bf16 true --use_cpu true

From a classifier's weights alone (the first line) everything but the backbone starts at random; from a detector (the
second) far fewer steps do. Further flags are those of `DETRTrainingArguments`; the defaults below suit some hundred
pictures. Into `--report` (by default the output folder) go `metrics.json` and `metrics.txt` (COCO's numbers, AP by
class, mistakes), `comparison.png` (validation pictures, ground truth and detections side by side) and `log.json` (the
losses). The measured weights are those of the last step, averaged, so the validation pictures choose nothing. Needs
the extras `train` and `eval`.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from detr_hf import (
    DETRConfig,
    DETRForObjectDetection,
    DETRImageProcessor,
    DETRTrainer,
    DETRTrainingArguments,
    Evaluation,
    check,
    evaluate,
    load_detection_dataset,
)
from detr_hf.data import load_pixels
from detr_hf.visualize import draw_boxes, grid

logger = logging.getLogger("finetune")

# For some hundred pictures: steps are counted, not epochs, and evaluations are rare.
DEFAULTS = {
    "output_dir": "runs/finetune",
    "max_steps": 4000,
    "per_device_train_batch_size": 8,
    "ema_decay": 0.999,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_strategy": "steps",
    "save_steps": 1000,
    "save_total_limit": 1,
    "load_best_model_at_end": False,
    "dataloader_num_workers": 4,
    "dataloader_persistent_workers": True,
    "report_to": "none",
}
# Only where nothing but the backbone was trained before: larger steps than the original's 1e-4 and 1e-5, because the
# transformer is half as deep and the run short; a cosine, because there is no time to choose a drop.
FROM_BACKBONE = {
    "learning_rate": 2e-4,
    "backbone_learning_rate": 5e-5,
    "head_learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
}
LEAST_QUERIES = 25
SHOWN_SCORE = 0.5
TILE_PX = 320


@dataclass
class Start:
    """What is fine-tuned, and on what."""

    data: str = field(metadata={"help": "A COCO, YOLO, VOC or `objects` folder with train and validation splits."})
    model: str | None = field(default=None, metadata={"help": "A checkpoint of any DETR: then no backbone is needed."})
    backbone: str = field(default="tf_efficientnet_lite0", metadata={"help": "A timm model."})
    backbone_weights: str = field(default="imagenet", metadata={"help": "A file, or 'imagenet' from the Hub."})
    backbone_mean: list[float] = field(
        default_factory=lambda: [0.5], metadata={"help": "Mean of the backbone's pictures: one number, or RGB."}
    )
    backbone_std: list[float] = field(default_factory=lambda: [0.5], metadata={"help": "And their deviation."})
    shortest_edge: int = field(default=384, metadata={"help": "Pictures are resized so."})
    num_queries: int | None = field(
        default=None, metadata={"help": "By default twice the objects of the fullest picture, and 25 or more."}
    )
    layers: int = field(default=3, metadata={"help": "Of the encoder, and of the decoder, of a new model."})
    options: str = field(
        default="detr",
        metadata={
            "help": "What helps a model learn, by name: 'detr' (nothing), 'fast' (training only) or 'fast_ref'."
        },
    )
    report: str | None = field(default=None, metadata={"help": "Where measurements go; by default output_dir."})
    shown: int = field(default=10, metadata={"help": "Validation pictures to draw."})


def parse() -> tuple[Start, DETRTrainingArguments]:
    """Returns the command line, with `DEFAULTS` and, without `--model`, `FROM_BACKBONE` for what it does not say."""
    parser = HfArgumentParser([Start, DETRTrainingArguments], description=(__doc__ or "").partition("\n")[0])
    parser.set_defaults(**DEFAULTS)
    if parser.parse_known_args()[0].model is None:
        parser.set_defaults(**FROM_BACKBONE)
    start, args = parser.parse_args_into_dataclasses()
    if start.options not in DETRTrainingArguments.model_options:
        parser.error(f"--options is {start.options!r}; choose {', '.join(DETRTrainingArguments.model_options)}.")
    return start, args


def build_processor(start: Start) -> DETRImageProcessor:
    """Returns the checkpoint's image processor, or one for the backbone, at the size of the run."""
    longest = round(start.shortest_edge * 1333 / 800)
    size = {"shortest_edge": start.shortest_edge, "longest_edge": longest}
    if start.model is not None:
        return DETRImageProcessor.from_pretrained(start.model, size=size)
    mean, std = (
        3 * numbers if len(numbers) == 1 else numbers for numbers in (start.backbone_mean, start.backbone_std)
    )
    return DETRImageProcessor(size=size, image_mean=mean, image_std=std)


def build_model(start: Start, data: Any) -> DETRForObjectDetection:
    """Returns the checkpoint with the classes of the data, or a small DETR around the backbone."""
    changes: dict[str, Any] = dict(DETRTrainingArguments.model_options[start.options])
    if start.num_queries is not None:
        changes["num_queries"] = start.num_queries
    if start.model is not None:
        return DETRForObjectDetection.from_pretrained(start.model, id2label=data.id2label, **changes)
    fullest = max(len(objects["bbox"]) for split in data.values() for objects in split.with_format(None)["objects"])
    small = {"enc_layers": start.layers, "dec_layers": start.layers, "dim_feedforward": 1024}
    config = DETRConfig(
        backbone=start.backbone,
        backbone_weights=start.backbone_weights,
        dilation=True,  # stride 16: small pictures have few cells otherwise
        id2label=data.id2label,
        **{**small, "num_queries": max(LEAST_QUERIES, 2 * fullest), **changes},
    )
    return DETRForObjectDetection(config)


def report(folder: Path, model_folder: str, data: Any, start: Start) -> Evaluation:
    """Measures the saved model on the validation split, writes table and picture, and returns what it reached."""
    folder.mkdir(parents=True, exist_ok=True)
    split = data.split_for("validation")
    reached = evaluate(model_folder, data, split=split, threshold=SHOWN_SCORE)
    (folder / "metrics.txt").write_text(reached.table() + "\n")
    logger.info("%s", reached.table())
    picture = draw_comparisons(data[split], reached.detections, data.id2label, start.shown)
    picture.save(folder / "comparison.png", optimize=True)
    return reached


def draw_comparisons(rows: Any, found: np.ndarray, id2label: dict[int, str], count: int) -> Image.Image:
    """Returns `count` pictures spread evenly over the split, truth beside `found (N, 7)`, `Evaluation.detections`."""
    plain = rows.with_format(None).cast_column("image", type(rows.features["image"])(decode=False))
    cells, captions = [], []
    for position in np.linspace(0, len(plain) - 1, min(count, len(plain))).round().astype(int).tolist():
        row = plain[position]
        name = str(row["file_name"])
        pixels = load_pixels(row["image"], name, (row["width"], row["height"]))  # (3, H, W)
        mine = found[(found[:, 0] == row["image_id"]) & (found[:, 5] >= SHOWN_SCORE)]
        objects = row["objects"]
        for boxes, labels, scores in (
            (np.array(objects["bbox"]), objects["category"], None),
            (mine[:, 1:5], mine[:, 6].astype(int).tolist(), mine[:, 5].tolist()),
        ):
            names = [id2label[label] for label in labels]
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            cells.append(draw_boxes(image, _corners(boxes), names, labels=labels, scores=scores, side=TILE_PX))
        captions += [name, ""]  # one above both
    return grid(cells, heads=("ground truth", f"over {SHOWN_SCORE}") * 2, captions=captions, side=TILE_PX)


def _corners(boxes_xywh_abs: np.ndarray) -> np.ndarray:
    boxes = boxes_xywh_abs.reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def main() -> None:
    """Checks the data, trains, measures and draws."""
    start, args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    disable_progress_bar()
    data = load_detection_dataset(start.data)
    if args.process_index == 0:
        logger.info("%s", check(data).text(3))
    torch.manual_seed(args.seed)
    trainer = DETRTrainer(build_model(start, data), args, data, processing_class=build_processor(start))
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - began
    trainer.save_model()  # every process takes part
    if not trainer.is_world_process_zero():
        return
    folder = Path(start.report or args.output_dir)
    reached = report(folder, args.output_dir, data, start)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cost = {"training_seconds": round(seconds, 1), "steps": trainer.state.global_step, "device": device}
    cost["processes"] = args.world_size
    settings = {"start": vars(start), "recipe": args.recipe, "learning_rate": args.learning_rate, "seed": args.seed}
    reached.save(folder / "metrics.json", {**cost, **settings})
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=0) + "\n")
    logger.info("%s. Report: %s. Model: %s", cost, folder, args.output_dir)


if __name__ == "__main__":
    main()
