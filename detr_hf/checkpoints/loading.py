"""Turns what a user gave to `from_pretrained` into what transformers can load, for the model classes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from ..model.configuration_detr import DETRConfig
from .embedded import embedded_model_path, shipped
from .finding import Hub, local_path, read_json, where_reached
from .layouts import detect_layout, rename
from .reading import is_foreign, read_checkpoint, type_of
from .surgery import adapt_heads, fits, new_classes
from .weight_files import check_safetensors, find_weights, read_pickle
from .wrappers import is_wrapped, without_wrappers

logger = logging.getLogger(__name__)

_HUB_ARGUMENTS = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
_UNSEEN = ("dilation", "nheads")  # what a bare weight file cannot show
_WHICH_FILES = ("variant", "use_safetensors")  # of several in one folder


def prepare_loading(
    name_or_path: str | Path,
    config: PreTrainedConfig | str | Path | None,
    kwargs: dict[str, Any],
    with_mask_head: bool = False,
    config_class: type[DETRConfig] = DETRConfig,
) -> tuple[str | Path | None, PreTrainedConfig | str | Path | None, dict[str, Tensor] | None]:
    """Returns (name, config, state dict) to hand on to transformers' `from_pretrained`.

    For our own checkpoint that fits, these are the given name and config, and None. For any other the name is None,
    the configuration is the wanted one and the state dict is in our names and fits it; then configuration fields and
    Hub arguments are removed from `kwargs`.

    Args:
        name_or_path: a folder, a file or a Hub id.
        config: overrides the checkpoint's configuration: one of ours, or a folder that has one.
        kwargs: what else `from_pretrained` got. Fields of DETRConfig, under any of their names, are applied to the
            configuration.
        with_mask_head: include the mask head of a panoptic checkpoint, for a model that has one.
        config_class: of the model; of one's own, with a `model_type` of its own, transformers loads its checkpoints.

    Raises:
        OSError, ValueError: as `read_checkpoint`; and for a configuration of another kind.
    """
    name_or_path = shipped(name_or_path)
    hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    _refuse_adapter_of_foreign(name_or_path, hub)
    own_type = config_class.model_type
    if own_type != DETRConfig.model_type and type_of(name_or_path, **hub) == own_type:
        _has_own_names(name_or_path, hub, kwargs)  # and refuses what is damaged
        return name_or_path, config, None
    changes = {name: value for name, value in kwargs.items() if DETRConfig.has_field(name)}
    adapter = _adapter_file(name_or_path, hub)
    if adapter is not None:
        if changes:
            raise ValueError(
                f"{name_or_path} is an adapter, which fits its base as that is: {', '.join(changes)} cannot be given. "
                "Load the base with them, train an adapter for it, or merge this one first."
            )
        base = shipped(read_json(adapter).get("base_model_name_or_path"))
        if base == embedded_model_path():  # whose name transformers would ask the Hub for
            kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": adapter.parent}
            kwargs.pop("subfolder", None)
            return base, config, None
        return name_or_path, config, None
    if not is_foreign(name_or_path, **hub):
        as_it_is = config is None and not changes
        if not as_it_is:
            saved = DETRConfig.from_pretrained(name_or_path, **hub)
            wanted = _wanted(saved, config, changes)
            as_it_is = fits(saved, wanted)
        if as_it_is and _has_own_names(name_or_path, hub, kwargs):
            if config is not None:  # then transformers would hand all arguments to the model
                config = wanted
                for name in changes:
                    del kwargs[name]
            if where_reached(name_or_path, Hub()).local_files_only:
                kwargs["local_files_only"] = True
            return name_or_path, config, None
    unseen = {name: changes[name] for name in _UNSEEN if name in changes}
    which = {name: kwargs.pop(name) for name in _WHICH_FILES if name in kwargs}
    checkpoint = read_checkpoint(name_or_path, **hub, **unseen, **which)
    if checkpoint.unknown:
        raise ValueError(
            f"{name_or_path} holds {len(checkpoint.unknown)} tensors that no DETR has, for example "
            f"{checkpoint.unknown[:3]}. It is the checkpoint of another model, whose outputs this one would not give."
        )
    wanted = _wanted(checkpoint.config, config, changes)
    wanted.architectures = checkpoint.config.architectures
    state_dict, sentences = adapt_heads(checkpoint.state_dict, checkpoint.config, wanted)
    for sentence in sentences:
        logger.warning("%s: %s", name_or_path, sentence)
    wanted.new_classes = new_classes(checkpoint.config, wanted)  # for the model, which takes it out again
    if checkpoint.mask_head and with_mask_head:
        state_dict |= checkpoint.mask_head
    elif checkpoint.mask_head:
        logger.warning(
            "%s is a panoptic checkpoint: its detector is loaded, its mask head (%d tensors) is left out.",
            name_or_path,
            len(checkpoint.mask_head),
        )
    for name in [name for name in kwargs if name in hub or DETRConfig.has_field(name)]:
        del kwargs[name]
    return None, wanted, state_dict


def _refuse_adapter_of_foreign(name_or_path: str | Path, hub: dict[str, Any]) -> None:
    """Refuses a PEFT adapter whose base transformers would load by names that no layer here has: it stayed random."""
    file = _adapter_file(name_or_path, hub)
    base = read_json(file).get("base_model_name_or_path") if file else None
    if base and is_foreign(base, **{name: value for name, value in hub.items() if name != "subfolder"}):
        raise ValueError(
            f"{name_or_path} is an adapter over {base}, which is in another format than this package's. Convert the "
            f"base (detr-hf convert {base} FOLDER), and name that folder as base_model_name_or_path in {file.name}."
        )


def _adapter_file(name_or_path: str | Path, hub: dict[str, Any]) -> Path | None:
    """Returns the configuration of a PEFT adapter in a folder, whose base transformers finds; None in any other."""
    folder = local_path(name_or_path)
    file = folder and folder / (hub.get("subfolder") or "") / "adapter_config.json"
    return file if file and file.is_file() else None


def _has_own_names(name_or_path: str | Path, hub: dict[str, Any], kwargs: dict[str, Any]) -> bool:
    """Whether transformers can load the files as they are: not under a wrapper's prefix, nor packed as the original's.

    Refuses damaged files and shards outside the folder, which transformers would not name, or would load.
    """
    if kwargs.get("gguf_file") is not None:
        return True
    files = find_weights(
        name_or_path,
        Hub(**{name: hub[name] for name in Hub.__dataclass_fields__ if hub.get(name) is not None}),
        *(kwargs.get(name) for name in _WHICH_FILES),
    )
    names: list[str] = []
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
            with safe_open(file, "pt") as opened:
                names += opened.keys()
        else:
            names += read_pickle(file)  # refused here with the reason, where transformers would only repeat torch's
    return not is_wrapped(names) and detect_layout(names) in (None, DETRConfig.model_type)


def own_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict in our names, of the original's, of transformers', or of a wrapped model.

    Names that no DETR has stay, for whoever loads it to report.
    """
    plain = without_wrappers(state_dict, "The state dict")
    layout = detect_layout(plain)
    if layout in (None, DETRConfig.model_type):
        return plain
    renamed = rename(plain, layout)
    logger.info("The state dict had the names of %r; they are now those of this package.", layout)
    return renamed.state_dict | renamed.mask_head | {name: plain[name] for name in renamed.unknown}


def _wanted(saved: DETRConfig, config: PreTrainedConfig | str | Path | None, changes: dict[str, Any]) -> DETRConfig:
    """Returns `config`, or `saved` where it is None, with `changes`; any argument that names classes decides them."""
    if isinstance(config, (str, Path)):
        config = DETRConfig.from_pretrained(config)
    if config is not None and config.model_type != DETRConfig.model_type:
        raise ValueError(
            f"config is of model_type {config.model_type!r}; expected a DETRConfig. Leave it out: the checkpoint's "
            "own is translated."
        )
    fields = (saved if config is None else config).to_dict()
    return DETRConfig.from_dict(DETRConfig.with_changes(fields, changes))
