"""DETR's mask head (paper, section 4.2 and figure 8): where each query looks, made into a mask by a small FPN.

The numbers are the original's; the work is not. A convolution is linear, so that each that sees a feature map is split
into a part that all queries of an image share, made once, and one that is a query's own; the adapters of the finer
maps see only the image; no feature map is ever copied for a query; a query's map is convolved before it is enlarged,
where that is faster; and queries, which are independent here, go through in groups when no gradient is wanted, so that
memory does not grow with their number.

Dimension letters: B images, Q queries, n queries of one image, D hidden_dim, M heads, h w cells of the last feature
map, h4 w4 of the finest, C1 C2 C3 channels of the three finer maps, finest first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .fast_convolution_detr import convolve_at
from .outputs_detr import Decoded
from .predictions_detr import NO_MASK, Predictions

QUERIES_AT_ONCE = {"cpu": 2, "cuda": 32}  # without gradients: what the cache, or the device, holds


class MHAttentionMap(nn.Module):
    """Attention of queries over the memory, without values: one softmax over all heads and cells together.

    >>> import torch
    >>> from detr_hf.model.segmentation_detr import MHAttentionMap
    >>> bbox_attention = MHAttentionMap(hidden_dim=256, nheads=8)
    >>> maps = bbox_attention(torch.randn(2, 100, 256), torch.randn(2, 80, 256), (8, 10))
    >>> maps.shape, bool(maps.flatten(2).sum(-1).allclose(torch.tensor(1.0)))
    (torch.Size([2, 100, 8, 8, 10]), True)
    """

    def __init__(self, hidden_dim: int, nheads: int):
        super().__init__()
        self.nheads = nheads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, queries: Tensor, memory: Tensor, size_hw: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Returns attention maps (B, n, M, h, w).

        Args:
            queries: (B, n, D), normed output of the last decoder layer.
            memory: (B, h * w, D), output of the encoder.
            size_hw: h and w.
            mask: (B, h, w), True on the image; None without padding.
        """
        query = self.q_linear(queries).unflatten(-1, (self.nheads, -1))  # (B, n, M, D / M)
        key = self.k_linear(memory).unflatten(-1, (self.nheads, -1))  # (B, h w, M, D / M)
        scores = torch.einsum("bnmd,bsmd->bnms", query * query.shape[-1] ** -0.5, key)
        if mask is not None:
            scores = scores.masked_fill(~mask.flatten(1)[:, None, None], -math.inf)
        return scores.flatten(2).softmax(dim=-1).view(*scores.shape[:3], *size_hw)


class SharedConv2d(nn.Conv2d):
    """A 3x3 convolution of what the queries of an image share and of what each has of its own, put apart.

    It is linear, so that what it makes of the shared part is made once: `layer(own, layer(shared))`. A query's own
    part is the last `own_channels`, of the same size, or all, of a smaller map that the shared one is added to.
    Called with all channels alone it is a plain `Conv2d`, and made as one: so PEFT makes an adapter of its class.
    """

    own_channels: int

    def forward(self, states: Tensor, shared: Tensor | None = None) -> Tensor:
        """Returns what comes of the first channels (or all) in `states`; with `shared`, of the queries' own.

        Args:
            states: (B, C, h, w); with `shared` (B n, C, h', w'), of the n queries of each image.
            shared: (B, C', h, w), what came of the images' part, to which the rest is added.
        """
        if shared is None:
            return self._conv_forward(states, self.weight[:, : states.shape[1]], self.bias)
        weight = self.weight[:, -self.own_channels :]
        if self.own_channels < self.in_channels:
            return add_shared(F.conv2d(states, weight, padding=self.padding), shared)
        return add_shared(convolve_at(states, weight, shared.shape[-2:]), shared)


def add_shared(own: Tensor, shared: Tensor) -> Tensor:
    """Returns `own` (B n, C, h, w) with the map of each image in `shared` (B, C, h, w) added to its n."""
    if shared.shape[0] == 1:  # needs no reshape, which some runtimes pay for
        return own + shared
    return (own.unflatten(0, (shared.shape[0], -1)) + shared[:, None]).flatten(0, 1)


