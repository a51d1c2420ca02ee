"""A second form of the backbone for inference: frozen batch norm folded into the convolutions, in channels-last order.

The model's own modules stay what they are, in memory and on disk. `InferenceBody` keeps a private copy of the timm
body beside them, which shares every tensor that folding does not touch, and makes it again when a weight has changed.
It answers with None wherever a second form could be wrong or is of no use (see `usable_for`), and the caller then
runs the model's own modules.

Which convolution a norm belongs to is found by running the copy once on the meta device, so any timm model will do:
the pair is folded when nothing but the norm reads what the convolution gives. Plain residual blocks of a ResNet
run convolution, bias, addition and ReLU as one kernel where this build of torch has one (oneDNN's on the CPU, cuDNN's
on a GPU; private operators, tried before they are used).
"""

import copy
import functools
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

logger = logging.get_logger(__name__)

DEVICES = ("cpu", "cuda")
SAMPLES = 64  # values of a large tensor that are compared at every call on the CPU
SMALL = 4096  # tensors up to this size, which norms have, are compared whole


class InferenceBody:
    """The folded copy of one timm body, made at the first call and again after a change.

    Copying or pickling the model leaves it behind: a copy of the model starts without one.
    """

    def __init__(self, norm_class: type[nn.Module]):
        self.norm_class = norm_class
        self._lock = threading.Lock()
        self._made: tuple[_Watch, nn.Module | None] | None = None

    def __deepcopy__(self, memo: dict) -> "InferenceBody":
        return InferenceBody(self.norm_class)

    def __reduce__(self):
        return InferenceBody, (self.norm_class,)

    def forget(self) -> None:
        """Drops the copy and its memory; the next call makes a new one."""
        self._made = None

    def usable_for(self, pixel_values: Tensor) -> bool:
        """Whether the folded form may run at all: without gradients, on real tensors, and not while being traced."""
        return (
            not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_grad_enabled()
            and type(pixel_values) is Tensor
            and pixel_values.device.type in DEVICES
        )

    def of(self, body: nn.Module, pixel_values: Tensor) -> nn.Module | None:
        """Returns the folded form of `body` as it is now, or None where its own modules must run."""
        made = self._made  # one read: another thread may put a newer one there
        if made is None or not made[0].holds(body):
            with self._lock:
                made = self._made
                if made is None or not made[0].holds(body):
                    made = self._made = self._make(body, pixel_values)
        return made[1]

    def _make(self, body: nn.Module, pixel_values: Tensor) -> "tuple[_Watch, nn.Module | None]":
        with torch.inference_mode(False), torch.no_grad():
            watch = _Watch(body)
            folded = _folded_copy(body, self.norm_class, pixel_values) if watch.foldable(pixel_values.device) else None
            return watch, folded


class _Watch:
    """Notices when a module is no longer what it was: other modules, hooks, tensors or values.

    torch counts the versions of a tensor, but not edits through `.data`. On the CPU a sample of all values is compared
    besides; on a GPU that would wait for the device, and such an edit is seen after the next `train()` or `eval()`.
    """

    def __init__(self, module: nn.Module):
        self.modules = list(module.modules())
        self.tensors = _tensors(self.modules)
        # These references, and aliases of the tensors' memory, keep identities and addresses from being used again.
        self.identities = _identities(self.modules, self.tensors)
        self.special = _special(self.modules)
        plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in self.tensors)
        plain = plain and not any(tensor.is_meta or tensor.is_inference() for tensor in self.tensors)
        self.plain = plain and not self.special
        self.aliases = [tensor.detach() for tensor in self.tensors] if self.plain else []
        self.versions = [tensor._version for tensor in self.aliases]
        self.addresses = [tensor.data_ptr() for tensor in self.aliases]
        samples = [_sample(tensor) for tensor in self.aliases if tensor.is_cpu and tensor.is_floating_point()]
        dtypes = {sample.dtype for sample in samples}
        self.samples = [[sample for sample in samples if sample.dtype == dtype] for dtype in dtypes]
        self.sampled = [torch.cat(group) for group in self.samples]

    def foldable(self, device: torch.device) -> bool:
        """Whether the module is made of plain tensors on one device, and nobody listens in."""
        return self.plain and all(tensor.device == device for tensor in self.tensors)

    def holds(self, module: nn.Module) -> bool:
        """Whether `module` still is what it was when this watch was made."""
        tensors = _tensors(self.modules)
        if module is not self.modules[0] or _identities(self.modules, tensors) != self.identities:
            return False
        if not self.plain:
            return _special(self.modules) == self.special
        return (
            not _special(self.modules)
            and [tensor._version for tensor in tensors] == self.versions
            and [tensor.data_ptr() for tensor in tensors] == self.addresses
            and all(
                torch.equal(torch.cat(group), before) for group, before in zip(self.samples, self.sampled, strict=True)
            )
        )


