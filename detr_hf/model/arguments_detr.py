"""Arguments that users of transformers' DETR and of the original bring along: taken, passed over or explained.

An unknown argument is an error everywhere. These have a meaning there and none here, or another name.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keyword arguments that transformers itself hands to a configuration, beside its dataclass fields.
TRANSFORMERS_ARGUMENTS = frozenset(
    {
        "num_labels",
        "name_or_path",
        "torch_dtype",
        "dtype",
        "attn_implementation",
        "experts_implementation",
        "output_attentions",
        "per_layer_config",
        "auto_map",
        "custom_pipelines",
        "quantization_config",
        "model_type",
        "transformers_version",
        "tie_word_embeddings",
        "task_specific_params",
        "finetuning_task",
        "use_bfloat16",
        "tokenizer_class",
        "prefix",
        "bos_token_id",
        "pad_token_id",
        "eos_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "is_decoder",
        "cross_attention_hidden_size",
        "add_cross_attention",
        "use_cache",
        "tie_encoder_decoder",
        "torchscript",
        "pruned_heads",
        "return_unused_kwargs",
    }
)

# What every config.json has besides, for transformers' own classes. They would make a random model of the names that
# both configurations share, and only warn; at a text where they expect a number (DETR and its kin) or the name of an
# attention (all) they stop; at one for a backbone's configuration they do not look for `backbone` on the Hub first.
_REFUSAL = (
    "not a checkpoint of transformers' own models, but of detr_hf: pip install detr_hf and import it, or (where its "
    "code is beside it) use trust_remote_code=True; load it with an auto class"
)
NOT_PLAIN_DETR = {"init_std": _REFUSAL, "attn_implementation": _REFUSAL, "backbone_config": _REFUSAL}

# Arguments of a model's loading, which a pipeline hands to the configuration as well.
LOADING_ARGUMENTS = frozenset(
    {
        "adapter_kwargs",
        "adapter_name",
        "code_revision",
        "device_map",
        "ignore_mismatched_sizes",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_folder",
        "offload_buffers",
        "output_loading_info",
        "trust_remote_code",
        "use_safetensors",
        "variant",
        "verify",
        "weights_only",
    }
)

_NO_EFFECT: dict[str, tuple[Callable[[Any, float], bool], str]] = {
    # name: (which value, beside None, changes nothing for a model with this dropout; why, and what else there is)
    "use_timm_backbone": (lambda value, _: value is True, "the backbone always is one of timm: name it with backbone"),
    "use_pretrained_backbone": (
        lambda value, _: not value,
        "a backbone's own weights are read only if backbone_weights says so",
    ),
    "backbone_config": (lambda value, _: False, "give backbone=<name in timm>, dilation and num_channels"),
    "attention_dropout": (lambda value, ours: value in (0, ours), "dropout is the one probability for all places"),
    "activation_dropout": (lambda value, ours: value in (0, ours), "dropout is the one probability for all places"),
    "encoder_layerdrop": (lambda value, _: not value, "layers are not dropped"),
    "decoder_layerdrop": (lambda value, _: not value, "layers are not dropped"),
    "scale_embedding": (lambda value, _: not value, "embeddings are not scaled"),
    "init_std": (lambda value, _: True, "first values are drawn as in the original"),
    "init_xavier_std": (lambda value, _: True, "first values are drawn as in the original"),
    "max_position_embeddings": (lambda value, _: True, "the longest edge of a picture is the image processor's"),
    "num_classes": (lambda value, _: False, "name the classes with id2label, or give num_labels"),
    "lr_backbone": (lambda value, _: False, "give train_backbone=False to freeze it; rates are training arguments"),
    "load_in_8bit": (lambda value, _: not value, "give quantization_config=BitsAndBytesConfig(load_in_8bit=True)"),
    "load_in_4bit": (lambda value, _: not value, "give quantization_config=BitsAndBytesConfig(load_in_4bit=True)"),
    "masks": (lambda value, _: not value, "a class with a mask head makes masks"),
}


def take_foreign(arguments: dict[str, Any], dropout: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields that foreign `arguments` mean here, and the arguments that are not foreign.

    Raises:
        ValueError: for one that asks for what DETR here does not do, with what to do instead.
    """
    fields: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in _NO_EFFECT:
            rest[name] = value
            continue
        changes_nothing, why = _NO_EFFECT[name]
        if name == "use_pretrained_backbone" and value is True:
            fields["backbone_weights"] = "imagenet"
        elif value is not None and not changes_nothing(value, dropout):
            raise ValueError(f"{name}={value!r} has no meaning for detr_hf: {why}.")
        else:
            logger.warning_once(f"{name}={value!r} is passed over: {why}.")
    return fields, rest


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first of `names`, with the nearest of those that are `known`."""
    for name in names:
        nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
        raise ValueError(f"DETRConfig has no argument {name!r}. The nearest one is {nearest!r}.")


def check_dtype(*dtypes: Any) -> None:
    """Raises a ValueError for what is neither None nor a type of torch's nor the name of one."""
    import torch

    for dtype in dtypes:
        found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        if found is not None and not isinstance(found, torch.dtype):
            raise ValueError(f"dtype={dtype!r} is no type of torch's; expected one such as 'float32' or 'bfloat16'.")


def choice_error(name: str, value: str, choices, listing: str = "") -> str:
    """Returns what to say of a value that is none of `choices`, with the nearest of them; of very many, one that is
    near. An owner's name before it, as of the Hub, and timm's tag behind do not count."""
    choices, tail = list(choices), str(value).rpartition("/")[2]
    cutoff = 0.0 if len(choices) < 20 else 0.75
    near = difflib.get_close_matches(tail.partition(".")[0], choices, n=1, cutoff=cutoff)
    nearest = f" Did you mean {tail if near[0] == tail.partition('.')[0] else near[0]!r}?" if near else ""
    listing = listing or f"the choices are {', '.join(sorted(choices))}"
    return f"{name}={value!r} is not known; {listing}.{nearest}"


def without_refusals(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns what a config.json says, without what is written there for transformers' own classes alone."""
    return {name: value for name, value in fields.items() if NOT_PLAIN_DETR.get(name) != value}
