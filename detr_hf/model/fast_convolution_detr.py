"""A 3x3 convolution of a map brought to twice its size, without that large map: what the mask head does on its way up.

Numbers are those of the plain form but for rounding; `tests/model/test_fast_convolution_detr.py` compares them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .fast_rules_detr import only_runs


def convolve_at(states: Tensor, weight: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Returns the 3x3 convolution, padded by 1, of `states` brought to `size_hw` by the nearest cell.

    Where both sides double (a side that is odd then lacks its last line), that is one transposed convolution of the
    small map: less than half of the products, and no large input. In bfloat16 processors without it are slow at that.
    """
    if not _doubles(states, size_hw):
        return F.conv2d(F.interpolate(states, size=size_hw, mode="nearest"), weight, padding=1)
    height, width = size_hw
    kernel = weight.flip(2, 3).transpose(0, 1)
    kernel = F.pad(kernel, (1, 0)) + F.pad(kernel, (0, 1))  # a cell and its copy see the sum of what each would
    kernel = F.pad(kernel, (0, 0, 1, 0)) + F.pad(kernel, (0, 0, 0, 1))
    grown = F.conv_transpose2d(states, kernel, stride=2, padding=1)[..., :height, :width]
    if height % 2:  # beyond the last line is nothing, not a copy of it
        last = F.interpolate(states[:, :, -2:], size=(2, width), mode="nearest")
        grown[:, :, -1:] = F.conv2d(last, weight[:, :, :2], padding=(0, 1))
    if width % 2:
        last = F.interpolate(states[..., -2:], size=(height, 2), mode="nearest")
        grown[..., -1:] = F.conv2d(last, weight[..., :2], padding=(1, 0))
    return grown


def _doubles(states: Tensor, size_hw: Sequence[int]) -> bool:
    """Whether `convolve_at` may take its shorter way: it must be the same, the faster one, and nobody looking on."""
    return (
        states.device.type == "cpu"
        and states.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and only_runs()
        and all(
            1 < cells < 2048 and 2 * cells - size in (0, 1)
            for cells, size in zip(states.shape[-2:], size_hw, strict=True)
        )
    )
