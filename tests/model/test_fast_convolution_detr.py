"""What is convolved before it is enlarged is what the plain operations give, and other cases go their way."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_hf.model import fast_convolution_detr
from detr_hf.model.fast_convolution_detr import convolve_at


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
    monkeypatch.setattr(fast_convolution_detr.F, "interpolate", only_lines(F.interpolate))
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
