"""Recipes fill what is not given, and nothing else."""

import dataclasses

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from detr_hf.training.arguments import RECIPES, DETRTrainingArguments


def arguments(**changes):
    return DETRTrainingArguments("out", use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize(
    ("recipe", "trained", "name"),
    [("auto", True, "finetune"), ("auto", False, "scratch"), ("scratch", True, "scratch")],
)
def test_what_is_not_given_comes_from_the_recipe(recipe, trained, name):
    args = arguments(recipe=recipe)
    assert args.apply_recipe(trained) == name
    assert {field: getattr(args, field) for field in RECIPES[name]} == RECIPES[name]


def test_memory_is_pinned_for_an_accelerator_alone():
    args = DETRTrainingArguments("out", report_to="none")  # without use_cpu, as most people call it
    assert args.dataloader_pin_memory is torch.accelerator.is_available()
    assert not arguments(dataloader_pin_memory=False).dataloader_pin_memory


def test_without_accelerate_our_extra_is_named(monkeypatch):
    def lack(self):
        raise ImportError("Using the `Trainer` with `PyTorch` requires `accelerate>=1.1.0`: `pip install x`")

    monkeypatch.setattr(TrainingArguments, "__post_init__", lack)
    with pytest.raises(ImportError, match=r"Arguments needs the package accelerate.*'detr-hf\[train,eval\]'"):
        arguments()


def test_a_new_model_with_box_queries_has_rates_of_its_own_and_is_averaged():
    args = arguments()
    args.average_box_queries(True)
    assert args.ema_decay == 0.999
    assert args.apply_recipe(False, has_box_queries=True) == "precise"
    assert args.learning_rate > 1e-4
    assert arguments().apply_recipe(True, has_box_queries=True) == "finetune"
    unasked = arguments(ema_decay=0.0)
    unasked.average_box_queries(True)
    assert unasked.ema_decay == 0
    with pytest.raises(ValueError, match="from_preset"):
        arguments(recipe="precise").average_box_queries(False)


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, 0.0),
        ({"recipe": "detr"}, 0.0),
        ({"recipe": "fast"}, 0.999),
        ({"recipe": "fast_ref"}, 0.999),
        ({"recipe": "fast", "ema_decay": 0.0}, 0.0),
        ({"recipe": "fast", "ema_decay": 0.9}, 0.9),
        ({"recipe": "fast", "fsdp": True}, 0.0),
    ],
)
def test_fast_recipes_average_the_weights_unless_told_otherwise(changes, decay):
    assert arguments(**changes).ema_decay == decay


def test_what_is_given_is_kept():
    args = arguments(learning_rate=3e-4, warmup_steps=7, num_train_epochs=2, lr_drop=0.5, lr_scheduler_type="constant")
    args.apply_recipe(trained=False)
    given = (args.learning_rate, args.warmup_steps, args.num_train_epochs, args.lr_drop, args.lr_scheduler_type)
    assert given == (3e-4, 7, 2, 0.5, "constant")
    assert args.backbone_learning_rate == 1e-5
    assert args.head_learning_rate == pytest.approx(3e-4)  # follows


def test_without_a_detr_trainer_the_arguments_are_complete():
    args = arguments()
    assert not [name for name in RECIPES["scratch"] if getattr(args, name) is None]


@pytest.mark.parametrize(
    ("changes", "saving", "best"),
    [
        ({}, "epoch", True),
        ({"eval_strategy": "steps", "eval_steps": 30}, "steps", True),
        ({"eval_strategy": "no"}, "epoch", False),
        ({"eval_strategy": "steps", "eval_steps": 30, "save_strategy": "epoch"}, "epoch", False),
        ({"save_strategy": "best"}, "best", True),
    ],
)
def test_saving_follows_evaluation(changes, saving, best):
    args = arguments(**changes)
    assert (args.save_strategy, args.load_best_model_at_end) == (saving, best)
    assert args.metric_for_best_model == "ap" and args.greater_is_better
    if saving == "steps":
        assert args.save_steps == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "quick"}, "recipe is 'quick'"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"lr_drop": 2.0}, "lr_drop is 2.0"),
        ({"label_smoothing_factor": 0.1}, "no meaning for DETR"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 has no meaning for DETR: it adds noise to the"),
        ({"use_liger_kernel": True}, "kernels are those of language models"),
        ({"train_sampling_strategy": "group_by_length"}, "pictures have no length"),
        ({"train_sampling_strategy": "batch_rebalance"}, "pictures have no length"),
        ({"balance_classes": 20}, "balance_classes is 20"),
        ({"earlier_checkpoints": "keep"}, "earlier_checkpoints is 'keep'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_a_drop_needs_a_constant_schedule():
    args = arguments(lr_drop=0.5, lr_scheduler_type="cosine")
    with pytest.raises(ValueError, match="lr_drop goes with a constant schedule"):
        args.apply_recipe(trained=True)


@pytest.mark.parametrize(
    ("given", "drop"),
    [
        ({}, 2 / 3),
        ({"warmup_steps": 3}, 2 / 3),
        ({"lr_drop": 0.5}, 0.5),
        ({"lr_drop": 0}, 0),
        ({"lr_scheduler_type": "constant"}, None),
        ({"lr_scheduler_type": "constant_with_warmup"}, None),
        ({"lr_scheduler_type": "constant_with_warmup", "lr_drop": 0.4}, 0.4),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}, None),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}}, None),
        ({"lr_scheduler_type": "linear", "max_steps": 9}, None),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, None),
    ],
)
def test_a_schedule_that_is_given_stays_as_it_is(given, drop):
    """Only the recipe's own schedule has the recipe's drop."""
    args = arguments(**given)
    args.apply_recipe(trained=False)
    assert args.lr_drop == drop
    assert args.lr_scheduler_type == given.get("lr_scheduler_type", "constant_with_warmup")
    for name in set(given) - {"lr_drop", "lr_scheduler_type"}:
        assert getattr(args, name) == given[name]


def test_schedule_options_without_their_schedule_are_refused():
    args = arguments(lr_scheduler_kwargs={"num_cycles": 2})
    with pytest.raises(ValueError, match="would be ignored"):
        args.apply_recipe(trained=False)
    assert arguments(lr_scheduler_kwargs={"num_cycles": 2}).apply_recipe(trained=True) == "finetune"  # a cosine


@pytest.mark.parametrize(
    ("changes", "metric", "greater"),
    [
        ({}, "ap", True),
        ({"prediction_loss_only": True}, "loss", False),
        ({"metric_for_best_model": "map"}, "map", True),
        ({"metric_for_best_model": "loss"}, "loss", False),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_is_measured(changes, metric, greater):
    args = arguments(**changes)
    assert (args.metric_for_best_model, args.greater_is_better) == (metric, greater)


def test_every_flag_is_on_the_command_line():
    flags = "--output_dir out --learning_rate 2e-4 --ema_decay 0.99 --bf16 --use_cpu --lr_scheduler_type linear"
    more = "--load_best_model_at_end false --freeze-backbone"
    parser = HfArgumentParser([DETRTrainingArguments])
    (args,) = parser.parse_args_into_dataclasses(f"{flags} {more}".split(), look_for_args_file=False)
    assert (args.learning_rate, args.ema_decay, args.bf16, args.lr_scheduler_type) == (2e-4, 0.99, True, "linear")
    assert args.load_best_model_at_end is False and args.freeze_backbone


def test_every_default_that_differs_says_why():
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(DETRTrainingArguments):
        if field.name not in theirs or field.default != theirs[field.name].default:
            assert len(field.metadata["help"]) > 30, field.name
