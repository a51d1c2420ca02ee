"""What a training starts from: a new model of a preset on a backbone's weights, and whether a transformer is new."""

from typing import Any

from torch import nn

from ..errors import did_you_mean

# What a new DETR can be, by name: fields of DETRConfig. What is trained with is a recipe's (`arguments.py`).
PRESETS: dict[str, dict[str, Any]] = {"detr": {}}


def preset_fields(name: str) -> dict[str, Any]:
    """Returns the fields of DETRConfig that a preset stands for.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is not known; there are {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    return dict(PRESETS[name])


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
