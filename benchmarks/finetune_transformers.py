"""transformers' own DETR, fine-tuned as its own guide does it: what `examples/finetune.py` is compared with.

    python benchmarks/finetune_transformers.py --data cards --backbone_weights tf_efficientnet_lite0.safetensors

Model, image processor, post-processing and Trainer are transformers'; only the data reader and the evaluator are ours.
`--recipe guide` is transformers' object detection guide (docs, tasks/object_detection): batches of 8, AdamW 5e-5 for
everything, cosine, weight decay 1e-4, clip 0.01, no warm-up, auxiliary losses off as the configuration ships, pictures
padded to a square. Its augmentation (perspective 0.1, flip 0.5, brightness and contrast 0.5, hue and saturation 0.1)
is done with torchvision where the guide uses albumentations. The guide starts from COCO's detector; here, as on our
side, only the backbone was trained before. `--recipe original` has the settings of the original code instead: 1e-4 and
1e-5 for the backbone, clip 0.1, auxiliary losses on. Initialisation is the library's in both.

One repair is in the peer's favour. Its DETR replaces each batch norm by a frozen one, and for EfficientNets timm's
norms hold the activation too: without it the features grow to 1e14, and the loss is NaN at the second step
(`--as_shipped` shows it). Here the backbone keeps its activations.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import DetrConfig, DetrForObjectDetection, Trainer, TrainingArguments
from transformers.models.detr import DetrImageProcessor
from transformers.utils.logging import disable_progress_bar

from detr_hf import load_detection_dataset
from detr_hf.data.pictures import load_pixels
from detr_hf.evaluation import evaluate_boxes, metrics_table
from detr_hf.evaluation.truth import ground_truth_of
from detr_hf.model.backbone_detr import freeze_batch_norms

logger = logging.getLogger("finetune_transformers")

RECIPES: dict[str, dict[str, Any]] = {
    "guide": {"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "max_grad_norm": 0.01},
    "original": {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "max_grad_norm": 0.1},
}
BACKBONE_RATE = 1e-5  # of the original; the guide has one rate for everything
SMALLEST_BOX_PX = 1.0


class Pictures(Dataset):
    """Rows of our schema as transformers' processor makes them; `augment` takes an image and its boxes, or is None."""

    def __init__(self, rows: Any, processor: DetrImageProcessor, augment: v2.Transform | None = None):
        column = rows.features["image"]
        self.rows = rows.with_format(None).cast_column("image", type(column)(decode=False))
        self.processor = processor
        self.augment = augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = tv_tensors.Image(load_pixels(row["image"], row["file_name"], (row["width"], row["height"])))
        objects, size_hw = row["objects"], (row["height"], row["width"])
        chosen = [place for place, crowd in enumerate(objects["iscrowd"]) if not crowd]
        values = torch.tensor([objects["bbox"][place] for place in chosen], dtype=torch.float32).reshape(-1, 4)
        boxes = tv_tensors.BoundingBoxes(values, format="XYWH", canvas_size=size_hw)
        labels = torch.tensor([objects["category"][place] for place in chosen], dtype=torch.int64)
        if self.augment is not None:
            image, target = self.augment(image, {"boxes": boxes, "labels": labels})
            boxes, labels = target["boxes"], target["labels"]
        annotations = [
            {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        batch = self.processor(
            image.as_subclass(torch.Tensor),
            annotations={"image_id": row["image_id"], "annotations": annotations},
            return_tensors="pt",
        )
        return {"pixel_values": batch["pixel_values"][0], "pixel_mask": batch["pixel_mask"][0], **_labels(batch)}


def _labels(batch: Any) -> dict[str, Any]:
    return {"labels": dict(batch["labels"][0])}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch; all pictures are padded to one square already."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "pixel_mask")}
    return {**batch, "labels": [row["labels"] for row in rows]}


def guide_augmentation() -> v2.Transform:
    """The guide's augmentation, in torchvision's transforms."""
    return v2.Compose(
        [
            v2.RandomPerspective(0.1, p=0.1),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], p=0.5),
            v2.RandomApply([v2.ColorJitter(hue=0.05, saturation=0.2)], p=0.1),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(min_size=SMALLEST_BOX_PX, min_area=25),
        ]
    )


