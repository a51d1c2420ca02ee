"""Whatever a user does to a model shows in its next call, as it does in a model that runs its plain modules."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as hooks_on_all
from torch.nn.utils import parametrizations, parametrize, prune

from detr_hf.model.fast_rules_detr import State, is_dense, is_untouched, tensors_of

from ..conftest import tiny_model

pytestmark = pytest.mark.processor

SMALL = {"backbone_kwargs": {"channels": (16, 24, 32, 48)}}
PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


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