class MaskHeadSmallConv(nn.Module):
    """Attention maps and feature maps in, mask logits out: five 3x3 convolutions with three adapters.

    >>> import torch
    >>> from detr_hf.model.segmentation_detr import MaskHeadSmallConv
    >>> mask_head = MaskHeadSmallConv(hidden_dim=256, nheads=8, fpn_channels=(256, 512, 1024))
    >>> finer = [torch.randn(1, 256, 64, 80), torch.randn(1, 512, 32, 40), torch.randn(1, 1024, 16, 20)]
    >>> adapted = mask_head.adapt(finer)
    >>> mask_head(torch.randn(1, 256, 8, 10), torch.rand(5, 8, 8, 10), adapted).shape
    torch.Size([5, 64, 80])
    """

    def __init__(self, hidden_dim: int, nheads: int, fpn_channels: tuple[int, int, int], activation: str = "relu"):
        super().__init__()
        joined = hidden_dim + nheads
        widths = [joined, joined, *(hidden_dim // part for part in (2, 4, 8, 16))]
        for number in range(1, 6):
            layer = SharedConv2d(widths[number - 1], widths[number], kernel_size=3, padding=1)
            layer.own_channels = nheads if number == 1 else widths[number - 1]
            setattr(self, f"lay{number}", layer)
            setattr(self, f"gn{number}", nn.GroupNorm(math.gcd(8, widths[number]), widths[number]))
        self.out_lay = nn.Conv2d(widths[5], 1, kernel_size=3, padding=1)
        for number, (channels, width) in enumerate(zip(reversed(fpn_channels), widths[2:5], strict=True), start=1):
            setattr(self, f"adapter{number}", nn.Conv2d(channels, width, kernel_size=1))
        self.activation = ACT2FN[activation]

    def adapt(self, finer: list[Tensor]) -> list[Tensor]:
        """Returns what is added on the way up, coarsest first; `finer` are the maps (B, C', ., .), finest first."""
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        return [adapter(feature_map) for adapter, feature_map in zip(adapters, reversed(finer), strict=True)]

    def forward(self, projected: Tensor, attention: Tensor, adapted: list[Tensor]) -> Tensor:
        """Returns mask logits (B n, h4, w4) of the n queries of each image, image by image.

        With gradients, or while a graph is recorded, all queries go through at once: what a group computes would be
        kept anyway.

        Args:
            projected: (B, D, h, w), the last feature map as it goes into the transformer.
            attention: (B n, M, h, w), from `MHAttentionMap`.
            adapted: the images' finer maps (B, ., ., .), from `adapt`.
        """
        maps, groups = [projected, *adapted], [attention]
        if not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
            maps = [feature_map.contiguous(memory_format=torch.channels_last) for feature_map in maps]
            attention = attention.contiguous(memory_format=torch.channels_last)
            if len(projected) == 1 and len(attention):
                groups = attention.split(QUERIES_AT_ONCE.get(attention.device.type, len(attention)))
        layers = (self.lay1, self.lay3, self.lay4, self.lay5)
        shared = [
            # else an adapter or a quantiser stands in its place
            layer(feature_map) if isinstance(layer, SharedConv2d) else feature_map
            for layer, feature_map in zip(layers, maps, strict=True)
        ]
        masks = [self._of_group(group, *shared) for group in groups]
        return torch.cat(masks) if len(masks) > 1 else masks[0]

    def _of_group(self, attention: Tensor, first: Tensor, *finer: Tensor) -> Tensor:
        """Returns mask logits; the maps are what the convolutions made of the images, or the images' own."""
        if isinstance(self.lay1, SharedConv2d):
            states = self.lay1(attention, first)
        else:
            copies = first[:, None].expand(-1, attention.shape[0] // first.shape[0], -1, -1, -1)
            states = self.lay1(torch.cat([copies.flatten(0, 1), attention], dim=1))
        states = self.activation(self.gn1(states))
        states = self.activation(self.gn2(self.lay2(states)))
        steps = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (layer, norm), fine in zip(steps, finer, strict=True):
            if isinstance(layer, SharedConv2d):
                states = layer(states, fine)
            else:
                states = layer(add_shared(F.interpolate(states, size=fine.shape[-2:], mode="nearest"), fine))
            states = self.activation(norm(states))
        return self.out_lay(states)[:, 0]


def image_sizes_hw(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Returns height and width (B, 2) int64 of each image inside the padded input."""
    if pixel_mask is None:
        size = torch.tensor(pixel_values.shape[-2:], device=pixel_values.device)
        return size.expand(pixel_values.shape[0], 2)
    mask = pixel_mask.bool()
    return torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1)


def masks_of_queries(model: nn.Module, decoded: Decoded, chosen: list[Tensor] | None) -> list[Tensor]:
    """Returns mask logits (n, h4, w4) of each image: of its queries in `chosen` (n,), or of all.

    Args:
        model: has `bbox_attention` and `mask_head`.
        decoded: of the images, all four feature maps among it.
        chosen: for each image the numbers of its queries.
    """
    states = decoded.output.last_hidden_state
    memory, size_hw = decoded.output.encoder_last_hidden_state, decoded.projected.shape[-2:]
    adapted = model.mask_head.adapt([feature_map for feature_map, _ in decoded.features[:-1]])
    masks = []
    for image in range(len(states)):
        one = slice(image, image + 1)
        queries = states[one] if chosen is None else states[one, chosen[image]]
        mask = None if decoded.mask is None else decoded.mask[one]
        attention = model.bbox_attention(queries, memory[one], size_hw, mask)[0]
        finer = [feature_map[one] for feature_map in adapted]
        masks.append(model.mask_head(decoded.projected[one], attention, finer))
    return masks


def masks_of_batch(model: nn.Module, decoded: Decoded, chosen: Tensor | None) -> Tensor:
    """Returns mask logits (B, n, h4, w4) of each image's queries in `chosen` (B, n), or of all, in one go.

    For what records a graph: `masks_of_queries` goes image by image, which would fix their number.
    """
    states = decoded.output.last_hidden_state
    if chosen is not None:
        states = states.gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))
    memory, size_hw = decoded.output.encoder_last_hidden_state, decoded.projected.shape[-2:]
    attention = model.bbox_attention(states, memory, size_hw, decoded.mask)
    adapted = model.mask_head.adapt([feature_map for feature_map, _ in decoded.features[:-1]])
    masks = model.mask_head(decoded.projected, attention.flatten(0, 1), adapted)
    return masks.unflatten(0, (-1, states.shape[1]))


def best_queries(logits: Tensor, count: int) -> Tensor:
    """Returns the numbers (B, count) of the queries with the best score (best class but no-object), best first."""
    return logits.float().softmax(dim=-1)[..., :-1].amax(dim=-1).topk(count).indices


def refuse_without_masks(model: nn.Module) -> None:
    """Raises ValueError where `model` has no mask head, or one that was never trained."""
    if not model.has_mask_head or model.mask_head_is_new:
        head = "its mask head is new here, and masks would be random" if model.has_mask_head else "it has no mask head"
        raise ValueError(
            f"{model.name_or_path or 'This model'} is a detector: {head}. Train a DETRForSegmentation from it "
            "(DETRTrainer), load a checkpoint with masks, or use DETRForObjectDetection for boxes."
        )


def predict_masks(model: nn.Module, decoded: Decoded, predictions: Predictions, threshold: float | None) -> Tensor:
    """Returns mask logits (B, Q, h4, w4) for inference: of the queries whose score is above `threshold`, or of all.

    Raises:
        ValueError: the mask head was never trained.
    """
    if not model.training:
        refuse_without_masks(model)
    return masks_above(model, decoded, predictions, threshold)


def masks_above(
    model: nn.Module,
    decoded: Decoded,
    predictions: Predictions,
    threshold: float | None,
    besides: list[Tensor] | None = None,
) -> Tensor:
    """Returns mask logits (B, Q, h4, w4) of the queries with a score above `threshold` and those `besides`; or all."""
    if threshold is None:
        return torch.stack(masks_of_queries(model, decoded, None))
    wanted = predictions.logits[-1].softmax(dim=-1)[..., :-1].amax(dim=-1) > threshold  # (B, Q)
    for of_image, numbers in zip(wanted, besides or (), strict=False):
        of_image[numbers] = True
    kept = [of_image.nonzero()[:, 0] for of_image in wanted]
    return place_masks(masks_of_queries(model, decoded, kept), kept, wanted.shape[1])


def place_masks(masks: list[Tensor], queries: list[Tensor], num_queries: int) -> Tensor:
    """Returns (B, Q, h4, w4): the masks of each image's `queries`, `NO_MASK` for the rest."""
    placed = masks[0].new_full((len(masks), num_queries, *masks[0].shape[1:]), NO_MASK)
    for image, (of_image, numbers) in enumerate(zip(masks, queries, strict=True)):
        placed[image, numbers] = of_image
    return placed
