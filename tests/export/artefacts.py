"""A model small enough to export in seconds, its processor, and runtimes made of the model itself."""

from typing import NamedTuple

import numpy as np
import torch

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.export import ArtefactInfo
from detr_hf.export.artefact import each_field, predictions_of
from detr_hf.export.exporting import describe
from detr_hf.export.parity import Case, smooth_images
from detr_hf.export.writers import graph_of

from ..conftest import randomise_frozen_statistics, tiny_config, tiny_model


def few_layers(blocks: tuple[int, ...]) -> dict:
    return {"enc_layers": 1, "dec_layers": 1, "backbone_kwargs": {"channels": [8, 16, 16, 24], "layers": list(blocks)}}


def small_model(blocks: tuple[int, ...] = (1, 1, 1, 1), **changes) -> DETRForObjectDetection:
    """Returns a random DETR of few layers, whose scores differ from query to query; `blocks` are a stage's."""
    return tiny_model(**few_layers(blocks), **changes)


def small_segmenter(blocks: tuple[int, ...] = (1, 1, 1, 1), **changes) -> DETRForSegmentation:
    """Returns the same with a mask head; its queries differ in score and class, as a trained model's do."""
    torch.manual_seed(0)
    model = DETRForSegmentation(tiny_config(**few_layers(blocks), **changes)).eval()
    randomise_frozen_statistics(model)
    with torch.no_grad():
        model.query_embed.weight.mul_(10)
        model.class_embed.weight.mul_(10)
    return model


def small_processor(**changes) -> DETRImageProcessor:
    """Returns a processor to sides of 64 to 96 pixels."""
    return DETRImageProcessor(**{"size": {"shortest_edge": 64, "longest_edge": 96}, **changes})


def info_of(model: DETRForObjectDetection, processor: DETRImageProcessor | None = None, **changes) -> ArtefactInfo:
    """Returns the metadata of an artefact of the model."""
    given = {"to": "onnx", "dtype": "float32", "batch": None, "size_hw": None, "masked": True, **changes}
    return describe(model, processor or small_processor(), **given)


def other_cases(batch: int | None = None, size_hw: tuple[int, int] | None = None) -> list[Case]:
    """Inputs that the export itself does not check: a single row of cells, a large batch, a picture of 3/4 padding."""
    rng = np.random.default_rng(9)
    cases = []
    for shape in ((5, 33, 97), (1, 97, 33), (4, 129, 64)):
        pixel_values = smooth_images(rng, (batch or shape[0], 3, *(size_hw or shape[1:])))
        mask = np.ones((len(pixel_values), *pixel_values.shape[2:]), dtype=bool)
        mask[-1, mask.shape[1] // 2 :] = False
        mask[-1, :, mask.shape[2] // 2 :] = False
        cases += [Case(pixel_values, mask), Case(pixel_values, None)]
    return cases


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
            output = graph_of(self.model, self.info)(torch.from_numpy(pixel_values), mask)
        found = each_field(predictions_of(output), lambda values: values.numpy())
        noise = self.noise * np.random.default_rng(0).standard_normal(found.logits.shape).astype(np.float32)
        return found._replace(logits=found.logits + noise)
