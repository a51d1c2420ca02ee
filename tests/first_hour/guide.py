"""transformers' guide to object detection as its users run it, with a detr_hf model and drawn digits in its place.

What the guide uses is all here: auto classes, Albumentations with its COCO boxes, a collator that stacks, predictions
that are read by position, a small dataclass that is post-processed, torchmetrics, the stock Trainer, the pipeline.
"""

from dataclasses import dataclass
from functools import partial

import albumentations
import numpy as np
import torch
from torchmetrics.detection.mean_ap import MeanAveragePrecision
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.image_transforms import center_to_corners_format

import detr_hf

SIZE = 160
checkpoint = str(detr_hf.embedded_model_path())
data = detr_hf.load_detection_dataset("digits", splits=["validation"])
rows = data["validation"]
names = dict(data.id2label)


def formatted(image_id, categories, boxes):
    annotations = [
        {"image_id": image_id, "category_id": category, "iscrowd": 0, "area": box[2] * box[3], "bbox": list(box)}
        for category, box in zip(categories, boxes, strict=True)
    ]
    return {"image_id": image_id, "annotations": annotations}


def augmented(examples, transform, image_processor):
    images, annotations = [], []
    rows_of_batch = zip(examples["image_id"], examples["image"], examples["objects"], strict=True)
    for image_id, image, objects in rows_of_batch:
        output = transform(image=np.array(image.convert("RGB")), bboxes=objects["bbox"], category=objects["category"])
        images.append(output["image"])
        annotations.append(formatted(image_id, output["category"], output["bboxes"]))
    result = image_processor(images=images, annotations=annotations, return_tensors="pt")
    result.pop("pixel_mask", None)
    return result


def collate(batch):
    pixels = torch.stack([row["pixel_values"] for row in batch])
    return {"pixel_values": pixels, "labels": [row["labels"] for row in batch]}


@dataclass
class ModelOutput:
    logits: torch.Tensor
    pred_boxes: torch.Tensor


def pascal(boxes, image_size):
    height, width = image_size
    return center_to_corners_format(boxes) * torch.tensor([[width, height, width, height]])


@torch.no_grad()
def compute_metrics(results, image_processor):
    found, truths = [], []
    for batch, targets in zip(results.predictions, results.label_ids, strict=True):
        sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
        for target in targets:
            boxes = pascal(torch.tensor(target["boxes"]), target["orig_size"])
            truths.append({"boxes": boxes, "labels": torch.tensor(target["class_labels"])})
        output = ModelOutput(logits=torch.tensor(batch[1]), pred_boxes=torch.tensor(batch[2]))
        found += image_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    metric = MeanAveragePrecision(box_format="xyxy", class_metrics=True)
    metric.update(found, truths)
    return {"map": metric.compute()["map"].item()}


processor = AutoImageProcessor.from_pretrained(
    checkpoint,
    do_resize=True,
    size={"max_height": SIZE, "max_width": SIZE},
    do_pad=True,
    pad_size={"height": SIZE, "width": SIZE},
)
model = AutoModelForObjectDetection.from_pretrained(
    checkpoint, id2label=names, label2id={name: label for label, name in names.items()}, ignore_mismatched_sizes=True
)
transform = albumentations.Compose(
    [albumentations.Perspective(p=0.1), albumentations.RandomBrightnessContrast(p=0.5)],
    bbox_params=albumentations.BboxParams(format="coco", label_fields=["category"], clip=True, min_area=25),
)
plain = albumentations.Compose(
    [albumentations.NoOp()], bbox_params=albumentations.BboxParams(format="coco", label_fields=["category"], clip=True)
)
prepared = partial(augmented, image_processor=processor)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="guide-out",
        max_steps=2,
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        max_grad_norm=0.01,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        metric_for_best_model="eval_map",
        greater_is_better=True,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=2,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=rows.select(range(8)).with_transform(
        partial(augmented, transform=transform, image_processor=processor)
    ),
    eval_dataset=rows.select(range(8)).with_transform(partial(prepared, transform=plain)),
    processing_class=processor,
    data_collator=collate,
    compute_metrics=partial(compute_metrics, image_processor=processor),
)
trainer.train()
score = trainer.evaluate()["eval_map"]
trainer.save_model("guide-model")
objects = pipeline("object-detection", model="guide-model")(rows[0]["image"], threshold=0.3)
print(f"mAP {score:.2f}, {len(objects)} objects of {len(rows[0]['objects']['bbox'])}")
assert score > 0.3, "the shipped weights know digits"
