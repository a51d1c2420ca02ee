"""Exported models as functions of NumPy arrays, one class a format; ONNX and OpenVINO run without torch.

transformers has runners of its own for these formats. They take and give torch tensors, and importing them imports
torch and transformers, which costs several times what one picture takes. So these are written on the runtimes alone.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import install_hint
from ..model.predictions_detr import Predictions
from .artefact import FORMAT_OF, METADATA_KEY, OUTPUT_OF, ArtefactInfo, predictions_of

INSTALL = "pip install 'detr-hf[export]'"
# What OpenVINO is told to compute in: left alone it takes bfloat16 wherever the processor has it. It computes in
# float32 where the processor lacks the type, and float16 is a way of storing.
OPENVINO_PRECISION = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "bf16"}


class Runtime(Protocol):
    """A loaded artefact. Calls from several threads at once are allowed."""

    info: ArtefactInfo
    device: str

    def __call__(self, pixel_values: np.ndarray, pixel_mask: np.ndarray | None = None) -> Predictions:
        """Returns `logits (B, Q, K + 1)`, `boxes_cxcywh_norm (B, Q, 4)`, and masks where it has them, all float32.

        Args:
            pixel_values: (B, C, H, W) float32.
            pixel_mask: (B, H, W) bool, True on the image; None means no padding.
        """


def load_runtime(path: str | Path, device: Any = None, threads: int | None = None) -> Runtime:
    """Returns a loaded artefact.

    Args:
        path: as `find_artefact` returns it.
        device: "cpu" (the default), and "cuda" or "cuda:N" where the runtime can.
        threads: how many the model may use at most; the runtime's own choice by default.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the file was not made by `detr-hf export`, or the runtime cannot use the device.
    """
    path = Path(path)
    load: dict[str, Callable[[Path, str, int | None], Runtime]] = {
        "onnx": OnnxModel,
        "openvino": OpenVinoModel,
        "torch-export": TorchProgram,
        "executorch": ExecuTorchProgram,
    }
    return load[FORMAT_OF[path.suffix.lower()]](path, str(device or "cpu"), threads)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file where a runtime cannot read it; each runtime raises what it likes."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be loaded: {said}. It is damaged or not whole, or its "
            "runtime is too old for it: copy it again, or export the model again."
        ) from error


class OnnxModel:
    """A `.onnx` file in ONNX Runtime."""

    def __init__(self, path: Path, device: str, threads: int | None):
        with install_hint(f"{path} runs in ONNX Runtime, which is not installed: pip install onnxruntime."):
            import onnxruntime
        self.device = device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about nodes placed on the CPU
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = self._providers(device, onnxruntime.get_available_providers())
        with _reading(path):
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info = ArtefactInfo.from_json(metadata.get(METADATA_KEY), path)
        self._is_half = self._session.get_inputs()[0].type == "tensor(float16)"
        self._outputs = [output.name for output in self._session.get_outputs()]

    @staticmethod
    def _providers(device: str, available: list[str]) -> list[Any]:
        kind, _, number = device.partition(":")
        if kind == "cpu":
            return ["CPUExecutionProvider"]
        if kind == "cuda" and "CUDAExecutionProvider" in available:
            return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
        raise ValueError(
            f"This ONNX Runtime cannot use device={device!r}; it has {', '.join(available)}. "
            "For CUDA: pip install onnxruntime-gpu."
        )

    def __call__(self, pixel_values: np.ndarray, pixel_mask: np.ndarray | None = None) -> Predictions:
        inputs = inputs_of(self.info, pixel_values, pixel_mask)
        if self._is_half:
            inputs["pixel_values"] = pixel_values.astype(np.float16)
        found = zip(self._outputs, self._session.run(self._outputs, inputs), strict=True)
        return predictions_of({name: _widened(values) for name, values in found})


class OpenVinoModel:
    """An OpenVINO graph, compiled for the CPU in the precision that the artefact was made for.

    Where the processor has no bfloat16 arithmetic, OpenVINO computes such an artefact in float32.
    """

    def __init__(self, path: Path, device: str, threads: int | None):
        with install_hint(f"{path} runs in OpenVINO, which is not installed: pip install openvino."):
            import openvino
        self.device = device
        core = openvino.Core()
        available = core.available_devices
        if device.upper() not in available:
            raise ValueError(f"OpenVINO cannot use device={device!r}; it has {', '.join(available).lower()}.")
        with _reading(path):
            graph = core.read_model(str(path))
        written = graph.get_rt_info([METADATA_KEY]).astype(str) if METADATA_KEY in graph.get_rt_info() else None
        self.info = ArtefactInfo.from_json(written, path)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISION[self.info.dtype],
        }
        settings |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        with _reading(path):
            self.compiled = core.compile_model(graph, device.upper(), settings)
        self._outputs = [output.any_name for output in self.compiled.outputs]

    def __call__(self, pixel_values: np.ndarray, pixel_mask: np.ndarray | None = None) -> Predictions:
        request = self.compiled.create_infer_request()  # one a call, so that threads do not share buffers
        found = request.infer(inputs_of(self.info, pixel_values, pixel_mask), share_inputs=True)
        return predictions_of({name: found[name] for name in self._outputs})


class TorchProgram:
    """A `.pt2` file, run by torch; it needs neither transformers nor the model's code."""

    def __init__(self, path: Path, device: str, threads: int | None):
        with install_hint(f"{path} is a program of torch.export and runs in torch, which is missing."):
            import torch
        from ..model.compiling_detr import warn_of_slow_dtype

        self.info = ArtefactInfo.from_json(_extra_file(path), path)
        self.device = device
        warn_of_slow_dtype(self.info.dtype, device)
        if threads is not None:
            torch.set_num_threads(threads)
        with _reading(path):
            program = torch.export.load(str(path))
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self._module = program.module()
        self._dtype = getattr(torch, self.info.dtype)

    def __call__(self, pixel_values: np.ndarray, pixel_mask: np.ndarray | None = None) -> Predictions:
        import torch

        inputs = {
            name: torch.from_numpy(values).to(self.device)
            for name, values in inputs_of(self.info, pixel_values, pixel_mask).items()
        }
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        with torch.inference_mode():
            found = self._module(**inputs)
        return predictions_of(
            {
                name: (values.float() if values.is_floating_point() else values).cpu().numpy()
                for name, values in found.items()
            }
        )


