"""Hooks, modes, tracers, transforms, copies and threads see what they see of a model that runs its plain modules."""

import copy
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_on_all
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detr_hf import DETRForObjectDetection
from detr_hf.model.fast_rules_detr import only_runs

from ..conftest import padded_batch, tiny_model
from .test_fast_rules_detr import PIXELS, SMALL, body_of, logits_of, plain_logits_of

pytestmark = pytest.mark.processor


@pytest.fixture
def model() -> DETRForObjectDetection:
    return tiny_model(**SMALL)


KINDS_OF_HOOKS = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "always": lambda module, hook: module.register_forward_hook(hook, always_call=True),
    "kwargs": lambda module, hook: module.register_forward_hook(hook, with_kwargs=True),
    "before": lambda module, hook: module.register_forward_pre_hook(hook),
    "before, kwargs": lambda module, hook: module.register_forward_pre_hook(hook, with_kwargs=True),
}
KINDS_OF_HOOKS_ON_ALL = {
    "forward": lambda hook: hooks_on_all.register_module_forward_hook(hook),
    "always": lambda hook: hooks_on_all.register_module_forward_hook(hook, always_call=True),
    "before": lambda hook: hooks_on_all.register_module_forward_pre_hook(hook),
}


@pytest.mark.parametrize("register", KINDS_OF_HOOKS.values(), ids=KINDS_OF_HOOKS.keys())
@pytest.mark.parametrize("gradients", [False, True])
def test_hooks_on_every_module_are_called(register, gradients, model):
    logits_of(model)
    called = Counter()
    for name, module in model.named_modules():
        register(module, lambda *_, name=name: called.update([name]))
    with torch.set_grad_enabled(gradients):
        model(PIXELS)
    silent = {name for name, module in model.named_modules() if name not in called}
    assert silent == {"transformer.encoder.layers", "transformer.decoder.layers", "bbox_embed.layers"}  # lists


@pytest.mark.parametrize("register", KINDS_OF_HOOKS_ON_ALL.values(), ids=KINDS_OF_HOOKS_ON_ALL.keys())
def test_hooks_on_all_modules_are_called_as_often_as_with_gradients(register, model):
    logits_of(model)
    counts = []
    for gradients in (False, True):
        called = Counter()
        handle = register(lambda module, *_, called=called: called.update([type(module).__name__]))
        try:
            with torch.set_grad_enabled(gradients):
                model(PIXELS)
        finally:
            handle.remove()
        counts.append(called)
    assert counts[0] == counts[1] and counts[0]["ReLU"] > 20 and counts[0]["Conv2d"] > 20


def test_gradients_can_be_guided(model):
    """A backward hook on every ReLU changes the gradient of the pixels, as in GuidedBackprop."""

    def gradient() -> torch.Tensor:
        pixels = PIXELS.clone().requires_grad_()
        model(pixels).logits.sum().backward()
        return pixels.grad

    plain, called = gradient(), []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(
                lambda module, inputs, outputs: (called.append(module) or inputs[0].clamp(min=0),)
            )
    assert not torch.allclose(gradient(), plain, rtol=1e-3)
    assert len(called) == sum(isinstance(module, nn.ReLU) for module in model.modules())


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen[getattr(function, "__name__", "")] += 1
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "names"), [(Functions, ("conv2d", "linear")), (Operations, ("aten.convolution.default",))]
)
def test_a_mode_sees_every_operation(mode, names, model):
    logits_of(model)
    with mode() as watching:
        logits_of(model)
    assert all(watching.seen[name] >= 21 for name in names)
    assert not any("pointwise" in name for name in watching.seen)


def test_the_default_device_is_no_mode_that_looks(monkeypatch):
    """Also for memory and small examples that are made at the first call."""
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.LARGE", 1)
    model = tiny_model(backbone="resnet50")
    expected = plain_logits_of(model)
    with torch.device("meta"):
        assert only_runs()
        found = logits_of(model)
    assert model.backbone[0].inference_body._made[1] is not None
    assert (found - expected).abs().max() < 1e-4


