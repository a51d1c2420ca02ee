"""What a model attended to while it looked at a picture: the weights of one layer, kept while the model runs as ever.

The asked layer's weights are computed a second time beside its own forward pass, some queries at a time, and one head
of them or the mean is kept. So the objects found are those of a plain forward pass, no other layer has weights at all,
and not even the asked one holds those of all its heads at once.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.backbone_detr import resize_mask
from ..model.box_queries_detr import Sight
from ..model.modeling_detr import DETRForObjectDetection
from ..model.segmentation_detr import image_sizes_hw
from ..visualize.attention_maps import Attention, Grid
from .backends import ModelBackend
from .batching import Failure

SCORES_AT_ONCE = 2**22  # of all heads: 16 MB in float32, about as much as one map of the backbone
PLAIN_ATTENTION = (None, "eager", "sdpa")  # these take the same mask as the one that has weights


@dataclass
class Kept:
    """The weights of one layer for a batch, the mean over heads or one of them; cells row by row, levels one by one.

    Attributes:
        encoder: (B, S, S), of each cell of the last feature map over all of them; None without such a layer.
        decoder: (B, Q, S'), of each query over the cells of every level, finest first.
        outputs: of the model.
        image_sizes_hw: (B, 2), of the images inside the padded input, in its pixels.
        valid: for each level (B, h, w) bool, False on padding; None without a mask.
    """

    encoder: Tensor | None = None
    decoder: Tensor | None = None
    outputs: Any = None
    image_sizes_hw: Tensor | None = None
    valid: list[Tensor] | None = None


@contextmanager
def keep_attention(model: DETRForObjectDetection, layer: int = -1, head: int | None = None) -> Iterator[Kept]:
    """Gives what is kept of the model's next calls in this thread, in `with`; each call's takes the place of the last.

    Raises:
        ValueError: the decoder has no such layer, or the layers no such head.
    """
    layers = model.transformer.encoder.layers, model.transformer.decoder.layers
    places = [_place(layer, len(of_kind)) for of_kind in layers]
    heads = model.config.nheads
    if places[1] is None:
        raise ValueError(f"layer is {layer!r}: the decoder has {len(layers[1])} layers, 0 to {len(layers[1]) - 1}.")
    if head is not None and (_place(head, heads) is None or head < 0):
        raise ValueError(f"head is {head!r}: there are {heads} heads, 0 to {heads - 1}, or None for their mean.")
    kept, owner = Kept(), threading.get_ident()

    def keep_weights(name: str):
        def hook(module: nn.Module, args: tuple, _: Any) -> None:
            if threading.get_ident() == owner:
                setattr(kept, name, weights_of(module, *args[:4], head))

        return hook

    def keep_call(module: nn.Module, args: tuple, named: dict[str, Any], outputs: Any) -> None:
        if threading.get_ident() == owner:
            pixel_values, pixel_mask = (*args, None)[:2] if args else (named["pixel_values"], None)
            pixel_mask = named.get("pixel_mask", pixel_mask)
            kept.outputs, kept.image_sizes_hw = outputs, image_sizes_hw(pixel_values, pixel_mask)
            sizes = outputs.feature_sizes_hw[0].tolist()
            maps = [torch.empty((1, 1, *size), device="meta") for size in sizes]  # nothing but a size
            kept.valid = None if pixel_mask is None else [resize_mask(pixel_mask, map_) for map_ in maps]

    hooks = [model.register_forward_hook(keep_call, with_kwargs=True)]
    if places[0] is not None:
        hooks.append(layers[0][places[0]].self_attn.register_forward_hook(keep_weights("encoder")))
    hooks.append(layers[1][places[1]].multihead_attn.register_forward_hook(keep_weights("decoder")))
    compiled, implementation = model._compiled_call_impl, model.config._attn_implementation
    try:
        model._compiled_call_impl = None  # which would call no hook
        if implementation not in PLAIN_ATTENTION:
            model.config._attn_implementation = "sdpa"
        yield kept
    finally:
        model._compiled_call_impl, model.config._attn_implementation = compiled, implementation
        for hook in hooks:
            hook.remove()


def _place(number: Any, count: int) -> int | None:
    """Returns the place that a number stands for, as in a list; None where there is none."""
    if isinstance(number, bool) or not isinstance(number, int) or not -count <= number < count:
        return None
    return number % count


def weights_of(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, head: int | None) -> Tensor:
    """Returns the weights (B, Q, S) float32 of one head or of their mean, computed for some queries at a time.

    The arguments are those of the attention's `forward`.
    """
    heads = attention.config.nheads
    rows = max(1, SCORES_AT_ONCE // (heads * key.shape[0] * key.shape[1]))
    kept = query.new_empty((*query.shape[:2], key.shape[1]), dtype=torch.float32)
    for start in range(0, query.shape[1], rows):
        some = slice(start, start + rows)
        seen = replace(mask, boxes_cxcywh_norm=mask.boxes_cxcywh_norm[:, some]) if isinstance(mask, Sight) else mask
        _, weights = attention.forward(query[:, some], key, value, seen, True)  # not a call, which would call hooks
        kept[:, some] = weights.float().mean(1) if head is None else weights[:, head]
    return kept


def look(
    detector: Any, picture: Any, threshold: float, layer: int = -1, head: int | None = None
) -> Attention | Failure:
    """Returns the objects that a detector finds in one picture, and what its model attended to; or what is wrong.

    Raises:
        ValueError: the detector runs an exported model, or has no such layer or head.
    """
    backend = detector.backend
    if not isinstance(backend, ModelBackend) or not isinstance(backend.model, DETRForObjectDetection):
        raise ValueError(
            f"Attention comes from a checkpoint's model in torch, this is {detector!r}, which gives logits and boxes "
            "alone: use the checkpoint that it was exported or converted from."
        )
    with keep_attention(backend.model, layer, head) as kept:
        (detections,) = detector.outcomes([picture], threshold)
    if isinstance(detections, Failure):
        return detections
    grids = _grids(kept, backend.model)
    cells = [height * width for height, width in kept.outputs.feature_sizes_hw[0].tolist()]
    rows = kept.decoder[0, torch.from_numpy(detections.queries).to(kept.decoder.device)].cpu().numpy()
    levels = np.split(rows, np.cumsum(cells)[:-1], axis=1)
    sizes_hw = kept.outputs.feature_sizes_hw[0].tolist()
    maps = [level.reshape(-1, *size) for level, size in zip(levels, sizes_hw, strict=True)]
    encoder = kept.encoder
    if encoder is not None:
        inside = np.zeros(sizes_hw[-1], dtype=bool)
        inside[tuple(slice(count) for count in grids[-1].cells_hw)] = True
        encoder = encoder[0].cpu().numpy()[inside.ravel()][:, inside.ravel()]
    return Attention(
        detections,
        joined_levels(maps, grids),
        encoder,
        grids=(grids[0], grids[-1]),
        layer=layer,
        head=head,
        counts=(backend.model.config.enc_layers, backend.model.config.dec_layers, backend.model.config.nheads),
        threshold=threshold,
    )


def _grids(kept: Kept, model: DETRForObjectDetection) -> list[Grid]:
    """Returns for each level which of its cells see the first picture of the batch, and how far that reaches."""
    sizes_hw = kept.outputs.feature_sizes_hw[0].tolist()
    strides = model.backbone[0].body.feature_info.reduction()[-len(sizes_hw) :]
    grids = []
    for level, (size_hw, stride) in enumerate(zip(sizes_hw, strides, strict=True)):
        cells_hw = size_hw
        if kept.valid is not None:
            valid = kept.valid[level][0]
            cells_hw = [int(valid.any(dim=1).sum()), int(valid.any(dim=0).sum())]
        reach_hw = [side / stride for side in kept.image_sizes_hw[0].tolist()]
        grids.append(Grid(tuple(cells_hw), tuple(map(min, reach_hw, cells_hw))))
    return grids


def joined_levels(maps: list[np.ndarray], grids: list[Grid]) -> np.ndarray:
    """Returns the weights (N, h, w) of all levels (N, ., .) on the cells of the finest that see the picture.

    A coarser cell's weight is spread evenly over the finer cells that lie in it, so that nothing of it is lost.
    """
    joined = np.zeros((len(maps[0]), *grids[0].cells_hw), dtype=np.float32)
    for map_, grid in zip(maps, grids, strict=True):
        rows, columns = (
            _shares(fine, count, max(1, round(fine_reach / reach)))
            for fine, count, fine_reach, reach in zip(
                grids[0].cells_hw, grid.cells_hw, grids[0].reach_hw, grid.reach_hw, strict=True
            )
        )
        joined += rows @ map_[:, : grid.cells_hw[0], : grid.cells_hw[1]] @ columns.T
    return joined


def _shares(fine: int, coarse: int, ratio: int) -> np.ndarray:
    """Returns (fine, coarse): which part of a coarse cell goes to each fine one, of which `ratio` lie in it."""
    shares = np.zeros((fine, coarse), dtype=np.float32)
    for cell in range(coarse):
        first = min(cell * ratio, fine - 1)  # one that begins behind the last goes there
        shares[first : first + ratio, cell] = 1 / len(shares[first : first + ratio])
    return shares