class ExecuTorchProgram:
    """A `.pte` file in ExecuTorch's runtime; its Python binding takes torch tensors.

    Its outputs have no names: they come in the order in which its graph gives them, which is `OUTPUT_OF`'s.
    """

    def __init__(self, path: Path, device: str, threads: int | None):
        with install_hint(f"{path} runs in ExecuTorch: pip install executorch (it must fit your torch)."):
            from executorch.runtime import Runtime as ExecuTorch
        described = path.with_suffix(".json")
        written = described.read_text(encoding="utf-8") if described.is_file() else None
        self.info = ArtefactInfo.from_json(written, path)
        if device != "cpu" or threads is not None:
            raise ValueError(f"{path} runs on the CPU with ExecuTorch's own choice of threads; leave these arguments.")
        self.device = device
        with _reading(path):
            self._program = ExecuTorch.get().load_program(str(path))
            self._forward = self._program.load_method("forward")

    def __call__(self, pixel_values: np.ndarray, pixel_mask: np.ndarray | None = None) -> Predictions:
        import torch

        inputs = inputs_of(self.info, pixel_values, pixel_mask)
        names = [name for name in ("pixel_values", "pixel_mask") if name in inputs]
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]  # it takes no other
        found = zip(OUTPUT_OF.values(), self._forward.execute(tensors), strict=False)
        return predictions_of({name: values.numpy().copy() for name, values in found})


def inputs_of(info: ArtefactInfo, pixel_values: np.ndarray, pixel_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns the inputs by name, after a check that they are what the artefact takes.

    Raises:
        ValueError: another shape or type, or padding for an artefact that takes no mask.
    """
    wanted = info.input_shape()
    fits = pixel_values.ndim == 4 and all(
        isinstance(side, str) or side == got for side, got in zip(wanted, pixel_values.shape, strict=True)
    )
    if not fits or pixel_values.dtype != np.float32:
        raise ValueError(
            f"pixel_values is {pixel_values.dtype} of shape {pixel_values.shape}; this artefact takes float32 "
            f"of shape ({', '.join(map(str, wanted))}). Export with --dynamic for any batch and size."
        )
    shape = (len(pixel_values), *pixel_values.shape[2:])
    if pixel_mask is not None and pixel_mask.shape != shape:
        raise ValueError(f"pixel_mask has shape {pixel_mask.shape}; expected {shape}, as pixel_values has it.")
    if info.masked:
        mask = np.ones(shape, dtype=bool) if pixel_mask is None else pixel_mask.astype(bool, copy=False)
        return {"pixel_values": pixel_values, "pixel_mask": np.ascontiguousarray(mask)}
    if pixel_mask is not None and not pixel_mask.all():
        raise ValueError(
            "This artefact was exported without a mask and serves only pictures without padding. Export it with one."
        )
    return {"pixel_values": pixel_values}


def _widened(values: np.ndarray) -> np.ndarray:
    """Returns floats as float32, and numbers of queries as they are."""
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def _extra_file(path: Path) -> str | None:
    """Returns the metadata inside a `.pt2` archive, read without torch."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"extra/{METADATA_KEY}"):
                text = archive.read(name).decode("utf-8")
                return text if json.loads(text) else None
    return None
