# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a DETR on your own pictures
#
# From a folder of pictures and boxes to a model that finds them, in a few minutes on two cores. The data is drawn
# here: scenes with handwritten digits, of which only 3, 5 and 8 count, under names of their own. With your own
# folder in its place (COCO, YOLO, Pascal VOC) everything below stays as it is.

# %%
import json
import logging
import os
from pathlib import Path
from tempfile import mkdtemp

import torch
from PIL import Image

from detr_hf import (
    Detector,
    DETRForObjectDetection,
    DETRTrainer,
    DETRTrainingArguments,
    check,
    evaluate,
    load_detection_dataset,
)
from detr_hf.checkpoints.processors import processor_of
from detr_hf.data import DigitScenes

logging.getLogger("detr_hf").setLevel(logging.ERROR)
torch.manual_seed(0)
torch.set_num_threads(1)
os.chdir(mkdtemp())
folder = Path("three_digits")
folder.mkdir()

# %% [markdown]
# ## A folder as labelling tools write it
#
# `train/` and `val/` with pictures, and one JSON in COCO's format beside each. Ids of categories have gaps, as they
# often do.

# %%
NAMES = {3: "three", 5: "five", 8: "eight"}


def write_split(split: str, scenes: DigitScenes, count: int) -> None:
    """Writes pictures, and the boxes of the three digits."""
    (folder / split).mkdir()
    images, annotations = [], []
    for number in range(count):
        scene = scenes[number]
        scene["image"].convert("RGB").save(folder / split / f"{number:03}.jpg", quality=92)
        name = {"id": number, "file_name": f"{number:03}.jpg"}
        images.append({**name, "width": scene["width"], "height": scene["height"]})
        for box, digit in zip(scene["objects"]["bbox"], scene["objects"]["category"], strict=True):
            digit = scenes.classes[digit]
            area = box[2] * box[3]
            place = {"id": len(annotations), "image_id": number, "category_id": 10 * digit}
            annotations.append({**place, "bbox": list(box), "area": area, "iscrowd": 0})
    categories = [{"id": 10 * digit, "name": name} for digit, name in NAMES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations_{split}.json").write_text(json.dumps(content))


settings = {"size_hw": (160, 160), "classes": tuple(NAMES), "objects_per_scene": (1, 4)}
write_split("train", DigitScenes("train", **settings), 100)
write_split("val", DigitScenes("validation", **settings), 30)
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## Read it, and look for faults
#
# The layout is recognised, and the ids become 0 to K - 1. `check` opens every picture.

# %%
data = load_detection_dataset(folder)
print(data.id2label, {split: len(rows) for split, rows in data.items()})
print(check(data, size=(160, 160)))

# %% [markdown]
# ## Train
#
# We start from the digit detector that ships with the package, whose names are "0" to "9": no class has the same
# name, so the class head is new. On photographs, `facebook/detr-resnet-50` is the place to begin. Everything that
# transformers' `TrainingArguments` takes can be set; rates come from the recipe.

# %%
model = DETRForObjectDetection.from_pretrained("detr-digits", id2label=data.id2label)
processor = processor_of("detr-digits")
processor.size = {"shortest_edge": 160, "longest_edge": 160}
args = DETRTrainingArguments(
    str(folder / "out"),
    recipe="finetune",
    max_steps=50,
    per_device_train_batch_size=8,
    learning_rate=2e-4,
    head_learning_rate=2e-3,
    augment="none",
    freeze_backbone=True,
    eval_strategy="no",
    save_strategy="no",
    logging_steps=25,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    seed=0,
)
trainer = DETRTrainer(model, args, data, processing_class=processor)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
print(f"AP {before['eval_ap']:.2f} before, {after['eval_ap']:.2f} after {trainer.state.global_step} steps")

# %% [markdown]
# ## By class, and the mistakes

# %%
print(evaluate(trainer.model, data, processor=processor).table())

# %% [markdown]
# ## Look at it
#
# The saved folder loads anywhere; a picture of the validation split with what was found.

# %%
trainer.save_model(str(folder / "out"))
detector = Detector.from_pretrained(folder / "out")
tiles = [detector(folder / "val" / f"{number:03}.jpg", threshold=0.5).draw() for number in range(4)]
row = Image.new("RGB", (4 * 160 + 18, 160), "white")
for number, tile in enumerate(tiles):
    row.paste(tile, (number * 166, 0))
row

# %% [markdown]
# The same from the shell:
#
# ```bash
# detr-hf check path/to/data
# detr-hf train --data path/to/data --model detr-digits --max_steps 50 --output_dir out
# detr-hf predict out path/to/data/val --save boxes/
# ```
#
# What it attended to: `look_inside.ipynb`. What else there is: `docs/fine_tuning.md`.
