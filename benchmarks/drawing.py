"""Drawing what was found in a photograph: this package beside supervision's annotators, 40 boxes and 40 masks."""

from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detr_hf.inference.results import Detections
from detr_hf.processing.run_lengths_detr import run_lengths

from .measuring import compare, environment, require_agreement
from .preprocess import photographs

NAMES = ("person", "bicycle", "traffic light", "dog", "umbrella", "dining table")


def objects(count: int, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes (N, 4) xyxy and masks (N, H, W) bool of ellipses, of sizes as objects in photographs have."""
    rng, (height, width) = np.random.default_rng(0), size_hw
    sides = np.exp(rng.uniform(np.log(0.06), np.log(0.5), (count, 2))) * [width, height]
    corners = rng.uniform(0, 1, (count, 2)) * ([width, height] - sides)
    boxes, masks = np.concatenate([corners, corners + sides], axis=1).round(), []
    for box in boxes.tolist():
        mask = Image.new("1", (width, height))
        ImageDraw.Draw(mask).ellipse(box, fill=1)
        masks.append(np.asarray(mask))
    return boxes, np.stack(masks)


def compare_drawings(count: int, size_hw: tuple[int, int], runs: int) -> dict[str, Any]:
    """Returns the record: boxes alone, and boxes with masks, drawn by both sides from the same results.

    Ours starts from what `Detections` holds, run lengths; supervision's from arrays that are made before. It is much
    faster where OpenCV is installed (`pip install opencv-python-headless`), which the record says.

    Raises:
        ValueError: more pixels are painted by one side alone than names and lines explain.
    """
    import supervision

    (picture,) = photographs(1, size_hw)
    boxes, masks = objects(count, size_hw)
    labels = np.arange(count) % len(NAMES)
    found = Detections(
        boxes,
        np.linspace(0.95, 0.5, count),
        labels,
        [NAMES[label] for label in labels],
        segmentations=[run_lengths(mask) for mask in masks],
        size_hw=size_hw,
        source=picture,
    )
    theirs, pixels = found.to_supervision(), np.asarray(picture)
    texts = [f"{one.name} {one.score:.2f}" for one in found]
    annotators = {
        "masks": supervision.MaskAnnotator(),
        "boxes": supervision.BoxAnnotator(),
        "names": supervision.LabelAnnotator(smart_position=True),
    }

    def annotated(*kinds: str) -> np.ndarray:
        scene = pixels.copy()
        for kind in kinds:
            scene = annotators[kind].annotate(scene, theirs, **({"labels": texts} if kind == "names" else {}))
        return scene

    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            "objects": count,
            "size_hw": list(size_hw),
            "supervision": supervision.__version__,
            "OpenCV": find_spec("cv2") is not None,
        },
    }
    covered = masks.any(axis=0)
    painted = [(np.asarray(image) != pixels).any(axis=-1)[covered] for image in (found.draw(), annotated("masks"))]
    record["masks"] = require_agreement({"unpainted": 1 - min(each.mean() for each in painted)}, 0.02)
    sides = {"sides": ["detr_hf", "supervision"]}
    record["boxes_and_names"] = sides | compare(
        lambda: found.draw(what="detection"), lambda: annotated("boxes", "names"), runs, repeats=3
    )
    record["with_masks"] = sides | compare(found.draw, lambda: annotated("masks", "boxes", "names"), runs, repeats=3)
    return record
