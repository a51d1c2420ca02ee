"""A detector over a split: pictures are read, detected and forgotten one batch at a time."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..model.predictions_detr import Predictions
from .collecting import DetectionEvaluator
from .truth import ground_truth_of

logger = logging.getLogger(__name__)


def labels_by_name(model_id2label: Mapping[int, str], data_id2label: Mapping[int, str]) -> dict[int, int]:
    """The model's label to the data's, by class name without regard to case; classes of the model alone are left out.

    Raises:
        ValueError: no class is in both.
    """
    label_of = {str(name).casefold(): int(label) for label, name in data_id2label.items()}
    shared = {
        int(label): label_of[str(name).casefold()]
        for label, name in model_id2label.items()
        if str(name).casefold() in label_of
    }
    if not shared:
        raise ValueError(
            f"Model and data have no class in common: {_some(model_id2label)} and {_some(data_id2label)}. Fine-tune "
            "the model on these classes first, or rename them."
        )
    unknown = [name for label, name in data_id2label.items() if int(label) not in shared.values()]
    if unknown:
        logger.warning(
            "The model does not know %d of the data's classes, whose AP is 0: %s.",
            len(unknown),
            ", ".join(unknown[:10]),
        )
    return shared


def _some(id2label: Mapping[int, str]) -> str:
    names = [str(name) for name in id2label.values()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@torch.no_grad()
def evaluate_model(
    model: Any,
    processor: Any,
    rows: Any,
    id2label: Mapping[int, str],
    batch_size: int = 8,
    num_workers: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> DetectionEvaluator:
    """The detections of a model on a split, ready for `compute`, `results` and `analysis`.

    Args:
        model: a detector with `logits` and `pred_boxes`, relative to the unpadded picture.
        processor: its image processor.
        rows: a split in the schema of `detr_hf.data`.
        id2label: the data's classes; the model's are matched to them by name.
        batch_size, num_workers: pictures at a time, and processes that read them.
        on_batch: is told how many pictures a batch had.
    """
    from ..data.prepare.collate import DetectionCollator
    from ..data.prepare.transform import prepare

    to_data = labels_by_name(model.config.id2label, id2label)
    columns = sorted(to_data)
    evaluator = DetectionEvaluator(id2label, ground_truth_of(rows, id2label))
    loader = DataLoader(
        prepare(rows, processor), batch_size, num_workers=num_workers, collate_fn=DetectionCollator(id2label=id2label)
    )
    model.eval()
    for batch in loader:
        outputs = model(
            pixel_values=batch["pixel_values"].to(model.device, model.dtype),
            pixel_mask=batch["pixel_mask"].to(model.device),
        )
        logits = with_classes_of_data(
            outputs.logits.float(), columns, [to_data[label] for label in columns], len(id2label)
        )
        evaluator.update(Predictions(logits, outputs.pred_boxes.float()), batch["labels"])
        if on_batch is not None:
            on_batch(len(batch["labels"]))
    return evaluator


def with_classes_of_data(logits: torch.Tensor, columns: list[int], labels: list[int], num_labels: int) -> torch.Tensor:
    """Log-probabilities (B, Q, K + 1) in the data's classes; those that the data does not have count as no object."""
    probabilities = logits.softmax(-1)
    result = probabilities.new_zeros(*logits.shape[:-1], num_labels + 1)
    result[..., labels] = probabilities[..., columns]
    result[..., -1] = (1 - result[..., :-1].sum(-1)).clamp(min=0)
    return result.clamp(min=torch.finfo(result.dtype).tiny).log()


__all__ = ["evaluate_model", "labels_by_name", "with_classes_of_data"]
