"""Fits the weights of one DETR to other classes or another number of queries, keeping all that still means something.

What is kept is what fine-tuning needs first: the no-object row of the class head, so that nearly every query starts by
saying nothing rather than anything, the rows of classes that both models name, and trained queries. (transformers
drops the whole class head.)
"""

import math
import re

import torch
from torch import Tensor

from ..model.configuration_detr import DETRConfig
from ..model.training_aids_detr import NOISE_OF_COPIES, PREFIX
from .coco_names import UNUSED

_UNNAMED = re.compile(r"\s*|label_\d+|" + re.escape(UNUSED.lower()))


def adapt_heads(
    state_dict: dict[str, Tensor], old_config: DETRConfig, new_config: DETRConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns weights that fit `new_config`, and a sentence for each thing that was changed.

    Classes are compared by name, without regard to case. New rows are drawn as `nn.Linear` draws them, from the global
    random generator of the CPU. The given dict and its tensors are left alone.

    Args:
        state_dict: weights in our names; without `class_embed` only the queries are fitted.
        old_config: what `state_dict` was saved with; its last class row is no-object.
        new_config: what is wanted; `id2label`, `num_queries` and `num_query_groups` are looked at.
    """
    adapted, sentences = dict(state_dict), []
    if "class_embed.weight" in state_dict:
        sources = _rows_to_copy(_names(old_config), _names(new_config))
        if sources is not None:
            adapted |= _new_class_head(state_dict, sources)
            sentences.append(_describe_classes(_names(old_config), _names(new_config), sources))
    if "query_embed.weight" in state_dict and old_config.num_queries != new_config.num_queries:
        queries = state_dict["query_embed.weight"]
        adapted["query_embed.weight"] = _fit_queries(queries, new_config.num_queries)
        kept = min(len(queries), new_config.num_queries)
        how = "the first ones are kept" if kept < len(queries) else "they are tiled, the copies with a little noise"
        sentences.append(f"num_queries goes from {len(queries)} to {new_config.num_queries}: {how}.")
    aids = [name for name in adapted if name.startswith(PREFIX)]
    if aids and not fits(old_config, new_config):
        for name in aids:
            del adapted[name]
        sentences.append("What only training uses, such as denoising queries, starts anew.")
    return adapted, sentences


def fits(old_config: DETRConfig, new_config: DETRConfig) -> bool:
    """Returns whether weights of `old_config` need no change for `new_config`."""
    same_classes = _rows_to_copy(_names(old_config), _names(new_config)) is None
    groups = {old_config.num_query_groups, new_config.num_query_groups}
    same_groups = len(groups) == 1 or 1 in groups  # of one group there are no weights beside the queries
    return same_classes and same_groups and old_config.num_queries == new_config.num_queries


def new_classes(old_config: DETRConfig, new_config: DETRConfig) -> list[str]:
    """Returns the classes of `new_config` for which a checkpoint of `old_config` has no row."""
    sources = _rows_to_copy(_names(old_config), _names(new_config)) or ()
    return [new_config.id2label[index] for index, source in enumerate(sources) if source is None]


def _rows_to_copy(old: list[str], new: list[str]) -> list[int | None] | None:
    """Returns for each new class the old class of the same name or None; None alone where the head can stay."""
    if old == new:
        return None
    if len(old) == len(new) and all(_UNNAMED.fullmatch(name) for name in old):
        return None  # the checkpoint never named its classes, and now they get names
    index_of: dict[str, int] = {}
    for index, name in enumerate(old):
        if not _UNNAMED.fullmatch(name):
            index_of.setdefault(name, index)
    return [index_of.get(name) for name in new]


def _new_class_head(state_dict: dict[str, Tensor], sources: list[int | None]) -> dict[str, Tensor]:
    head = {}
    bound = 1 / math.sqrt(state_dict["class_embed.weight"].shape[1])  # of nn.Linear, for weight and bias alike
    for name in ("class_embed.weight", "class_embed.bias"):
        old = state_dict[name]
        rows = torch.empty(len(sources) + 1, *old.shape[1:]).uniform_(-bound, bound).to(old)
        for index, source in enumerate(sources):
            if source is not None:
                rows[index] = old[source]
        rows[-1] = old[-1]  # no-object
        head[name] = rows
    return head


def _fit_queries(queries: Tensor, num_queries: int) -> Tensor:
    """Returns the first of `queries` (Q, D), or all of them followed by noisy copies in the same order."""
    if num_queries <= len(queries):
        return queries[:num_queries].clone()
    copies = math.ceil(num_queries / len(queries))
    tiled = queries.repeat(copies, 1)[:num_queries]
    noise = torch.randn(num_queries - len(queries), queries.shape[1]) * (
        NOISE_OF_COPIES * queries.float().std().item()
    )
    tiled[len(queries) :] += noise.to(tiled)
    return tiled


def _names(config: DETRConfig) -> list[str]:
    return [config.id2label[index].strip().lower() for index in range(config.num_labels)]


def _describe_classes(old: list[str], new: list[str], sources: list[int | None]) -> str:
    copied = [name for name, source in zip(new, sources, strict=True) if source is not None]
    listed = ", ".join(copied[:8]) + (", ..." if len(copied) > 8 else "")
    kept = (
        f"{len(copied)} of them ({listed}) have the row of the same name"
        if copied
        else "none of them was known before"
    )
    return (
        f"The class head is new, for {len(new)} classes instead of {len(old)}: {kept}, the no-object row is kept, "
        f"{len(new) - len(copied)} rows are random and need training."
    )
