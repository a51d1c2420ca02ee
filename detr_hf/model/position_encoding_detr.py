"""Position encodings of a feature map (paper, appendix A.4): fixed sines, or learned tables.

What differs on purpose: sine encodings are computed in float32 whatever the model's dtype (bfloat16 would be wrong by
0.03), and learned tables that are read beyond their end are interpolated, where the original fails.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_detr import DETRConfig


class PositionEmbeddingSine(nn.Module):
    """Sine and cosine of the position in the unpadded feature map, scaled to [0, 2 pi] (paper, appendix A.4).

    Args:
        num_pos_feats: channels for each of y and x, half of `hidden_dim`.
        temperature: base of the geometric progression of wavelengths.

    >>> import torch
    >>> from detr_hf.model import PositionEmbeddingSine
    >>> encoding = PositionEmbeddingSine(num_pos_feats=128)
    >>> encoding(torch.randn(2, 512, 8, 10), mask=None).shape  # without padding the same for all images
    torch.Size([1, 256, 8, 10])
    """

    def __init__(self, num_pos_feats: int = 64, temperature: int = 10000):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Returns encodings (B, D, h, w) in the dtype of `features`: y in the first half of the channels, then x.

        `mask` (B, h, w) is True on the image; None means no padding, and then B is 1.
        """
        if mask is None:
            mask = torch.ones(1, *features.shape[-2:], dtype=torch.bool, device=features.device)
        rows = mask.cumsum(1, dtype=torch.float32)
        columns = mask.cumsum(2, dtype=torch.float32)
        rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
        columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
        encodings = torch.cat([self._encode(rows), self._encode(columns)], dim=-1)  # (B, h, w, D)
        return encodings.permute(0, 3, 1, 2).to(features.dtype)

    def _encode(self, positions: Tensor) -> Tensor:
        channels = torch.arange(self.num_pos_feats, dtype=torch.float32, device=positions.device)
        wavelengths = self.temperature ** (2 * torch.div(channels, 2, rounding_mode="floor") / self.num_pos_feats)
        angles = positions[..., None] / wavelengths
        return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_of_boxes(boxes_cxcywh_norm: Tensor, hidden_dim: int) -> Tensor:
    """Returns (..., 2 D): sine and cosine of y, x, width and height, the first two as in `PositionEmbeddingSine`."""
    channels = torch.arange(hidden_dim // 2, dtype=torch.float32, device=boxes_cxcywh_norm.device)
    wavelengths = 10000 ** (2 * torch.div(channels, 2, rounding_mode="floor") / (hidden_dim // 2))
    x, y, width, height = boxes_cxcywh_norm.unbind(dim=-1)  # an index list would be copied to the device
    angles = torch.stack([y, x, width, height], dim=-1)[..., None] * (2 * math.pi) / wavelengths
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)


class PositionEmbeddingLearned(nn.Module):
    """Learned row and column encodings, 50 of each in the original; they do not look at the mask.

    A feature map with more rows or columns than a table has reads that table linearly interpolated, where the original
    fails.

    >>> import torch
    >>> from detr_hf.model import PositionEmbeddingLearned
    >>> encoding = PositionEmbeddingLearned(num_pos_feats=128)
    >>> encoding(torch.randn(2, 512, 8, 10), mask=None).shape
    torch.Size([1, 256, 8, 10])
    """

    def __init__(self, num_pos_feats: int = 256, num_embeddings: int = 50):
        super().__init__()
        self.row_embed = nn.Embedding(num_embeddings, num_pos_feats)
        self.col_embed = nn.Embedding(num_embeddings, num_pos_feats)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Returns encodings (1, D, h, w) in the dtype of `features`: x in the first half of the channels, then y."""
        height, width = features.shape[-2:]
        rows = _read_table(self.row_embed, height)[:, None, :].expand(-1, width, -1)
        columns = _read_table(self.col_embed, width)[None, :, :].expand(height, -1, -1)
        return torch.cat([columns, rows], dim=-1).permute(2, 0, 1)[None].to(features.dtype)


def _read_table(embedding: nn.Embedding, length: int) -> Tensor:
    size = embedding.num_embeddings
    table = embedding(torch.arange(min(length, size), device=embedding.weight.device))  # (min(length, size), D/2)
    if length > size:
        table = F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=True)[0].T.to(
            table.dtype
        )
    return table


def build_position_encoding(config: DETRConfig) -> nn.Module:
    """Returns the position encoding that `config.position_embedding` names.

    >>> from detr_hf.model import DETRConfig, build_position_encoding
    >>> type(build_position_encoding(DETRConfig(position_embedding="learned"))).__name__
    'PositionEmbeddingLearned'
    """
    if config.position_embedding == "sine":
        return PositionEmbeddingSine(config.hidden_dim // 2)
    return PositionEmbeddingLearned(config.hidden_dim // 2, config.num_position_embeddings)
