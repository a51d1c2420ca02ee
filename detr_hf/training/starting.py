"""What a training starts from, by which recipes are chosen: a trained transformer or a new one, box queries or not."""

from typing import Any

from torch import nn

from .arguments import DETRTrainingArguments


def choose_average(args: Any, model: nn.Module | None) -> None:
    """Averages the weights where the model asks for it and nobody said; see `average_box_queries`, with its error."""
    if isinstance(args, DETRTrainingArguments) and model is not None:
        args.average_box_queries(has_box_queries(model))


def has_box_queries(model: nn.Module) -> bool:
    """Whether a model's queries are boxes; one of another package has none."""
    return getattr(getattr(model, "config", None), "box_queries", False)


def transformer_is_trained(model: nn.Module) -> bool:
    """Whether the transformer has any but first values: a norm that was trained for one step is no longer 1 and 0.

    A folder's name does not tell: a new model can be saved and loaded, and weights can be loaded into a new model.
    """
    norms = [
        module for name, module in model.named_modules() if isinstance(module, nn.LayerNorm) and "backbone" not in name
    ]
    if not norms:
        return bool(getattr(getattr(model, "config", None), "name_or_path", ""))
    return any(bool((norm.weight != 1).any()) or bool((norm.bias != 0).any()) for norm in norms)
