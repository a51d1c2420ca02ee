"""Hidden units that never fire: training, with Muon above all, leaves many of the decoder's behind."""

from functools import partial

import torch
from torch import Tensor, nn

from detr_hf.data.digits import DigitScenes
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .batches import SMALL_DIGITS


@torch.no_grad()
def renew_silent_units(
    model: DETRForObjectDetection, processor: DETRImageProcessor, num_scenes: int = 200, seed: int = 0
) -> int:
    """Gives the units of feed-forward networks that are never positive new weights inwards, and none outwards.

    The outputs stay what they are, and whoever trains the model further can use the units again: a dead ReLU has no
    gradient. Whether a unit fires is looked up on `num_scenes` training scenes, and as many with many small digits.

    Returns:
        The number of units that were renewed.
    """
    networks = [layer for stack in (model.transformer.encoder, model.transformer.decoder) for layer in stack.layers]
    fired = [torch.zeros(layer.linear1.out_features, dtype=torch.bool, device=model.device) for layer in networks]

    def watch(index: int, _layer: nn.Linear, _inputs: tuple[Tensor, ...], hidden: Tensor) -> None:
        fired[index] |= (hidden > 0).flatten(0, -2).any(dim=0)

    hooks = [layer.linear1.register_forward_hook(partial(watch, index)) for index, layer in enumerate(networks)]
    model.eval()
    for scenes in (DigitScenes("train"), DigitScenes("train", **SMALL_DIGITS)):
        for index in range(num_scenes):
            model(**processor(scenes[index]["image"], return_tensors="pt").to(model.device))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(seed)
    for layer, active in zip(networks, fired, strict=True):
        fresh = nn.init.xavier_uniform_(torch.empty(layer.linear1.weight.shape), generator=generator)
        layer.linear1.weight[~active] = fresh.to(model.device)[~active]
        layer.linear1.bias[~active] = 0
        layer.linear2.weight[:, ~active] = 0
    return sum(int((~active).sum()) for active in fired)
