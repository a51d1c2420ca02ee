"""How much the padding of a batch moves an image's targets and outputs, here and in transformers' DETR.

    python benchmarks/padding.py

Validation scenes of 256 x 256 are processed alone, and then beside one of 384 x 384, with this package's processor
and with transformers'. The targets of the annotation are compared exactly. The outputs of the default checkpoint
move a little with either: the backbone's convolutions see the edge of the padding, in the original too.
"""

import argparse
import json

import torch
from transformers.models.detr import DetrImageProcessor

from detr_hf import DETRForObjectDetection, DETRImageProcessor
from detr_hf.data.digits import DigitScenes
from detr_hf.inference.embedded import embedded_model_path


def coco_annotation(scene: dict) -> dict:
    """Returns the scene's objects in the form that both processors read."""
    objects = scene["objects"]
    rows = zip(objects["bbox"], objects["category"], objects["area"], strict=True)
    annotations = [{"bbox": box, "category_id": label, "area": area, "iscrowd": 0} for box, label, area in rows]
    return {"image_id": scene["image_id"], "annotations": annotations}


def move(processor, model, scene, companion) -> dict[str, float]:
    """Returns the largest move of the scene's target boxes and, among detections over 0.5, of scores and boxes."""
    images = [picture["image"] for picture in (scene, companion)]
    annotations = [coco_annotation(picture) for picture in (scene, companion)]
    alone = processor(images[:1], annotations=annotations[:1], return_tensors="pt")
    padded = processor(images, annotations=annotations, return_tensors="pt")
    targets = (alone["labels"][0]["boxes"] - padded["labels"][0]["boxes"]).abs().max().item()
    with torch.no_grad():
        one, both = (model(batch["pixel_values"], batch["pixel_mask"]) for batch in (alone, padded))
    probabilities = [output.logits[0].softmax(-1)[..., :-1].amax(-1) for output in (one, both)]
    found = probabilities[0] > 0.5
    scores = (probabilities[0] - probabilities[1])[found].abs().max().item() if found.any() else 0.0
    boxes = (one.pred_boxes[0] - both.pred_boxes[0])[found].abs().max().item() if found.any() else 0.0
    return {"target": targets, "score": scores, "box": boxes}


def main() -> None:
    """Prints the moves as JSON: the worst and the mean over the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=50)
    count = parser.parse_args().scenes
    model = DETRForObjectDetection.from_pretrained(embedded_model_path()).eval()
    sides = {"detr_hf": DETRImageProcessor(do_resize=False), "transformers": DetrImageProcessor(do_resize=False)}
    small, large = DigitScenes("validation", size_hw=(256, 256)), DigitScenes("validation", size_hw=(384, 384))
    for name, processor in sides.items():
        moves = [move(processor, model, small[index], large[index]) for index in range(count)]
        table = {
            key: {"max": max(m[key] for m in moves), "mean": sum(m[key] for m in moves) / count} for key in moves[0]
        }
        print(json.dumps({"side": name, "scenes": count, "unit": "fraction of the image, or of probability", **table}))


if __name__ == "__main__":
    main()
