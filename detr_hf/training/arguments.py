"""`DETRTrainingArguments`: transformers' arguments with DETR's recipe as defaults, and the reason of each default in
its help.

There are four sets of rates. `scratch` is the original's (facebookresearch/detr, main.py), `mask_head` its one for
masks on a frozen detector. `finetune` starts from weights that can detect already: smaller steps, a faster class head,
a cosine. `precise` is for a new transformer with box queries (`DETRConfig.from_preset("precise")`), which stands rates
at which plain DETR diverges. An argument that is given is kept; one that is not is filled in from the recipe, which
`DETRTrainer` picks by what learns and whether the transformer's weights are trained ones (`recipe="auto"`).
What differs on purpose from transformers' defaults is every field below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..errors import lacking
from ..model.compiling_detr import warn_of_slow_dtype

RECIPES: dict[str, dict[str, float | str | None]] = {
    "scratch": {
        "learning_rate": 1e-4,
        "backbone_learning_rate": 1e-5,
        "head_learning_rate": 1e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "lr_drop": 2 / 3,
        "warmup_steps": 0.01,
        "num_train_epochs": 300,
    },
    "finetune": {
        "learning_rate": 5e-5,
        "backbone_learning_rate": 1e-5,
        "head_learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "lr_drop": None,
        "warmup_steps": 0.05,
        "num_train_epochs": 50,
    },
    # Found on blood cells at 256 pixels with an EfficientNet (`python -m benchmarks convergence --protocol B`).
    "precise": {
        "learning_rate": 5e-4,
        "backbone_learning_rate": 1e-4,
        "head_learning_rate": 5e-4,
        "lr_scheduler_type": "cosine",
        "lr_drop": None,
        "warmup_steps": 0.05,
        "num_train_epochs": 50,
    },
    "mask_head": {
        "learning_rate": 1e-4,
        "backbone_learning_rate": 1e-5,
        "head_learning_rate": 1e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "lr_drop": 15 / 25,
        "warmup_steps": 0.01,
        "num_train_epochs": 25,
    },
}

# Recipes that say what the model is trained with, as fields of DETRConfig (`model/training_aids_detr.py`); their
# rates are those of "auto". "fast" is what `python -m benchmarks convergence` favours; "fast_ref" is not plain DETR.
# `set_cost_class` halves the steps where the encoder loss teaches the class head early; alone it does not help.
FAST: dict[str, bool | int | float] = {"encoder_aux_head": True, "num_denoising": 20, "set_cost_class": 4.0}
MODEL_OPTIONS: dict[str, dict[str, bool | int | float]] = {
    "detr": {},
    "fast": FAST,
    "fast_ref": {**FAST, "reference_points": True},
}
# And what such a recipe changes besides the model: arguments that are not given.
AVERAGED: dict[str, float] = {"ema_decay": 0.999}
TRAINING_OPTIONS: dict[str, dict[str, float]] = {"fast": AVERAGED, "fast_ref": AVERAGED, "precise": AVERAGED}


# transformers' arguments that would do nothing here, or harm: the values that are allowed, and why no other is.
MEANINGLESS: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0, None), "its targets are sets of boxes. Leave it at 0."),
    "neftune_noise_alpha": ((None, 0), "it adds noise to the embeddings of words. Leave it out."),
    "use_liger_kernel": ((False, None), "its kernels are those of language models. Leave it out."),
    "train_sampling_strategy": (
        ("random", "sequential"),
        "pictures have no length to group them by, and finding one would read all of them. Take 'random'; "
        "pad_to_multiple_of makes batches of few shapes.",
    ),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DETRTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with other defaults and a few fields more; `--help` of `detr-hf train` lists
    all with reasons.

    Raises:
        ValueError: a value makes no sense for DETR; the message says why.
    """

    model_options: ClassVar[dict[str, dict[str, bool | int | float]]] = MODEL_OPTIONS  # of a recipe, by its name

    recipe: str = _option(
        "auto",
        "Where arguments that are not given come from: 'scratch' (the original's), 'finetune', 'mask_head' (the "
        "original's for masks), or 'auto': 'mask_head' on a frozen detector, 'finetune' when the transformer's "
        "weights are trained ones, else 'scratch'. 'fast' is 'auto' with losses that only training has (on the "
        "encoder, and denoising queries), matching in which the class counts four times as much, and averaged "
        "weights: DETR learns in fewer steps and stays plain; 'fast_ref' adds a reference point to each query, which "
        "stays; 'detr' is 'auto'. 'precise' is for models with box queries (the preset of that name) whose "
        "transformer is new, where 'auto' is it too.",
    )
    learning_rate: float | None = _option(
        None,
        "Of the transformer, box head and mask head. 1e-4 from scratch and for a mask head alone (the original's; "
        "1e-3 does not converge); 5e-5 when fine-tuning, so that the first steps of the new class head do not undo "
        "what was learnt.",
    )
    backbone_learning_rate: float | None = _option(
        None,
        "Of the backbone, 1e-5: its weights are from ImageNet or COCO, and larger steps harm them before the "
        "transformer is of use.",
    )
    head_learning_rate: float | None = _option(
        None,
        "Of the class head: learning_rate from scratch, 4 times that when fine-tuning (2e-4), where it alone has new "
        "rows.",
    )
    weight_decay: float = _option(1e-4, "On all parameters, norms and biases too, as in the original.")
    max_grad_norm: float = _option(
        0.1,
        "Gradients of DETR are clipped to 0.1, ten times harder than is usual: matching changes from step to step and "
        "makes spikes.",
    )
    lr_scheduler_type: SchedulerType | str | None = field(
        default=None,
        metadata={
            "help": "Constant with one drop (lr_drop) from scratch, as the original; 'cosine' when fine-tuning, where "
            "runs are too short to choose a drop. A schedule that is given stays as it is."
        },
    )
    lr_drop: float | None = _option(
        None,
        "Divide all learning rates by 10 after this part of the training (0 to 1), with a constant schedule. Where no "
        "lr_scheduler_type is given, 2/3 from scratch: the original drops after 200 of 300 epochs, and for a mask "
        "head alone after 15 of 25. 0: never.",
    )
    warmup_steps: float | None = _option(
        None,
        "Steps, or a part below 1 of all. Short (a hundredth from scratch, a twentieth when fine-tuning): post-norm "
        "transformers with Adam can otherwise stay stuck from the first steps on.",
    )
    num_train_epochs: float | None = _option(
        None,
        "300 from scratch, as the original's shorter schedule; 50 when fine-tuning; 25 for a mask head alone. Small "
        "data sets need 3,000 steps or more: set max_steps.",
    )
    ema_decay: float | None = _option(
        None,
        "Average the weights over steps with this decay (0.999 is usual; 0 is off), warmed up for short runs. The "
        "average is evaluated and saved; it helps most where the learning rate does not end at zero. 0.999 with the "
        "recipes 'fast', 'fast_ref' and 'precise' (unless weights are sharded), else off.",
    )
    augment: str = _option(
        "paper",
        "Augmentation of training pictures: 'none', 'paper' (flip, multi-scale, crop: the original's) or 'strong'. "
        "Only with `data`.",
    )
    pad_to_multiple_of: int | None = _option(
        None,
        "Pad training batches to sides that are multiples of this; 1: to the largest picture alone. By default 128 on "
        "a GPU, where cuDNN plans every convolution anew for each new size (on an H100 0.2 to 0.6 s with a ResNet-50, "
        "2 to 4 s with an EfficientNet), and 1 on a CPU. Evaluation pads to the largest picture.",
    )
    balance_classes: float = _option(
        0.0,
        "Draw pictures of rare classes more often: one of a class that less than this part of the pictures shows is "
        "drawn sqrt(balance_classes / part) times an epoch (repeat factors, arXiv:1908.03195; 0.001 for LVIS; 0.1 or "
        "more for few classes). 0: off.",
    )
    freeze_backbone: bool = _option(
        False, "Train the transformer and heads only: faster, and safer on a few hundred pictures."
    )
    freeze_detector: bool | None = _option(
        None,
        "Train the mask head alone, the original's way to masks: the detector stays what it is, and a step takes half "
        "the time. Its classes must be the data's. False trains both; by default the checkpoint's configuration says.",
    )

    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "AP after every epoch: DETR's loss says little about AP."}
    )
    save_strategy: SaveStrategy | str | None = field(
        default=None,
        metadata={"help": "As eval_strategy, so that every AP has its checkpoint; 'epoch' without evaluation."},
    )
    save_total_limit: int | None = _option(
        2, "The last and the best checkpoint: one of ResNet-50 DETR takes half a gigabyte."
    )
    earlier_checkpoints: str = _option(
        "set_aside",
        "What a new run does with checkpoints of an earlier one in output_dir: 'set_aside' moves them into a folder "
        "beside ('_earlier_run_1'), 'delete' deletes them, 'refuse' stops. They are never resumed unasked, and no "
        "checkpoint is deleted in favour of theirs.",
    )
    load_best_model_at_end: bool | None = _option(
        None,
        "Keep an earlier step in the place of the last, where it is better by more than noise (`keeping.py`). On when "
        "checkpoints are saved as often as they are evaluated.",
    )
    metric_for_best_model: str | None = _option(
        None,
        "The best checkpoint is the one with the best AP of boxes ('ap'), not the least loss; 'loss' where only the "
        "loss is measured (prediction_loss_only). With masks also 'mask_ap', on panoptic data 'PQ'. Of several "
        "evaluation sets their mean, or one set's: 'night_ap'.",
    )
    logging_steps: float = _option(50, "Often enough to see a small data set learn.")
    logging_nan_inf_filter: bool = _option(
        False, "Off: a loss that is not finite stops the run instead of being left out of the log."
    )
    remove_unused_columns: bool = _option(
        False, "Off: rows become tensors when they are read, so the raw columns must stay."
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"],
        metadata={"help": "The targets: a list with a dictionary for each picture."},
    )
    eval_do_concat_batches: bool = _option(False, "Off: concatenating mixes the targets of different pictures.")
    ddp_find_unused_parameters: bool | None = _option(
        False, "Off: every trainable parameter of DETR takes part in every step."
    )
    data_seed: int | None = _option(None, "As seed, so that order and augmentation are the same after a restart.")

    def __post_init__(self) -> None:
        self.unset = tuple(name for name in RECIPES["scratch"] if getattr(self, name) is None)
        self.ema_is_open = self.ema_decay is None
        if self.ema_decay is None:
            sharded = bool(self.fsdp or self.deepspeed)
            self.ema_decay = 0.0 if sharded else TRAINING_OPTIONS.get(self.recipe, {}).get("ema_decay", 0.0)
            self.ema_is_open = not sharded
        self._check()
        self._fill(RECIPES.get(self.recipe, RECIPES["scratch"]))
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "loss" if self.prediction_loss_only else "ap"
        self._match_saving_to_evaluation()
        try:
            super().__post_init__()
        except ImportError as error:  # transformers names an extra of its own
            raise ImportError(lacking(error, type(self).__name__) or str(error)) from error
        # without one there is none to pin memory for, which torch would say of every loader
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        if self.use_cpu and (self.bf16 or self.bf16_full_eval):
            warn_of_slow_dtype("bfloat16", "cpu")

    def _check(self) -> None:
        if self.recipe not in ("auto", *RECIPES, *MODEL_OPTIONS):
            choices = " or ".join(map(repr, (*RECIPES, *MODEL_OPTIONS)))
            raise ValueError(f"recipe is {self.recipe!r}; choose 'auto', {choices}.")
        if self.earlier_checkpoints not in ("set_aside", "delete", "refuse"):
            raise ValueError(
                f"earlier_checkpoints is {self.earlier_checkpoints!r}; choose 'set_aside', 'delete' or 'refuse'."
            )
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(
                f"pad_to_multiple_of is {self.pad_to_multiple_of}; expected 1 (off) or more, such as 128."
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 (off) or a number below 1, such as 0.999.")
        if self.lr_drop is not None and not 0 <= self.lr_drop < 1:
            raise ValueError(
                f"lr_drop is {self.lr_drop}; expected a part of the training between 0 and 1, such as 0.67, or 0 for "
                "no drop."
            )
        if not 0 <= self.balance_classes <= 1:
            raise ValueError(
                f"balance_classes is {self.balance_classes}; expected a part of the pictures between 0 (off) and 1, "
                "such as 0.1."
            )
        for name, (allowed, why) in MEANINGLESS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} has no meaning for DETR: {why}")

    def _fill(self, recipe: Mapping[str, Any]) -> None:
        for name in self.unset:
            setattr(self, name, SchedulerType(recipe[name]) if name == "lr_scheduler_type" else recipe[name])
        if "head_learning_rate" in self.unset:  # follows a learning rate that was given
            self.head_learning_rate = (self.learning_rate or 0.0) * (
                recipe["head_learning_rate"] / recipe["learning_rate"]
            )

    def _match_saving_to_evaluation(self) -> None:
        evaluates = IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO
        if self.save_strategy is None:
            self.save_strategy = self.eval_strategy if evaluates else "epoch"
            if self.save_strategy == "steps" and self.eval_steps:
                self.save_steps = self.eval_steps
        if self.load_best_model_at_end is None:
            same = SaveStrategy(self.save_strategy).value in (IntervalStrategy(self.eval_strategy).value, "best")
            aligned = (
                SaveStrategy(self.save_strategy) != SaveStrategy.STEPS
                or self.save_steps % (self.eval_steps or self.logging_steps) == 0
            )
            self.load_best_model_at_end = evaluates and same and aligned

    def average_box_queries(self, has_box_queries: bool) -> None:
        """Averages the weights of a model with box queries, where nobody said whether to.

        Raises:
            ValueError: the recipe is for such a model, and this is none.
        """
        if self.recipe == "precise" and not has_box_queries:
            raise ValueError(
                "recipe='precise' is for models with box queries, and this one has none: build it from "
                "DETRConfig.from_preset('precise', ...) (detr-hf train --preset precise), or take recipe='fast'."
            )
        if has_box_queries and self.recipe == "auto" and self.ema_is_open:
            self.ema_decay = AVERAGED["ema_decay"]

    def apply_recipe(self, trained: bool, frozen: bool = False, has_box_queries: bool = False) -> str:
        """Returns the name of the recipe that the arguments that were not given are now filled from.

        Args:
            trained: whether the transformer's weights are trained ones.
            frozen: whether its mask head learns alone.
            has_box_queries: whether its queries are boxes.
        """
        new = "precise" if has_box_queries else "scratch"
        by_model = "mask_head" if frozen else "finetune" if trained else new
        name = self.recipe if self.recipe in RECIPES else by_model
        self._fill(RECIPES[name])
        self.keep_given_schedule()
        return name

    def keep_given_schedule(self) -> None:
        """Takes the recipe's drop away where the schedule is not the recipe's.

        Raises:
            ValueError: two arguments that were given contradict each other.
        """
        kind = SchedulerType(self.lr_scheduler_type)
        constant = kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
        if "lr_drop" in self.unset and (not constant or "lr_scheduler_type" not in self.unset):
            self.lr_drop = None
        if self.lr_drop and not constant:
            raise ValueError(
                f"lr_drop goes with a constant schedule, and lr_scheduler_type is {kind.value!r}. Set "
                "lr_scheduler_type='constant_with_warmup', or leave lr_drop out."
            )
        if self.lr_drop and self.lr_scheduler_kwargs:
            raise ValueError(
                f"lr_scheduler_kwargs {self.lr_scheduler_kwargs} would be ignored: the schedule is constant with one "
                "drop (lr_drop). Give the lr_scheduler_type that they are for, or leave them out."
            )
