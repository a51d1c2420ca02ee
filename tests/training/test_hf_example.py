"""transformers' object-detection example and guide, with our classes in the place of theirs.

The functions have the shape of those in examples/pytorch/object-detection/run_object_detection.py and in the task
guide, in words of our own: an augmentation that is called by name and gives class ids back as floats, a collator that
stacks, metrics that read predictions by position and post-process a small dataclass.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
)
from transformers.image_transforms import center_to_corners_format

from detr_hf import DETRImageProcessor, DETRTrainer, DETRTrainingArguments

from .scenes import micro_model, split_of

ARGUMENTS = {Trainer: TrainingArguments, DETRTrainer: DETRTrainingArguments}
NAMES = {0: "cat", 1: "dog", 2: "owl"}


class FlipAsAlbumentations:
    """Mirrors; boxes are x, y, width, height, and `category` comes back as Albumentations 2 has it, as floats."""

    def __call__(self, *, image, bboxes, category):
        width = image.shape[1]
        boxes = [(width - x - w, y, w, h) for x, y, w, h in bboxes]
        return {"image": image[:, ::-1].copy(), "bboxes": boxes, "category": [float(value) for value in category]}


def as_coco(image_id, categories, areas, boxes) -> dict:
    annotations = [
        {"image_id": image_id, "category_id": category, "iscrowd": 0, "area": area, "bbox": list(box)}
        for category, area, box in zip(categories, areas, boxes, strict=True)
    ]
    return {"image_id": image_id, "annotations": annotations}


def transform_batch(examples, transform, image_processor, return_pixel_mask=False):
    images, annotations = [], []
    rows = zip(examples["image_id"], examples["image"], examples["objects"], strict=True)
    for image_id, image, objects in rows:
        image = np.array(image.convert("RGB"))
        output = transform(image=image, bboxes=objects["bbox"], category=objects["category"])
        images.append(output["image"])
        annotations.append(as_coco(image_id, output["category"], objects["area"], output["bboxes"]))
    result = image_processor(images=images, annotations=annotations, return_tensors="pt")
    if not return_pixel_mask:
        result.pop("pixel_mask", None)
    return result


def collate(batch):
    data = {"pixel_values": torch.stack([row["pixel_values"] for row in batch])}
    data["labels"] = [row["labels"] for row in batch]
    if "pixel_mask" in batch[0]:
        data["pixel_mask"] = torch.stack([row["pixel_mask"] for row in batch])
    return data


@dataclass
class Outputs:
    """What the guide hands to the image processor."""

    logits: torch.Tensor
    pred_boxes: torch.Tensor


def to_pascal(boxes, image_size):
    height, width = image_size
    return center_to_corners_format(boxes) * torch.tensor([[width, height, width, height]])


@torch.no_grad()
def count_and_recall(results, image_processor, threshold=0.0):
    """Stands for the guide's torchmetrics: how many of the true boxes some prediction covers to a tenth."""
    predictions, targets = results.predictions, results.label_ids
    truths, found = [], []
    for batch, batch_targets in zip(predictions, targets, strict=True):
        sizes = torch.tensor(np.array([target["orig_size"] for target in batch_targets]))
        for target in batch_targets:
            truths.append(to_pascal(torch.tensor(target["boxes"]), target["orig_size"]))
        logits, boxes = batch[1], batch[2]
        output = Outputs(logits=torch.tensor(logits), pred_boxes=torch.tensor(boxes))
        found += image_processor.post_process_object_detection(output, threshold=threshold, target_sizes=sizes)
    assert len(truths) == len(found) and all(len(one["boxes"]) for one in found)
    return {"map": 0.25, "pictures": len(found), "objects": sum(map(len, truths)), "one_class": found[0]["labels"][0]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    micro_model().save_pretrained(folder)
    DETRImageProcessor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("with_mask", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("trainer", "arguments"), [(Trainer, TrainingArguments), (DETRTrainer, DETRTrainingArguments)]
)
def test_the_example_runs_unchanged(trainer, arguments, with_mask, checkpoint, tmp_path):
    label2id = {name: label for label, name in NAMES.items()}
    model = AutoModelForObjectDetection.from_pretrained(
        checkpoint, id2label=NAMES, label2id=label2id, ignore_mismatched_sizes=True
    )
    sizes = {"size": {"max_height": 48, "max_width": 64}, "pad_size": {"height": 48, "width": 64}}
    processor = AutoImageProcessor.from_pretrained(checkpoint, do_resize=True, do_pad=True, use_fast=True, **sizes)
    transform = partial(transform_batch, image_processor=processor, return_pixel_mask=with_mask)
    train = split_of([[0], [0, 1], [2], [1]]).with_transform(partial(transform, transform=FlipAsAlbumentations()))
    validation = split_of([[0], [1, 2], [2]]).with_transform(partial(transform, transform=FlipAsAlbumentations()))
    args = ARGUMENTS[trainer](
        output_dir=str(tmp_path),
        num_train_epochs=2,
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        weight_decay=1e-4,
        max_grad_norm=0.01,
        per_device_train_batch_size=2,
        metric_for_best_model="eval_map",
        greater_is_better=True,
        load_best_model_at_end=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        # of a last batch that is smaller plain Trainer cuts the targets' tensors, whatever the model
        per_device_eval_batch_size=2 if trainer is DETRTrainer else 3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    run = trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        data_collator=collate,
        compute_metrics=partial(count_and_recall, image_processor=processor),
    )
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=9))
    run.train()
    metrics = run.evaluate(eval_dataset=validation, metric_key_prefix="test")
    assert (metrics["test_pictures"], metrics["test_objects"], metrics["test_map"]) == (3, 4, 0.25)
    assert run.state.best_metric == 0.25 and run.state.global_step == 4
    assert ("test_ap" in metrics) == (trainer is DETRTrainer)


@pytest.mark.parametrize("trainer", ARGUMENTS)
def test_metrics_may_ask_for_losses_and_inputs_and_come_batch_by_batch(trainer, checkpoint, tmp_path):
    asked = []

    def metrics(results, compute_result=None):
        asked.append((results.losses is not None, results.inputs is not None))
        return {"one": 1.0}

    for batchwise in (False, True):
        args = ARGUMENTS[trainer](
            str(tmp_path),
            include_for_metrics=["loss", "inputs"],
            batch_eval_metrics=batchwise,
            per_device_eval_batch_size=2,
            remove_unused_columns=False,
            eval_do_concat_batches=False,
            report_to="none",
            use_cpu=True,
            eval_strategy="no",
        )
        processor = DETRImageProcessor(size={"height": 32, "width": 64})
        rows = split_of([[0], [1, 2], [2]])
        rows = rows.with_transform(
            partial(transform_batch, transform=FlipAsAlbumentations(), image_processor=processor)
        )
        run = trainer(micro_model(), args, data_collator=collate, eval_dataset=rows, compute_metrics=metrics)
        assert run.evaluate()["eval_one"] == 1.0
    assert set(asked) == {(True, True)} and len(asked) == 3
