"""`DETRTrainer`: transformers' Trainer for DETR.

Everything of Trainer keeps working (mixed precision, accumulation, compilation, loggers, DDP, hyperparameter search).
What it does besides or differently, on purpose:

- data, image processor and collator come from `load_detection_dataset`'s result and the model's checkpoint, and their
  classes are compared;
- the backbone and the class head have learning rates of their own, and the recipe depends on whether the
  transformer's weights are trained ones;
- evaluation gives COCO's AP, of a model with masks theirs too and panoptic quality, streaming: Trainer's own keeps
  every output, and mixes the targets of different pictures;
- checkpoints are whole or absent, and a resumed run is the straight run, bit for bit;
- a loss or gradient that is not finite stops the run before it reaches the weights.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from ..checkpoints.processors import processor_of
from ..data.preparing.collate import DetectionCollator
from ..errors import NonFiniteLossError
from ..evaluation.collecting import image_id_of
from ..model.matcher_detr import ADVICE, NonFiniteError
from .arguments import MODEL_OPTIONS, DETRTrainingArguments
from .checkpointed import WholeCheckpoints
from .checkpointing import last_complete_checkpoint
from .ema import EMACallback
from .evaluating import StreamingEvaluation
from .freezing import freeze_backbone, freeze_detector, has_frozen_detector
from .keeping import FoundByStep
from .monitoring import LossParts, describe_batch, describe_parts
from .optimizing import drop_schedule, parameter_groups
from .preparing import check_classes, check_metric, check_pixels, nothing_to_train_on, splits_of_run
from .publishing import HubPublishing
from .sampling import balanced_sampler
from .searching import HyperparameterSearch
from .seeding import SeedingCallback, seeded
from .starting import choose_average, has_box_queries, transformer_is_trained
from .watching import Watch, head_lines

logger = logging.getLogger(__name__)

GPU_PADDING = 128  # sides of training batches on a GPU are multiples of this
FROM_SCRATCH = (
    "The transformer is new: plain DETR needs some 10,000 pictures and 300 epochs before it finds most objects. Start "
    "from a trained one, as facebook/detr-resnet-50 is; recipe='fast' and the preset 'precise' are for less."
)


class DETRTrainer(HubPublishing, HyperparameterSearch, StreamingEvaluation, WholeCheckpoints, Trainer):
    """Trains and measures a DETR.

    Args:
        model: the model; or `model_init` makes it.
        args: the arguments; by default those of the recipe, into the folder `trainer_output`.
        data: what `load_detection_dataset` returns; its train and validation splits are used.
        train_dataset: a prepared data set in its place: rows `{"pixel_values", "labels"}`.
        eval_dataset: the same, for validation.
        processing_class: the image processor; by default the checkpoint's.
        data_collator: by default a `DetectionCollator`.

    What else transformers' Trainer takes is as there.

    After an evaluation `last_evaluation` holds its `CocoMetrics`, with AP by class; `last_mask_evaluation` those of
    masks, and `last_panoptic_evaluation` its `PanopticMetrics`. `whole_evaluation()` has its detections and thresholds
    too; `save_figures()` draws it, and the curves of the run.

    Raises:
        ValueError: data, model and arguments do not fit; the message says what to change.
    """

    # Trainer's own
    train_dataset: Any
    data_collator: Any
    optimizer_cls_and_kwargs: Any
    lr_scheduler: Any

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
        first = model
        if model_init is not None and (processing_class is None or data is not None):
            self.model_init = model_init  # the checkpoint that it loads has the processor, and perhaps a mask head
            first = super().call_model_init()
        if processing_class is None:
            processing_class = processor_of(first)
        masks = getattr(first, "has_mask_head", False)
        train_dataset, eval_dataset = splits_of_run(args, train_dataset, eval_dataset, data, processing_class, masks)
        self._data, self._id2label = data, getattr(data, "id2label", None)
        self._seeding = SeedingCallback()
        choose_average(args, first)
        decay = getattr(args, "ema_decay", None)
        self._ema = EMACallback(decay) if decay else None
        self._window, self._eval_window = LossParts(), LossParts(as_one_batch=True)
        self._step_labels: list[Any] = []
        self._group_rates: dict[str, float] = {}
        self._found = FoundByStep()
        super().__init__(
            model=model,
            args=args,
            data_collator=DetectionCollator(id2label=self._id2label) if data_collator is None else data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
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
        check_pixels(self.model, self.processing_class)
        self.watch = Watch(
            lambda: head_lines(self, self._recipe, self._is_trained), lambda: self.kept.text if self.kept else None
        )
        self.watch.take_place_in(self)

    def _apply_arguments(self) -> None:
        """Completes the arguments, now that the model is known, and does what they say of it."""
        self._is_trained, self._recipe = transformer_is_trained(self.model), ""
        if isinstance(self.args, DETRTrainingArguments):
            frozen = has_frozen_detector(self.model)
            self._recipe = self.args.apply_recipe(self._is_trained, frozen, has_box_queries(self.model))
            if self._recipe == "scratch":
                logger.warning(FROM_SCRATCH)
        sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        is_panoptic = any(self._things(rows) is not None for rows in sets)
        check_metric(self.args, self.eval_dataset, self.compute_metrics, self._has_masks, is_panoptic)
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
        """Returns a new model of `model_init`, as the arguments want it; every training begins with one."""
        model = super().call_model_init(trial)
        self._fit_model(model)
        return model

    def _fit_model(self, model: nn.Module) -> None:
        """Freezes what the arguments want frozen and adds the training aids of their recipe, if the classes fit."""
        check_classes(model, self._id2label)
        if not isinstance(self.args, DETRTrainingArguments):
            return
        if self.args.freeze_backbone:
            freeze_backbone(model)
        freeze_detector(model, self.args.freeze_detector, self.args.recipe)
        options = MODEL_OPTIONS.get(self.args.recipe)
        if options and not options.items() <= model.config.to_dict().items():
            model.add_training_aids(**options)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, and returns steps, loss and metrics as transformers' Trainer does.

        A run that starts, and one that goes on from an older checkpoint, finds no other run's checkpoints in its way:
        `args.earlier_checkpoints` says whether those are moved into a folder beside, deleted, or an error.

        Args:
            resume_from_checkpoint: a checkpoint; True for the last complete one of the output folder; "auto" for the
                same, or from the start where there is none.
            trial: of a search, as in transformers' Trainer.
            ignore_keys_for_eval: outputs that are no predictions, as there.

        Raises:
            CheckpointError: what is wanted is not there or not whole, was trained with other classes, or could be of
                several runs.
        """
        try:
            checkpoint = self._begin_run(resume_from_checkpoint, trial)
            self._step_labels, self._window = [], LossParts()
            self._found, self.kept = FoundByStep(), None
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._end_run()

    # --- data ---

    def get_train_dataloader(self) -> Any:
        """Returns the training loader; every image is augmented from a generator of its own, see `seeding.py`.

        Evaluation pads no further than to the largest picture of a batch, since padding moves outputs.
        """
        plain = self.train_dataset
        if plain is None:
            raise ValueError(nothing_to_train_on(self._data))
        threshold = getattr(self.args, "balance_classes", 0.0)
        if threshold:
            if self.args.train_sampling_strategy != "random":
                raise ValueError("balance_classes draws pictures at random: leave train_sampling_strategy out.")
            names = self.accelerator.unwrap_model(self.model).config.id2label
            self._seeding.sampler = balanced_sampler(plain, names, threshold, self.args.data_seed or self.args.seed)
        self._seeding.dataset = self.train_dataset = seeded(plain, self.args.data_seed or self.args.seed)
        collator = self.data_collator
        if isinstance(collator, DetectionCollator) and collator.pad_to_multiple_of is None:
            multiple = getattr(self.args, "pad_to_multiple_of", None)
            on_gpu = self.args.device.type == "cuda"
            self.data_collator = collator.padding_to(GPU_PADDING if multiple is None and on_gpu else multiple)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = plain, collator
        if has_length(loader) and not len(loader):
            raise ValueError(
                f"dataloader_drop_last leaves nothing to train on: {len(plain)} pictures do not fill a batch of "
                f"{self._train_batch_size} in {self.args.world_size} process(es). Set it to False, or lower "
                "per_device_train_batch_size."
            )
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Returns Trainer's sampler, or with `balance_classes` one that draws pictures of rare classes more often."""
        return super()._get_train_sampler(train_dataset) if self._seeding.sampler is None else self._seeding.sampler

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Returns a loader; `dataloader_drop_last` is for training, since an evaluation measures every picture."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        finally:
            self.args.dataloader_drop_last = drop_last

    # --- optimisation ---

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Returns the optimiser of `args.optim`, with groups for transformer, backbone, class head and mask head."""
        if self.optimizer is not None or not isinstance(self.args, DETRTrainingArguments):
            return super().create_optimizer(model)
        chosen = self.optimizer_cls_and_kwargs
        optimizer_cls, options = chosen or self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
        brings_groups = {"params", "model", "optimizer_dict"} & set(options)
        if not brings_groups:
            rates: dict[str, Any] = {  # Trainer logs the first as learning_rate
                "transformer": self.args.learning_rate,
                "backbone": self.args.backbone_learning_rate,
                "class_head": self.args.head_learning_rate,
                "mask_head": self.args.learning_rate,
            }
            options = {**options, "params": parameter_groups(model or self.model, rates, self.args.weight_decay)}
        self.optimizer_cls_and_kwargs = (optimizer_cls, dict(options))
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = chosen

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Returns the schedule of `args.lr_scheduler_type`; a constant one drops once where `lr_drop` says so."""
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
        """Returns the loss; in training its parts are noted for the log, and it must be finite.

        Raises:
            NonFiniteLossError: naming the pictures of the batch.
        """
        labels = inputs.get("labels") or []
        batch = dict(inputs)
        options = {"return_outputs": True, "num_items_in_batch": num_items_in_batch}
        try:
            loss, outputs = super().compute_loss(model, inputs, **options)
        except NonFiniteError as error:
            raise NonFiniteLossError(f"{error} {self._where_and_what_is_safe(batch, labels)}") from error
        parts = outputs.get("loss_dict") or {} if isinstance(outputs, dict) else {}
        if model.training:
            self._window.add(parts, labels)
            self.watch.note_loss(loss)
            self._step_labels.append(labels)
            if not torch.isfinite(loss).all():
                raise NonFiniteLossError(
                    f"The loss is {float(loss.detach())} ({describe_parts(parts)}). {ADVICE} "
                    f"{self._where_and_what_is_safe(batch, labels)}"
                )
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Returns the gradient's norm, which must be finite, because the optimiser's step comes next."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is not None and self.accelerator.scaler is None and not math.isfinite(float(grad_norm)):
            labels = [label for batch in self._step_labels for label in batch]
            names = self._file_names(labels)
            pictures = "; ".join(
                f"{names.get(image_id_of(label), 'image_id')} {image_id_of(label)}" for label in labels
            )
            raise NonFiniteLossError(
                f"The gradient is not finite (norm {float(grad_norm)}) at step {self.state.global_step + 1}, though "
                f"the loss is. The step's pictures: {pictures}. {ADVICE} {self._what_is_safe()}"
            )
        self._step_labels = []
        return grad_norm

    def _where_and_what_is_safe(self, batch: Mapping[str, Any], labels: list[Any]) -> str:
        pictures = describe_batch(batch, self._file_names(labels))
        return f"This is step {self.state.global_step + 1}. The batch: {pictures}. {self._what_is_safe()}"

    def _what_is_safe(self) -> str:
        last = last_complete_checkpoint(self.args.output_dir)
        saved = f"The last checkpoint, {last}, is good" if last else "No checkpoint was written yet"
        broken = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
        weights = (
            f"{len(broken)} weights were not finite before this step ({broken[0]}, ...)"
            if broken
            else "The weights were not changed by it"
        )
        return f"{weights}. {saved}."

    def _file_names(self, labels: list[Any]) -> dict[Any, str]:
        """Returns file names by image id, as far as the training set has them: a search, for when something failed."""
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
        """Writes a line of the log; one of training also gets the losses by part and every group's learning rate."""
        if "loss" in logs:
            logs.update(self._window.drain(self.accelerator))
            logs.update(
                {f"learning_rate_{name}": rate for name, rate in self._group_rates.items() if name != "transformer"}
            )
        super().log(logs, start_time)


def _refuse_unfit_devices(args: Any) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, and Trainer would use DataParallel, which splits DETR's "
            "list of targets wrongly. Start one process for each GPU: `torchrun --nproc_per_node "
            f"{args.n_gpu} your_script.py` (or `accelerate launch`); or use one GPU: CUDA_VISIBLE_DEVICES=0."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 on a CPU is slow and inexact. Use bf16=True, or neither.")
