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
# # Look inside a DETR
#
# What it found, what it attended to for each object, where its queries look, and how a picture goes through it. The
# model is the digit detector that ships with the package; any checkpoint can stand in its place.

# %%
import logging

import torch
from PIL import Image

from detr_hf import Detector, inspect_model, visualize
from detr_hf.checkpoints.embedded import demo_scene_path
from detr_hf.data import DigitScenes

logging.getLogger("detr_hf").setLevel(logging.ERROR)
torch.set_num_threads(1)


def small(image: Image.Image, width: int = 700) -> Image.Image:
    """Returns the image with few colours and no wider than that, so that the notebook stays small."""
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    return image.quantize(160)


detector = Detector.from_pretrained("detr-digits")
picture = demo_scene_path()
found = detector(picture, threshold=0.7)
print(found)
small(found.draw(), 400)

# %% [markdown]
# ## The decoder: what each object's query attended to (figure 6 of the paper)
#
# A map says with which weights, one in sum, the last layer added up the encoder's tokens for an object. It is no
# explanation of the answer.

# %%
seen = visualize.attention(detector, picture, threshold=0.7)
print(seen.decoder.shape, [f"{share:.2f}" for share in seen.in_boxes()])
small(seen.draw(tile=220))

# %% [markdown]
# Another layer, a single head:

# %%
small(visualize.attention(detector, picture, threshold=0.7, layer=0, head=2).draw(tile=220))

# %% [markdown]
# ## The encoder: what a point mixed (figure 3)

# %%
x0, y0, x1, y1 = found.boxes[0]
point = (round(float(x0 + x1) / 2), round(float(y0 + y1) / 2))
print(seen.encoder(*point).shape)
small(seen.draw([point, (40, 60)], tile=260))

# %% [markdown]
# ## The queries: where each one looks (figure 7)
#
# A point for every box that a query gave in sixty scenes. Learned queries keep to places of their own.

# %%
scenes = DigitScenes("validation")
slots = visualize.query_slots(detector, (scenes[number]["image"] for number in range(60)))
small(slots.draw(tile=70, columns=10))

# %% [markdown]
# ## The picture's way through the model
#
# Every step with its shape, in letters and numbers, and its parameters. `print(way)` has operations, time and files
# too, `way.to_svg()` is the paper's figure 2 with this model's numbers.

# %%
way = inspect_model(detector, picture)
for step in way.steps:
    count = step.trainable + step.frozen
    print(f"{'/'.join(step.part)[:32]:32} {step.name:20} {step.letters:18} {step.shape}  {count:,}")

# %% [markdown]
# ## By hand
#
# The model is an ordinary one of transformers: its outputs have the attention weights too, and say how large the
# feature map is.

# %%
model, processor = detector.model, detector.image_processor
with torch.no_grad():
    outputs = model(**processor(str(picture), return_tensors="pt"), output_attentions=True)
height, width = outputs.feature_sizes_hw[0, 0].tolist()
query = int(found.queries[0])
by_hand = outputs.cross_attentions[-1][0, :, query].unflatten(-1, (height, width)).mean(0)
print(tuple(by_hand.shape), f"{float((by_hand - torch.tensor(seen.decoder[0])).abs().max()):.0e}")
