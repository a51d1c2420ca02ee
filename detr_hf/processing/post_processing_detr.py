"""Outputs of the detection head -> detections in pixels.

What differs from transformers on purpose: boxes are clipped to the image, because the sigmoid's centre and size may
reach outside; outputs that are not finite are an error instead of an image without objects; the whole batch costs one
copy to the host, not three a picture; `threshold=None` keeps every query, which is what the original evaluates COCO
with.
"""

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert


def output_field(outputs: Any, name: str) -> Any:
    """Returns a field of an output of transformers, a dict, or an object with attributes; None where it has none."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def is_part(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value <= 1


def logits_and_boxes(outputs: Any) -> tuple[Tensor, Tensor]:
    """Returns `logits` (B, Q, K + 1) and `pred_boxes` (B, Q, 4) of whatever holds a model's outputs.

    They are found by their names in an output of transformers, a dict, or an object with attributes. In a tuple or
    list, as `return_dict=False` and Trainer's predictions are, losses may stand before them: they are the first two
    neighbours of these shapes.

    Raises:
        TypeError: it holds none.
    """
    if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits"):
        for logits, boxes in itertools.pairwise(outputs):
            shape, box_shape = getattr(logits, "shape", ()), getattr(boxes, "shape", ())
            if len(shape) == len(box_shape) == 3 and (*shape[:2], 4) == tuple(box_shape):
                return torch.as_tensor(logits), torch.as_tensor(boxes)
    found = [output_field(outputs, name) for name in ("logits", "pred_boxes")]
    if any(values is None for values in found):
        raise TypeError(
            f"outputs is a {type(outputs).__name__} without logits (B, Q, K + 1) and pred_boxes (B, Q, 4). Pass the "
            "model's output, or a dict, object or tuple that holds both."
        )
    return torch.as_tensor(found[0]), torch.as_tensor(found[1])


def detections(
    logits: Tensor,
    boxes_cxcywh_norm: Tensor,
    threshold: float | None = 0.5,
    target_sizes: Tensor | Sequence[Any] | None = None,
) -> list[dict[str, Tensor]]:
    """Returns, per image, `scores` (N,), `labels` (N,) and `boxes` (N, 4), in the order of the queries.

    `logits` is (B, Q, K + 1), where the last class is "no object"; `boxes_cxcywh_norm` is (B, Q, 4), fractions of the
    image without padding. All else is told by `post_process_object_detection` of the image processors.
    """
    if threshold is not None and not is_part(threshold):
        raise ValueError(f"threshold must be a number from 0 to 1, or None to keep everything; got {threshold!r}.")
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
    sizes_hw = target_sizes_hw(target_sizes, len(logits), logits.device)
    boxes = box_convert(boxes_cxcywh_norm.float(), "cxcywh", "xyxy")
    finite = torch.isfinite(scores) & torch.isfinite(boxes).all(-1)
    if sizes_hw is None:
        boxes = boxes.clamp(0, 1)
    else:
        scale = sizes_hw.flip(-1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height
        boxes = torch.minimum((boxes * scale).clamp(min=0), scale)
    keep = torch.ones_like(scores, dtype=torch.bool) if threshold is None else scores > threshold

    counts, finite_counts = torch.stack([keep.sum(1), finite.sum(1)]).tolist()  # the one copy to the host
    num_queries = scores.shape[1]
    broken = [index for index, count in enumerate(finite_counts) if count < num_queries]
    if broken:
        raise ValueError(
            f"The model's outputs for image {broken[0]} of the batch hold NaN or infinity "
            f"({len(broken)} of {len(logits)} images). Check its weights and inputs; float16 overflows "
            "where bfloat16 does not."
        )
    order = torch.nonzero_static(keep.flatten(), size=sum(counts))[:, 0]
    parts = (values[order].split(counts) for values in (scores.flatten(), labels.flatten(), boxes.flatten(0, 1)))
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(*parts, strict=True)]


def target_sizes_hw(
    target_sizes: Tensor | Sequence[Any] | None, num_images: int, device: torch.device
) -> Tensor | None:
    """Returns (B, 2) float32 sizes (height, width) on the device, or None.

    Raises:
        ValueError: another number of sizes than images, or sizes that are not pairs of positive numbers.
    """
    if target_sizes is None:
        return None
    if not isinstance(target_sizes, Tensor):
        target_sizes = [size.tolist() if hasattr(size, "tolist") else size for size in target_sizes]
        for index, size in enumerate(target_sizes):
            sides = list(size) if isinstance(size, Sequence) else []  # of one size alone, a number
            if len(sides) != 2 or not all(math.isfinite(side) and side > 0 for side in sides):
                raise ValueError(f"target_sizes[{index}] is {size}: expected (height, width) in pixels, both above 0.")
        target_sizes = torch.tensor(target_sizes, dtype=torch.float32).reshape(-1, 2)
    if target_sizes.ndim != 2 or target_sizes.shape[1] != 2:
        raise ValueError(
            f"target_sizes has shape {tuple(target_sizes.shape)}: expected (B, 2), each row (height, width)."
        )
    if len(target_sizes) != num_images:
        raise ValueError(
            f"There are {len(target_sizes)} target_sizes for {num_images} images: expected one for each image."
        )
    return target_sizes.to(device, torch.float32)
