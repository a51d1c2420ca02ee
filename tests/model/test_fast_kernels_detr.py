"""Fused kernels and kept memory give the numbers of the plain form, and step back where they could not."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detr_hf.model.fast_kernels_detr import fused_kernels
from detr_hf.model.fast_layers_detr import linear
from detr_hf.model.kept_memory_detr import KeptMemory

from ..conftest import tiny_model

pytestmark = pytest.mark.processor

MIB = 2**20
FUSED = "oneDNN's linear layer in {}"


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 48).eval()


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


def test_a_kernel_that_errs_or_is_missing_is_not_used(monkeypatch):
    fused_kernels.cache_clear()
    monkeypatch.setattr(
        "detr_hf.model.fast_kernels_detr.FusedKernels.conv_relu", lambda self, conv, x, into=None: conv(x)
    )
    assert fused_kernels(torch.device("cpu"), torch.float32) is None
    fused_kernels.cache_clear()


# ------------------------------------------------------------------------------------------------------- linear layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_is_the_layer_and_relu(layer, x, calls, dtype, relu, transposed, machine_has):
    layer, x = layer.to(dtype), x.to(dtype)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    with torch.no_grad():
        linear(layer, x)  # tries the operator
        calls.clear()
        found = linear(layer, x, relu)
        expected = F.relu(layer(x)) if relu else layer(x)
    assert len(calls) == (1 if machine_has(FUSED.format(str(dtype).removeprefix("torch."))) else 0)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def replaced(layer: nn.Linear) -> nn.Linear:
    plain = copy.deepcopy(layer)
    layer.forward = lambda x: 2 * plain(x)
    return layer


def subclassed(layer: nn.Linear) -> nn.Linear:
    other = Doubled(32, 48)
    other.load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize("change", [hooked, replaced, subclassed])
def test_a_layer_that_does_something_else_is_called(layer, x, change):
    with torch.no_grad():
        expected = 2 * layer(x)
        torch.testing.assert_close(linear(change(layer), x), expected)


@pytest.fixture(params=[False, True], ids=["MKL fast", "MKL slow"])
def mkl_is_slow(request, monkeypatch) -> bool:
    monkeypatch.setattr("detr_hf.model.fast_layers_detr._mkl_is_slow", lambda: request.param)
    return request.param


def gradients(y: torch.Tensor, *inputs: torch.Tensor, **options) -> tuple:
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return torch.autograd.grad((weights * y).sum(), inputs, **options)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_layer(x, calls, mkl_is_slow, relu, bias):
    layer = nn.Linear(32, 48, bias=bias)
    x = x.transpose(0, 1).requires_grad_()
    inputs = x, *layer.parameters()
    expected = gradients(F.relu(layer(x)) if relu else layer(x), *inputs)
    linear(layer, x)  # tries the operator
    calls.clear()
    torch.testing.assert_close(gradients(linear(layer, x, relu), *inputs), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (3 if mkl_is_slow else 0)  # the result and two gradients


def test_only_the_wanted_gradients_are_computed(layer, x, calls, mkl_is_slow):
    layer.requires_grad_(False)
    linear(layer, x)  # tries the operator
    calls.clear()
    linear(layer, x.requires_grad_()).sum().backward()  # the gradient is one number, expanded
    assert layer.weight.grad is None
    assert len(calls) == (2 if mkl_is_slow else 0)  # the result and one gradient
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))


def test_gradients_of_gradients(layer, x, mkl_is_slow):
    def penalty(y):
        (gradient,) = gradients(y.square(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, layer.weight))

    x.requires_grad_()
    torch.testing.assert_close(penalty(linear(layer, x)), penalty(layer(x)), rtol=1e-4, atol=1e-4)


def test_forward_gradients_and_transforms(layer, x, mkl_is_slow):
    def layer_of(x):
        return linear(layer, x)

    expected = layer(x) - layer.bias
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(layer_of(dual)).tangent, expected)
    torch.testing.assert_close(torch.func.jvp(layer_of, (x,), (x,))[1], expected)
    torch.testing.assert_close(torch.func.vmap(layer_of)(x), layer(x))


def test_a_strided_weight_does_not_meet_the_slow_kernel(layer, x, calls):
    """oneDNN's multiplication by such a weight takes a thousand times as long."""
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x), layer(x))
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


# --------------------------------------------------------------------------------------------------------- kept memory


def test_memory_is_used_again_once_nobody_holds_it():
    memory = KeptMemory()
    first = memory.zeros((1, 64, 256, 256), torch.float32)
    assert first.is_contiguous(memory_format=torch.channels_last) and not first.any()
    address = first.data_ptr()
    part = first.fill_(1)[:, :3]
    del first
    assert memory.zeros((1, 64, 256, 256), torch.float32).data_ptr() != address  # `part` lies there
    assert part.min() == 1
    del part
    again = memory.zeros((1, 60, 256, 256), torch.float32)
    assert again.data_ptr() == address and not again.any()


def test_small_and_enormous_maps_take_new_memory(monkeypatch):
    memory = KeptMemory()
    assert memory.zeros((1, 8, 16, 16), torch.float32) is None
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.KEPT_AT_MOST", 13 * MIB)
    assert memory.zeros((1, 64, 256, 256), torch.float32) is None
    assert not memory._blocks


def test_what_is_kept_stays_below_the_limit(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.KEPT_AT_MOST", 40 * MIB)
    memory, held = KeptMemory(), []
    for height in (208, 256, 304, 352, 256, 208):
        held.append(memory.zeros((1, 64, 256, height), torch.float32))
        assert sum(map(len, memory._blocks)) <= 40 * MIB
        held = held[-2:]
    assert len({values.data_ptr() for values in held}) == 2


def test_a_new_block_takes_the_place_of_a_smaller_one():
    memory = KeptMemory()
    for height in (208, 256, 304, 352):
        memory.zeros((1, 64, 256, height), torch.float32)
    assert [len(block) for block in memory._blocks] == [64 * 256 * 352 * 4]


def test_released_memory_is_freed_and_does_not_touch_what_lies_in_it():
    memory = KeptMemory()
    values = memory.zeros((1, 64, 256, 256), torch.float32).fill_(1)
    memory.release()
    assert not memory._blocks
    assert memory.zeros((1, 64, 256, 256), torch.float32).data_ptr() != values.data_ptr() and values.min() == 1


def test_training_gives_the_memory_of_inference_back(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.LARGE", 1)
    model = tiny_model(backbone="resnet50", backbone_kwargs=None)
    memory = model.backbone[0].inference_body.memory
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert memory._blocks
    model.train()
    assert not memory._blocks


def test_threads_do_not_share_a_block():
    memory, found, barrier = KeptMemory(), [], threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(20):
            values = memory.zeros((1, 48, 256, 256), torch.float32)
            values.fill_(threading.get_ident() % 1000)
            found.append(bool((values == threading.get_ident() % 1000).all()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(found)


def test_inference_mode_and_no_grad_share_memory():
    memory = KeptMemory()
    with torch.inference_mode():
        address = memory.zeros((1, 64, 256, 256), torch.float32).data_ptr()
    with torch.no_grad():
        values = memory.zeros((1, 64, 256, 256), torch.float32)
        values.add_(1)
    assert values.data_ptr() == address and not values.is_inference()


def test_without_counts_of_uses_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr._counts_uses", lambda: False)
    assert KeptMemory().zeros((1, 64, 256, 256), torch.float32) is None