def build_model(options: argparse.Namespace, id2label: dict[int, str]) -> DetrForObjectDetection:
    """transformers' DETR with the backbone's weights; sizes are those of `examples/finetune.py`."""
    torch.manual_seed(options.seed)
    config = DetrConfig(
        backbone=options.backbone,
        use_timm_backbone=True,
        dilation=True,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        num_queries=options.num_queries,
        auxiliary_loss=options.recipe == "original",
        id2label=id2label,
        label2id={name: label for label, name in id2label.items()},
    )
    model = DetrForObjectDetection(config)
    encoder = model.model.backbone
    if not options.as_shipped:
        encoder.model = timm.create_model(
            options.backbone, features_only=True, out_indices=(1, 2, 3, 4), output_stride=16
        )
    weights = load_file(options.backbone_weights)
    wanted = encoder.model.state_dict()
    missing = [name for name in wanted if name not in weights and "num_batches" not in name]
    if missing:
        raise ValueError(f"{options.backbone_weights} lacks {len(missing)} tensors of the backbone: {missing[:3]}.")
    encoder.model.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)
    if not options.as_shipped:
        freeze_batch_norms(encoder.model, keep_values=True)
    return model


def rate_groups(model: DetrForObjectDetection, learning_rate: float) -> list[dict[str, Any]]:
    """Trainable parameters, the backbone's with the original's rate."""
    groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["backbone" in name].append(parameter)
    return [{"params": groups[False], "lr": learning_rate}, {"params": groups[True], "lr": BACKBONE_RATE}]


@torch.no_grad()
def detect(model: DetrForObjectDetection, pictures: Pictures, batch_size: int = 8) -> list[dict[str, Any]]:
    """COCO results by transformers' own post-processing, without a threshold."""
    model.eval()
    results = []
    for start in range(0, len(pictures), batch_size):
        batch = collate([pictures[index] for index in range(start, min(start + batch_size, len(pictures)))])
        tensors = {name: batch[name].to(model.device) for name in ("pixel_values", "pixel_mask")}
        sizes_hw = torch.stack([label["orig_size"] for label in batch["labels"]])
        found = pictures.processor.post_process_object_detection(
            model(**tensors), threshold=0.0, target_sizes=sizes_hw
        )
        for label, objects in zip(batch["labels"], found, strict=True):
            for score, category, (x0, y0, x1, y1) in zip(
                objects["scores"].tolist(), objects["labels"].tolist(), objects["boxes"].tolist(), strict=True
            ):
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
                results.append({"image_id": int(label["image_id"]), "category_id": category, **box})
    return results


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--backbone_weights", required=True, help="a safetensors file of timm's names")
    parser.add_argument("--recipe", choices=RECIPES, default="guide")
    parser.add_argument(
        "--as_shipped", action="store_true", help="keep its frozen batch norms, which lose a timm norm's activation"
    )
    parser.add_argument("--square", type=int, default=512, help="pictures fit into this square, and are padded to it")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--num_queries", type=int, default=25)
    parser.add_argument("--max_steps", "--max-steps", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", default="runs/finetune_transformers")
    parser.add_argument("--report", help="where measurements go; by default output_dir")
    return parser.parse_args()


def train(options: argparse.Namespace, data: Any, model: DetrForObjectDetection, pictures: Pictures) -> Trainer:
    """transformers' Trainer, run."""
    recipe = RECIPES[options.recipe]
    args = TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=8,
        weight_decay=1e-4,
        dataloader_num_workers=options.workers,
        dataloader_persistent_workers=options.workers > 0,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        seed=options.seed,
        **recipe,
    )
    optimizers: tuple[Any, Any] = (None, None)
    if options.recipe == "original":
        groups = rate_groups(model, recipe["learning_rate"])
        optimizers = (torch.optim.AdamW(groups, weight_decay=1e-4), None)
    trainer = Trainer(model, args, collate, pictures, optimizers=optimizers)
    trainer.train()
    return trainer


def main() -> None:
    """Trains, detects with transformers' code, measures with ours."""
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    disable_progress_bar()
    data = load_detection_dataset(options.data)
    side = options.square
    processor = DetrImageProcessor(
        size={"max_height": side, "max_width": side},
        pad_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    model = build_model(options, data.id2label)
    validation = data[data.split_for("validation")]
    began = time.perf_counter()
    trainer = train(options, data, model, Pictures(data[data.split_for("train")], processor, guide_augmentation()))
    seconds = time.perf_counter() - began
    trainer.save_model()
    processor.save_pretrained(options.output_dir)
    results = detect(model, Pictures(validation, processor))
    truth = ground_truth_of(validation, data.id2label)
    metrics = evaluate_boxes(truth, results)
    folder = Path(options.report or options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    table = metrics_table(metrics)
    logger.info("%s", table)
    (folder / "metrics.txt").write_text(table + "\n")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cost = {"training_seconds": round(seconds, 1), "steps": trainer.state.global_step, "device": device}
    numbers = {**cost, "options": vars(options), **metrics.to_dict()}
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=0) + "\n")
    logger.info("%s. Report: %s", cost, folder)


if __name__ == "__main__":
    main()
