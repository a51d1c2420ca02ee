"""Reads any DETR checkpoint into a configuration and tensors in our names.

Four kinds are known: "detr_hf" (ours), "detr" and "table-transformer" (folders or Hub ids of transformers), and
    "original" (`.pth` files of facebookresearch/detr, detection or panoptic, released or written while training).
    Prefixes that wrappers put before the names are taken off. Nothing in a checkpoint is executed.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.configuration_detr import DETRConfig
from .configs import config_from_shapes, config_from_transformers
from .finding import EXPORTED, Hub, find_config, find_file, local_path, read_json, refuse_no_checkpoint
from .layouts import Renamed, detect_layout, rename
from .weight_files import find_weights, read_pickle, read_tensors
from .wrappers import weights_in, without_wrappers

logger = logging.getLogger(__name__)

FOREIGN_TYPES = ("detr", "table-transformer")


@dataclass
class Checkpoint:
    """A DETR checkpoint as this package sees it.

    Attributes:
        config: what to build.
        state_dict: the detector's tensors in our names, on the CPU, in the dtype of the file.
        source: "detr_hf", "original", "detr" or "table-transformer".
        ignored: what the file holds beyond the detector: names of tensors, or `optimizer` and the like.
        path: the folder, the file, or the first file in the Hugging Face cache.
        mask_head: tensors of a panoptic model's mask head, in the original's names; they are among `ignored` too.
        unknown: names of tensors that no DETR has; they are among `ignored` too.
    """

    config: DETRConfig
    state_dict: dict[str, Tensor]
    source: str
    ignored: list[str]
    path: Path
    mask_head: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def is_foreign(
    name_or_path: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    proxies: dict[str, str] | None = None,
) -> bool:
    """Returns False for a folder or Hub id that transformers can load into our classes as it is; reads config.json at
    most.

    Raises:
        OSError: no such folder, file or Hub id.
        ValueError: a folder without config.json, or one whose `model_type` is no DETR.
    """
    hub = _hub(subfolder, revision, token, cache_dir, force_download, local_files_only, proxies)
    path = local_path(name_or_path)
    if path is not None and path.is_file():
        return True
    if path is not None and (path / hub.subfolder / "adapter_config.json").is_file():
        return False  # a PEFT adapter: transformers finds its base model
    return _read_config(name_or_path, hub)["model_type"] != DETRConfig.model_type


def type_of(name_or_path: str | Path, subfolder: str = "", proxies: Any = None, **hub: Any) -> str | None:
    """Returns the `model_type` of a folder's or Hub repository's config.json; None where there is none."""
    path = local_path(name_or_path)
    if path is not None and path.is_file():
        return None
    file = find_file(name_or_path, "config.json", Hub(subfolder or "", **hub))
    return read_json(file).get("model_type") if file else None


def read_checkpoint(
    name_or_path: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    proxies: dict[str, str] | None = None,
    dilation: bool | None = None,
    nheads: int | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> Checkpoint:
    """Returns the checkpoint in a folder, a file or a Hub repository, in our names.

    Args:
        name_or_path: a folder or Hub id with a config.json, or one weight file.
        subfolder, revision, token, cache_dir, force_download, local_files_only: as in transformers' `from_pretrained`.
        proxies: accepted for the sake of that signature; huggingface_hub reads the environment instead.
        dilation, nheads: for a single file without `args`, whose weights cannot show them.
        variant, use_safetensors: which of a folder's weight files, as in transformers.

    Raises:
        OSError: no such folder, file, Hub id or weights; or the Hub cannot be reached.
        ValueError: not a DETR, a damaged file, a pickle with code, or weights that are not finite.
    """
    hub = _hub(subfolder, revision, token, cache_dir, force_download, local_files_only, proxies)
    path = local_path(name_or_path)
    if path is not None and path.is_file():
        refuse_no_checkpoint(path)
        if use_safetensors not in (None, path.suffix == ".safetensors") or variant is not None:
            given = f"variant={variant!r}" if variant is not None else f"use_safetensors={use_safetensors}"
            raise ValueError(f"{path} is one file, which {given} contradicts: leave that out, or name a folder.")
        return _read_single_file(path, dilation, nheads)
    config = _read_config(name_or_path, hub)
    quantised = config.get("quantization_config")
    if quantised:
        raise ValueError(
            f"{name_or_path} is quantised ({quantised.get('quant_method')}), and its tensors can only be loaded as "
            f"they are, by the classes of {config['model_type']!r}. For other classes or queries, or another format, "
            "change the checkpoint that it was made from, and quantise that."
        )
    files = find_weights(name_or_path, hub, variant, use_safetensors)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_tensors(file)
    tensors = without_wrappers(tensors, str(name_or_path))
    source = config["model_type"]
    layout = detect_layout(tensors) if source == DETRConfig.model_type else "transformers"
    renamed = _rename(tensors, layout, files[0])
    if source == DETRConfig.model_type:
        ours = DETRConfig.from_dict(config)
    else:
        ours = config_from_transformers(config, renamed.state_dict)
        ours.architectures = config.get("architectures")  # a base model has no heads, and says so here
    return _finish(ours, renamed, source, [], path or files[0])


def _read_single_file(path: Path, dilation: bool | None, nheads: int | None) -> Checkpoint:
    if path.suffix.lower() in EXPORTED:
        raise ValueError(
            f"{path} is an exported model: `Detector`, and `detr-hf predict`, `eval` and `benchmark` run it. For "
            "anything else name the checkpoint that it was made from."
        )
    if (path.parent / "config.json").is_file():
        raise ValueError(
            f"{path} has a config.json beside it, which belongs to it: give the folder {str(path.parent)!r}."
        )
    if path.suffix == ".safetensors":
        content: Any = read_tensors(path)
    else:
        content = read_pickle(path)
    tensors, args, extra = weights_in(content, str(path))
    tensors = without_wrappers(tensors, str(path))
    layout = detect_layout(tensors)
    renamed = _rename(tensors, layout, path)
    config = config_from_shapes(renamed.state_dict, args, path.name, dilation, nheads)
    source = {"transformers": "table-transformer" if config.pre_norm else "detr"}.get(layout, layout)
    return _finish(config, renamed, source, extra, path)


def _rename(tensors: dict[str, Tensor], layout: str | None, path: Path) -> Renamed:
    renamed = rename(tensors, layout) if layout is not None else Renamed(unknown=list(tensors))
    if detect_layout(renamed.state_dict) is None:
        raise ValueError(
            f"0 of the {len(tensors)} tensors in {path} have a name that a DETR has; the first are "
            f"{list(tensors)[:3]}. This is not the checkpoint of a DETR."
        )
    return renamed


def _finish(config: DETRConfig, renamed: Renamed, source: str, extra: list[str], path: Path) -> Checkpoint:
    damaged = [
        name
        for name, tensor in (renamed.state_dict | renamed.mask_head).items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if damaged:
        raise ValueError(
            f"{len(damaged)} tensors of {path} hold NaN or infinity, for example {damaged[:3]}. The file is damaged, "
            "or the training that wrote it had diverged: take an earlier checkpoint."
        )
    if renamed.unknown:
        logger.warning(
            "%s: %d tensors that no DETR has are left out, for example %s.",
            path,
            len(renamed.unknown),
            renamed.unknown[:3],
        )
    if extra:
        logger.info("%s: left out, because it is not weights: %s.", path, ", ".join(extra))
    ignored = [*renamed.mask_head, *renamed.unknown, *extra]
    return Checkpoint(config, renamed.state_dict, source, ignored, path, renamed.mask_head, renamed.unknown)


def _read_config(name_or_path: str | Path, hub: Hub) -> dict[str, Any]:
    """Returns config.json, whose `model_type` is ours or one that can be read."""
    path = find_config(name_or_path, hub)
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type not in (DETRConfig.model_type, *FOREIGN_TYPES):
        raise ValueError(
            f"{path} is the config of a model of type {model_type!r}, not of a DETR. detr_hf reads "
            f"{DETRConfig.model_type!r}, {' and '.join(map(repr, FOREIGN_TYPES))}, and original .pth files; a "
            "class of your own is loaded by its own from_pretrained, with config_class set."
        )
    return config


def _hub(subfolder, revision, token, cache_dir, force_download, local_files_only, proxies) -> Hub:
    if proxies:
        logger.warning("proxies is not used: huggingface_hub takes its proxy from the environment (HTTPS_PROXY).")
    return Hub(subfolder or "", revision, token, cache_dir, force_download, local_files_only)
