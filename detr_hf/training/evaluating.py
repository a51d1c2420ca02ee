"""The trainer's evaluation: COCO's AP of boxes and masks and panoptic quality, streaming.

Different on purpose from transformers' Trainer: its own keeps every output, and mixes the targets of different images.
Here an image's outputs become its detections as soon as its batch is done, and prediction gives those; masks of the
targets are for the loss, and what is measured is compared with the data's own (`PictureTruth`). Its loss is a
mean of batches; here it is that of the split as one batch (`monitoring.LossParts`), so that neither the batch size nor
the order nor the number of processes change it, beyond what padding does to outputs. Of several sets it makes an
evaluation each, which callbacks and log see one by one; here they are one evaluation, which has the mean of what the
best checkpoint is chosen by.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import EvalLoopOutput, speed_metrics

from ..data.picture_truth import TRUTH
from ..evaluation.coco import CocoMetrics
from ..evaluation.collecting import DetectionEvaluator
from ..evaluation.panoptic import PanopticMetrics
from ..evaluation.report import Evaluation
from ..evaluation.running import things_of
from ..evaluation.segments import SegmentEvaluator
from ..evaluation.truth import ground_truth_of
from ..model.loss_detr import SetCriterion
from ..model.predictions_detr import Predictions
from .keeping import FoundByStep
from .monitoring import MASK_LOSSES, LossParts, loss_divisors


class StreamingEvaluation:
    """What `DETRTrainer` does in place of Trainer's own evaluation; a mixin that stands before Trainer.

    Attributes:
        last_evaluation: the numbers of boxes of the last evaluation, with AP by class.
        last_mask_evaluation: those of masks; None where model or data have none.
        last_panoptic_evaluation: its panoptic quality; None where the data does not tell things from stuff.
        last_evaluations: the same by name, where several sets were evaluated.
    """

    last_evaluation: CocoMetrics | None = None
    last_mask_evaluation: CocoMetrics | None = None
    last_panoptic_evaluation: PanopticMetrics | None = None
    last_evaluations: dict[str, CocoMetrics | None] = {}  # noqa: RUF012 - replaced, never changed
    _eval_window: LossParts
    _evaluated_step: int | None = None  # of the weights as they are
    _evaluator: DetectionEvaluator | None = None  # of the evaluation that is running
    _found: FoundByStep  # in the pictures of the evaluation, for the choice of what is kept
    _found_last: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012 - by prefix of the set
    _truths: list[tuple[Any, dict[str, Any] | None]] = []  # noqa: RUF012 - sets, and their ground truth

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Returns the metrics of a set; of several (a dictionary by name) `eval_<name>_ap` and so on of each.

        Of several there is one more number, which the best checkpoint, early stopping and a search go by:
        `metric_for_best_model`, the mean of all sets, unless it names one of them (`night_ap`).
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            self.last_evaluations = {}
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        start, samples, metrics, evaluations = time.time(), 0, {}, {}
        for name, rows in sets.items():
            loader = self.get_eval_dataloader(name if eval_dataset is None else rows)
            prefix = f"{metric_key_prefix}_{name}"
            loss_only = True if self.compute_metrics is None else None
            output = self.evaluation_loop(loader, "Evaluation", loss_only, ignore_keys, prefix)
            metrics |= output.metrics
            samples += output.num_samples
            evaluations[name] = self.last_evaluation
        self.last_evaluations = evaluations
        metrics |= self._mean_of_sets(metrics, list(sets), metric_key_prefix)
        batches = math.ceil(samples / (self.args.eval_batch_size * self.args.world_size))
        metrics.update(speed_metrics(metric_key_prefix, start, samples, batches))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _mean_of_sets(self, metrics: Mapping[str, float], sets: list[str], prefix: str) -> dict[str, float]:
        wanted = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        values = [metrics[f"{prefix}_{name}_{wanted}"] for name in sets if f"{prefix}_{name}_{wanted}" in metrics]
        return {f"{prefix}_{wanted}": sum(values) / len(values)} if len(values) == len(sets) else {}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns the loss of a split by part and, if there are labels, COCO's twelve numbers (`eval_ap`, ...).

        Of a model with masks there are those of masks too (`eval_mask_ap`, ...; of things, where the data tells them
        from stuff) and, where it does, the panoptic quality (`eval_pq`, `eval_sq`, `eval_rq`, `eval_pq_th`, ...).

        `eval_loss` and its parts are those of the split as one batch: the class losses of all pictures over the sum of
        their queries' weights, and the losses of boxes over the number of objects. Pictures that fill up the last
        batches of several processes are left out. A loss that is not DETR's (`compute_loss_func`) is Trainer's mean.

        Training draws the same random numbers afterwards as it would have drawn without an evaluation.
        """
        id2label, repeats = self.accelerator.unwrap_model(self.model).config.id2label, self.args.world_size > 1
        segments = None
        if self._has_masks:
            segments = SegmentEvaluator(id2label, self._things(getattr(dataloader, "dataset", None)), repeats)
        self._evaluator = DetectionEvaluator(id2label, self._ground_truth(dataloader, id2label), repeats, segments)
        self.gather_function = self._gather  # Trainer sets its own again
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._averaged_weights():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        losses = self._eval_window.drain(self.accelerator, prefix=f"{metric_key_prefix}_")
        if self.args.logging_nan_inf_filter:  # Trainer has left them out of its mean
            losses = {name: value for name, value in losses.items() if math.isfinite(value)}
        output.metrics.update(losses)
        if self.args.world_size > 1:
            self._evaluator.gather()
        predictions = output.predictions
        if len(self._evaluator) and not self.args.prediction_loss_only:
            self.last_evaluation, self._evaluated_step = self._evaluator.compute(), self.state.global_step
            self.last_mask_evaluation = self._evaluator.compute_masks()
            self.last_panoptic_evaluation = self._evaluator.compute_panoptic()
            found, truth = self._evaluator.coco_detections(), self._evaluator.coco_ground_truth()
            known = {"queries": self._queries(), "masks": self.last_mask_evaluation}
            known["panoptic"], step = self.last_panoptic_evaluation, self.state.global_step
            here = {name: one for name, one in self._found_last.items() if one[0] == step}
            self._found_last = {**here, metric_key_prefix: (step, truth, found, known)}
            if self.is_in_train and metric_key_prefix == "eval" and self.args.load_best_model_at_end:
                self._found.add(self.state.global_step, found, truth, self.state.best_global_step)
            output.metrics.update(_named(self.last_evaluation, metric_key_prefix))
            output.metrics.update(_named(self.last_mask_evaluation, f"{metric_key_prefix}_mask"))
            output.metrics.update(_named(self.last_panoptic_evaluation, metric_key_prefix))
            if description == "Prediction" and predictions is None:
                predictions = self._evaluator.results()
        self._evaluator = None
        return EvalLoopOutput(predictions, output.label_ids, output.metrics, output.num_samples)

    def _queries(self) -> Any:
        """Returns the learned query that gave each detection; None where queries are boxes."""
        has_box_queries = getattr(self.accelerator.unwrap_model(self.model).config, "box_queries", False)
        return None if has_box_queries else self._evaluator.coco_queries()

    def whole_evaluation(self, name: str | None = None, threshold: float = 0.5) -> Evaluation | None:
        """Returns the last evaluation with its detections, mistakes from `threshold` on and the best thresholds.

        `name` is that of one of several sets. None where it was not evaluated.
        """
        known = self._found_last.get("eval" if name is None else f"eval_{name}")
        if known is None:
            return None
        _, truth, found, others = known
        return Evaluation.of(truth, found, threshold, **others)

    def save_figures(self, folder: Any = None) -> list[str]:
        """Writes the curves of the run and plots of its last evaluation; returns what is to be said, in lines.

        Whatever hinders them is logged, and nothing raised. Only the main process draws.

        Args:
            folder: `figures` in the output folder by default; of several sets each has a folder in it.
        """
        from .drawing import save_figures

        return save_figures(self, folder) if self.is_world_process_zero() else []

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Returns the loss of a batch, and adds what was found to the evaluation.

        Outputs and targets are returned only where `compute_metrics` asks for them, where transformers' DETR has them:
        the parts of the loss first, then logits and boxes.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        truths = [label.pop(TRUTH, None) for label in labels or ()]
        given = dict(inputs)
        if self._has_masks:
            given["mask_score_threshold"] = self._evaluator.segments.masks_from  # of other queries none is made
            if labels is not None:
                real = self._real_pictures(len(labels))
                given["labels"] = [*labels[:real], *map(_without_objects, labels[real:])]
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None:
                loss, outputs = None, model(**given)
            else:
                loss, outputs = self.compute_loss(model, given, return_outputs=True)
                loss = loss.detach().mean()
                self._note_loss(loss, outputs, labels)
        if labels is not None and not self.args.prediction_loss_only:
            found = Predictions(*(outputs.get(name) for name in ("logits", "pred_boxes", "pred_masks")))
            known = [{**label, TRUTH: truth} for label, truth in zip(labels, truths, strict=True)]
            self._evaluator.update(found, known, inputs.get("pixel_mask"))
        if self.compute_metrics is None and labels is not None:
            return loss, None, None
        kept = ("logits", "pred_boxes") if labels is None else ("loss_dict", "logits", "pred_boxes")
        return loss, nested_detach(tuple(outputs[name] for name in kept)), labels

    def _gather(self, values: Any) -> Any:
        """Returns what all processes have of a batch, without fillers.

        Of the last batch Trainer keeps the first rows of every tensor: of targets, a list with a dictionary a picture,
        that would be the first boxes of each picture.
        """
        if not isinstance(values, list):
            return self.accelerator.gather_for_metrics(values)
        if self.args.world_size > 1:
            values = gather_object(send_to_device(values, "cpu"))
        state = self.accelerator.gradient_state
        return values[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else values

    def _note_loss(self, loss: Tensor, outputs: Any, labels: list[dict[str, Tensor]]) -> None:
        """Adds the loss of a batch's pictures to the evaluation's, without those that only fill up the batch."""
        parts = outputs.get("loss_dict") or {} if isinstance(outputs, dict) else {}
        model = self.accelerator.unwrap_model(self.model)
        criterion = getattr(model, "loss_function", None)
        if self.compute_loss_func is not None or not isinstance(criterion, SetCriterion):
            self._eval_window.add(parts, labels)
            return
        real, weights = self._real_pictures(len(labels)), criterion.weights
        if real < len(labels):
            layers, labels = [*(outputs.get("auxiliary_outputs") or []), outputs], labels[:real]
            kept = ([layer[name][:real] for layer in layers] for name in ("logits", "pred_boxes"))
            of_masks = {name: value for name, value in parts.items() if name in MASK_LOSSES}  # without fillers already
            loss, parts = model.loss_of(Predictions(*map(torch.stack, kept)), labels) if real else (loss, {})
            loss, parts = loss + sum(weights[name] * of_masks[name] for name in of_masks), parts | of_masks
        if real:
            divisors = loss_divisors(labels, outputs["logits"].shape[1], criterion)
            self._eval_window.add(parts, labels, loss, divisors, weights)

    def _real_pictures(self, count: int) -> int:
        """Returns how many of this process's `count` pictures are no fillers, which end the last batch of all."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return count
        return min(max(state.remainder - self.args.process_index * count, 0), count)

    @property
    def _has_masks(self) -> bool:
        return bool(getattr(self.accelerator.unwrap_model(self.model), "has_mask_head", False))

    def _things(self, dataset: Any) -> list[bool] | None:
        """Returns by label whether a class is countable; None where neither the run's data nor the set knows."""
        return things_of(getattr(self, "_data", None), dataset)

    def _ground_truth(self, dataloader: Any, id2label: Mapping[int, str]) -> dict[str, Any] | None:
        """Returns the split's COCO ground truth where its rows are at hand; those of the last sets are kept."""
        dataset = getattr(dataloader, "dataset", None)
        known = [pair for pair in self._truths if pair[0] is dataset]
        if not known:
            known = [(dataset, ground_truth_of(dataset, id2label))]
            kept = len(self.eval_dataset) if isinstance(self.eval_dataset, dict) else 1
            self._truths = [*known, *self._truths][:kept]
        return known[0][1]


def _without_objects(label: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the target of a picture that only fills up a batch: it must not count in the losses of masks."""
    objects = ("class_labels", "boxes", "area", "iscrowd", "masks", "has_mask")
    return {name: value[:0] if name in objects else value for name, value in label.items()}


def _named(metrics: CocoMetrics | PanopticMetrics | None, prefix: str) -> dict[str, float]:
    """Returns numbers for the log: `eval_ap`, `eval_ap50`, ...; those that are NaN are left out, but for AP and PQ."""
    if metrics is None:
        return {}
    named = {name.lower(): value for name, value in metrics.summary.items()}
    return {
        f"{prefix}_{name}": value for name, value in named.items() if not math.isnan(value) or name in ("ap", "pq")
    }
