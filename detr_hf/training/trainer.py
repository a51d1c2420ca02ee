"""`DETRTrainer`: transformers' Trainer for DETR.

Everything of Trainer keeps working (mixed precision, accumulation, compilation, loggers, DDP, hyperparameter search).
What it does besides or differently, on purpose:

- data, image processor and collator come from `load_detection_dataset`'s result and the model's checkpoint, and their
  classes are compared;
- the backbone and the class head have learning rates of their own, and the recipe depends on whether weights were
  loaded;
- evaluation gives COCO's AP, streaming: Trainer's own keeps every output, and mixes the targets of different pictures;
- checkpoints are whole or absent, and a resumed run is the straight run, bit for bit;
- a loss or gradient that is not finite stops the run before it reaches the weights.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from ..checkpoints.processors import processor_of
from ..data.prepare.collate import DetectionCollator
from ..errors import CheckpointError, NonFiniteLossError
from ..evaluation.coco import CocoMetrics
from ..evaluation.collecting import DetectionEvaluator
from ..evaluation.truth import ground_truth_of
from ..model.backbone_detr import Backbone
from .arguments import MODEL_OPTIONS, DETRTrainingArguments
from .checkpointing import (
    cannot_write,
    checkpoints_in,
    delete_old_checkpoints,
    finish_writing,
    last_complete_checkpoint,
    remove_leftovers,
    start_writing,
)
from .ema import TRAINING_WEIGHTS, EMACallback
from .monitoring import LossParts, describe_batch, describe_parts, image_id_of
from .optimizing import drop_schedule, parameter_groups
from .preparing import Splits, check_classes, check_splits, prepare_splits
from .publishing import HubPublishing
from .searching import HyperparameterSearch
from .seeding import SeedingCallback, seeded

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
GPU_PADDING = 128  # sides of training batches on a GPU are multiples of this
FROM_SCRATCH = (
    "Training from scratch: DETR needs some 10,000 pictures and 300 epochs before it finds most objects. With less, "
    "start from a checkpoint: DETRForObjectDetection.from_pretrained('facebook/detr-resnet-50', id2label=...). "
    "recipe='fast' learns in fewer steps."
)


class DETRTrainer(HubPublishing, HyperparameterSearch, Trainer):
    """Trains and measures a DETR.

    Args:
        model: the model; or `model_init` makes it.
        args: the arguments; by default those of the recipe, into the folder `trainer_output`.
        data: what `load_detection_dataset` returns; its train and validation splits are used.
        train_dataset, eval_dataset: prepared data sets in its place: rows `{"pixel_values", "labels"}`.
        processing_class: the image processor; by default the checkpoint's.
        data_collator: by default a `DetectionCollator`.
        model_init, compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics: as in transformers' Trainer.

    After an evaluation `last_evaluation` holds its `CocoMetrics`, with AP by class.

    Raises:
        ValueError: data, model and arguments do not fit; the message says what to change.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DETRTrainingArguments | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        args = DETRTrainingArguments("trainer_output") if args is None else args
        _refuse_unfit_devices(args)
        processor = processing_class
        if processor is None:
            self.model_init = model_init  # the checkpoint that it loads has the processor
            processor = processor_of(model if model_init is None else super().call_model_init())
        splits = Splits(train_dataset, eval_dataset)
        if data is not None:
            prepared = prepare_splits(data, processor, getattr(args, "augment", "none"))
            splits = Splits(
                prepared.train if train_dataset is None else train_dataset,
                prepared.validation if eval_dataset is None else eval_dataset,
            )
        check_splits(args, splits.train, splits.validation)
        self._data, self._id2label = data, getattr(data, "id2label", None)
        self._seeding = SeedingCallback()
        self._ema = EMACallback(args.ema_decay) if getattr(args, "ema_decay", 0) else None
        self._window, self._eval_window = LossParts(), LossParts()
        self._step_labels: list[Any] = []
        self._group_rates: dict[str, float] = {}
        self._truths: dict[int, tuple[Any, dict[str, Any] | None]] = {}
        self._evaluator: DetectionEvaluator | None = None
        self.last_evaluation: CocoMetrics | None = None
        self._evaluated_step: int | None = None  # of the weights as they are
        super().__init__(
            model=model,
            args=args,
            data_collator=DetectionCollator(id2label=self._id2label) if data_collator is None else data_collator,
            train_dataset=splits.train,
            eval_dataset=splits.validation,
            processing_class=processor,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=[self._seeding, *([self._ema] if self._ema else []), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if model_init is None:
            self._fit_model(self.model)
        self._apply_arguments()

    def _apply_arguments(self) -> None:
        """Completes the arguments, now that the model is known, and does what they say of it."""
        if isinstance(self.args, DETRTrainingArguments):
            recipe = self.args.apply_recipe(loaded=bool(getattr(self.model.config, "name_or_path", "")))
            logger.info("Recipe %r: %s", recipe, {name: getattr(self.args, name) for name in self.args.unset})
            if recipe == "scratch":
                logger.warning(FROM_SCRATCH)
        if self._ema and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "ema_decay does not work with sharded weights (FSDP, DeepSpeed): set it to 0, or train with DDP."
            )
        if self.args.fsdp and not (self.is_fsdp_enabled or self.is_fsdp_xla_enabled):
            raise ValueError(
                "fsdp would be ignored here: accelerate shards weights on GPUs only, and each process would hold the "
                "whole model. Leave fsdp out."
            )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The model of `model_init`, which is made anew for every training, as the arguments want it."""
        model = super().call_model_init(trial)
        self._fit_model(model)
        return model

    def _fit_model(self, model: nn.Module) -> None:
        """Compares the model's classes with the data's, freezes what the arguments want frozen, and adds the training
        aids of their recipe, unless the model has them."""
        check_classes(model, self._id2label)
        if not isinstance(self.args, DETRTrainingArguments):
            return
        if self.args.freeze_backbone:
            _freeze_backbone(model)
        options = MODEL_OPTIONS.get(self.args.recipe)
        if options and not options.items() <= model.config.to_dict().items():
            model.add_training_aids(**options)

    # --- data ---

    def get_train_dataloader(self) -> Any:
        """The training loader; every picture is augmented from a generator of its own, see `seeding.py`.

        Evaluation pads no further than to the largest picture of a batch, since padding moves outputs.
        """
        plain = self.train_dataset
        if plain is None:
            raise ValueError("There is nothing to train on: give data with a train split, or train_dataset.")
        self._seeding.dataset = self.train_dataset = seeded(plain, self.args.data_seed or self.args.seed)
        collator = self.data_collator
        if isinstance(collator, DetectionCollator) and collator.pad_to_multiple_of is None:
            self.data_collator = collator.padding_to(self._padding())
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = plain, collator

    def _padding(self) -> int | None:
        """The multiple to which training batches are padded."""
        multiple = getattr(self.args, "pad_to_multiple_of", None)
        return GPU_PADDING if multiple is None and self.args.device.type == "cuda" else multiple

    # --- optimisation ---

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `args.optim`, with a learning rate for each of transformer, backbone and class head."""
        if self.optimizer is not None or not isinstance(self.args, DETRTrainingArguments):
            return super().create_optimizer(model)
        chosen = self.optimizer_cls_and_kwargs
        optimizer_cls, options = chosen or self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
        if not {"params", "model", "optimizer_dict"} & set(
            options
        ):  # optimisers that bring their own groups keep them
            rates = {
                "transformer": self.args.learning_rate,
                "backbone": self.args.backbone_learning_rate,
                "class_head": self.args.head_learning_rate,
            }
            options = {**options, "params": parameter_groups(model or self.model, rates, self.args.weight_decay)}
        self.optimizer_cls_and_kwargs = (optimizer_cls, dict(options))
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = chosen

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of `args.lr_scheduler_type`; a constant one drops once where `lr_drop` says so."""
        drop = getattr(self.args, "lr_drop", None)
        if self.lr_scheduler is None and drop:
            warm = self.args.lr_scheduler_type == SchedulerType.CONSTANT_WITH_WARMUP
            warmup_steps = self.args.get_warmup_steps(num_training_steps) if warm else 0
            self.lr_scheduler = drop_schedule(
                optimizer or self.optimizer, warmup_steps, math.ceil(drop * num_training_steps)
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss; its parts are noted for the log, and in training it must be finite.

        Raises:
            NonFiniteLossError: naming the pictures of the batch.
        """
        labels = inputs.get("labels") or []
        batch = dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        parts = outputs.get("loss_dict") or {} if isinstance(outputs, dict) else {}
        (self._window if model.training else self._eval_window).add(parts, labels)
        if model.training:
            self._step_labels.append(labels)
            if not torch.isfinite(loss).all():
                raise NonFiniteLossError(
                    f"The loss is {float(loss.detach())} at step {self.state.global_step + 1} "
                    f"({describe_parts(parts)}). The batch: "
                    f"{describe_batch(batch, self._file_names(labels))}. {self._what_is_safe()}"
                )
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, which must be finite, because the optimiser's step comes next."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is not None and self.accelerator.scaler is None and not math.isfinite(float(grad_norm)):
            labels = [label for batch in self._step_labels for label in batch]
            names = self._file_names(labels)
            pictures = "; ".join(
                f"{names.get(image_id_of(label), 'image_id')} {image_id_of(label)}" for label in labels
            )
            raise NonFiniteLossError(
                f"The gradient is not finite (norm {float(grad_norm)}) at step {self.state.global_step + 1}, though "
                "the loss is. The step's "
                f"pictures: {pictures}. {self._what_is_safe()}"
            )
        self._step_labels = []
        return grad_norm

    def _what_is_safe(self) -> str:
        last = last_complete_checkpoint(self.args.output_dir)
        saved = f"The last checkpoint, {last}, is good" if last else "No checkpoint was written yet"
        advice = "If the pictures are sound, lower learning_rate or lengthen the warm-up."
        return f"The weights were not changed by it. {saved}. {advice}"

    def _file_names(self, labels: list[Any]) -> dict[Any, str]:
        """File names by image id, as far as the training set has them; it is searched only when something went
        wrong."""
        wanted = {image_id_of(label) for label in labels}
        columns = getattr(self.train_dataset, "column_names", None) or []
        if not {"image_id", "file_name"} <= set(columns):
            return {}
        rows = self.train_dataset.with_format(None)
        pairs = zip(rows["image_id"], rows["file_name"], strict=True)
        return {image_id: name for image_id, name in pairs if image_id in wanted and name}

    # --- logging ---

    def _get_learning_rate(self) -> float:
        rate = super()._get_learning_rate()
        self._group_rates = {
            group["name"]: float(group["lr"]) for group in self.optimizer.param_groups if "name" in group
        }
        return rate

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; a line of training also gets the loss by part, the class error and every group's learning rate."""
        if "loss" in logs:
            logs.update(self._window.drain(self.accelerator))
            logs.update(
                {f"learning_rate_{name}": rate for name, rate in self._group_rates.items() if name != "transformer"}
            )
        super().log(logs, start_time)

    # --- evaluation ---

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Runs the model over a split; gives the loss by part and, if there are labels, COCO's twelve numbers
        (`eval_ap`, `eval_ap50`, ...).

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
            predictions = (
                self._evaluator.results() if description == "Prediction" and predictions is None else predictions
            )
        self._evaluator = None
        return EvalLoopOutput(predictions, output.label_ids, output.metrics, output.num_samples)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluates a batch; outputs go on only where `compute_metrics` asks for them."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None:
                loss, outputs = None, model(**inputs)
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.detach().mean()
        if labels is not None and not self.args.prediction_loss_only:
            self._evaluator.update(outputs["logits"], outputs["pred_boxes"], labels, inputs.get("pixel_mask"))
        if self.compute_metrics is None and labels is not None:
            return loss, None, None
        return loss, (outputs["logits"], outputs["pred_boxes"]), labels

    def _ground_truth(self, dataloader: Any, id2label: Mapping[int, str]) -> dict[str, Any] | None:
        """The split's COCO ground truth where its rows are at hand, kept for the next evaluation."""
        dataset = getattr(dataloader, "dataset", None)
        if id(dataset) not in self._truths:
            self._truths = {id(dataset): (dataset, ground_truth_of(dataset, id2label))}
        return self._truths[id(dataset)][1]

    # --- checkpoints ---

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains.

        Args:
            resume_from_checkpoint: a checkpoint; True for the last complete one of the output folder; "auto" for the
                same, or from the start where there is none.
            trial, ignore_keys_for_eval: as in transformers' Trainer.

        Raises:
            CheckpointError: True was given and there is no complete checkpoint.
        """
        output_dir = Path(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            remove_leftovers(output_dir)
        if resume_from_checkpoint is True or resume_from_checkpoint == "auto":
            last = last_complete_checkpoint(output_dir)
            if last is None and resume_from_checkpoint is True:
                there = ", ".join(path.name for path in checkpoints_in(output_dir)) or "none at all"
                raise CheckpointError(
                    f"There is no complete checkpoint to resume from in {output_dir}; there are: {there}."
                )
            resume_from_checkpoint = None if last is None else str(last)
        self._step_labels, self._window = [], LossParts()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `checkpoint-N` whole or not at all: into a folder beside it that is renamed at the end."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        final = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            unfinished = (
                start_writing(final) if self.args.should_save else final.with_name(f"_unfinished-{final.name}")
            )
            self.accelerator.wait_for_everyone()
            self._write_checkpoint(unfinished, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                finish_writing(unfinished, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                remove_leftovers(final.parent)
            raise cannot_write(final, error) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            delete_old_checkpoints(final.parent, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_checkpoint(self, folder: Path, final: Path) -> None:
        """Writes everything of a checkpoint that will be called `final`."""
        self.save_model(str(folder), _internal_call=True)
        if self._ema and self._ema.average is not None and self.args.should_save:
            own = self.accelerator.unwrap_model(self.model).state_dict()
            save_file({name: own[name].contiguous() for name in self._ema.average.average}, folder / TRAINING_WEIGHTS)
        if self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    self._note_state(type(callback).__name__, callback.state())
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _note_state(self, name: str, state: dict[str, Any]) -> None:
        states = self.state.stateful_callbacks
        if isinstance(states.get(name), list):
            states[name].append(state)
        else:
            states[name] = state

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        with self._averaged_weights():
            super()._save(output_dir, state_dict)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where weights are averaged."""
        if self._ema is None or self._ema.average is None:
            yield
        else:
            with self._ema.average.swapped_in(self.accelerator.unwrap_model(self.model)):
                yield

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        own = Path(resume_from_checkpoint) / TRAINING_WEIGHTS
        if own.exists():
            if self._ema is not None:
                self._ema.resumed = load_file(Path(resume_from_checkpoint) / WEIGHTS)
            result = (self.model if model is None else model).load_state_dict(load_file(own), strict=False)
            if result.unexpected_keys:
                raise ValueError(f"{own} is of another model: it has {result.unexpected_keys[:3]}.")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._evaluated_step = None
        if self._ema is not None:
            self._ema.best_is_loaded = True

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint that does not fill the model by exact name is refused; Trainer would go on with what it has."""
        missing, unexpected = list(load_result.missing_keys), list(load_result.unexpected_keys)
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(missing)} tensors are missing ({missing[:3]}), "
                f"{len(unexpected)} unknown "
                f"({unexpected[:3]}). Build the model as it was when the checkpoint was written."
            )


def _refuse_unfit_devices(args: Any) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, and Trainer would use DataParallel, which splits DETR's "
            "list of targets wrongly. Start one "
            f"process for each GPU: `torchrun --nproc_per_node {args.n_gpu} your_script.py` (or `accelerate launch`); "
            "or use one GPU: "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 on a CPU is slow and inexact. Use bf16=True, or neither.")


def _freeze_backbone(model: nn.Module) -> None:
    model.config.train_backbone = False
    for module in model.modules():
        if isinstance(module, Backbone):
            module.train_backbone = False
            module.freeze()


def _named(metrics: CocoMetrics, prefix: str) -> dict[str, float]:
    """COCO's numbers for the log: `eval_ap`, `eval_ap50`, ...; those that do not exist are left out, AP itself
    excepted."""
    named = {f"{prefix}_{name.lower()}": value for name, value in metrics.summary.items()}
    return {name: value for name, value in named.items() if not math.isnan(value) or name == f"{prefix}_ap"}


__all__ = ["DETRTrainer"]