# ------------------------------------------------------------------------------------- transforms, tracers and copies


class Tensors(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        outputs = self.model(*inputs)
        return outputs.logits, outputs.pred_boxes


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_is_traced(gradients, masked, model):
    pixels, mask = padded_batch()
    inputs = (pixels, mask) if masked else (pixels,)
    with torch.set_grad_enabled(gradients), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(Tensors(model), inputs)
    other = (pixels.flip(0), mask.flip(0))[: len(inputs)]
    torch.testing.assert_close(traced(*other)[1], model(*other).pred_boxes, rtol=1e-4, atol=1e-4)


def test_the_backbone_is_traced_symbolically(model):
    body = body_of(model)
    graph = torch.fx.symbolic_trace(body)
    torch.testing.assert_close(graph(PIXELS)[-1], body(PIXELS)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradients", [False, True])
def test_tangents_go_through(gradients, model):
    model.set_attn_implementation("eager")  # torch's own fused attention has none
    with torch.set_grad_enabled(gradients):
        logits_of(model)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(PIXELS, torch.ones_like(PIXELS))
            found = forward_ad.unpack_dual(model(dual).logits).tangent
        _, expected = torch.func.jvp(lambda pixels: model(pixels).logits, (PIXELS,), (torch.ones_like(PIXELS),))
    assert found is not None and found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradients", [False, True])
def test_it_is_mapped_over_pictures_and_over_weights(gradients, model):
    pixels, mask = padded_batch()
    with torch.set_grad_enabled(gradients):
        expected = model(pixels).logits
        found = torch.func.vmap(lambda one: model(one[None]).logits[0])(pixels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        masked = torch.func.vmap(lambda one, its: model(one[None], its[None]).logits[0])(pixels, mask)
        torch.testing.assert_close(masked, model(pixels, mask).logits, rtol=1e-4, atol=1e-4)
        models = [model, tiny_model(seed=1, **SMALL)]
        state = torch.func.stack_module_state(models)
        found = torch.func.vmap(lambda *state: torch.func.functional_call(model, state, (pixels,)).logits)(*state)
        torch.testing.assert_close(found[1], models[1](pixels).logits, rtol=1e-4, atol=1e-4)


def test_other_weights_for_one_call(model):
    logits_of(model)
    weights = {name: 1.1 * weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(model, weights, (PIXELS,)).logits
    expected = torch.func.functional_call(model, weights, (PIXELS,)).logits
    assert (found - expected).abs().max() < 1e-4 < (found - logits_of(model)).abs().max()
    assert (logits_of(model) - plain_logits_of(model)).abs().max() < 1e-4


@pytest.mark.parametrize("make", [lambda pixels: pixels.contiguous(memory_format=torch.channels_last), nn.Parameter])
def test_pixels_of_other_kinds_stay_as_they_are(make, model):
    pixels = make(PIXELS.clone())
    before = pixels.detach().clone()
    assert (logits_of(model, pixels) - plain_logits_of(model)).abs().max() < 1e-4
    assert torch.equal(pixels, before)


def test_copies_are_on_their_own_after_a_first_call(model):
    logits_of(model)
    twin, shallow = copy.deepcopy(model), copy.copy(model)
    body_of(model).layer1[0].conv1.weight.data.zero_()
    assert (logits_of(model) - plain_logits_of(model)).abs().max() < 1e-4
    assert (logits_of(shallow) - plain_logits_of(model)).abs().max() < 1e-4  # shares the modules
    assert (logits_of(twin) - plain_logits_of(tiny_model(**SMALL))).abs().max() < 1e-4


def test_threads_see_an_edit_between_calls(model):
    for value in (0.0, 0.05):
        body_of(model).layer1[0].conv1.weight.data.fill_(value)
        expected = plain_logits_of(model)
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda _: logits_of(model), range(4)):
                assert (found - expected).abs().max() < 1e-4
