"""Chance that depends on nothing but seed and place in the run, so that a restarted run is the straight run.

A data loader draws augmentation from a generator that the process or its workers share with everything else; after a
restart in the middle of an epoch that generator is elsewhere, for all that its state was saved: batches are read
ahead, and workers draw a seed when they start. Here every picture of every epoch has a generator of its own, and every
step starts dropout's anew. So the number of workers, reading ahead, an evaluation, a restart or a further process
change no crop and no dropped unit.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import TrainerCallback

from .sampling import RepeatFactorSampler


@contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """Within it python, numpy and torch (on the CPU) draw from generators seeded by `key`; outside nothing has
    happened."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(3, np.uint32).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class SeededDataset(Dataset):
    """A map-style data set, each row read with a generator of its own.

    Args:
        dataset: what to read.
        seed: another seed gives another augmentation.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Starts another augmentation, that of the epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with drawn_from(self.seed, int(self._epoch), int(index)):
            return self.dataset[index]


class SeededStream(IterableDataset):
    """The same for a stream: the generator depends on the worker and the row's place in its stream."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Starts another order and augmentation, those of the epoch."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        stream = iter(self.dataset)
        position = 0
        while True:
            with drawn_from(self.seed, int(self._epoch), worker.id if worker else 0, position):
                try:
                    row = next(stream)
                except StopIteration:
                    return
            yield row
            position += 1


def seeded(dataset: Any, seed: int) -> SeededDataset | SeededStream:
    """Returns the data set with a generator for each row."""
    return SeededStream(dataset, seed) if isinstance(dataset, IterableDataset) else SeededDataset(dataset, seed)


class SeedingCallback(TrainerCallback):
    """Tells the seeded data set which epoch it is, also after a restart in the middle of one, and seeds every step."""

    def __init__(self) -> None:
        self.dataset: SeededDataset | SeededStream | None = None
        self.sampler: RepeatFactorSampler | None = None
        self._next_epoch = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Starts at the epoch that the run is in."""
        self._next_epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Sets the epoch before the data loader starts on it."""
        for drawn in (self.dataset, self.sampler):
            if drawn is not None:
                drawn.set_epoch(self._next_epoch)
        self._next_epoch += 1

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Starts the generators that dropout draws from, on all devices; other processes have others."""
        key = (args.seed, state.global_step, args.process_index)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
