"""How much the padding of a batch moves a picture's targets and outputs, here and in transformers' DETR.

Validation scenes of 256 x 256 are processed alone, and then beside one of 384 x 384, with this package's processor
and with transformers'. The targets of the annotation are compared exactly. The outputs of the default checkpoint move
a little with either: the backbone's convolutions see the edge of the padding, in the original too.
"""

from typing import Any

import torch
from transformers.models.detr import DetrImageProcessor

from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.data.digits import DigitScenes
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .measuring import environment

FOUND = 0.5  # detections with a higher score are followed


def compare_padding(scenes: int) -> dict[str, Any]:
    """Returns the record: the largest and the mean move of target boxes, scores and boxes, for each side.

    Moves are fractions of the picture, or of probability.
    """
    model = DETRForObjectDetection.from_pretrained(embedded_model_path()).eval()
    sides = {"detr_hf": DETRImageProcessor(do_resize=False), "transformers": DetrImageProcessor(do_resize=False)}
    small, large = DigitScenes("validation", size_hw=(256, 256)), DigitScenes("validation", size_hw=(384, 384))
    record: dict[str, Any] = {"environment": environment(), "settings": {"scenes": scenes}}
    for name, processor in sides.items():
        moves = [_move(processor, model, small[index], large[index]) for index in range(scenes)]
        record[name] = {
            f"{key}_{kind}": max(values) if kind == "max" else sum(values) / scenes
            for key in moves[0]
            for values in [[move[key] for move in moves]]
            for kind in ("max", "mean")
        }
    return record


def _coco_annotation(scene: dict[str, Any]) -> dict[str, Any]:
    """Returns the scene's objects in the form that both processors read."""
    objects = scene["objects"]
    rows = zip(objects["bbox"], objects["category"], objects["area"], strict=True)
    annotations = [{"bbox": box, "category_id": label, "area": area, "iscrowd": 0} for box, label, area in rows]
    return {"image_id": scene["image_id"], "annotations": annotations}


@torch.inference_mode()
def _move(processor: Any, model: Any, scene: dict[str, Any], companion: dict[str, Any]) -> dict[str, float]:
    """Returns the largest move of the scene's target boxes and, among its detections, of scores and boxes."""
    images = [picture["image"] for picture in (scene, companion)]
    annotations = [_coco_annotation(picture) for picture in (scene, companion)]
    alone = processor(images[:1], annotations=annotations[:1], return_tensors="pt")
    padded = processor(images, annotations=annotations, return_tensors="pt")
    targets = (alone["labels"][0]["boxes"] - padded["labels"][0]["boxes"]).abs().max().item()
    one, both = (model(batch["pixel_values"], batch["pixel_mask"]) for batch in (alone, padded))
    probabilities = [output.logits[0].softmax(-1)[..., :-1].amax(-1) for output in (one, both)]
    found = probabilities[0] > FOUND
    scores = (probabilities[0] - probabilities[1])[found].abs()
    boxes = (one.pred_boxes[0] - both.pred_boxes[0])[found].abs()
    return {
        "target": targets,
        "score": scores.max().item() if scores.numel() else 0.0,
        "box": boxes.max().item() if boxes.numel() else 0.0,
    }


__all__ = ["compare_padding"]
