"""What a DETR does with a picture, step by step: shapes, parameters, operations, time, and the file to read.

One forward pass is watched, by hooks on the steps' modules and torch's counter of operations. While it is, nothing
runs but the model's own modules, so that the steps are those of the code; the folded and fused forms that inference
otherwise takes (`fast_*_detr.py`) stay as they are, and `detr-hf benchmark` says how fast those run.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..export.artefact import find_artefact
from ..export.processing import read_pixels
from ..model.modeling_detr import DETRForObjectDetection
from .backends import ModelBackend
from .construction import Construction, Step
from .detector import Detector
from .inspection import Inspection
from .timing import synchronize

USUAL_SIZE_HW = (800, 1066)  # what a 480x640 picture becomes in the paper
FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter has no formula for it


def inspect_model(
    model: Detector | DETRForObjectDetection | str | Path | None = None,
    image: Any = None,
    *,
    size_hw: tuple[int, int] | None = None,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
) -> Inspection:
    """Returns the steps of one forward pass in the order of the construction; the model is left as it was.

    >>> from detr_hf import inspect_model
    >>> found = inspect_model(size_hw=(96, 128))  # print(found) is a table, found.to_svg() a drawing
    >>> found.steps[0].part, found.steps[0].name, found.steps[0].shape
    (('build_backbone',), 'stem', (1, 64, 24, 32))

    Args:
        model: a DETR with its heads, a detector, or what `Detector.from_pretrained` takes; None is the shipped one.
        image: a picture as a detector takes it; by default a 480x640 one. A bare model has nothing to prepare it with.
        size_hw: of the pixels that the model gets, in place of an image.
        pixel_values: (B, C, H, W), in place of an image, as the model takes them.
        pixel_mask: (B, H, W), beside `pixel_values`.

    Raises:
        ValueError, TypeError: an exported model, a base model, or none of DETR; or more than one kind of input.
    """
    given = [image is not None, size_hw is not None, pixel_values is not None]
    if sum(given) > 1 or (pixel_mask is not None and pixel_values is None):
        raise ValueError("Give one of image, size_hw and pixel_values (with pixel_mask if it is padded).")
    found, backend = _checked(model)
    parameter = next(found.parameters())
    channels = found.config.num_channels
    if pixel_values is None and size_hw is None and backend is not None:
        blank = torch.zeros(480, 640, 3, dtype=torch.uint8).numpy()
        pixels = blank if image is None else read_pixels(image, expects_0_255=backend.expects_0_255)
        pixel_values, pixel_mask = backend.processed(pixels)
    elif pixel_values is None:
        if image is not None:
            raise ValueError("A bare model prepares no image: give Detector(model, image_processor), or size_hw.")
        if size_hw is not None and (len(size_hw) != 2 or min(size_hw) < 1):
            raise ValueError(f"size_hw is {size_hw}; expected (height, width) in pixels.")
        shape = (1, channels, *(size_hw or USUAL_SIZE_HW))
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pixel_values = pixel_values.to(parameter.device, found.dtype)
    if pixel_mask is not None:
        pixel_mask = pixel_mask.to(parameter.device)
    construction = Construction(found)
    fused = _watched_pass(construction, pixel_values, pixel_mask)
    settings = {
        "model": found.name_or_path or "a model",
        "class": type(found).__name__,
        "backbone": found.config.backbone,
        "shape": list(pixel_values.shape),
        "padded": pixel_mask is not None and not bool(pixel_mask.all()),
        "dtype": str(pixel_values.dtype).removeprefix("torch."),
        "device": str(parameter.device),
    }
    return Inspection(settings, tuple(construction.steps), fused)


def _checked(model: Any) -> tuple[DETRForObjectDetection, ModelBackend | None]:
    """Returns the model, and what prepares pictures for it where that is known."""
    if model is None or isinstance(model, str | Path):
        if model is not None and find_artefact(model) is not None:
            raise ValueError(_exported(model))
        detector = Detector.from_pretrained(model)
        saved = (detector.model.config.architectures or [""])[0]
        if saved.endswith("Model"):
            raise ValueError(_without_heads(model))
        model = detector
    backend = None
    if isinstance(model, Detector):
        if not isinstance(model.backend, ModelBackend):
            raise ValueError(_exported(model.backend.path))
        backend, model = model.backend, model.model
    if not isinstance(model, DETRForObjectDetection):
        if isinstance(model, nn.Module) and hasattr(model, "transformer"):
            raise ValueError(_without_heads(f"This {type(model).__name__}"))
        raise TypeError(
            f"inspect_model follows a DETRForObjectDetection, a DETRForSegmentation or a Detector, and this is a "
            f"{type(model).__name__}. What wraps a model (PEFT, DDP) holds it inside; of another package's DETR "
            "DETRForObjectDetection.from_pretrained reads the checkpoint."
        )
    return model, backend


def _exported(path: Any) -> str:
    return (
        f"{path} is an exported model, one graph in which the parts are no longer told apart: inspect the checkpoint "
        "that it was exported from. How fast it runs, detr-hf benchmark says."
    )


def _without_heads(model: Any) -> str:
    return (
        f"{model} is a base model, without class_embed and bbox_embed: there is no way to boxes to follow. Inspect a "
        "detector: one trained from it, or DETRForObjectDetection.from_pretrained of it, whose heads are new."
    )


def _watched_pass(construction: Construction, pixel_values: Tensor, pixel_mask: Tensor | None) -> int:
    """Fills in what the steps are seen to do; returns the operations that torch's counter has no formula for."""
    model = construction.model
    counter = FlopCounterMode(display=False, custom_mapping={FUSED_ON_CPU: _fused_attention_flop})
    watch = _Watch(construction, counter, str(pixel_values.device))
    with _in_eval_mode(model), torch.no_grad(), counter, watch.looking_on():
        output = model._call_impl(pixel_values, pixel_mask)  # not what torch.compile may have made of the call
    construction.join_body()
    by_name = {step.name: step for step in construction.steps}
    by_name["boxes"].shape = tuple(output.pred_boxes.shape)
    if "masks" in by_name:
        by_name["masks"].shape = tuple(output.pred_masks.shape)
    unseen = [step.name for step in construction.steps if step.shape is None and step.letters]
    if unseen:
        raise ValueError(
            f"{', '.join(dict.fromkeys(unseen))}: not called in the forward pass as DETR's own parts are. Inspect the "
            "model before parts of it are compiled, patched or replaced."
        )
    for step in construction.steps:
        step.letters = _with_strides(step, pixel_values.shape[-2:])
    return counter.get_flop_counts()["Global"].get(FUSED_ON_CPU, 0)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Sets the flags alone: `train` and `eval` would throw away what inference keeps."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fused_attention_flop(
    query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _with_strides(step: Step, input_hw: Sequence[int]) -> str:
    """Returns the letters with the sides of a map in parts of the input's, where they are such parts."""
    letters = step.letters.split(", ")
    if "." not in letters or step.shape is None:
        return step.letters
    at = letters.index(".")
    sides = step.shape[at : at + 2]
    strides = (2**power for power in range(9))
    stride = next((n for n in strides if tuple(-(-side // n) for side in input_hw) == tuple(sides)), None)
    if stride is not None:
        letters[at : at + 2] = ("H", "W") if stride == 1 else (f"H/{stride}", f"W/{stride}")
    return ", ".join(letters)


class _Watch:
    """Gives every operation and every moment of a pass to one step, by the marks of a construction."""

    def __init__(self, construction: Construction, counter: FlopCounterMode, device: str):
        self.marks = construction.marks
        self.counter = counter
        self.device = device
        self.inside: list[nn.Module] = [construction.model]
        self.step = construction.steps[0]
        self.flop, self.since = 0, 0.0

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """Has hooks on the marked modules, and takes all of them away."""
        with ExitStack() as hooks:
            for module in dict.fromkeys(module for module, _ in self.marks):
                hooks.callback(module.register_forward_pre_hook(self._enter).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)
            self.since = time.perf_counter()
            yield
            self._go_to(self.step)

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        mark = self.marks.get((module, self.inside[-1]))
        self.inside.append(module)
        if mark is not None and mark.begins is not None:
            self._go_to(mark.begins)

    def _leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        self.inside.pop()
        mark = self.marks.get((module, self.inside[-1]))
        if mark is None:
            return
        if mark.shown is not None:
            mark.shown.shape = tuple(mark.pick(output).shape)
        if mark.leaves is not None:
            self._go_to(mark.leaves)

    def _go_to(self, step: Step) -> None:
        synchronize(self.device)
        flop, now = self.counter.get_total_flops(), time.perf_counter()
        self.step.flop += flop - self.flop
        self.step.seconds += now - self.since
        self.step, self.flop, self.since = step, flop, now
