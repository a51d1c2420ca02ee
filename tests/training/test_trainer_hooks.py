"""The contract with transformers' Trainer: every hook that this package overrides or calls is there, and takes what is
given to it.

Most of these hooks are private, so no release note would tell that one has changed. The lists are written by hand and
compared with the code both ways: a hook that is new here, or gone there, fails.
"""

import ast
import inspect
import textwrap

import pytest
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from detr_hf.training.arguments import DETRTrainingArguments
from detr_hf.training.ema import EMACallback
from detr_hf.training.seeding import SeedingCallback
from detr_hf.training.trainer import DETRTrainer
from detr_hf.training.watching import Watch

from .scenes import trainer

# Overridden hook of Trainer -> the parameters, in their order, that Trainer hands to it and that are used here.
OVERRIDDEN = {
    "__init__": (
        *("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init"),
        *("compute_loss_func", "compute_metrics", "callbacks", "optimizers", "optimizer_cls_and_kwargs"),
        "preprocess_logits_for_metrics",
    ),
    "_get_dataloader": ("dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"),
    "_get_grad_norm": ("model", "grad_norm"),
    "_get_learning_rate": (),
    "_get_train_sampler": ("train_dataset",),
    "_hp_search_setup": ("trial",),
    "_init_training_state": (
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    ),
    "_issue_warnings_after_load": ("load_result",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_run_epoch": (
        *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "call_model_init": ("trial",),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_model_card": ("license", "tags", "model_name", "finetuned_from", "dataset"),
    "create_optimizer": ("model",),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "evaluation_loop": ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    "get_train_dataloader": (),
    "hyperparameter_search": ("hp_space", "compute_objective", "n_trials", "direction", "backend", "hp_name"),
    "init_hf_repo": ("token", "private"),
    "log": ("logs", "start_time"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "push_to_hub": ("commit_message", "blocking", "token", "revision", "private"),
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
}
# Hooks whose own signature differs on purpose, and how; all others take exactly what Trainer's take.
OWN_SIGNATURE = {
    "__init__": "`data` stands third, and everything after it is given by name",
    "_init_training_state": "everything is handed on",
    "_run_epoch": "everything is handed on, by name as Trainer does",
    "create_model_card": "what has no place in a card is taken and left out",
}
# Called, not overridden.
CALLED = {
    *("_finish_current_push", "_get_output_dir", "_prepare_inputs", "_save_optimizer_and_scheduler"),
    *("_save_rng_state", "_save_scaler", "compute_loss_context_manager", "get_optimizer_cls_and_kwargs"),
    *("get_eval_dataloader", "is_world_process_zero", "save_model", "store_flos"),
}
# Attributes that Trainer gives its instances and that are read or set here.
ATTRIBUTES = {
    *("_created_lr_scheduler", "_train_batch_size", "accelerator", "args", "callback_handler", "compute_loss_func"),
    *("compute_metrics", "control", "gather_function", "is_in_train"),
    *("data_collator", "eval_dataset", "hp_search_backend", "hub_model_id", "is_deepspeed_enabled", "is_fsdp_enabled"),
    *("is_fsdp_xla_enabled", "lr_scheduler", "model", "model_init", "optimizer", "optimizer_cls_and_kwargs"),
    *("processing_class", "push_in_progress", "state", "train_dataset"),
}
LATER = {"hub_model_id", "push_in_progress"}  # set when something is pushed
OTHERS = {
    EMACallback: (TrainerCallback, {"on_train_begin", "on_step_end", "on_train_end"}),
    Watch: (
        ProgressCallback,
        {
            *("__init__", "on_train_begin", "on_step_end", "on_save", "on_prediction_step", "on_evaluate", "on_log"),
            "on_train_end",
        },
    ),
    SeedingCallback: (TrainerCallback, {"on_train_begin", "on_epoch_begin", "on_step_begin"}),
    DETRTrainingArguments: (TrainingArguments, {"__post_init__"}),
}


def methods(cls: type, base: type) -> dict[str, object]:
    """What the classes of this package between `cls` and `base` define as functions, by name."""
    own = [part for part in cls.__mro__ if part.__module__.startswith("detr_hf.") and part is not base]
    return {name: value for part in reversed(own) for name, value in vars(part).items() if inspect.isfunction(value)}


def overridden(cls: type, base: type) -> set[str]:
    """Names of the methods that replace one of `base`; of the methods of every object `__init__` alone counts."""
    generated = {"__eq__", "__repr__", "__init__"} if hasattr(base, "__dataclass_fields__") else set()
    names = {name for name in methods(cls, base) if hasattr(base, name)} - generated
    return names - set(dir(object)) | ({"__init__"} & names & set(vars(base)))


def trees() -> list[ast.AST]:
    return [
        ast.parse(textwrap.dedent(inspect.getsource(function))) for function in methods(DETRTrainer, Trainer).values()
    ]


def calls() -> list[tuple[str, ast.Call]]:
    """Every `self.name(...)` and `super().name(...)` whose name is a method of Trainer."""
    found = []
    for node in (node for tree in trees() for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner in ("self", "super()") and inspect.isfunction(getattr(Trainer, node.func.attr, None)):
                found.append((node.func.attr, node))
    return found


def parameters(function: object) -> dict[str, inspect.Parameter]:
    return {name: one for name, one in inspect.signature(function).parameters.items() if name != "self"}


def named(parameters: dict[str, inspect.Parameter]) -> list[str]:
    """The parameters in order; what catches all others has the same name everywhere."""
    return ["**" if one.kind is one.VAR_KEYWORD else name for name, one in parameters.items()]


def test_every_override_is_listed():
    assert overridden(DETRTrainer, Trainer) == set(OVERRIDDEN)
    for cls, (base, hooks) in OTHERS.items():
        assert overridden(cls, base) == hooks, cls.__name__


@pytest.mark.parametrize("hook", OVERRIDDEN)
def test_a_hook_takes_what_is_relied_on(hook):
    theirs, ours = parameters(getattr(Trainer, hook)), parameters(getattr(DETRTrainer, hook))
    in_order = [name for name in theirs if name in OVERRIDDEN[hook]]
    assert in_order == list(OVERRIDDEN[hook]), "the hook has lost a parameter, or their order has changed"
    if hook not in OWN_SIGNATURE:
        assert named(ours) == named(theirs), "the override must take what Trainer may hand to it"
        for mine, its in zip(ours.values(), theirs.values(), strict=True):
            assert (mine.default is mine.empty) == (its.default is its.empty), mine.name
    else:
        catches_all = any(one.kind is one.VAR_KEYWORD for one in ours.values())
        assert catches_all or set(OVERRIDDEN[hook]) <= set(ours)


@pytest.mark.parametrize("hook", sorted(name for name in OVERRIDDEN if name.startswith("_") and name != "__init__"))
def test_trainer_still_calls_its_private_hooks(hook):
    """One that is defined and neither called nor handed on would silently do nothing."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(Trainer))) if isinstance(node, ast.Call)]
    used = [part for node in calls for part in (node.func, *(one.value for one in node.keywords))]
    assert hook in {part.attr for part in used if isinstance(part, ast.Attribute)}


def test_every_call_of_a_hook_is_listed():
    assert {name for name, _ in calls()} - set(OVERRIDDEN) == CALLED


@pytest.mark.parametrize(("hook", "call"), calls(), ids=[f"{name}:{node.lineno}" for name, node in calls()])
def test_a_hook_takes_what_it_is_called_with(hook, call):
    """`super()` is Trainer where nothing of ours stands between, and otherwise ours, which take the same."""
    target = Trainer if ast.unparse(call.func.value) == "super()" else DETRTrainer
    function = getattr(target, hook)
    static = isinstance(inspect.getattr_static(target, hook), staticmethod)
    positional = [one for one in call.args if not isinstance(one, ast.Starred)]
    keywords = {one.arg: None for one in call.keywords if one.arg is not None}
    open_ended = len(positional) < len(call.args) or len(keywords) < len(call.keywords)
    signature = inspect.signature(function)
    bind = signature.bind_partial if open_ended else signature.bind
    bind(*([] if static else [None]), *[None] * len(positional), **keywords)


def test_every_attribute_of_trainer_that_is_used_is_there(tmp_path):
    own = {name for part in DETRTrainer.__mro__ if part.__module__.startswith("detr_hf.") for name in vars(part)}
    read, stored = set(), set()
    for node in (node for tree in trees() for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            (stored if isinstance(node.ctx, ast.Store) else read).add(node.attr)
    annotated = {name for part in DETRTrainer.__mro__[:-1] for name in vars(part).get("__annotations__", {})}
    plain = vars(Trainer)
    mine = {"_data", "_id2label", "_seeding", "_step_labels", "_group_rates", "_window", "_recipe", "_is_trained"}
    mine |= {"watch"}
    annotated -= ATTRIBUTES  # what of Trainer's is annotated again is used none the less
    assert (read | stored) - own - annotated - set(plain) - mine == ATTRIBUTES
    there = set(dir(trainer(tmp_path)))
    assert there >= ATTRIBUTES - LATER
    text = inspect.getsource(Trainer)
    assert all(f"self.{name} = " in text for name in LATER)


@pytest.mark.parametrize("cls", OTHERS, ids=lambda cls: cls.__name__)
def test_callbacks_and_arguments_take_what_is_relied_on(cls):
    base, hooks = OTHERS[cls]
    for hook in hooks - {"__init__"}:  # whoever makes one is ours
        theirs, ours = parameters(getattr(base, hook)), parameters(getattr(cls, hook))
        assert list(theirs) == [name for name in ours if name in theirs], hook
        assert any(one.kind is one.VAR_KEYWORD for one in ours.values()) or list(ours) == list(theirs)
    assert list(parameters(TrainingArguments.get_warmup_steps)) == ["num_training_steps"]
