"""Drawing pictures of rare classes more often: repeat-factor sampling (Gupta et al. 2019, arXiv:1908.03195, 3.4).

A class that the part f of the pictures shows has the factor max(1, sqrt(t / f)), a picture the most of its classes.
Different on purpose from LVIS's and Detectron2's: every epoch has the same number of pictures, which a schedule needs,
and each picture comes at least once. Of a factor of 2.3 the 2 are certain; the .3 of all pictures are drawn together
and anew for each epoch (systematic sampling).
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)


class RepeatFactorSampler(Sampler[int]):
    """Gives indices of pictures in random order, each as often as its factor says; the same in every process.

    Args:
        factors: (pictures,), 1 or more.
        seed: another seed gives another order.
    """

    def __init__(self, factors: np.ndarray, seed: int):
        self.seed, self.epoch = seed, 0
        self.certain = np.floor(factors).astype(np.int64)
        part = factors - self.certain
        self.extra = round(float(part.sum()))
        self._bounds = np.cumsum(part) * (self.extra / part.sum() if self.extra else 0.0)

    def set_epoch(self, epoch: int) -> None:
        """Starts another order, that of the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self.certain.sum()) + self.extra

    def __iter__(self) -> Iterator[int]:
        chance = np.random.default_rng((self.seed, self.epoch))
        # points at distances of 1 from a random start: a picture gets one for each that falls into its part
        points = chance.random() + np.arange(self.extra)
        drawn = np.searchsorted(self._bounds, points, side="right").clip(max=len(self.certain) - 1)
        indices = np.concatenate([np.repeat(np.arange(len(self.certain)), self.certain), drawn])
        return iter(chance.permutation(indices).tolist())


def repeat_factors(rows: Any, num_classes: int, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the factor of each picture, and for each class its factor and the part of the pictures that show it.

    Args:
        rows: a split in the schema of `detr_hf.data`, prepared or not; no picture is opened. Crowds do not count: DETR
            does not train on them.
        num_classes: K.
        threshold: t, the part of the pictures below which a class is rare.

    Raises:
        ValueError: the rows do not tell their objects without being read.
    """
    columns = getattr(rows, "column_names", None) or []
    if "objects" not in columns or not hasattr(rows, "with_format") or not hasattr(rows, "__len__"):
        raise ValueError(
            "balance_classes needs to know the objects of every picture without opening it: give the data that "
            "load_detection_dataset returns, without streaming. Elsewhere, class_weights of DETRConfig weigh rare "
            "classes in the loss."
        )
    shows = np.zeros((len(rows), num_classes), dtype=bool)
    for index, row in enumerate(rows.with_format(None).select_columns("objects")):
        objects = row["objects"]
        crowds = objects.get("iscrowd") or [0] * len(objects["category"])
        shows[index, [label for label, crowd in zip(objects["category"], crowds, strict=True) if not crowd]] = True
    part = shows.mean(axis=0)
    factors = np.sqrt(np.maximum(threshold / np.maximum(part, 1e-12), 1.0)) * (part > 0)
    return np.maximum((shows * factors).max(axis=1), 1.0), factors, part


def balanced_sampler(rows: Any, names: Mapping[int, str], threshold: float, seed: int) -> RepeatFactorSampler:
    """Returns the sampler of a training set, and logs which classes come more often.

    Args:
        rows, threshold: as in `repeat_factors`, with its error.
        names: the classes by label.
        seed: of the order.
    """
    of_pictures, of_classes, part = repeat_factors(rows, len(names), threshold)
    sampler = RepeatFactorSampler(of_pictures, seed)
    rare = [f"{names[i]} x{of_classes[i]:.2f} (in {part[i]:.2%})" for i in np.flatnonzero(of_classes > 1)]
    logger.info(
        "balance_classes=%g: an epoch has %d pictures instead of %d. More often than once come those of %s.",
        *(threshold, len(sampler), len(of_pictures), ", ".join(rare) or "no class"),
    )
    return sampler
