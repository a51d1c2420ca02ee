"""A second form of the backbone for inference: frozen batch norm folded into the convolutions, in channels-last order.

The model's own modules stay what they are, in memory and on disk. `InferenceBody` keeps a private copy of the timm
body beside them, which shares every tensor that folding does not touch, and makes it again when a weight has changed.
It answers with None wherever a second form could be wrong or is of no use (see `usable_for`), and the caller then
runs the model's own modules.

Which convolution a norm belongs to is found by running the copy once on the meta device, so any timm model will do:
the pair is folded when nothing but the norm reads what the convolution gives.
"""

import copy
import functools
import threading

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

from .fast_blocks_detr import fuse_blocks
from .fast_kernels_detr import only_runs
from .kept_memory_detr import KeptMemory

logger = logging.get_logger(__name__)

DEVICES = ("cpu", "cuda")
SAMPLES = 64  # values of a large tensor that are compared at every call on the CPU
SMALL = 4096  # tensors up to this size, which norms have, are compared whole


class FoldsForInference:
    """A backbone that keeps a folded form of its `body`, and chooses the form that runs.

    Comes before `nn.Module` among the bases. The class attribute `norm_class` names the norms that can be folded.
    """

    def __init__(self):
        super().__init__()
        self.inference_body = InferenceBody(self.norm_class)

    def form_for(self, pixel_values: Tensor) -> nn.Module:
        """Returns what runs on `pixel_values`: the folded form where it gives the same, else the body itself."""
        if self.training or not self.inference_body.usable_for(pixel_values):
            return self.body
        return self.inference_body.of(self.body, pixel_values) or self.body

    def train(self, mode: bool = True):
        self.inference_body.forget()  # no counter sees edits through `.data`: look again after a change of mode
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self.inference_body.forget()
        return super()._apply(fn, recurse)


class InferenceBody:
    """The folded copy of one timm body, made at the first call and again after a change.

    Copying or pickling the model leaves it behind: a copy of the model starts without one.
    """

    def __init__(self, norm_class: type[nn.Module]):
        self.norm_class = norm_class
        self.memory = KeptMemory()
        self._lock = threading.Lock()
        self._made: tuple[_Watch, nn.Module | None] | None = None

    def __deepcopy__(self, memo: dict) -> "InferenceBody":
        return InferenceBody(self.norm_class)

    def __reduce__(self):
        return InferenceBody, (self.norm_class,)

    def forget(self) -> None:
        """Drops the copy and its memory; the next call makes a new one."""
        self._made = None
        self.memory.release()

    def usable_for(self, pixel_values: Tensor) -> bool:
        """Whether the folded form may run at all: without gradients, on real tensors, and not while being traced."""
        return (
            not torch.is_grad_enabled()
            and type(pixel_values) is Tensor
            and pixel_values.device.type in DEVICES
            and only_runs()
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
            if any(tensor.is_inference() for tensor in watch.tensors):
                logger.warning_once(
                    "This model was made, loaded or converted inside torch.inference_mode(), where torch does not "
                    "notice that a weight changes: its norms are not folded, and it is slower by half. Load it "
                    "outside; only the call belongs inside."
                )
            if not watch.foldable(pixel_values.device):
                return watch, None
            return watch, _folded_copy(body, self.norm_class, pixel_values, self.memory)


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


def _folded_copy(body: nn.Module, norm_class: type[nn.Module], pixel_values: Tensor, memory: KeptMemory) -> nn.Module:
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
    fuse_blocks(folded, memory)
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
