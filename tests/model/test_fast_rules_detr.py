"""Whatever a user does to a model shows in its next call, as it does in a model that runs its plain modules."""

import copy
import functools
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_on_all
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detr_hf import DETRForObjectDetection
from detr_hf.model.fast_rules_detr import State, is_dense, is_untouched, only_runs, tensors_of

from ..conftest import padded_batch, tiny_model

pytestmark = pytest.mark.processor

SMALL = {"backbone_kwargs": {"channels": (16, 24, 32, 48)}}
PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> DETRForObjectDetection:
    return tiny_model(**SMALL)


@torch.no_grad()
def logits_of(model, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    return model(pixels).logits


def plain_logits_of(model, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    """With gradients the model's own modules run."""
    return model(pixels).logits.detach()


def body_of(model) -> nn.Module:
    return model.backbone[0].body


class Twice(nn.Module):
    """Gives twice what `part` gives, or its input."""

    def __init__(self, part: nn.Module | None = None):
        super().__init__()
        self.part = part or nn.Identity()

    def forward(self, x):
        return 2 * self.part(x)


def twice_as_class(module: nn.Module) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


# ----------------------------------------------------------------------------------------------------- state of parts


def edits_of_a_value() -> dict:
    """Ways to change one value of a tensor, or what the tensor makes of its memory."""

    def in_place(tensor):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1

    def through_data(tensor):
        tensor.data.view(-1)[0] = -7

    def through_numpy(tensor):
        tensor.detach().numpy().reshape(-1)[len(tensor) // 2] += 1e-6

    def through_the_storage(tensor):
        tensor.untyped_storage()[3] ^= 64

    def swapped(tensor):
        tensor.data.copy_(tensor.data.roll(1))

    def not_a_number(tensor):
        tensor.data.view(-1)[0] = float("nan")

    def other_memory(tensor):
        tensor.data = tensor.data.clone()

    def other_strides(tensor):
        tensor.data = tensor.data.as_strided(tensor.shape, [0] * tensor.dim())

    def shorter(tensor):
        tensor.data = tensor.data[:-1]

    def other_dtype(tensor):
        tensor.data = tensor.data.half()

    return {edit.__name__: edit for edit in list(locals().values())}


@pytest.mark.parametrize("edit", edits_of_a_value().values(), ids=edits_of_a_value().keys())
def test_every_edit_of_every_tensor_is_seen(edit):
    body = nn.ModuleDict({f"conv{c}": nn.Conv2d(3, c, 3) for c in (2, 5, 300)} | {"norm": nn.BatchNorm2d(5)})
    nn.init.uniform_(body["norm"].weight)
    body.requires_grad_(False)
    seen = [tensor for tensor in tensors_of(list(body.modules())) if tensor.is_floating_point()]
    for tensor in seen:
        before = tensor.detach().clone()
        nn.init.uniform_(tensor)
        state = State(body, seen)
        assert state.holds(body) and state.holds(body)
        edit(tensor)
        assert not state.holds(body)
        if edit.__name__ == "not_a_number":
            assert State(body, seen).holds(body)  # which is equal to nothing, but has the same bits
        tensor.data = before


def test_values_of_any_dtype_length_and_offset_are_compared():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8):
        for length, offset in ((1, 0), (3, 1), (5001, 0), (5000, 3), (5002, 2)):
            module = nn.Module()
            module.register_buffer("values", torch.zeros(6000, dtype=dtype)[offset : offset + length])
            state = State(module, module.buffers())
            assert state.holds(module)
            module.values[-1] = 1
            assert not state.holds(module)


def test_only_memory_in_one_piece_is_compared():
    weight = torch.zeros(4, 3, 2, 2)
    assert is_dense(weight) and is_dense(weight.contiguous(memory_format=torch.channels_last))
    assert not is_dense(weight.transpose(0, 1)) and not is_dense(weight[:, ::2])


# ---------------------------------------------------------------------------------------------- what is done to parts


def deeds() -> dict:
    """What people do to a model: edits of weights, attributes and classes, other parts, hooks and patches."""

    def filters_swapped(model, monkeypatch):
        weight = body_of(model).layer3[1].conv1.weight.detach().numpy()
        weight[[1, 9]] = weight[[9, 1]]

    def weight_transposed(model, monkeypatch):
        weight = body_of(model).layer4[1].conv2.weight
        weight.data = weight.data.transpose(0, 1)

    def weights_tied(model, monkeypatch):
        body_of(model).layer4[1].conv2.weight = body_of(model).layer4[1].conv1.weight

    def state_loaded(model, monkeypatch):
        model.load_state_dict(tiny_model(seed=4, **SMALL).state_dict())

    def state_assigned(model, monkeypatch):
        model.load_state_dict(tiny_model(seed=4, **SMALL).state_dict(), assign=True)

    def pruned(model, monkeypatch):
        prune.ln_structured(body_of(model).layer3[0].conv1, "weight", amount=0.5, n=2, dim=0)

    def pruned_for_good(model, monkeypatch):
        pruned(model, monkeypatch)
        logits_of(model)
        prune.remove(body_of(model).layer3[0].conv1, "weight")

    def pruned_everywhere(model, monkeypatch):
        parts = [(part, "weight") for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        prune.global_unstructured(parts, pruning_method=prune.L1Unstructured, amount=0.4)

    def parametrized(model, monkeypatch):
        parametrize.register_parametrization(body_of(model).layer3[0].conv1, "weight", Twice())

    def weight_norm(model, monkeypatch):
        conv = parametrizations.weight_norm(body_of(model).layer3[0].conv1)
        logits_of(model)
        conv.parametrizations.weight.original0.data.mul_(2)

    def bias_added(model, monkeypatch):
        conv = body_of(model).layer2[0].conv1
        conv.bias = nn.Parameter(torch.ones(conv.out_channels))

    def norms_eps(model, monkeypatch):
        body_of(model).layer4[1].bn1.eps = 3.0

    def dilated(model, monkeypatch):
        conv = body_of(model).layer4[1].conv1
        conv.dilation = conv.padding = (2, 2)

    def strides(model, monkeypatch):
        block = body_of(model).layer4[0]
        block.conv1.stride = block.downsample[0].stride = (1, 1)

    def pooling(model, monkeypatch):
        body_of(model).maxpool.kernel_size, body_of(model).maxpool.padding = 5, 2

    def convolution_wrapped(model, monkeypatch):
        body_of(model).layer3[0].conv1 = Twice(body_of(model).layer3[0].conv1)

    def activation_swapped(model, monkeypatch):
        body_of(model).layer2[0].act1 = nn.SiLU()

    def norm_thawed(model, monkeypatch):
        torch.manual_seed(1)
        body_of(model).layer2[0].bn1 = nn.BatchNorm2d(24).eval()

    def block_removed(model, monkeypatch):
        body_of(model).layer4 = body_of(model).layer4[:1]

    def classes_of_parts(model, monkeypatch):
        block = body_of(model).layer4[1]
        for part in (block.conv2, block.act1, block.bn1, block):
            twice_as_class(part)
            logits_of(model)

    def forwards_of_parts(model, monkeypatch):
        block = body_of(model).layer2[0]
        for part in (block.conv1, block.bn1, block.act2, block, model.transformer.encoder.layers[0].linear1):
            part.forward = functools.partial(lambda forward, x: 2 * forward(x), part.forward)

    def hooks_of_parts(model, monkeypatch):
        block = body_of(model).layer2[0]
        for part in (block.conv1, block.bn1, block.act2, block, model.transformer.encoder.layers[0].activation):
            part.register_forward_hook(lambda module, inputs, output: 2 * output)
            part.register_forward_pre_hook(lambda module, inputs, kwargs: ((inputs[0] / 3,), kwargs), with_kwargs=True)

    def hook_on_all(model, monkeypatch):
        def twice(module, inputs, output):
            return 2 * output if isinstance(module, nn.ReLU) else None

        monkeypatch.setitem(hooks_on_all._global_forward_hooks, 0, twice)

    def function_patched(name):
        def patched(model, monkeypatch):
            function = getattr(F, name)
            monkeypatch.setattr(F, name, lambda *args, **kwargs: 2 * function(*args, **kwargs))

        patched.__name__ = f"{name}_patched"
        return patched

    def class_patched(kind_of):
        def patched(model, monkeypatch):
            kind = kind_of(body_of(model))
            forward = kind.forward
            monkeypatch.setattr(kind, "forward", functools.wraps(forward)(lambda self, x: 2 * forward(self, x)))

        return patched

    patched_functions = [function_patched(name) for name in ("conv2d", "relu", "linear", "max_pool2d")]
    patched_classes = {
        "class_of_convolutions_patched": class_patched(lambda body: nn.Conv2d),
        "class_of_activations_patched": class_patched(lambda body: nn.ReLU),
        "class_of_poolings_patched": class_patched(lambda body: nn.MaxPool2d),
        "class_of_norms_patched": class_patched(lambda body: type(body.bn1)),
        "class_of_blocks_patched": class_patched(lambda body: type(body.layer1[0])),
    }
    makers = (function_patched, class_patched)
    plain = [deed for deed in list(locals().values()) if callable(deed) and deed not in makers]
    return {deed.__name__: deed for deed in (*plain, *patched_functions)} | patched_classes


@pytest.mark.parametrize("deed", deeds().values(), ids=deeds().keys())
def test_what_is_done_shows_in_the_next_call(deed, monkeypatch):
    """Whether the model has run before or not."""
    called = tiny_model(**SMALL)
    fresh = copy.deepcopy(called)
    before = logits_of(called)
    for model in (called, fresh):
        with monkeypatch.context() as patches:
            deed(model, patches)
            found, expected = logits_of(model), plain_logits_of(model)
        assert (found - expected).abs().max() < 1e-4
        assert (expected - before).abs().max() > 1e-4  # it matters


# ----------------------------------------------------------------------------------------- who listens and looks

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
@pytest.mark.parametrize("masked", [False, True])
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


def test_every_class_of_common_backbones_counts_as_untouched():
    for name in ("resnet18", "seresnet50", "efficientnet_lite0", "swin_tiny_patch4_window7_224"):
        assert all(map(is_untouched, body_of(tiny_model(backbone=name)).modules()))


def test_arrays_among_the_attributes_do_not_stop_the_comparison():
    module = nn.Identity()
    module.table = torch.zeros(3)
    state = State(module)
    assert state.holds(module)
    module.table = torch.zeros(3)
    assert not state.holds(module)
