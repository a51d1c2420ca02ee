"""Training speed: a step of forward, loss, backward, clipping and AdamW, on both sides.

Each side gets the optimiser that its user gets: this package's is fused (`DETRTrainingArguments`), and so is
transformers' own default, so neither wins by it. transformers trains its stem and first stage; the time and memory of
that are part of the comparison. The losses are compared before anything is timed.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .measuring import check_device, compare, counted_syncs, environment, peak_memory, require_agreement
from .models import dtype_named, random_pair, random_pixels, random_targets

MAX_GRAD_NORM = 0.1
OBJECTS = 10


class Step:
    """One training step of a model on one batch; calling it returns the loss."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], dtype: torch.dtype, call: Callable | None = None):
        self.model = model.train()
        self.call = call or model
        self.batch = batch
        self.dtype = dtype
        self.device_type = batch["pixel_values"].device.type
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=1e-4, fused=True)

    def __call__(self) -> Tensor:
        with self._precision():
            loss = self.call(**self.batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _precision(self):
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device_type, self.dtype)


def steps_of_both_sides(
    device: str,
    dtype: str,
    batch: int,
    size_hw: tuple[int, int],
    compile_ours: bool,
    compile_peer: bool,
    **config: Any,
) -> tuple[Step, Step]:
    """Returns a step of this package's model and one of transformers', on the same batch and from the same weights.

    Without dropout, so that the losses can be compared.
    """
    ours, peer = random_pair(device, dropout=0.0, **config)
    peer.config.auxiliary_loss = ours.config.aux_loss
    pixel_values, _ = random_pixels(batch, size_hw, device)
    targets = random_targets(batch, OBJECTS, ours.config.num_labels, device)
    inputs = {"pixel_values": pixel_values, "pixel_mask": torch.ones(batch, *size_hw, dtype=torch.int64).to(device)}
    ours_call = torch.compile(ours) if compile_ours else None
    peer_call = torch.compile(peer) if compile_peer else None
    # transformers' forward changes the boxes of its labels in place in some versions: each side has its own
    batches = [inputs | {"labels": [dict(target) for target in targets]} for _ in range(2)]
    precision = dtype_named(dtype)
    return Step(ours, batches[0], precision, ours_call), Step(peer, batches[1], precision, peer_call)


def loss_difference(ours: Step, peer: Step) -> dict[str, float]:
    """Returns the relative difference of the two losses before any training, in float32."""
    with torch.no_grad():
        losses = [step.model(**step.batch).loss.item() for step in (ours, peer)]
    return {"loss": abs(losses[0] - losses[1]) / abs(losses[1])}


def compare_train_steps(
    device: str,
    dtype: str,
    batch: int,
    size_hw: tuple[int, int],
    compile_ours: bool,
    compile_peer: bool,
    runs: int,
    **config: Any,
) -> dict[str, Any]:
    """Returns the record of one comparison: time, peak memory, and on CUDA host syncs of a step.

    Raises:
        ValueError: for a device that is not there, or losses that do not agree.
    """
    check_device(device)
    ours, peer = steps_of_both_sides(device, dtype, batch, size_hw, compile_ours, compile_peer, **config)
    difference = require_agreement(loss_difference(ours, peer), 1e-4 if device == "cpu" else 1e-2)
    settings = {"device": device, "dtype": dtype, "batch": batch, "size_hw": list(size_hw), "objects": OBJECTS}
    settings |= {"compile": compile_ours, "compile_peer": compile_peer, "optimizer": "fused AdamW", **config}
    record: dict[str, Any] = {"environment": environment(device), "settings": settings, "difference": difference}
    record["train_step"] = compare(ours, peer, runs, device)
    memory = {"ours_bytes": peak_memory(ours, device), "peer_bytes": peak_memory(peer, device)}
    if None not in memory.values():
        record["peak_memory"] = memory | {"ours_over_peer": memory["ours_bytes"] / memory["peer_bytes"]}
    if device.startswith("cuda"):
        record["host_syncs"] = {"ours": host_syncs(ours), "peer": host_syncs(peer)}
    return record


def host_syncs(step: Callable[[], Any]) -> int:
    """Returns how often one call makes the host wait for the GPU."""
    counts: list[int] = []
    with counted_syncs(counts):
        step()
    return counts[0]


def without_optimizer(step: Step) -> Callable[[], Any]:
    """Returns forward and backward of a step alone."""

    def run() -> None:
        with step._precision():
            loss = step.call(**step.batch).loss
        loss.backward()
        step.optimizer.zero_grad()

    return partial(run)


__all__ = ["Step", "compare_train_steps", "host_syncs", "loss_difference", "steps_of_both_sides"]
