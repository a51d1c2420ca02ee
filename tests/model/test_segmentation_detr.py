"""The mask head makes once what queries share, in groups that change nothing, and makes way for who looks on."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detr_hf.model.segmentation_detr import MaskHeadSmallConv, SharedConv2d


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
    layer, states, shared = SharedConv2d(3, 2, 3, padding=1), torch.randn(1, 3, 4, 4), torch.zeros(1, 2, 8, 8)
    layer.own_channels = 3
    with FlopCounterMode(display=False) as counter:
        layer(states, shared)
    assert counter.get_total_flops() == 2 * 64 * 9 * 3 * 2


@pytest.mark.parametrize(
    "given",
    [
        ((3, 3), (1, 1), (1, 1)),
        {"kernel_size": 1, "stride": 2, "groups": 2},
        {"kernel_size": 3, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_a_layer_of_its_class_can_be_made_as_any_convolution(given):
    """As PEFT makes LoRA's two parts: `type(layer)(channels, r, kernel_size, stride, padding, bias=False)`."""
    sizes, options = (given, {}) if isinstance(given, tuple) else ((), given)
    made, plain = (kind(4, 2, *sizes, bias=False, **options) for kind in (SharedConv2d, nn.Conv2d))
    plain.load_state_dict(made.state_dict())
    states = torch.randn(2, 4, 6, 7)
    torch.testing.assert_close(made(states), plain(states))
