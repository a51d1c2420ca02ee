"""Residual blocks and stems of timm's ResNet in fewer kernels, with less new memory; for a folded body only.

Plain residual blocks run convolution, bias, addition and ReLU as one kernel where this build of torch has one.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast_kernels_detr import FusedKernels, kernels_for
from .kept_memory_detr import KeptMemory

STEM = ("conv1", "bn1", "act1", "maxpool")  # children of timm's ResNet
BAND = 8 * 2**20  # bytes of the stem's result that are computed at a time on a CPU


class FusedResidualBlock(nn.Module):
    """A plain residual block of timm's ResNet, folded, with as few kernels as there are convolutions.

    Args:
        block: the block of the folded copy.
        convolutions: those of its main branch.
        owns_input: nobody but this block reads its input, which it may overwrite.
        memory: where large results go on a CPU.
    """

    def __init__(self, block: nn.Module, convolutions: list[nn.Conv2d], owns_input: bool, memory: KeptMemory):
        super().__init__()
        self.block = block
        self.owns_input = owns_input
        self.memory = memory
        *self.before, self.last = convolutions

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x, self.last.weight)
        if kernels is None:
            return self.block(x)
        shortcut = x if self.block.downsample is None else self._downsampled(kernels, x)
        in_place = self.owns_input or shortcut is not x
        for conv in self.before:
            x = kernels.conv_relu(conv, x, self._zeros_for(conv, x))
        return kernels.conv_add_relu(self.last, x, shortcut, in_place)

    def _downsampled(self, kernels: FusedKernels, x: Tensor) -> Tensor:
        parts = [part for part in self.block.downsample if type(part) is not nn.Identity]
        zeros = self._zeros_for(parts[0], x) if len(parts) == 1 and _is_plain(parts[0]) else None
        return self.block.downsample(x) if zeros is None else kernels.conv_into(parts[0], x, zeros)

    def _zeros_for(self, conv: nn.Conv2d, x: Tensor) -> Tensor | None:
        """Returns kept memory for what `conv` makes of `x`, or None where it takes new memory."""
        if not x.is_cpu:
            return None
        height, width = (_output_length(conv, x, axis) for axis in (0, 1))
        return self.memory.zeros((len(x), conv.out_channels, height, width), x.dtype)


class FusedStem(nn.Module):
    """Convolution and ReLU of a ResNet's stem, with the max pooling behind them if it is told to do that too.

    On a CPU both run on some rows at a time: what lies between them, four times as large as the result, then stays in
    the processor's cache, and no new memory is mapped for it.
    """

    def __init__(self, conv: nn.Conv2d, pool: nn.MaxPool2d | None = None):
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.unpadded = copy.copy(conv)
        self.unpadded.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x, self.conv.weight)
        if self.pool is not None and kernels is not None and x.is_cpu:
            return self._in_bands(kernels, x)
        x = self.conv(x).relu_() if kernels is None else kernels.conv_relu(self.conv, x)
        return x if self.pool is None else self.pool(x)

    def _in_bands(self, kernels: FusedKernels, x: Tensor) -> Tensor:
        height, width = (_output_length(self.conv, x, axis) for axis in (0, 1))
        rows = (height + 2 * self.pool.padding - self.pool.kernel_size) // self.pool.stride + 1
        number = len(x) * self.conv.out_channels * height * width * x.element_size() // BAND + 1
        if number == 1:
            return self.pool(kernels.conv_relu(self.conv, x))
        number = min(number, rows)
        ends = [rows * index // number for index in range(number + 1)]
        bands = [self._band(kernels, x, height, *band) for band in itertools.pairwise(ends)]
        return torch.cat(bands, dim=2)

    def _band(self, kernels: FusedKernels, x: Tensor, height: int, first: int, end: int) -> Tensor:
        """Returns rows `first` to `end` of the result; `height` is that of the convolution's whole result."""
        pool, conv = self.pool, self.conv
        (kernel, _), (stride, _), (padding, side) = conv.kernel_size, conv.stride, conv.padding
        # the rows that pooling reads of the convolution's result, and that this reads of the picture, edges beyond
        pool_top = first * pool.stride - pool.padding
        pool_end = (end - 1) * pool.stride - pool.padding + pool.kernel_size
        top, bottom = max(pool_top, 0), min(pool_end, height)
        conv_top, conv_end = top * stride - padding, (bottom - 1) * stride - padding + kernel
        picture = x[:, :, max(conv_top, 0) : conv_end]
        missing = (max(-conv_top, 0), max(conv_end - x.shape[2], 0))
        picture = F.pad(picture, (side, side, *missing)).contiguous(memory_format=torch.channels_last)
        band = kernels.conv_relu(self.unpadded, picture)
        if (pool_top, pool_end) != (top, bottom):
            band = F.pad(band, (0, 0, top - pool_top, pool_end - bottom))  # zeros: after a ReLU no maximum is smaller
        return F.max_pool2d(band, pool.kernel_size, pool.stride, (0, pool.padding))


