"""Fast linear layers give the numbers of the plain ones, and step back where they could not."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from detr_hf.model.fast_linear_detr import apply_linear

from ..conftest import tiny_model

FUSED = "oneDNN's linear layer in {}"


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 48).eval()


@pytest.fixture
def fast(layer) -> Callable:
    return functools.partial(apply_linear, layer)


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
    layer, x = layer.to(dtype), x.to(dtype)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    with torch.no_grad():
        fast(x)  # tries the operator
        calls.clear()
        found, expected = fast(x), layer(x)
    assert len(calls) == (1 if machine_has(FUSED.format(str(dtype).removeprefix("torch."))) else 0)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubling() -> dict:
    """Ways to make a linear layer give twice as much."""

    def hook(layer, monkeypatch):
        layer.register_forward_hook(lambda module, inputs, output: 2 * output)

    def hook_before(layer, monkeypatch):
        layer.bias = None
        layer.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0])

    def another_class(layer, monkeypatch):
        layer.__class__ = Doubled

    def own_forward(layer, monkeypatch):
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)

    def patched_class(layer, monkeypatch):
        forward = nn.Linear.forward
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * forward(self, x))

    def patched_function(layer, monkeypatch):
        linear = F.linear
        monkeypatch.setattr(F, "linear", lambda *inputs: 2 * linear(*inputs))

    def parametrization(layer, monkeypatch):
        layer.bias = None
        parametrize.register_parametrization(layer, "weight", Double())

    def compiled(layer, monkeypatch):
        forward = layer.forward
        layer._compiled_call_impl = lambda x: 2 * forward(x)

    return {way.__name__: way for way in list(locals().values())}


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("double", doubling().values(), ids=doubling().keys())
def test_what_is_done_to_a_layer_is_done_to_its_fast_form(layer, x, fast, double, monkeypatch):
    with torch.no_grad():
        plain = layer(x)
        double(layer, monkeypatch)
        torch.testing.assert_close(fast(x), layer(x))
    assert not torch.allclose(layer(x), plain)


@pytest.fixture(params=[False, True], ids=["MKL fast", "MKL slow"])
def mkl_is_slow(request, monkeypatch) -> bool:
    monkeypatch.setattr("detr_hf.model.fast_linear_detr._mkl_is_slow", lambda: request.param)
    return request.param


def gradients(y: torch.Tensor, *inputs: torch.Tensor, **options) -> tuple:
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return torch.autograd.grad((weights * y).sum(), inputs, **options)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_layer(x, calls, mkl_is_slow, bias):
    layer = nn.Linear(32, 48, bias=bias)
    fast = functools.partial(apply_linear, layer)
    x = x.transpose(0, 1).requires_grad_()
    expected = gradients(layer(x), x, *layer.parameters())
    fast(x)  # tries the operator
    calls.clear()
    torch.testing.assert_close(gradients(fast(x), x, *layer.parameters()), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (3 if mkl_is_slow else 0)  # the result and two gradients


def test_only_the_wanted_gradients_are_computed(layer, x, calls, fast, mkl_is_slow):
    layer.requires_grad_(False)
    fast(x)  # tries the operator
    calls.clear()
    fast(x.requires_grad_()).sum().backward()  # the gradient is one number, expanded
    assert layer.weight.grad is None
    assert len(calls) == (2 if mkl_is_slow else 0)  # the result and one gradient
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))


def test_gradients_of_gradients(layer, x, fast, mkl_is_slow):
    def penalty(form):
        (gradient,) = gradients(form(x).square(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, layer.weight))

    x.requires_grad_()
    torch.testing.assert_close(penalty(fast), penalty(layer), rtol=1e-4, atol=1e-4)


def test_forward_gradients_and_transforms(layer, x, fast, mkl_is_slow):
    expected = layer(x) - layer.bias
    for gradients_wanted in (True, False):  # a tangent goes on without them
        with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(gradients_wanted):
            dual = torch.autograd.forward_ad.make_dual(x, x)
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(fast(dual)).tangent, expected)
    torch.testing.assert_close(torch.func.jvp(fast, (x,), (x,))[1], expected)
    torch.testing.assert_close(torch.func.vmap(fast)(x), layer(x))


def test_a_strided_weight_does_not_meet_the_slow_kernel(layer, x, calls, fast):
    """oneDNN's multiplication by such a weight takes a thousand times as long."""
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
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


def test_who_looks_for_linear_layers_by_type_finds_them(model):
    """As torch's dynamic quantisation and some counters of operations do."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) > 40 and {type(layer) for layer in layers} == {nn.Linear}


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
