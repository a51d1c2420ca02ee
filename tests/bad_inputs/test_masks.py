"""Masks asked of what has none, or in ways that mean nothing: a refusal that says what is there and what to do.

What post-processing and training refuse is told by their own tests; here are the roads to them.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageSegmentation, pipeline

from detr_hf import Detector, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.hub.pushing import Publication, lay_out

from .kinds import Kind, Refused, each, picture, try_out
from .models import PROCESSOR, segmenter

NEW = Refused("is a detector", "its mask head is new", "DETRTrainer", "DETRForObjectDetection")


def detector() -> DETRForObjectDetection:
    return DETRForObjectDetection(segmenter().config)


def of_detector(root: Path) -> None:
    detector().save_pretrained(root)
    PROCESSOR.save_pretrained(root)


def nothing(root: Path) -> None:
    pass


def in_pipeline(
    model: Callable[[], Any] | None = None, processor: DETRImageProcessor = PROCESSOR, **options: Any
) -> Callable[[Path], Any]:
    """Returns the road: transformers' pipeline, of the folder or of a model, in a picture of noise."""

    def road(root: Path) -> Any:
        given = {"model": model(), "image_processor": processor} if model else {"model": str(root)}
        return pipeline("image-segmentation", **given)(str(picture(root / "a.png")), **options)

    return road


def in_detector(root: Path) -> Any:
    return Detector(DETRForSegmentation.from_pretrained(root), PROCESSOR)(picture(root / "a.png"))


def in_auto_class(root: Path) -> Any:
    return AutoModelForImageSegmentation.from_pretrained(root).eval()(torch.zeros(1, 3, 64, 96))


def pushed(root: Path) -> Any:
    (root / "out").mkdir()
    return lay_out(root / "out", DETRForSegmentation.from_pretrained(root), "me/model", Publication())


def with_nan() -> DETRForSegmentation:
    model = copy.deepcopy(segmenter())
    model.mask_head.out_lay.bias.data.fill_(float("nan"))
    return model


def no_height(root: Path) -> Any:
    sizes = torch.tensor([[0, 80]])
    outputs = segmenter()(torch.zeros(1, 3, 64, 96))
    return PROCESSOR.post_process_semantic_segmentation(outputs, target_sizes=sizes)


FUSES_MORE = DETRImageProcessor(size=dict(PROCESSOR.size), label_ids_to_fuse=[1, 7])
NO_MASKS = [
    Kind("a detector's folder, by pipeline", of_detector, in_pipeline(), NEW),
    Kind("a detector's folder, by Detector", of_detector, in_detector, NEW),
    Kind("a detector's folder, by an auto class", of_detector, in_auto_class, NEW),
    Kind("a new mask head, to the Hub", of_detector, pushed, NEW),
    Kind(
        "a detector, by pipeline", nothing, in_pipeline(detector), Refused("has no mask head", "DETRForSegmentation")
    ),
]
ASKED = [
    Kind("an unknown subtask", nothing, in_pipeline(segmenter, subtask="things"), Refused("'things'", "'instance'")),
    Kind("a threshold above 1", nothing, in_pipeline(segmenter, threshold=70), Refused("threshold", "0 to 1", "70")),
    Kind("a mask threshold below 0", nothing, in_pipeline(segmenter, mask_threshold=-1), Refused("mask_threshold")),
    Kind("a class to fuse that is none", nothing, in_pipeline(segmenter, FUSES_MORE, threshold=0.0), Refused("[7]")),
    Kind("NaN in masks", nothing, in_pipeline(with_nan, threshold=0.0), Refused("image 0", "NaN")),
    Kind("a picture of no height", nothing, no_height, Refused("[0.0, 80.0]", "above 0")),
]


@each(NO_MASKS, ASKED)
def test_masks(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)
