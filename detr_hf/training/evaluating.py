"""The trainer's evaluation: COCO's AP, streaming.

Different on purpose from transformers' Trainer: its own keeps every output, and mixes the targets of different images.
Here an image's outputs become its detections as soon as its batch is done, and prediction gives those.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from ..evaluation.coco import CocoMetrics
from ..evaluation.collecting import DetectionEvaluator
from ..evaluation.truth import ground_truth_of
from ..model.predictions_detr import Predictions
from .monitoring import LossParts


class StreamingEvaluation:
    """What `DETRTrainer` does in place of Trainer's own evaluation; a mixin that stands before Trainer.

    Attributes:
        last_evaluation: the numbers of the last evaluation, with AP by class.
    """

    last_evaluation: CocoMetrics | None = None
    _eval_window: LossParts  # `compute_loss` adds to it
    _evaluated_step: int | None = None  # of the weights as they are
    _evaluator: DetectionEvaluator | None = None  # of the evaluation that is running
    _truth: tuple[Any, dict[str, Any] | None] = (None, None)  # the split evaluated last, and its ground truth

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns the loss of a split by part and, if there are labels, COCO's twelve numbers (`eval_ap`, ...).

        Training draws the same random numbers afterwards as it would have drawn without an evaluation.
        """
        id2label = self.accelerator.unwrap_model(self.model).config.id2label
        self._evaluator = DetectionEvaluator(
            id2label, self._ground_truth(dataloader, id2label), repeats=self.args.world_size > 1
        )
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._averaged_weights():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        output.metrics.update(self._eval_window.drain(self.accelerator, prefix=f"{metric_key_prefix}_"))
        if self.args.world_size > 1:
            self._evaluator.gather()
        predictions = output.predictions
        if len(self._evaluator) and not self.args.prediction_loss_only:
            self.last_evaluation, self._evaluated_step = self._evaluator.compute(), self.state.global_step
            output.metrics.update(_named(self.last_evaluation, metric_key_prefix))
            if description == "Prediction" and predictions is None:
                predictions = self._evaluator.results()
        self._evaluator = None
        return EvalLoopOutput(predictions, output.label_ids, output.metrics, output.num_samples)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Returns the loss of a batch, and adds what was found to the evaluation.

        Outputs and targets are returned only where `compute_metrics` asks for them.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None:
                loss, outputs = None, model(**inputs)
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.detach().mean()
        if labels is not None and not self.args.prediction_loss_only:
            found = Predictions(outputs["logits"], outputs["pred_boxes"])
            self._evaluator.update(found, labels, inputs.get("pixel_mask"))
        if self.compute_metrics is None and labels is not None:
            return loss, None, None
        return loss, (outputs["logits"], outputs["pred_boxes"]), labels

    def _ground_truth(self, dataloader: Any, id2label: Mapping[int, str]) -> dict[str, Any] | None:
        """Returns the split's COCO ground truth where its rows are at hand; it is kept for the next evaluation."""
        dataset = getattr(dataloader, "dataset", None)
        if dataset is not self._truth[0]:
            self._truth = (dataset, ground_truth_of(dataset, id2label))
        return self._truth[1]


def _named(metrics: CocoMetrics, prefix: str) -> dict[str, float]:
    """Returns COCO's numbers for the log: `eval_ap`, `eval_ap50`, ...; those that are NaN are left out, but for AP."""
    named = {f"{prefix}_{name.lower()}": value for name, value in metrics.summary.items()}
    return {name: value for name, value in named.items() if not math.isnan(value) or name == f"{prefix}_ap"}
