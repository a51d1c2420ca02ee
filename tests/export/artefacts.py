"""A model small enough to export in seconds, its processor, and runtimes made of the model itself."""

from typing import NamedTuple

import numpy as np
import torch

from detr_hf import DETRForObjectDetection, DETRImageProcessor
from detr_hf.export import ArtefactInfo
from detr_hf.export.exporting import describe
from detr_hf.model import Predictions

from ..conftest import tiny_model


def small_model(blocks: tuple[int, ...] = (1, 1, 1, 1), **changes) -> DETRForObjectDetection:
    """Returns a random DETR of few layers, whose scores differ from query to query; `blocks` are a stage's."""
    thin = {"channels": [8, 16, 16, 24], "layers": list(blocks)}
    return tiny_model(enc_layers=1, dec_layers=1, backbone_kwargs=thin, **changes)


def small_processor(**changes) -> DETRImageProcessor:
    """Returns a processor to sides of 64 to 96 pixels."""
    return DETRImageProcessor(**{"size": {"shortest_edge": 64, "longest_edge": 96}, **changes})


def info_of(model: DETRForObjectDetection, processor: DETRImageProcessor | None = None, **changes) -> ArtefactInfo:
    """Returns the metadata of an artefact of the model."""
    given = {"to": "onnx", "dtype": "float32", "batch": None, "size_hw": None, "masked": True, **changes}
    return describe(model, processor or small_processor(), **given)


class ModelRuntime(NamedTuple):
    """The model in the place of its artefact; `spoil` makes of right outputs what a bad artefact gives."""

    model: DETRForObjectDetection
    info: ArtefactInfo
    ignores_mask: bool = False
    noise: float = 0.0
    device: str = "cpu"

    def __call__(self, pixel_values, pixel_mask=None):
        mask = None if pixel_mask is None or self.ignores_mask else torch.from_numpy(pixel_mask)
        with torch.inference_mode():
            output = self.model(torch.from_numpy(pixel_values), mask)
        rng = np.random.default_rng(0)
        logits = output.logits.numpy()
        noise = self.noise * rng.standard_normal(logits.shape).astype(np.float32)
        return Predictions(logits + noise, output.pred_boxes.numpy())
