"""When a second, faster form of something may run: only where nobody can tell the difference.

Whatever a module's user can do (hooks, replaced or patched modules and functions, modes, transforms, tracing, edits of
weights) must do here what it does to plain modules. So a second form asks three questions, and where the answer is no
the plain modules run:

- `only_runs`: does torch do nothing but run operations, by its own functions?
- `is_untouched`: is this module one whose call is its class's own forward, and nothing else?
- `State.holds`: is everything still as it was when the second form was made?
"""

import sys
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ON_ALL_MODULES = (
    _global_forward_hooks,
    _global_forward_pre_hooks,
    _global_backward_hooks,
    _global_backward_pre_hooks,
)
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # by the bytes of each
_SMALL = 4096  # tensors up to this size, which norms have, are compared together


def _passed_by() -> tuple:
    """Returns what a second form goes past; counters, tracers and attributions put their own in these places."""
    functions = (F.conv2d, F.linear, F.relu, F.max_pool2d, F.batch_norm)
    return (*functions, nn.Module.__call__, nn.Module._call_impl, nn.Conv2d._conv_forward)


_OWN = _passed_by()


def only_runs() -> bool:
    """Whether operations are run by torch's own functions and nothing else.

    That is: no compiler, tracer, mode (FLOP counters), transform (vmap, jvp) or hook on all modules looks at each.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(_ON_ALL_MODULES)
        or _function_mode_looks()
        or _passed_by() != _OWN
    )


def _function_mode_looks() -> bool:
    """Whether a mode other than torch's default device, which is one of them, sees every function."""
    if not torch._C._len_torch_function_stack():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def is_untouched(module: nn.Module) -> bool:
    """Whether calling `module` runs its class's forward as it was written, and no hook."""
    attributes = vars(module)
    return (
        "forward" not in attributes
        and attributes.get("_compiled_call_impl") is None
        and not any(attributes[name] for name in _HOOKS)
        and _has_own_forward(type(module))
    )


def _has_own_forward(kind: type[nn.Module]) -> bool:
    """Whether the forward of a class comes from where that class does, and not from a patch."""
    owner, forward = _forward_of(kind)
    home = sys.modules.get(owner.__module__)
    return home is not None and getattr(forward, "__globals__", None) is vars(home)


def _forward_of(kind: type[nn.Module]) -> tuple[type, Callable]:
    return next((base, vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base))


class State:
    """What a module was at one moment, to ask later whether it still is: parts, attributes, tensors and their values.

    On a CPU the values of `contents` are compared bit by bit, which also sees edits through `.data` or NumPy. On a GPU
    that would wait for the device: there torch's counter of edits is asked, which does not see these.

    Args:
        module: with everything inside it.
        contents: the tensors inside it whose values matter, each in one piece of memory (see `is_dense`).
    """

    def __init__(self, module: nn.Module, contents: Iterable[Tensor] = ()):
        self.modules = list(module.modules())
        self.parts = self._parts()  # references keep identities from being used again
        self.attributes = [_copied(vars(module)) for module in self.modules]
        self.contents = [(tensor, tensor.detach()) for tensor in contents]  # aliases keep addresses from it as well
        self.versions = self._versions()
        on_cpu = [alias for _, alias in self.contents if alias.is_cpu]
        self.large = [_bits(alias) for alias in on_cpu if alias.numel() > _SMALL]
        small = [_bits(alias) for alias in on_cpu if alias.numel() <= _SMALL]
        self.small = [[bits for bits in small if bits.dtype == dtype] for dtype in _INTEGERS.values()]
        self.values = [bits.clone() for bits in self._values()]

    def holds(self, module: nn.Module) -> bool:
        """Whether `module` still is what it was."""
        return (
            module is self.modules[0]
            and [id(part) for part in self._parts()] == [id(part) for part in self.parts]
            # after the identities, so that no two tensors are compared
            and all(map(_same, map(vars, self.modules), self.attributes))
            and all(tensor.is_set_to(alias) and tensor.dtype == alias.dtype for tensor, alias in self.contents)
            and self._versions() == self.versions
            and all(torch.equal(now, before) for now, before in zip(self._values(), self.values, strict=True))
        )

    def _parts(self) -> list:
        classes = [type(module) for module in self.modules]
        children = [child for module in self.modules for child in module._modules.values()]
        return [
            *classes,
            *(_forward_of(kind)[1] for kind in dict.fromkeys(classes)),
            *children,
            *tensors_of(self.modules),
        ]

    def _versions(self) -> list[int]:
        return [tensor._version for tensor, _ in self.contents if not tensor.is_cpu]

    def _values(self) -> list[Tensor]:
        return [torch.cat(group) for group in self.small if group] + self.large


def tensors_of(modules: list[nn.Module]) -> list[Tensor]:
    """Returns the parameters and buffers that lie in the modules themselves."""
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's values fill one piece of memory, in the usual order or with channels last."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _copied(attributes: dict) -> dict:
    """Returns the attributes with copies of the containers among them, whose contents can change."""
    return {
        name: value.copy() if isinstance(value, dict | list | set) else value for name, value in attributes.items()
    }


def _same(attributes: dict, before: dict) -> bool:
    try:
        return attributes == before
    except (RuntimeError, TypeError, ValueError):  # another array or tensor, which have no single answer
        return False


def _bits(tensor: Tensor) -> Tensor:
    """Returns the tensor's memory as integers (n,), as wide as fit: equal where all bits are, which NaN is not."""
    flat = tensor.as_strided((tensor.numel(),), (1,))
    lengths = (flat.numel() * flat.itemsize, flat.storage_offset() * flat.itemsize)
    width = next(width for width in _INTEGERS if not any(length % width for length in lengths))
    return flat.view(_INTEGERS[width])
