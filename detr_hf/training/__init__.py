"""Training: DETRTrainer with its arguments and recipes, weight averaging, and checkpoints that are whole or absent.

The public names are imported when they are first used, because transformers' Trainer and accelerate take seconds to
import.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .arguments import DETRTrainingArguments
    from .checkpointing import CheckpointError, last_complete_checkpoint
    from .ema import EMACallback, ExponentialMovingAverage
    from .monitoring import NonFiniteLossError
    from .trainer import DETRTrainer


# Public name -> the module that defines it.
_MODULE_OF = {
    "CheckpointError": "checkpointing",
    "DETRTrainer": "trainer",
    "DETRTrainingArguments": "arguments",
    "EMACallback": "ema",
    "ExponentialMovingAverage": "ema",
    "NonFiniteLossError": "monitoring",
    "last_complete_checkpoint": "checkpointing",
}

__all__ = [
    "CheckpointError",
    "DETRTrainer",
    "DETRTrainingArguments",
    "EMACallback",
    "ExponentialMovingAverage",
    "NonFiniteLossError",
    "last_complete_checkpoint",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
