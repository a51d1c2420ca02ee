"""DETR's mask head (paper, section 4.2 and figure 8): where each query looks, made into a mask by a small FPN.

The numbers are the original's; the work is not. A convolution is linear, so that the first one is split into a part
that all queries of an image share and one that is a query's own; the adapters of the finer maps see only the image and
run once; no feature map is ever copied for a query; and queries, which are independent here, go through in groups when
no gradient is wanted, so that memory does not grow with their number.

Dimension letters: B images, Q queries, n queries of one image, D hidden_dim, M heads, h w cells of the last feature
map, h4 w4 of the finest, C1 C2 C3 channels of the three finer maps, finest first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .matcher_detr import PackedTargets
from .outputs_detr import Decoded
from .predictions_detr import Predictions

NO_MASK = -100.0  # the logit of a mask that was not asked for
QUERIES_AT_ONCE = {"cpu": 4, "cuda": 32}  # without gradients: what the cache, or the device, holds


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
    """A convolution over what the queries of an image share and what each has of its own, put one behind the other.

    Called with both, it computes the shared part once; called with the joined channels it is a plain `Conv2d`.
    """

    def forward(self, shared: Tensor, own: Tensor | None = None) -> Tensor:
        """Returns (n, C', h, w) of `shared` (1, C, h, w) and `own` (n, M, h, w), or of all channels (n, ., h, w)."""
        if own is None:
            return super().forward(shared)
        of_shared, of_own = self.weight.split((shared.shape[1], own.shape[1]), dim=1)
        once = F.conv2d(shared, of_shared, self.bias, padding=self.padding)
        return F.conv2d(own, of_own, padding=self.padding) + once


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
            convolution = SharedConv2d if number == 1 else nn.Conv2d
            layer = convolution(widths[number - 1], widths[number], kernel_size=3, padding=1)
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
        """Returns mask logits (n, h4, w4) of one image's queries.

        Args:
            projected: (1, D, h, w), the last feature map as it goes into the transformer.
            attention: (n, M, h, w), from `MHAttentionMap`.
            adapted: the image's finer maps (1, ., ., .), from `adapt`.
        """
        if isinstance(self.lay1, SharedConv2d):
            states = self.lay1(projected, attention)
        else:  # an adapter or a quantiser stands in its place
            states = self.lay1(torch.cat([projected.expand(len(attention), -1, -1, -1), attention], dim=1))
        states = self.activation(self.gn1(states))
        states = self.activation(self.gn2(self.lay2(states)))
        steps = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (layer, norm), fine in zip(steps, adapted, strict=True):
            states = F.interpolate(states, size=fine.shape[-2:], mode="nearest") + fine
            states = self.activation(norm(layer(states)))
        return self.out_lay(states)[:, 0]


def image_sizes_hw(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Returns height and width (B, 2) int64 of each image inside the padded input."""
    if pixel_mask is None:
        size = torch.tensor(pixel_values.shape[-2:], device=pixel_values.device)
        return size.expand(len(pixel_values), 2)
    mask = pixel_mask.bool()
    return torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1)


def run_in_groups(mask_head: nn.Module, projected: Tensor, attention: Tensor, adapted: list[Tensor]) -> Tensor:
    """Returns what `mask_head` gives, mask logits (n, h4, w4); the arguments are those of its `forward`.

    With gradients, or while the graph is recorded, it is called once: what a group computes would be kept anyway.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling() or not len(attention):
        return mask_head(projected, attention, adapted)
    size = QUERIES_AT_ONCE.get(attention.device.type, len(attention))
    last = torch.channels_last
    projected = projected.contiguous(memory_format=last)
    adapted = [feature_map.contiguous(memory_format=last) for feature_map in adapted]
    groups = [group.contiguous(memory_format=last) for group in attention.split(size)]
    return torch.cat([mask_head(projected, group, adapted) for group in groups])


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
        masks.append(run_in_groups(model.mask_head, decoded.projected[one], attention, finer))
    return masks


def predict_masks(model: nn.Module, decoded: Decoded, predictions: Predictions, threshold: float | None) -> Tensor:
    """Returns mask logits (B, Q, h4, w4) for inference: of the queries whose score is above `threshold`, or of all.

    Raises:
        ValueError: the mask head was never trained.
    """
    if model.mask_head_is_new and not model.training:
        raise ValueError(
            f"{model.name_or_path} is a detector: its mask head is new here, and masks would be random. Train it "
            "(DETRTrainer), load a checkpoint with masks, or use DETRForObjectDetection for boxes."
        )
    if threshold is None:
        return torch.stack(masks_of_queries(model, decoded, None))
    scores = predictions.logits[-1].softmax(dim=-1)[..., :-1].amax(dim=-1)
    kept = [(score > threshold).nonzero()[:, 0] for score in scores]
    return place_masks(masks_of_queries(model, decoded, kept), kept, scores.shape[1])


def place_masks(masks: list[Tensor], queries: list[Tensor], num_queries: int) -> Tensor:
    """Returns (B, Q, h4, w4): the masks of each image's `queries`, `NO_MASK` for the rest."""
    placed = masks[0].new_full((len(masks), num_queries, *masks[0].shape[1:]), NO_MASK)
    for image, (of_image, numbers) in enumerate(zip(masks, queries, strict=True)):
        placed[image, numbers] = of_image
    return placed


def train_masks(
    model: nn.Module,
    decoded: Decoded,
    predictions: Predictions,
    labels: list[dict[str, Tensor]],
    padded_hw: tuple[int, int],
    sizes_hw: Tensor,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns the mask logits (B, Q, h4, w4), the loss of the matched ones, and its parts.

    The last layer's assignment counts, made by the detector's costs alone. While training, only matched queries have a
    mask: the others' would carry no gradient. Objects that `has_mask` (N,) of their image's label says to have none
    are matched as any other, and neither summed nor counted here.
    """
    criterion = model.criterion()
    targets = PackedTargets.from_list(labels, len(sizes_hw), predictions.logits.device)
    wanted = [_checked_masks(label, index, padded_hw) for index, label in enumerate(labels)]
    last = Predictions(predictions.logits[-1:].float(), predictions.boxes_cxcywh_norm[-1:].float())
    matches = criterion.matcher(*last[:2], targets)
    num_queries = last.logits.shape[2]
    counts = [min(count, num_queries) for count in targets.counts]
    queries, objects = (list(numbers[0].split(counts)) for numbers in (matches.query, matches.object))
    known = [label.get("has_mask", torch.ones(len(masks))) for label, masks in zip(labels, wanted, strict=True)]
    known = [which.to(numbers.device).bool()[numbers] for which, numbers in zip(known, objects, strict=True)]
    queries, objects = ([of[which] for of, which in zip(side, known, strict=True)] for side in (queries, objects))
    wanted = [masks.to(numbers.device)[numbers] for masks, numbers in zip(wanted, objects, strict=True)]
    if model.training:
        unused = not sum(map(len, queries))  # every weight has a gradient all the same: distributed training waits
        chosen = [queries[0].new_zeros(1), *queries[1:]] if unused else queries
        masks = masks_of_queries(model, decoded, chosen)
        placed = place_masks(masks, chosen, num_queries)
        masks = [masks[0] * 0, *masks[1:]] if unused else masks
        wanted = [wanted[0].new_zeros(1, *wanted[0].shape[1:]), *wanted[1:]] if unused else wanted
    else:
        placed = torch.stack(masks_of_queries(model, decoded, None))
        unused, masks = False, [of_image[numbers] for of_image, numbers in zip(placed, queries, strict=True)]
    loss, parts = criterion.loss_masks(masks, wanted, padded_hw, [tuple(size) for size in sizes_hw.tolist()])
    if unused:
        loss, parts = loss * 0, {name: value * 0 for name, value in parts.items()}
    return placed, loss, parts


def _checked_masks(label: dict[str, Tensor], index: int, padded_hw: tuple[int, int]) -> Tensor:
    masks = label.get("masks")
    if masks is None:
        raise ValueError(
            f"labels[{index}] has no 'masks' but {', '.join(sorted(label))}; a segmentation model needs a mask for "
            "each object: prepare the data with masks=True, or train a DETRForObjectDetection."
        )
    count = len(label["class_labels"])
    if (
        masks.ndim != 3
        or len(masks) != count
        or any(side > most for side, most in zip(masks.shape[1:], padded_hw, strict=True))
    ):
        raise ValueError(
            f"labels[{index}]['masks'] has shape {tuple(masks.shape)}; expected ({count}, H, W) for its {count} "
            f"objects, no larger than the padded input, {padded_hw[0]}x{padded_hw[1]}."
        )
    known = label.get("has_mask")
    if known is not None and known.shape != (count,):
        raise ValueError(f"labels[{index}]['has_mask'] has shape {tuple(known.shape)}; expected ({count},).")
    return masks.bool()
