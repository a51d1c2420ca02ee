"""Whether a training starts from a trained transformer or a new one, by which the recipe is chosen."""

from torch import nn


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
