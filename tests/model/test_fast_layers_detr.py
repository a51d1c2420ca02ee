"""Fast linear layers give the numbers of the plain ones, and step back where they could not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detr_hf.model import fast_layers_detr
from detr_hf.model.attention_detr import eager_attention
from detr_hf.model.fast_layers_detr import Linear, attention_by_rows, use_fast_layers

from ..conftest import padded_batch, tiny_model

FUSED = "oneDNN's linear layer in {}"


def fast_form(layer: nn.Linear) -> nn.Linear:
    fast = copy.deepcopy(layer)
    use_fast_layers(fast)
    return fast


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 48).eval()


@pytest.fixture
def fast(layer) -> nn.Linear:
    return fast_form(layer)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch) -> list:
    """Grows with every use of oneDNN's linear operator that gives a result."""
    made, operator = [], getattr(torch.ops.mkldnn, "_linear_pointwise", None)

    def counted(*arguments):
        result = operator(*arguments)
        made.append(1)
        return result

    if operator is not None:
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_fast_layer_is_the_layer(layer, x, calls, fast, dtype, transposed, machine_has):
    layer, fast, x = layer.to(dtype), fast.to(dtype), x.to(dtype)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    with torch.no_grad():
        fast(x)  # tries the operator
        calls.clear()
        found, expected = fast(x), layer(x)
    assert len(calls) == (1 if machine_has(FUSED.format(str(dtype).removeprefix("torch."))) else 0)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_only_plain_linear_layers_are_replaced(layer):
    """What is called `nn.Linear` by its type, and nothing that stands in for it."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(layer, Doubled(48, 8))
    text, names = str(network), list(network.state_dict())
    use_fast_layers(network)
    assert [type(child) for child in network] == [Linear, Doubled]
    assert str(network) == text and list(network.state_dict()) == names


def test_hooks_of_a_fast_layer_are_called(layer, x, calls, fast):
    seen = []
    fast.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    fast.register_forward_hook(lambda module, inputs, output: seen.append("after") or 2 * output)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), 2 * layer(x))
    assert seen == ["before", "after"]


def test_a_fast_layer_is_copied_and_pickled(x, fast):
    with torch.no_grad():
        for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert type(copied) is Linear and torch.equal(copied(x), fast(x))


@pytest.fixture(params=[False, True], ids=["MKL fast", "MKL slow"])
def mkl_is_slow(request, monkeypatch) -> bool:
    monkeypatch.setattr("detr_hf.model.fast_layers_detr._mkl_is_slow", lambda: request.param)
    return request.param


def gradients(y: torch.Tensor, *inputs: torch.Tensor, **options) -> tuple:
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return torch.autograd.grad((weights * y).sum(), inputs, **options)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_layer(x, calls, mkl_is_slow, bias):
    layer = nn.Linear(32, 48, bias=bias)
    fast = fast_form(layer)
    x = x.transpose(0, 1).requires_grad_()
    expected = gradients(layer(x), x, *layer.parameters())
    fast(x)  # tries the operator
    calls.clear()
    torch.testing.assert_close(gradients(fast(x), x, *fast.parameters()), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (3 if mkl_is_slow else 0)  # the result and two gradients


def test_only_the_wanted_gradients_are_computed(layer, x, calls, fast, mkl_is_slow):
    fast.requires_grad_(False)
    fast(x)  # tries the operator
    calls.clear()
    fast(x.requires_grad_()).sum().backward()  # the gradient is one number, expanded
    assert fast.weight.grad is None
    assert len(calls) == (2 if mkl_is_slow else 0)  # the result and one gradient
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))


def test_gradients_of_gradients(layer, x, fast, mkl_is_slow):
    def penalty(layer):
        (gradient,) = gradients(layer(x).square(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, layer.weight))

    x.requires_grad_()
    torch.testing.assert_close(penalty(fast), penalty(layer), rtol=1e-4, atol=1e-4)


def test_forward_gradients_and_transforms(layer, x, fast, mkl_is_slow):
    expected = layer(x) - layer.bias
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(fast(dual)).tangent, expected)
    torch.testing.assert_close(torch.func.jvp(fast, (x,), (x,))[1], expected)
    torch.testing.assert_close(torch.func.vmap(fast)(x), layer(x))


def test_a_strided_weight_does_not_meet_the_slow_kernel(layer, x, calls):
    """oneDNN's multiplication by such a weight takes a thousand times as long."""
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    fast = fast_form(layer)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x))
    assert not calls


def test_where_the_transformer_uses_it(calls, mkl_is_slow):
    model = tiny_model()
    pixels = torch.randn(1, 3, 64, 64)
    model(pixels)
    assert bool(calls) == mkl_is_slow
    calls.clear()
    with torch.no_grad():
        model(pixels)
    assert calls


def test_all_operations_are_counted():
    model = tiny_model()
    pixels = torch.randn(1, 3, 64, 64)
    counts = []
    for gradients_wanted in (True, False, False):
        with torch.set_grad_enabled(gradients_wanted), FlopCounterMode(display=False) as counter:
            model(pixels)
        counts.append(counter.get_total_flops())
        with torch.no_grad():
            model(pixels)
    assert counts[0] == counts[1] == counts[2] > 0


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_rows_is_attention(masked, monkeypatch):
    monkeypatch.setattr("detr_hf.model.fast_layers_detr.SCORES", 1)  # as few rows at a time as there may be
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8) for length in (75, 50, 50))
    mask = torch.rand(2, 1, 1, 50) > 0.3 if masked else None
    module = tiny_model()
    expected, _ = eager_attention(module, query, key, value, mask, scaling=8**-0.5)
    found, weights = attention_by_rows(module, query, key, value, mask, scaling=8**-0.5)
    assert weights is None
    torch.testing.assert_close(found, expected)


@pytest.mark.processor
@pytest.mark.parametrize(
    ("dtype", "gradients", "amx", "name"),
    [
        (torch.bfloat16, False, False, "attention_by_rows"),
        (torch.bfloat16, False, True, None),
        (torch.bfloat16, True, False, "eager_attention"),
        (torch.bfloat16, True, True, "eager_attention"),
        (torch.float32, False, False, None),
        (torch.float32, True, False, None),
    ],
)
def test_bfloat16_on_a_cpu_takes_the_attention_that_is_faster_there(dtype, gradients, amx, name, monkeypatch):
    monkeypatch.setattr(fast_layers_detr, "_has_amx", lambda: amx)
    used = []
    for each in ("attention_by_rows", "eager_attention"):
        attend = getattr(fast_layers_detr, each)
        monkeypatch.setattr(
            fast_layers_detr, each, lambda *a, each=each, attend=attend, **k: used.append(each) or attend(*a, **k)
        )
    model, (pixel_values, pixel_mask) = tiny_model(), padded_batch()
    expected = model(pixel_values, pixel_mask).pred_boxes.detach()
    used.clear()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), torch.set_grad_enabled(gradients):
        found = model(pixel_values, pixel_mask).pred_boxes
    assert (found.float() - expected).abs().max() < 0.05
    assert (used[0] if used else None) == name
    if gradients:
        found.float().sum().backward()
        assert model.transformer.encoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.processor
def test_a_backward_pass_keeps_no_more_attention_weights_than_it_may(monkeypatch):
    monkeypatch.setattr("detr_hf.model.fast_layers_detr.KEPT_SCORES", 1)
    monkeypatch.setattr(fast_layers_detr, "eager_attention", None)  # calling it fails
    model = tiny_model().bfloat16()
    model(padded_batch()[0].bfloat16()).pred_boxes.float().sum().backward()
