"""A second form of the backbone for inference: frozen batch norm folded into the convolutions, in channels-last order.

The model's own modules stay what they are, in memory and on disk. `InferenceBody` keeps a private copy of the timm
body beside them, which shares every tensor that folding does not touch, and makes it again after a change.
It answers with None wherever a second form could be wrong or is of no use (see `usable_for`), and the caller then
runs the model's own modules.

Which convolution a norm belongs to is found by running the copy once on the meta device, so any timm model will do:
the pair is folded when nothing but the norm reads what the convolution gives.

What a user does to the body shows in the next call: a hook, a patch or a mode runs the plain modules, and every
change makes the copy again (`fast_rules_detr`). Two things are not noticed: on a GPU an edit through `.data`, until
the next `train()`, `eval()` or `forget()`; and any edit after a CUDA graph was recorded, which keeps its folded
weights.
"""

import copy
import functools
import threading

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

from .fast_blocks_detr import fuse_blocks
from .fast_rules_detr import State, is_dense, is_untouched, only_runs, tensors_of
from .kept_memory_detr import KeptMemory

logger = logging.get_logger(__name__)

DEVICES = ("cpu", "cuda")


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
        self.inference_body.forget()  # on a GPU nothing sees edits through `.data`: look again after a change of mode
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
        self._made: tuple[State, nn.Module | None] | None = None

    def __deepcopy__(self, memo: dict) -> "InferenceBody":
        return InferenceBody(self.norm_class)

    def __reduce__(self):
        return InferenceBody, (self.norm_class,)

    def forget(self) -> None:
        """Drops the copy and its memory; the next call makes a new one."""
        self._made = None
        self.memory.release()

    def usable_for(self, pixel_values: Tensor) -> bool:
        """Whether the folded form may run at all: without gradients, on real tensors, and with nobody looking on."""
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

    def _make(self, body: nn.Module, pixel_values: Tensor) -> tuple[State, nn.Module | None]:
        with torch.inference_mode(False), torch.no_grad():
            if not _is_foldable(body, pixel_values.device):
                return State(body), None
            pairs = find_pairs(body, self.norm_class, pixel_values)
            parts = [body.get_submodule(name) for pair in pairs for name in pair]
            state = State(body, tensors_of(parts))
            return state, _folded_copy(body, pairs, self.memory)


def _is_foldable(body: nn.Module, device: torch.device) -> bool:
    """Whether a copy can stand in for `body`: untouched modules in eval mode, plain tensors on one device."""
    modules = list(body.modules())
    tensors = tensors_of(modules)
    if any(tensor.is_inference() for tensor in tensors):
        logger.warning_once(
            "This model was made, loaded or converted inside torch.inference_mode(), where torch does not "
            "notice that a weight changes: its norms are not folded, and it is slower by half. Load it "
            "outside; only the call belongs inside."
        )
        return False
    return (
        all(is_untouched(module) and not module.training for module in modules)
        and all(type(tensor) in (Tensor, nn.Parameter) and tensor.device == device for tensor in tensors)
        # a copy would have its own of these
        and not any(isinstance(value, Tensor) for module in modules for value in vars(module).values())
    )


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
    trial = copy.deepcopy(body, {id(tensor): tensor.to("meta") for tensor in tensors_of(list(body.modules()))})
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
        if readers.reads[output] == 1
        and output not in returned
        and calls[convolution] == calls[norm] == 1
        and all(map(is_dense, tensors_of([body.get_submodule(convolution), body.get_submodule(norm)])))
    ]


def _folded_copy(body: nn.Module, pairs: list[tuple[str, str]], memory: KeptMemory) -> nn.Module:
    """Returns a copy of `body` with the norms of `pairs` folded; all other tensors are shared with it."""
    folded = copy.deepcopy(body, {id(tensor): tensor for tensor in tensors_of(list(body.modules()))})
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
