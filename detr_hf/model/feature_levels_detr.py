"""Finer maps for the decoder: the encoder's map and those of earlier stages, fused on the way up.

Self-attention costs the square of the cells, so that the encoder runs on the coarsest map alone; what it found there
goes up to the finer maps by convolutions (a feature pyramid, Lin et al., 2017; as the hybrid encoder of RT-DETR, Zhao
et al., 2024). The decoder's cross-attention then reads all levels at once, by the attention that it has anyway.
Norms are over the channels of one cell: what a picture gives does not depend on the padding beside it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_detr import call_layer
from .box_borders_detr import CHANNELS
from .configuration_detr import DETRConfig
from .queries_detr import Memory


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map (B, C, h, w), as in ConvNeXt (Liu et al., 2022)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeatureLevels(nn.Module):
    """Fuses the encoder's map with finer maps of the backbone, and lays all of them out as tokens.

    Args:
        config: reads `hidden_dim` and `num_feature_levels`.
        channels: of the finer maps, finest first; one fewer than there are levels.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, FeatureLevels
    >>> levels = FeatureLevels(DETRConfig(hidden_dim=256, num_feature_levels=3, box_queries=True), [512, 1024])
    >>> finer = [torch.randn(1, 512, 32, 40), torch.randn(1, 1024, 16, 20)]
    >>> [tuple(level.shape) for level in levels(torch.randn(1, 256, 8, 10), finer, [None] * 3)]
    [(1, 256, 32, 40), (1, 256, 16, 20), (1, 256, 8, 10)]
    """

    linear = staticmethod(call_layer)

    def __init__(self, config: DETRConfig, channels: list[int]):
        super().__init__()
        width, half = config.hidden_dim, config.hidden_dim // 2  # half: nothing else costs as much at the finest level
        self.proj = nn.ModuleList(nn.Linear(channel, half, bias=False) for channel in channels)
        self.lateral = nn.ModuleList(nn.Linear(width, half, bias=False) for _ in channels)
        self.norm = nn.ModuleList(ChannelNorm(half) for _ in channels)
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(half, width, 3, padding=1, bias=False), ChannelNorm(width), nn.ReLU())
            for _ in channels
        )
        self.border_proj = nn.Linear(width, CHANNELS)
        self.level_embed = nn.Embedding(config.num_feature_levels, width)

    def forward(self, coarsest: Tensor, finer: list[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
        """Returns the fused maps (B, D, ., .), finest first.

        Args:
            coarsest: (B, D, h, w), the encoder's memory as a map.
            finer: maps of the backbone (B, C', ., .), finest first.
            masks: of every level (B, ., .), True on the image, or None without padding.
        """
        levels = [coarsest]
        for index in reversed(range(len(finer))):
            below = self._of_cells(self.proj[index], finer[index])
            above = self._of_cells(self.lateral[index], levels[0])
            above = F.interpolate(above, size=below.shape[-2:], mode="nearest")
            both = F.relu(self.norm[index](below + above))
            if masks[index] is not None:  # what convolutions see beyond a picture's border is zero
                both = both.masked_fill(~masks[index][:, None], 0.0)
            levels.insert(0, self.fuse[index](both))
        return levels

    def _of_cells(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Returns a linear layer of every cell of a map (B, C, h, w), which is a 1x1 convolution."""
        return self.linear(layer, features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def memory(
        self,
        levels: list[Tensor],
        encode_position: nn.Module,
        masks: list[Tensor | None],
        strides: list[int],
        sizes_hw: Tensor,
    ) -> Memory:
        """Returns the tokens of all levels (B, D, ., .), with their places.

        Args:
            levels: as `forward` returns them.
            encode_position: the position encoding, of a map and its mask.
            masks: of each (B, ., .), True on the image, or None without padding.
            strides: pixels from a cell to the next, for each level.
            sizes_hw: (B or 1, 2), height and width of the unpadded images in pixels.
        """
        numbers = torch.arange(len(levels), device=levels[0].device)
        keys = [
            level + encode_position(level, mask) + of_level[:, None, None]
            for level, mask, of_level in zip(levels, masks, self.level_embed(numbers), strict=True)
        ]
        places = [_places(level, stride, sizes_hw) for level, stride in zip(levels, strides, strict=True)]
        is_padded = masks[0] is not None
        return Memory(
            tokens=_tokens(levels),
            keys=_tokens(keys),
            valid=torch.cat([mask.flatten(1) for mask in masks], dim=1) if is_padded else None,
            centres=torch.cat([centres for centres, _ in places], dim=1),
            cells=torch.cat([cells for _, cells in places], dim=1),
            finest=self.linear(self.border_proj, levels[0].permute(0, 2, 3, 1)),
        )


def _tokens(levels: list[Tensor]) -> Tensor:
    """Returns the cells (B, S, D) of all maps (B, D, ., .), row by row."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def _places(level: Tensor, stride: int, sizes_hw: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the centres (B or 1, h w, 2) of a level's cells as x, y, and the cells' sizes, in parts of the image."""
    height, width = level.shape[-2:]
    cell = stride / sizes_hw.flip(1).float()  # (B or 1, 2) as width, height
    xs = torch.arange(width, device=level.device) + 0.5
    ys = torch.arange(height, device=level.device) + 0.5
    grid = torch.stack([xs[None].expand(height, width), ys[:, None].expand(height, width)], dim=-1)
    centres = grid.flatten(0, 1)[None] * cell[:, None]
    return centres, cell[:, None].expand_as(centres)
