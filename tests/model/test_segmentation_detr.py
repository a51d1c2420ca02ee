"""The mask head's short ways give what the plain operations give, and make way where somebody looks on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detr_hf.model import segmentation_detr
from detr_hf.model.segmentation_detr import MaskHeadSmallConv, SharedConv2d, convolve_at


def plainly(states: Tensor, weight: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.conv2d(F.interpolate(states, size=size_hw, mode="nearest"), weight, padding=1)


@pytest.mark.processor
@pytest.mark.parametrize("cells", [(2, 2), (2, 5), (7, 3), (6, 6)])
@pytest.mark.parametrize("odd", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_convolved_before_it_is_enlarged_is_the_same(cells: tuple[int, int], odd: tuple[int, int], monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, *cells, generator=generator).requires_grad_()
    weight = torch.randn(4, 5, 3, 3, generator=generator).requires_grad_()
    size_hw = tuple(2 * count - less for count, less in zip(cells, odd, strict=True))
    expected = plainly(states, weight, size_hw)
    monkeypatch.setattr(segmentation_detr.F, "interpolate", only_lines(F.interpolate))
    found = convolve_at(states, weight, size_hw)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    gradients = [torch.autograd.grad(values, (states, weight), upstream) for values in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def only_lines(interpolate):
    """`interpolate`, for the last two lines of a map and no more."""

    def checked(states: Tensor, size: tuple[int, int], **options) -> Tensor:
        assert 2 in size and 2 in states.shape[-2:], "a whole map was enlarged"
        return interpolate(states, size=size, **options)

    return checked


@pytest.mark.parametrize(
    ("shape", "size_hw", "dtype"),
    [
        ((1, 3, 4, 4), (9, 8), torch.float32),  # not doubled
        ((1, 3, 1, 4), (1, 7), torch.float32),
        ((1, 3, 4, 4), (4, 4), torch.float32),
        ((1, 3, 4, 4), (8, 7), torch.bfloat16),
    ],
)
def test_other_sizes_and_types_go_the_plain_way(shape: tuple[int, ...], size_hw: tuple[int, int], dtype: torch.dtype):
    states, weight = torch.randn(shape).to(dtype), torch.randn(2, 3, 3, 3).to(dtype)
    assert torch.equal(convolve_at(states, weight, size_hw), plainly(states, weight, size_hw))


def test_what_queries_share_is_made_once_and_groups_change_nothing(monkeypatch):
    torch.manual_seed(0)
    mask_head = MaskHeadSmallConv(hidden_dim=32, nheads=8, fpn_channels=(8, 16, 32)).eval()
    adapted = mask_head.adapt([torch.randn(1, 8, 23, 32), torch.randn(1, 16, 12, 16), torch.randn(1, 32, 6, 8)])
    projected, attention = torch.randn(1, 32, 3, 4), torch.rand(5, 8, 3, 4)
    expected = mask_head(projected, attention, adapted)
    calls = []
    mask_head.lay5.register_forward_hook(lambda layer, inputs, output: calls.append(len(output)))
    with torch.no_grad():
        torch.testing.assert_close(mask_head(projected, attention, adapted), expected, atol=1e-5, rtol=1e-5)
        assert calls == [1, 2, 2, 1]
        torch.testing.assert_close(mask_head(projected, attention[:0], adapted), expected[:0])
    plain = nn.Conv2d(4, 2, 3, padding=1)  # what an adapter or a quantiser puts in its place
    plain.load_state_dict(mask_head.lay5.state_dict())
    mask_head.lay5 = plain
    with torch.no_grad():
        torch.testing.assert_close(mask_head(projected, attention, adapted), expected, atol=1e-5, rtol=1e-5)


def test_who_counts_operations_sees_the_plain_ones():
    layer, states, shared = SharedConv2d(3, 3, 2), torch.randn(1, 3, 4, 4), torch.zeros(1, 2, 8, 8)
    with FlopCounterMode(display=False) as counter:
        layer(states, shared)
    assert counter.get_total_flops() == 2 * 64 * 9 * 3 * 2
