"""What goes wrong on the way from mask logits to segments: cases whose answer is plain, read here and by transformers.

A case is an image of 120x160 whose queries have masks of 30x40 that are on in a rectangle, so that anyone can say what
is right. Both processors get the same outputs and the same arguments.
"""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.models.detr import DetrImageProcessor

from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .measuring import environment

ON, OFF = 6.0, -6.0  # logits of a mask inside and outside
MAP, PICTURE = (30, 40), (120, 160)
LEFT, RIGHT = (0, 0, 1, 0.5), (0, 0.5, 1, 1)


def rectangle(top: float, left: float, bottom: float, right: float, size_hw: tuple[int, int] = MAP) -> Tensor:
    """Returns a mask that is on between these fractions of height and width."""
    height, width = size_hw
    mask = torch.full(size_hw, OFF)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = ON
    return mask


def outputs_of(masks: list[Tensor], labels: list[int], scores: list[float], classes: int = 4, **sizes: Any) -> Any:
    """Returns outputs for one image whose queries have these classes with these scores; the rest is no-object's."""
    logits = torch.full((1, len(labels), classes + 1), -20.0)
    for query, (label, score) in enumerate(zip(labels, scores, strict=True)):
        logits[0, query, label], logits[0, query, -1] = math.log(score), math.log(1 - score)
    return SimpleNamespace(logits=logits, pred_masks=torch.stack(masks)[None], **sizes)


def _panoptic(processor: Any, outputs: Any, fuse: tuple[int, ...] = (), **options: Any) -> dict[str, Any]:
    options = {"threshold": 0.85, "target_sizes": [PICTURE], "label_ids_to_fuse": set(fuse), **options}
    return processor.post_process_panoptic_segmentation(outputs, **options)[0]


def _instances(processor: Any, outputs: Any) -> dict[str, Any]:
    return processor.post_process_instance_segmentation(outputs, target_sizes=[PICTURE])[0]


def _shares(result: dict[str, Any]) -> str:
    found = [100 * (result["segmentation"] == segment["id"]).float().mean() for segment in result["segments_info"]]
    return ", ".join(f"{share:.0f} %" for share in found) or "nothing"


def _quarter(processor: Any) -> str:
    return _shares(_panoptic(processor, outputs_of([rectangle(0, 0, 0.5, 0.5)], [0], [0.95])))


def _half(processor: Any) -> str:
    return _shares(_panoptic(processor, outputs_of([rectangle(*LEFT)], [0], [0.95])))


def _two_of_a_tenth(processor: Any) -> str:
    masks = [rectangle(0, 0, 0.5, 0.2), rectangle(0.5, 0.8, 1, 1)]
    return _shares(_panoptic(processor, outputs_of(masks, [0, 1], [0.95, 0.9])))


def _low_score(score: float) -> Callable[[Any], str]:
    sure = rectangle(*LEFT).clamp(-1.4, 1.4)  # a probability of 0.8 inside and 0.2 outside
    return lambda processor: _shares(_instances(processor, outputs_of([sure], [0], [score])))


def _padded(processor: Any) -> str:
    """The halves of an image of 120x160 in a frame of 160x240, as a larger batch mate makes it."""
    halves = []
    for half in (LEFT, RIGHT):
        frame = torch.full((40, 60), OFF)
        frame[: MAP[0], : MAP[1]] = rectangle(*half)
        halves.append(frame)
    sizes = {"image_sizes_hw": torch.tensor([PICTURE]), "padded_sizes_hw": torch.tensor([[160, 240]])}
    result = _panoptic(processor, outputs_of(halves, [0, 1], [0.95, 0.9], **sizes), overlap_mask_area_threshold=0.1)
    overlaps = []
    for number, half in enumerate((LEFT, RIGHT)):
        right = rectangle(*half, size_hw=PICTURE) > 0
        ids = [segment["id"] for segment in result["segments_info"] if segment["label_id"] == number]
        found = torch.isin(result["segmentation"], torch.tensor(ids, dtype=result["segmentation"].dtype))
        overlaps.append(f"{(found & right).sum() / (found | right).sum():.2f}")
    return f"IoU {' and '.join(overlaps)}"


def _stuff_in_every_order(processor: Any) -> str:
    """Three masks of one class to fuse, one of them behind a thing, in the 24 orders that queries can have."""
    parts = [
        (rectangle(0, 0, 0.5, 0.5), 1, 0.95),
        (rectangle(0.5, 0, 1, 0.5), 1, 0.9),
        (rectangle(*RIGHT), 2, 0.99),
        (rectangle(*RIGHT), 1, 0.91),
    ]
    right = 0
    for order in itertools.permutations(parts):
        outputs = outputs_of(*(list(column) for column in zip(*order, strict=True)))
        found = _panoptic(processor, outputs, fuse=(1,), overlap_mask_area_threshold=0.4)
        shares = sorted(
            (segment["label_id"], round(10 * float((found["segmentation"] == segment["id"]).float().mean())))
            for segment in found["segments_info"]
        )
        right += shares == [(1, 5), (2, 5)]  # tenths of the image
    return f"{right} of 24"


