"""Finds a DETR's weights in what training tools write, and takes off what wrappers put before its names.

- Files: the weights lie under a key (`model`, `state_dict`, ...), sometimes two deep; averaged ones under others.
- Prefixes: the attribute that held the model (Lightning's `model.`, `net.`), DDP's and DeepSpeed's `module.`,
  `ema_model.`, in any combination. Whatever stands before all names of the one DETR in a file is taken off.
- torch's own wrappers of inner modules (`_orig_mod.` of torch.compile, FSDP's, activation checkpointing's) may stand
  anywhere in a name.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .layouts import detect_layout

logger = logging.getLogger(__name__)

CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights")
AVERAGED = ("ema", "state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema_model_state_dict")
DEEPEST = 3  # containers in containers, as RT-DETR's {"ema": {"module": ...}}

_INNER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.")
_FLAT = re.compile(r"\.?_?flat_param(_\d+)?$")
_STARTS = {  # where a DETR's own name starts in a longer one, by layout
    "transformers": re.compile(
        r"(?:^|\.)((?:detr\.)?(?:class_labels_classifier|bbox_predictor|(?:model\.)?"
        r"(?:backbone\.(?:conv_encoder\.)?model|(?:backbone\.)?position_embedding|"
        r"(?:encoder|decoder)\.(?:layers|layernorm)|query_position_embeddings|input_projection))\.)"
    ),
    "detr_hf": re.compile(
        r"(?:^|\.)((?:detr\.)?"
        r"(?:backbone\.[01]|transformer\.(?:encoder|decoder)|input_proj|query_embed|class_embed|bbox_embed)\.)"
    ),
}
_STARTS["original"] = _STARTS["detr_hf"]


def weights_in(content: Any, source: str) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Returns the tensors in what a file of torch.save holds, the original's `args`, and the names of all the rest.

    Raises:
        ValueError: where there are none.
    """
    args: dict[str, Any] = {}
    extra: list[str] = []
    found = content
    for _ in range(DEEPEST):
        inner = {name: value for name, value in found.items() if isinstance(value, dict)} if _is_dict(found) else {}
        key = next((name for name in (*CONTAINERS, *AVERAGED) if name in inner), None)
        if key is None:
            break
        args = args or _as_dict(found.get("args"))
        extra += [str(name) for name in found if name not in (key, "args")]
        averaged = [name for name in AVERAGED if name in inner and name != key]
        if key in AVERAGED:
            logger.warning("%s: the averaged weights (%r) are read; it has no others.", source, key)
        elif averaged:
            logger.warning("%s: %r is read; it holds averaged weights as well, under %r.", source, key, averaged[0])
        found = inner[key]
    if not _is_dict(found) or not any(isinstance(value, Tensor) for value in found.values()):
        seen = f"the keys {[str(name) for name in list(found)[:5]]}" if _is_dict(found) else type(found).__name__
        raise ValueError(
            f"{source} holds no weights: expected a state dict, or one under {', '.join(CONTAINERS[:4])} or "
            f"{' or '.join(AVERAGED[:2])}; it has {seen}."
        )
    extra += [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}, args, extra


def without_wrappers(tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns `tensors` under names without the prefixes of wrappers; what was taken off is said in the log.

    Names that do not have the prefix of the others stay as they are.

    Raises:
        ValueError: where several prefixes are before names of a DETR, or FSDP has flattened the weights.
    """
    if any(_FLAT.search(name) for name in tensors):
        raise ValueError(
            f"{source} holds the flattened weights of FSDP, whose shapes are lost. Save with the state dict type "
            "FULL_STATE_DICT."
        )
    plain = {_INNER.sub("", name): name for name in tensors}
    if len(plain) < len(tensors):
        raise ValueError(f"{source} holds several tensors of one name, with and without torch's wrappers in it.")
    prefix = _outer_prefix(plain, source)
    inner = sorted({match for name in tensors for match in _INNER.findall(name)})
    if prefix or inner:
        shown = " and ".join(repr(part) for part in ([prefix] if prefix else []) + inner)
        logger.warning("%s: %s of a wrapper was taken off the names.", source, shown)
    return {name.removeprefix(prefix): tensors[original] for name, original in plain.items()}


def is_wrapped(names: Iterable[str]) -> bool:
    """Whether wrappers have changed the names of a DETR."""
    names = list(names)
    return any(_INNER.search(name) or _FLAT.search(name) for name in names) or "" not in (_prefixes(names) or {""})


def _outer_prefix(names: Iterable[str], source: str) -> str:
    found = _prefixes(names)
    if len(found) > 1 and "" not in found:
        first, *others = sorted(found)
        raise ValueError(
            f"{source} holds more than one model: names of a DETR have the prefix {first!r} and "
            f"{' and '.join(map(repr, others[:3]))}. Keep one of them: torch.save({{name.removeprefix({first!r}): "
            f"tensor for name, tensor in weights.items() if name.startswith({first!r})}}, 'one.pth')."
        )
    return found.pop() if len(found) == 1 else ""


def _prefixes(names: Iterable[str]) -> set[str]:
    """Returns what stands before the names of a DETR."""
    names = list(names)
    starts = _STARTS.get(detect_layout(names) or "")
    found = (starts.search(name) for name in names) if starts else ()
    return {name[: match.start(1)] for name, match in zip(names, found, strict=False) if match}


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _as_dict(args: Any) -> dict[str, Any]:
    return dict(args) if isinstance(args, Mapping) else vars(args) if args is not None else {}