def _output_length(conv: nn.Conv2d, x: Tensor, axis: int) -> int:
    """Returns height (axis 0) or width (axis 1) of what `conv` makes of `x` (B, C, H, W)."""
    covered = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    return (x.shape[2 + axis] + 2 * conv.padding[axis] - covered) // conv.stride[axis] + 1


def fuse_blocks(folded: nn.Module, memory: KeptMemory) -> None:
    """Replaces the plain residual blocks and the stem of a folded ResNet; large results go into `memory` on a CPU."""
    from timm.models.resnet import BasicBlock, Bottleneck

    for name, module in list(folded.named_modules()):
        if type(module) in (BasicBlock, Bottleneck):
            convolutions = _plain_convolutions(module)
            if convolutions:
                owns_input = _follows_fused_block(module, folded.get_submodule(name.rpartition(".")[0]))
                folded.set_submodule(name, FusedResidualBlock(module, convolutions, owns_input, memory))
    _fuse_stem(folded)


def _fuse_stem(folded: nn.Module) -> None:
    children = dict(folded.named_children())
    conv, norm, activation, pool = (children.get(name) for name in STEM)
    if list(children)[:3] != list(STEM[:3]) or not _is_fusable(conv, norm, activation):
        return
    folded.set_submodule("act1", nn.Identity())
    between_is_wanted = "act1" in getattr(folded, "return_layers", STEM)
    if (
        list(children)[3:4] == ["maxpool"]
        and _is_plain_pool(pool)
        and conv.dilation == (1, 1)
        and not between_is_wanted
    ):
        folded.set_submodule("maxpool", nn.Identity())
        folded.set_submodule("conv1", FusedStem(conv, pool))
    else:
        folded.set_submodule("conv1", FusedStem(conv))


def _is_plain_pool(pool: nn.Module) -> bool:
    lengths = (pool.kernel_size, pool.stride, pool.padding) if type(pool) is nn.MaxPool2d else (None,)
    return all(type(length) is int for length in lengths) and pool.dilation == 1 and not pool.ceil_mode


def _follows_fused_block(block: nn.Module, stage: nn.Module) -> bool:
    """Whether the block's input is what a fused block of the same stage gives: no feature map that others read."""
    if type(stage) is not nn.Sequential:
        return False
    blocks = list(stage)
    place = blocks.index(block)
    return place > 0 and type(blocks[place - 1]) is FusedResidualBlock


def _plain_convolutions(block: nn.Module) -> list[nn.Conv2d]:
    """Returns the convolutions of the block's main branch if it holds nothing else, or an empty list."""
    count = 3 if hasattr(block, "conv3") else 2  # Bottleneck or BasicBlock
    extras = (block.se, block.drop_path, block.drop_block, block.aa)  # in eval mode these dropouts do nothing
    if any(extra is not None and not isinstance(extra, nn.Identity) for extra in extras):
        return []
    parts = [[getattr(block, f"{part}{i}") for part in ("conv", "bn", "act")] for i in range(1, count + 1)]
    return [part[0] for part in parts] if all(_is_fusable(*part) for part in parts) else []


def _is_fusable(conv: nn.Module, norm: nn.Module, activation: nn.Module) -> bool:
    return _is_plain(conv) and type(norm) is nn.Identity and conv.bias is not None and type(activation) is nn.ReLU


def _is_plain(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