def _special(modules: list[nn.Module]) -> list[nn.Module]:
    """Returns the modules that a copy cannot stand in for: they train, have hooks, or a forward of their own."""
    return [
        module
        for module in modules
        if module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    ]


def _identities(modules: list[nn.Module], tensors: list[Tensor]) -> list[int]:
    children = [id(child) for module in modules for child in module._modules.values()]
    return children + [id(tensor) for tensor in tensors]


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def _sample(tensor: Tensor) -> Tensor:
    """Returns a view (n,) of the tensor's memory: all of it if small, else values spread over it."""
    if not tensor.is_contiguous() and not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.flatten()[:0]
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat if len(flat) <= SMALL else flat[:: len(flat) // SAMPLES]


class _Readers(TorchFunctionMode):
    """Counts how often each of the kept tensors is an argument of a function."""

    def __init__(self):
        super().__init__()
        self.kept: dict[int, Tensor] = {}
        self.reads: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> None:
        self.kept[id(tensor)] = tensor
        self.reads[id(tensor)] = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") != "__get__":  # asking for a shape is not reading
            for argument in torch.utils._pytree.tree_leaves((args, kwargs)):
                if id(argument) in self.reads:
                    self.reads[id(argument)] += 1
        return function(*args, **(kwargs or {}))


def _foldable_classes() -> tuple[type[nn.Module], ...]:
    """Returns the convolutions that can be folded: exactly these classes, others compute their weight on the way."""
    from timm.layers import Conv2dSame  # only here: importing timm takes as long as the rest of this package

    return nn.Conv2d, Conv2dSame


@torch.no_grad()
def find_pairs(body: nn.Module, norm_class: type[nn.Module], pixel_values: Tensor) -> list[tuple[str, str]]:
    """Returns the names of each convolution and the norm that alone reads its output; none if `body` cannot say.

    `body` is left as it was. `pixel_values` (B, C, H, W) gives the shape of the trial run, on the meta device.
    """
    trial = copy.deepcopy(body, {id(tensor): tensor.to("meta") for tensor in _tensors(list(body.modules()))})
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
    readers, made_by, calls, pairs, foldable = _Readers(), {}, {}, [], _foldable_classes()

    def after_convolution(name: str, _module, _inputs, output: Tensor) -> None:
        readers.keep(output)
        made_by[id(output)] = name
        calls[name] = calls.get(name, 0) + 1

    def before_norm(name: str, _module, inputs: tuple[Tensor, ...]) -> None:
        calls[name] = calls.get(name, 0) + 1
        if id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], name, id(inputs[0])))

    for name, module in trial.named_modules():
        if type(module) in foldable:
            module.register_forward_hook(functools.partial(after_convolution, name))
        elif type(module) is norm_class:
            module.register_forward_pre_hook(functools.partial(before_norm, name))
    try:
        with readers:
            outputs = trial(torch.empty_like(pixel_values, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        logger.debug("The backbone does not run on the meta device (%s): its norms are not folded.", error)
        return []
    returned = {id(output) for output in outputs}
    return [
        (convolution, norm)
        for convolution, norm, output in pairs
        if readers.reads[output] == 1 and output not in returned and calls[convolution] == calls[norm] == 1
    ]


def _folded_copy(body: nn.Module, norm_class: type[nn.Module], pixel_values: Tensor) -> nn.Module:
    """Returns a copy of `body` without the norms that could be folded; all other tensors are shared with it."""
    pairs = find_pairs(body, norm_class, pixel_values)
    folded = copy.deepcopy(body, {id(tensor): tensor for tensor in _tensors(list(body.modules()))})
    for convolution, norm in pairs:
        norm_module = folded.get_submodule(norm)
        fold_norm(folded.get_submodule(convolution), norm_module)
        activation = norm_module.act
        if hasattr(activation, "inplace"):  # nothing else reads the fresh output of the convolution
            activation.inplace = True
        folded.set_submodule(norm, nn.Identity() if activation is None else activation)
    _fuse_residual_blocks(folded)
    return folded


def fold_norm(convolution: nn.Conv2d, norm: nn.Module) -> None:
    """Replaces the convolution's tensors by ones that do what the convolution and the frozen norm do together.

    The old tensors are left as they are.
    """
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()  # (C,)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    weight = convolution.weight  # (C, C', kernel height, kernel width)
    if convolution.bias is not None:
        bias = bias + convolution.bias.double() * scale
    folded = (weight.float() * scale.float()[:, None, None, None]).to(weight.dtype)
    if weight.dtype == torch.float64:
        folded = weight * scale[:, None, None, None]
    folded = folded.contiguous(memory_format=torch.channels_last)
    convolution.weight = nn.Parameter(folded, requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


# ----------------------------------------------------------------------------------------------- one kernel for three


class FusedKernels:
    """Convolution with ReLU, and convolution with addition and ReLU, as one kernel each."""

    def __init__(self, device_type: str):
        self.on_cuda = device_type == "cuda"

    def conv_relu(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Returns relu(conv(x))."""
        if self.on_cuda:
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *_geometry(conv))
        operator = torch.ops.mkldnn._convolution_pointwise
        return operator(x, conv.weight, conv.bias, *_mkldnn_geometry(conv), "relu", [], "")

    def conv_add_relu(self, conv: nn.Conv2d, x: Tensor, other: Tensor, in_place: bool = False) -> Tensor:
        """Returns relu(conv(x) + other); on a CPU in the memory of `other` where that is allowed.

        New memory of this size is mapped page by page, which takes longer than a convolution of stage 1.
        """
        if self.on_cuda:
            return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1.0, conv.bias, *_geometry(conv))
        tensors, options = (conv.weight, conv.bias), (*_mkldnn_geometry(conv), "add", 1.0, "relu", [], "")
        if in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *tensors, *options)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *tensors, *options)


def _geometry(conv: nn.Conv2d) -> tuple:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _mkldnn_geometry(conv: nn.Conv2d) -> tuple:
    return conv.padding, conv.stride, conv.dilation, conv.groups


@functools.lru_cache(maxsize=16)
def fused_kernels(device: torch.device, dtype: torch.dtype) -> FusedKernels | None:
    """Returns kernels that gave the right numbers for a small example on this device, or None."""
    if device.type == "cpu" and not torch.backends.mkldnn.is_available():
        return None
    kernels = FusedKernels(device.type)
    conv = nn.Conv2d(8, 8, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    conv = conv.to(memory_format=torch.channels_last)
    values = torch.linspace(-2, 2, 2 * 8 * 6 * 6, device=device).view(2, 8, 6, 6).to(dtype)
    x = values.contiguous(memory_format=torch.channels_last)
    added = F.relu(conv(x) + x)
    expected = F.relu(conv(x)), added, added
    try:
        got = (
            kernels.conv_relu(conv, x),
            kernels.conv_add_relu(conv, x, x),
            kernels.conv_add_relu(conv, x, x.clone(), in_place=True),
        )
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.debug("No fused convolutions on %s in %s: %s", device, dtype, error)
        return None
    tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) or device.type == "cuda" else 1e-5
    close = all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(got, expected, strict=True))
    return kernels if close else None


class FusedResidualBlock(nn.Module):
    """A plain residual block of timm's ResNet, folded, with as few kernels as there are convolutions.

    Args:
        block: the block of the folded copy.
        convolutions: those of its main branch.
        owns_input: nobody but this block reads its input, which it may overwrite.
    """

    def __init__(self, block: nn.Module, convolutions: list[nn.Conv2d], owns_input: bool):
        super().__init__()
        self.block = block
        self.owns_input = owns_input
        *self.before, self.last = convolutions

    def forward(self, x: Tensor) -> Tensor:
        kernels = _kernels_for(x, self.last)
        if kernels is None:
            return self.block(x)
        shortcut = x if self.block.downsample is None else self.block.downsample(x)
        in_place = self.owns_input or shortcut is not x
        for conv in self.before:
            x = kernels.conv_relu(conv, x)
        return kernels.conv_add_relu(self.last, x, shortcut, in_place)


class FusedConvolution(nn.Module):
    """The convolution and ReLU of a ResNet's stem."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        kernels = _kernels_for(x, self.conv)
        return self.conv(x).relu_() if kernels is None else kernels.conv_relu(self.conv, x)


def _kernels_for(x: Tensor, conv: nn.Conv2d) -> FusedKernels | None:
    if x.dtype != conv.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    if x.is_cpu and not torch.backends.mkldnn.enabled:
        return None
    return fused_kernels(x.device, x.dtype)


def _fuse_residual_blocks(folded: nn.Module) -> None:
    from timm.models.resnet import BasicBlock, Bottleneck

    for name, module in list(folded.named_modules()):
        if type(module) in (BasicBlock, Bottleneck):
            convolutions = _plain_convolutions(module)
            if convolutions:
                owns_input = _follows_fused_block(module, folded.get_submodule(name.rpartition(".")[0]))
                folded.set_submodule(name, FusedResidualBlock(module, convolutions, owns_input))
    children = dict(folded.named_children())
    stem = [children.get(name) for name in ("conv1", "bn1", "act1")]
    if list(children)[:3] == ["conv1", "bn1", "act1"] and _is_fusable(*stem):
        folded.set_submodule("conv1", FusedConvolution(stem[0]))
        folded.set_submodule("act1", nn.Identity())


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
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and type(norm) is nn.Identity
        and conv.bias is not None
        and type(activation) is nn.ReLU
    )


__all__ = ["InferenceBody", "find_pairs", "fold_norm"]