def _ids(processor: Any) -> str:
    quarters = [rectangle(0, left, 1, left + 0.25) for left in (0, 0.25, 0.5, 0.75)]
    found = _panoptic(processor, outputs_of(quarters, [1, 2, 1, 3], [0.95, 0.94, 0.93, 0.92]), fuse=(1,))
    return ", ".join(f"{segment['id']} of class {segment['label_id']}" for segment in found["segments_info"])


def _overlapping_stuff(processor: Any) -> str:
    masks = [rectangle(0, 0, 1, 0.7), rectangle(0, 0.3, 1, 1)]
    return _shares(_panoptic(processor, outputs_of(masks, [1, 1], [0.95, 0.9]), fuse=(1,)))


def _duplicates(processor: Any) -> str:
    masks = [rectangle(*LEFT), rectangle(*RIGHT), rectangle(*LEFT)]
    return _shares(_panoptic(processor, outputs_of(masks, [0, 1, 0], [0.95, 0.94, 0.9])))


def _overlapping_instances(processor: Any) -> str:
    outputs = outputs_of([rectangle(0, 0, 1, 0.6), rectangle(0, 0.4, 1, 1)], [0, 1], [0.95, 0.9])
    if isinstance(processor, DETRImageProcessor):  # transformers' has no form that lets instances overlap
        options = {"target_sizes": [PICTURE], "return_binary_maps": True}
        maps = processor.post_process_instance_segmentation(outputs, **options)[0]["segmentation"]
        return ", ".join(f"{100 * share:.0f} %" for share in maps.float().mean(dim=(1, 2)).tolist())
    return _shares(_instances(processor, outputs))


def _nothing(processor: Any) -> str:
    found = _panoptic(processor, outputs_of([rectangle(*LEFT)], [0], [0.3]))
    ids = found["segmentation"]
    return f"{str(ids.dtype).removeprefix('torch.')} of {', '.join(f'{value:g}' for value in ids.unique().tolist())}"


def _one_pixel(processor: Any) -> str:
    pixel = torch.full(MAP, -40.0)
    pixel[3, 5] = 40.0
    found = _panoptic(processor, outputs_of([pixel], [0], [0.95]), target_sizes=None)
    return ", ".join(str(int((found["segmentation"] == part["id"]).sum())) for part in found["segments_info"])


class Fault(NamedTuple):
    """A case: what it is, what is right, and the measurement of what a processor gives."""

    what: str
    right: str
    measure: Callable[[Any], str]


FAULTS = (
    Fault("one object over half of the image", "50 %", _half),
    Fault("one object over a quarter", "25 %", _quarter),
    Fault("two objects of a tenth each", "10 %, 10 %", _two_of_a_tenth),
    Fault("an instance over half, score 0.9, probability 0.8 there", "50 %", _low_score(0.9)),
    Fault("the same with score 0.6", "50 %", _low_score(0.6)),
    Fault("two halves of a padded image, beside the image alone", "IoU 1.00 and 1.00", _padded),
    Fault("stuff in three masks, one behind a thing: right in how many orders", "24 of 24", _stuff_in_every_order),
    Fault(
        "four masks of classes 1, 2, 1, 3, of which 1 is fused: ids",
        "1 of class 1, 2 of class 2, 3 of class 3",
        _ids,
    ),
    Fault("stuff in two masks that overlap, over the whole image", "100 %", _overlapping_stuff),
    Fault("two objects of a half each, one of them found twice", "50 %, 50 %", _duplicates),
    Fault("two instances of 60 % that overlap", "60 %, 60 %", _overlapping_instances),
    Fault("nothing found: the map", "int32 of 0", _nothing),
    Fault("an object of one pixel: pixels", "1", _one_pixel),
)


def compare_faults() -> dict[str, Any]:
    """Returns the record: for every case what is right, what this package gives, and what transformers does."""
    ours, theirs = DETRImageProcessor(), DetrImageProcessor()
    cases = [
        {"what": what, "right": right, "ours": measure(ours), "transformers": measure(theirs)}
        for what, right, measure in FAULTS
    ]
    return {"environment": environment(), "cases": cases}


__all__ = ["FAULTS", "compare_faults", "outputs_of", "rectangle"]
