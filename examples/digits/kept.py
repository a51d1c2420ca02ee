"""Feature maps of a frozen backbone, computed once and kept, on which transformer and heads train in half the time."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .batches import loader, normalise
from .recipe import Recipe, rank_and_world_size, save_atomically

logger = logging.getLogger(__name__)

BATCHES_PER_FILE = 100


def kept_batches(
    recipe: Recipe, backbone: nn.Module, folder: Path, first_step: int
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Feature maps (B, C, h, w) and targets of the steps from `first_step` on: all that is kept, again and again.

    What is missing in `folder` is computed first. The batch of a step is a pure function of seed and step.

    Raises:
        ValueError: there are several processes.
    """
    if rank_and_world_size()[1] > 1:
        raise ValueError("Features are kept for one process; start without torchrun, or leave out --kept-batches.")
    files = keep_features(recipe, backbone, folder)
    kept = [torch.load(path, mmap=True, weights_only=True) for path in files]
    number = sum(len(batches) for batches in kept)
    for step in range(first_step, recipe.steps):
        order = np.random.default_rng((recipe.seed, step // number)).permutation(number)
        file, place = divmod(int(order[step % number]), BATCHES_PER_FILE)
        features, targets = kept[file][place]
        yield features.float(), targets


@torch.inference_mode()
def keep_features(recipe: Recipe, backbone: nn.Module, folder: Path) -> list[Path]:
    """Files with the features of the second stage's first `kept_batches` batches, float16; killed, it goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, recipe.kept_batches, BATCHES_PER_FILE)
    files = [folder / f"{start:06}.pt" for start in starts]
    device = next(backbone.parameters()).device
    for start, path in zip(starts, files, strict=True):
        if path.exists():
            continue
        batches = []
        for pixels, targets in loader(recipe, "detect", start, min(start + BATCHES_PER_FILE, recipe.kept_batches)):
            ((features, _),) = backbone(normalise(pixels.to(device)), None)
            batches.append((features.half().cpu(), targets))
        save_atomically(batches, path)
        logger.info("kept the features of %d batches of %d", start + len(batches), recipe.kept_batches)
    return files
