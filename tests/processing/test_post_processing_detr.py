"""Outputs to detections: numbers against the formula, clipping, thresholds, and outputs that make no sense."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessor
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from detr_hf import DETRImageProcessor
from detr_hf.processing.post_processing_detr import detections

SIZES = [(60, 80), (100, 50)]


def outputs(seed: int = 0, queries: int = 9, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, queries, classes + 1, generator=generator) * 3
    centers = torch.rand(2, queries, 2, generator=generator) * 0.6 + 0.2
    sides = torch.rand(2, queries, 2, generator=generator) * 0.4
    return logits, torch.cat([centers, sides], dim=-1)  # all inside the image


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [None, SIZES, torch.tensor(SIZES), torch.tensor(SIZES).float()])
def test_equals_transformers_inside_the_image(threshold, sizes):
    logits, boxes = outputs()
    expected = DetrImageProcessor().post_process_object_detection(
        DetrObjectDetectionOutput(logits=logits, pred_boxes=boxes), threshold, sizes
    )
    for found, wanted in zip(detections(logits, boxes, threshold, sizes), expected, strict=True):
        assert set(found) == {"scores", "labels", "boxes"}
        torch.testing.assert_close(found, dict(wanted))


def test_no_threshold_keeps_every_query_in_order():
    logits, boxes = outputs()
    for index, found in enumerate(detections(logits, boxes, None, SIZES)):
        scores, labels = logits[index].softmax(-1)[:, :-1].max(-1)
        torch.testing.assert_close(found["scores"], scores)
        torch.testing.assert_close(found["labels"], labels)


def test_a_score_that_is_the_threshold_is_not_above_it():
    logits, boxes = torch.zeros(1, 1, 2), torch.full((1, 1, 4), 0.5)  # of one class and none: a half each
    counts = [len(detections(logits, boxes, threshold)[0]["scores"]) for threshold in (0.499, 0.5, 0.501)]
    assert counts == [1, 0, 0]


def test_the_last_class_is_never_found():
    logits, boxes = outputs()
    logits[..., -1] = 50
    assert all(len(found["scores"]) == 0 for found in detections(logits, boxes))
    assert all(found["labels"].max() < 4 for found in detections(logits, boxes, None))


def test_an_image_without_detections_has_empty_tensors():
    logits, boxes = outputs()
    logits[1, :, -1] = 50
    first, second = detections(logits, boxes, 0.3, SIZES)
    assert len(first["scores"]) > 0
    assert [tuple(value.shape) for value in second.values()] == [(0,), (0,), (0, 4)]


def test_boxes_are_clipped_to_the_image():
    """A centre and a size may reach outside it."""
    logits = torch.zeros(1, 2, 3)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.9, 1.0, 0.6, 0.4]]])
    (found,) = detections(logits, boxes, None, [(60, 80)])
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 20, 15], [48, 48, 80, 60]]))
    (found,) = detections(logits, boxes, None)
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 0.25, 0.25], [0.6, 0.8, 1, 1]]))


def test_an_image_gives_the_same_alone_and_in_a_batch():
    logits, boxes = outputs()
    together = detections(logits, boxes, 0.3, SIZES)
    for index in range(2):
        (alone,) = detections(logits[[index]], boxes[[index]], 0.3, [SIZES[index]])
        torch.testing.assert_close(alone, together[index], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32(dtype):
    logits, boxes = outputs()
    half = detections(logits.to(dtype), boxes.to(dtype), None, SIZES)
    full = detections(logits, boxes, None, SIZES)
    assert half[0]["scores"].dtype == half[0]["boxes"].dtype == torch.float32
    torch.testing.assert_close(half[0]["boxes"], full[0]["boxes"], rtol=0, atol=0.5)


@pytest.mark.parametrize("which", ["logits", "boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(which, value):
    """NaN is no image without objects."""
    logits, boxes = outputs()
    (logits if which == "logits" else boxes)[1, 3, 0] = value
    with pytest.raises(ValueError, match=r"image 1 of the batch hold NaN or infinity \(1 of 2"):
        detections(logits, boxes, 0.5, SIZES)


def test_a_class_that_is_switched_off_is_no_fault():
    logits, boxes = outputs()
    logits[..., 2] = -float("inf")
    assert all(2 not in found["labels"] for found in detections(logits, boxes, None))


REFUSED = [
    ("threshold 2", 2, SIZES, "threshold must be a number from 0 to 1"),
    ("threshold -0.1", -0.1, SIZES, "threshold must be"),
    ("threshold NaN", float("nan"), SIZES, "threshold must be"),
    ("threshold a string", "0.5", SIZES, "threshold must be"),
    ("one size", 0.5, SIZES[:1], "1 target_sizes for 2 images"),
    ("one size, tensor", 0.5, torch.tensor(SIZES[:1]), "1 target_sizes for 2 images"),
    ("size of three", 0.5, [(60, 80, 3)] * 2, r"target_sizes\[0\]"),
    ("tensor of three", 0.5, torch.ones(2, 3), r"shape \(2, 3\)"),
    ("one size alone", 0.5, (60, 80), r"target_sizes\[0\] is 60"),
    ("a text", 0.5, "6080", r"target_sizes\[0\]"),
    ("no height", 0.5, [(60, 80), (0, 50)], r"target_sizes\[1\]"),
]


@pytest.mark.parametrize(
    ("threshold", "sizes", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(threshold, sizes, message):
    with pytest.raises(ValueError, match=message):
        detections(*outputs(), threshold, sizes)


@pytest.mark.parametrize("sizes", [np.array(SIZES), [torch.tensor(size) for size in SIZES], tuple(SIZES)])
def test_kinds_of_target_sizes(sizes):
    logits, boxes = outputs()
    for found, wanted in zip(
        detections(logits, boxes, 0.3, sizes), detections(logits, boxes, 0.3, SIZES), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@dataclass
class Held:
    """What the example of transformers makes of predictions."""

    logits: Any
    pred_boxes: Any


Pair = namedtuple("Pair", "pred_boxes logits")
LOSSES = {"loss_ce": torch.ones(()), "cardinality_error": torch.ones(())}
HOLDERS = {
    "output": lambda logits, boxes: DetrObjectDetectionOutput(logits=logits, pred_boxes=boxes),
    "dict": lambda logits, boxes: {"pred_boxes": boxes, "logits": logits},
    "mapping": lambda logits, boxes: UserDict(pred_boxes=boxes, logits=logits),
    "dataclass": Held,
    "namespace": lambda logits, boxes: SimpleNamespace(logits=logits, pred_boxes=boxes),
    "named tuple, in another order": lambda logits, boxes: Pair(boxes, logits),
    "tuple": lambda logits, boxes: (logits, boxes),
    "list": lambda logits, boxes: [logits, boxes],
    "after the losses": lambda logits, boxes: (torch.ones(()), LOSSES, logits, boxes, torch.zeros(2, 9, 16)),
    "arrays of Trainer": lambda logits, boxes: (LOSSES, logits.numpy(), boxes.numpy(), np.zeros((2, 9, 16))),
    "arrays by name": lambda logits, boxes: {"logits": logits.numpy(), "pred_boxes": boxes.numpy()},
    "three classes and no object": lambda logits, boxes: (logits, boxes),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_outputs_are_found_by_name_or_by_place(kind):
    logits, boxes = outputs(classes=3 if kind.startswith("three") else 4)  # then logits have the shape of boxes
    held = HOLDERS[kind](logits, boxes)
    for found, wanted in zip(
        DETRImageProcessor().post_process_object_detection(held, 0.3, SIZES),
        detections(logits, boxes, 0.3, SIZES),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


NO_BOXES = (torch.zeros(2, 9, 5), torch.zeros(2, 9, 3))


@pytest.mark.parametrize("held", [None, {}, {"logits": 1}, (), NO_BOXES[:1], NO_BOXES, SimpleNamespace(logits=1), 3])
def test_what_holds_no_outputs_is_named(held):
    with pytest.raises(TypeError, match=f"outputs is a {type(held).__name__} without logits"):
        DETRImageProcessor().post_process_object_detection(held)
