"""The recipe of the embedded checkpoint, and the log and the state of a run."""

import json
import logging
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)

LOG_EVERY = 50
PRETRAIN_LOG, DETECT_LOG = "pretrain.jsonl", "detect.jsonl"


@dataclass
class Recipe:
    """Everything that decides the result; each field is an option of the command line."""

    batch_size: int = 16
    pretrain_steps: int = 900
    steps: int = 4850
    decay_fraction: float = 0.75
    late_step: int = 1400
    small_until: int = 3900
    pretrain_lr: float = 2e-3
    lr: float = 6e-4
    lr_backbone: float = 3e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    clip: float = 0.1
    ema_decay: float = 0.998
    query_groups: int = 4
    encoder_weight: float = 1.0
    # what the saved configuration does not tell, as it only concerns this training:
    box_weight: float = 1.0  # factor of both box losses; matching keeps DETR's weights
    cost_class: float = 1.0  # weight of the class in matching; 4 in the recipe `fast`
    iou_label_power: float = 0.0  # see DETRConfig
    num_denoising: int = 0
    seed: int = 0
    init: str = ""  # a checkpoint to go on from; then there is no first stage
    minutes: float = 0.0  # end after so long, whatever `steps` says
    draw: str = "auto"  # training scenes of the second stage: "workers", "device", or "device" on a GPU
    workers: int = 1
    final_fraction: float = 0.25  # last part of a run, drawn on the device, with scenes like those of validation
    padded_fraction: float = 0.0  # share of batches with scenes of several sizes, padded; for scenes of "workers"
    kept_batches: int = 0  # leave the backbone as it is, and train on its features of so many batches, kept in WORK
    muon_lr: float = 0.0  # Muon for the transformer's matrices; 0 is AdamW for all
    autocast: bool = False  # forward and backward in bfloat16, where the processor has it; weights stay float32
    whole_backbone: bool = False  # train stem and batch norms' scale and shift as well
    save_every: int = 200
    stride: int = 16
    hidden_dim: int = 128
    nheads: int = 4
    dim_feedforward: int = 512
    enc_layers: int = 3
    dec_layers: int = 3
    num_queries: int = 20
    backbone: str = "resnet18"
    channels: list[int] = field(default_factory=lambda: [32, 64, 128, 192])
    layers: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    stem_width: int = 8

    def __post_init__(self) -> None:
        if self.draw not in ("auto", "device", "workers"):
            raise ValueError(f"draw is {self.draw!r}; give 'auto', 'device' or 'workers'.")
        if self.kept_batches and (self.whole_backbone or not self.init):
            raise ValueError("kept_batches trains on a trained backbone's features: give init and not whole_backbone.")
        if self.kept_batches and self.padded_fraction:
            raise ValueError("kept_batches keeps whole scenes: leave padded_fraction at 0.")

    def changes(self) -> dict[str, object]:
        """The fields that differ from the defaults, as the command line names them."""
        named = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return {name.replace("_", "-"): value for name, value in named if value != getattr(Recipe(), name)}

    @property
    def backbone_kwargs(self) -> dict:
        """What timm needs besides the name, to make the thin ResNet."""
        return {"channels": self.channels, "layers": self.layers, "stem_type": "deep", "stem_width": self.stem_width}


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are; 0 and 1 without `torchrun`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def set_lr(factor: float, *optimizers: torch.optim.Optimizer) -> None:
    """Sets every group's rate to `factor` times its own base."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def save_atomically(state: dict, path: Path) -> None:
    """Writes a state so that a cut leaves the one before it."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


class RunLog:
    """Mean of each loss part over `LOG_EVERY` steps, as a line of JSON and in the log."""

    def __init__(self, path: Path, processes: int = 1, device: str = "cpu", drawn_by: str = "workers"):
        self.path, self.sums, self.count, self.since = path, {}, 0, time.time()
        self.note(processes=processes, threads=torch.get_num_threads(), device=device, drawn_by=drawn_by)

    def add(self, step: int, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Adds one step, and writes a line when enough have come together."""
        for name, value in {"loss": loss, **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1
        if self.count == LOG_EVERY:
            means = {name: round(float(total) / self.count, 4) for name, total in self.sums.items()}
            self.note(step=step + 1, step_seconds=round((time.time() - self.since) / self.count, 4), **means)
            self.sums, self.count, self.since = {}, 0, time.time()

    def note(self, **entry) -> None:
        """Writes one line, in the first process."""
        if rank_and_world_size()[0] != 0:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        logger.info("%s", entry)
