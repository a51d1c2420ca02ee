"""Pictures to tensors and outputs to detections: this package's image processor beside transformers'."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.models.detr import DetrImageProcessor

from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .measuring import compare, environment, require_agreement

GREY_LEVEL = 1 / 255 / 0.224  # one level of 256, after the division by the standard deviation
QUERIES, CLASSES = 100, 91


def photographs(count: int, size_hw: tuple[int, int]) -> list[PIL.Image.Image]:
    """Returns smooth random pictures with some noise, as photographs are."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size_hw[::-1], PIL.Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16)
        pictures.append(PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return pictures


def compare_processors(batch: int, size_hw: tuple[int, int], runs: int) -> dict[str, Any]:
    """Returns the record: preprocessing and post-processing of one batch of equally large photographs.

    Raises:
        ValueError: when pixels differ by more than about a grey level, or detections differ.
    """
    ours, peer = DETRImageProcessor(), DetrImageProcessor()
    pictures = photographs(batch, size_hw)
    pixels = [processor(pictures, return_tensors="pt")["pixel_values"] for processor in (ours, peer)]
    if pixels[0].shape != pixels[1].shape:
        raise ValueError(f"The two processors give {tuple(pixels[0].shape)} and {tuple(pixels[1].shape)}.")
    difference = (pixels[0] - pixels[1]).abs()
    found = {"grey_levels": difference.max().item() / GREY_LEVEL, "mean_grey_levels": difference.mean().item()}
    found["mean_grey_levels"] /= GREY_LEVEL
    shape = list(pixels[0].shape)
    del pixels, difference
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {"batch": batch, "size_hw": list(size_hw), "shape": shape},
        "difference": require_agreement(found, 1.05),
        "preprocess": compare(
            partial(ours, pictures, return_tensors="pt"), partial(peer, pictures, return_tensors="pt"), runs
        ),
        "preprocess_one": compare(
            partial(ours, pictures[0], return_tensors="pt"), partial(peer, pictures[0], return_tensors="pt"), runs
        ),
    }
    record["postprocess"] = _compare_postprocessing(ours, peer, batch, size_hw, runs)
    return record


def _compare_postprocessing(ours: Any, peer: Any, batch: int, size_hw: tuple[int, int], runs: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, QUERIES, CLASSES + 1, generator=generator) * 3
    center = torch.rand(batch, QUERIES, 2, generator=generator) * 0.5 + 0.25
    size = torch.rand(batch, QUERIES, 2, generator=generator) * 0.4 + 0.05  # inside: transformers does not clip
    outputs = _Outputs(logits=logits, pred_boxes=torch.cat([center, size], dim=-1))
    sizes = [size_hw] * batch
    calls = [
        partial(side.post_process_object_detection, outputs, threshold=0.5, target_sizes=sizes)
        for side in (ours, peer)
    ]
    found = [
        max((a[key].float() - b[key].float()).abs().max().item() for key in ("scores", "labels", "boxes"))
        for a, b in zip(calls[0](), calls[1](), strict=True)
        if len(a["scores"])
    ]
    return compare(*calls, runs, repeats=10) | require_agreement({"difference": max(found)}, 1e-3)


class _Outputs(SimpleNamespace):
    """A model's outputs, by name and by key."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return getattr(self, name)


__all__ = ["compare_processors", "photographs"]
