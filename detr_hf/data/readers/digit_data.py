"""`digits` as a data set: scenes that are drawn when it is read, so that everything can be tried without a download.

They are the first ones of `DigitScenes`: boxes of digits; for the task instance their masks too, for panoptic the
masks of digits and of both backgrounds.
"""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from ...processing.panoptic_png_detr import write_panoptic_png
from ...processing.run_lengths_detr import run_length_mask
from ..detection_data import detection_features
from ..digits import STUFF, DigitScenes

DIGITS = "digits"
SCENES = {"train": 500, "validation": 200}


def digit_splits(wanted: Iterable[str] | Mapping[str, str] | None, task: str | None) -> dict[str, Dataset]:
    """Returns the splits of `SCENES` by name; those that are not wanted are empty, for whoever lists what there is.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    names = set(SCENES if wanted is None else wanted.values() if isinstance(wanted, Mapping) else wanted)
    return {name: drawn_split(name, SCENES[name] if name in names else 0, task) for name in SCENES}


def drawn_split(split: str, count: int, task: str | None = None) -> Dataset:
    """Returns the first scenes of a split in the schema of `detection_data`."""
    scenes = DigitScenes(split, count, masks=task in ("instance", "panoptic"))
    names = list(scenes.id2label.values())
    if task == "instance":
        names = names[: -len(STUFF)]
    features = detection_features(names, panoptic=task == "panoptic")
    rows = [_row(scenes[index], split, len(names), task) for index in range(count)]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features)


def _row(scene: dict[str, Any], split: str, classes: int, task: str | None) -> dict[str, Any]:
    objects = scene["objects"]
    kept = [number for number, label in enumerate(objects["category"]) if label < classes]
    objects = {name: [values[number] for number in kept] for name, values in objects.items()}
    objects.setdefault("segmentation", [None] * len(kept))
    file_name = f"{split}_{scene['image_id']:04d}.png"
    image = io.BytesIO()
    scene["image"].save(image, "PNG", compress_level=1)
    row = {
        **scene,
        "objects": objects,
        "file_name": file_name,
        "image": {"bytes": image.getvalue(), "path": file_name},
    }
    if task == "panoptic":
        objects["isthing"] = [int(label < classes - len(STUFF)) for label in objects["category"]]
        size_hw = (scene["height"], scene["width"])
        ids = np.zeros(size_hw, dtype=np.int64)
        for identity, mask in zip(objects["id"], objects["segmentation"], strict=True):
            ids[run_length_mask(json.loads(mask), size_hw).astype(bool)] = identity
        encoded = io.BytesIO()
        write_panoptic_png(ids, encoded)
        row["panoptic"] = {"bytes": encoded.getvalue(), "path": file_name}
    return row
