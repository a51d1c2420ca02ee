"""From a checkpoint to an artefact: trace, convert, describe, compare with the model, and only then put it in place.

Tracing and conversion are `transformers.exporters`', for all four formats and for int8. It takes this package's model
because `DetectionGraph` hands it a plain module with two outputs: the model itself would export its hidden states as
well, and (its output class being no part of transformers) a structure that cannot be read back. What is done here and
not there: shapes are dynamic in batch, height and width alone, an ONNX file holds its weights, the metadata says how
pictures are prepared, and nothing is kept that differs from the model.
"""

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.modeling_detr import DETRForObjectDetection
from .artefact import METADATA_KEY, OPENVINO_GRAPH, SUFFIX_OF, ArtefactInfo
from .parity import Case, Parity, check_parity, parity_cases
from .runtimes import INSTALL, load_runtime

logger = logging.getLogger(__name__)

DTYPES_OF = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "float16", "bfloat16", "int8"),
    "torch-export": ("float32", "float16", "bfloat16"),
    "executorch": ("float32",),
}
PACKAGES_OF = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torch-export": (),
    "executorch": ("executorch",),
}
PREPROCESSING_KEYS = (
    "do_resize",
    "size",
    "resize_rule",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
TRACED_HW = (160, 224)


class DetectionGraph(nn.Module):
    """What is exported: pixels (and mask) in, `logits` and `pred_boxes` of the last decoder layer out."""

    def __init__(self, model: DETRForObjectDetection):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns (B, Q, K + 1) logits and (B, Q, 4) boxes, cxcywh in [0, 1]."""
        output = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}


def export_model(
    model: DETRForObjectDetection,
    image_processor: Any,
    output: str | Path,
    to: str = "onnx",
    *,
    dtype: str = "float32",
    batch: int | None = None,
    size_hw: tuple[int, int] | None = None,
    masked: bool = True,
    calibration: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
) -> tuple[Path, Parity]:
    """Writes an artefact, compares it with the model, and returns its path and how close it is.

    Args:
        model: a float32 detector; it is not changed.
        image_processor: its preprocessing, of which the constants go into the artefact.
        output: the file (for OpenVINO the folder) to write.
        to: "onnx", "openvino", "torch-export" or "executorch".
        dtype: one of `DTYPES_OF[to]`. OpenVINO stores float16 and bfloat16 alike as float16 and computes bfloat16 as
            such where the processor can; its int8 is for convolutions and computes the rest as bfloat16.
        batch, size_hw: fixed shapes, which some runtimes run faster; None for any.
        masked: take `pixel_mask`. Without it the graph is smaller and serves pictures without padding.
        calibration: for int8, pixels (C, H, W) float32 of typical pictures, preprocessed; a few dozen to 300.
        overwrite: replace what is at `output`.

    Raises:
        ValueError: an argument that does not fit, or an artefact that differs from the model: it is deleted.
        ImportError: a package of the format is missing.
        FileExistsError: there is something at `output`.
    """
    output = _checked_output(Path(output), to, overwrite)
    calibration = _checked_dtype(model, to, dtype, calibration)
    _require(to, dtype)
    info = describe(model, image_processor, to, dtype, batch, size_hw, masked)
    model = copy.deepcopy(model).cpu().eval()
    unfinished = output.with_name(f".{output.stem}.unfinished{output.suffix}")
    _remove(unfinished)
    try:
        path = _WRITERS[to](model, info, unfinished, calibration)
        cases = [*parity_cases(info), *_calibration_cases(calibration, info)]
        parity = check_parity(model, load_runtime(path), cases)
        _put_in_place(unfinished, output)
    finally:
        _remove(unfinished)
    return (output / OPENVINO_GRAPH if to == "openvino" else output), parity


def describe(
    model: DETRForObjectDetection,
    image_processor: Any,
    to: str,
    dtype: str,
    batch: int | None,
    size_hw: tuple[int, int] | None,
    masked: bool,
) -> ArtefactInfo:
    """The metadata of an artefact to be made."""
    config = model.config
    name = str(getattr(config, "name_or_path", "") or config.model_type)
    constants = json.loads(json.dumps(image_processor.to_dict(), default=str))  # enums and tuples as a file has them
    packages = ("detr_hf", "torch", "transformers", "timm", *PACKAGES_OF[to], *(("nncf",) if dtype == "int8" else ()))
    return ArtefactInfo(
        format=to,
        model=Path(name).name if os.path.exists(name) else name,
        id2label={int(label): str(text) for label, text in config.id2label.items()},
        num_queries=config.num_queries,
        num_channels=config.num_channels,
        dtype=dtype,
        batch=batch,
        size_hw=None if size_hw is None else (int(size_hw[0]), int(size_hw[1])),
        masked=masked,
        preprocessing={key: constants[key] for key in PREPROCESSING_KEYS if key in constants},
        versions={package: found for package in packages if (found := _version_of(package)) is not None},
    )


def _checked_output(output: Path, to: str, overwrite: bool) -> Path:
    if to not in SUFFIX_OF:
        raise ValueError(f"There is no export to {to!r}; choose {', '.join(SUFFIX_OF)}.")
    if output.suffix.lower() != SUFFIX_OF[to]:
        wanted = "a folder, named without an ending" if to == "openvino" else f"one file that ends in {SUFFIX_OF[to]}"
        raise ValueError(f"output={str(output)!r}: {to} writes {wanted}.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists. Choose another name, or pass overwrite=True (--overwrite).")
    if to == "openvino" and output.exists() and not (output.is_dir() and _is_openvino_folder(output)):
        raise FileExistsError(f"{output} holds more than an OpenVINO model: it is not overwritten.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _is_openvino_folder(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {OPENVINO_GRAPH, OPENVINO_GRAPH.replace(".xml", ".bin")}


def _checked_dtype(
    model: DETRForObjectDetection, to: str, dtype: str, calibration: Iterable[np.ndarray] | None
) -> list[np.ndarray]:
    if dtype not in DTYPES_OF[to]:
        raise ValueError(f"{to} artefacts come in {', '.join(DTYPES_OF[to])}; got dtype={dtype!r}.")
    if model.dtype != torch.float32:
        raise ValueError(f"The model to export must be float32 (dtype= says what it becomes); this is {model.dtype}.")
    pictures = list(calibration or ())
    if dtype == "int8" and not pictures:
        raise ValueError(
            "int8 needs pictures to measure the ranges of activations on: a few dozen to 300 like those it will see "
            "(calibration=, --calibration)."
        )
    return pictures


def _require(to: str, dtype: str) -> None:
    for package in (*PACKAGES_OF[to], *(("nncf",) if dtype == "int8" else ())):
        try:
            importlib.import_module(package)
        except ImportError as error:
            install = "pip install executorch (a version made for your torch)" if to == "executorch" else INSTALL
            raise ImportError(
                f"Exporting to {to} needs {package}, which does not load ({error}): {install}."
            ) from error


def _version_of(package: str) -> str | None:
    from ..version import __version__

    if package == "detr_hf":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Writers: one for each format, which puts an artefact at `path` and returns the file to load.


def _write_onnx(model: DETRForObjectDetection, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]) -> Path:
    import onnx_ir
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    graph = DetectionGraph(copy.deepcopy(model).half() if info.dtype == "float16" else model)
    program = _exported(OnnxExporter, OnnxConfig, graph, info)
    program.metadata_props[METADATA_KEY] = info.to_json()
    onnx_ir.save(program, str(path))  # weights inside: one file, up to protobuf's 2 GB
    return path


def _write_openvino(
    model: DETRForObjectDetection, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]
) -> Path:
    import openvino
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    quantizer = _quantizer(_samples(calibration, info)) if info.dtype == "int8" else None
    options = {"quantizer": quantizer, "compress_to_fp16": info.dtype in ("float16", "bfloat16"), "stateful": False}
    program = _exported(OpenVINOExporter, OpenVINOConfig, DetectionGraph(model), info, **options)
    _divide_lengths_as_integers(program)
    if info.dtype == "int8":
        _add_quantized_shortcuts(program)
    program.set_rt_info(info.to_json(), [METADATA_KEY])
    path.mkdir()
    openvino.save_model(program, str(path / OPENVINO_GRAPH), compress_to_fp16=False)
    return path / OPENVINO_GRAPH


def _divide_lengths_as_integers(program: Any) -> None:
    """Replaces divisions of lengths in floating point, rounded down, by divisions of integers.

    OpenVINO's converter writes `length // 32` as a product with 1/32, and in bfloat16 799 is 800: a row too many.
    """
    from openvino import opset13 as operators

    for floor in program.get_ordered_ops():
        found = _divided_length(floor)
        if found is None:
            continue
        length, divisor = found
        quotient = operators.divide(length, operators.constant(divisor, dtype=length.get_element_type()))
        for reader in list(floor.output(0).get_target_inputs()):
            past = reader.get_node().output(0)  # back to integers, as a rule
            if reader.get_node().get_type_name() == "Convert":
                past.replace(operators.convert(quotient, past.get_element_type().to_string()).output(0))
            else:
                reader.replace_source_output(operators.convert(quotient, "f32").output(0))


def _add_quantized_shortcuts(program: Any) -> None:
    """Lets the additions of residual blocks read the int8 feature map that the block's convolution reads.

    They would read the same map before it is rounded: OpenVINO then writes it in bfloat16, and rounds it in passes of
    their own.
    """
    for quantizer in program.get_ordered_ops():
        if quantizer.get_type_name() != "FakeQuantize":
            continue
        for reader in list(quantizer.input_value(0).get_target_inputs()):
            if reader.get_node().get_type_name() == "Add":
                reader.replace_source_output(quantizer.output(0))


def _divided_length(node: Any) -> tuple[Any, int] | None:
    """Returns the integer and the divisor where `node` is the floor of such a product, else None."""
    if node.get_type_name() != "Floor" or node.input_value(0).get_node().get_type_name() != "Multiply":
        return None
    factors = {
        value.get_node().get_type_name(): value.get_node() for value in node.input_value(0).get_node().input_values()
    }
    if factors.keys() != {"Constant", "Convert"} or factors["Constant"].get_data().size != 1:
        return None
    length, divisor = factors["Convert"].input_value(0), 1 / factors["Constant"].get_data().item()
    whole = round(divisor)
    is_length = length.get_element_type().is_integral_number() and abs(divisor - whole) < 1e-3 * divisor
    return (length, whole) if is_length else None


def _write_torch_export(
    model: DETRForObjectDetection, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]
) -> Path:
    from transformers.exporters import DynamoConfig
    from transformers.exporters.exporter_dynamo import DynamoExporter

    graph = DetectionGraph(copy.deepcopy(model).to(getattr(torch, info.dtype)))
    program = _exported(DynamoExporter, DynamoConfig, graph, info)
    torch.export.save(program, str(path), extra_files={METADATA_KEY: info.to_json()})
    return path


def _write_executorch(
    model: DETRForObjectDetection, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]
) -> Path:
    from transformers.exporters import ExecutorchConfig
    from transformers.exporters.exporter_executorch import ExecutorchExporter

    program = _exported(ExecutorchExporter, ExecutorchConfig, DetectionGraph(model), info)
    ExecutorchExporter.save_program(program, path)
    path.with_suffix(".json").write_text(info.to_json(), encoding="utf-8")
    return path


_WRITERS: dict[str, Callable[[DETRForObjectDetection, ArtefactInfo, Path, list[np.ndarray]], Path]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch-export": _write_torch_export,
    "executorch": _write_executorch,
}


def _quantizer(samples: list[dict[str, Tensor]]) -> Any:
    """int8 for convolutions, which take most of the time. The transformer stays as it is.

    With it in int8 as well, the shipped checkpoint lost 8.0 points of AP on its validation scenes instead of 0.9.
    """
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig

    settings = NNCFQuantizationConfig(
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        ignored_scope=nncf.IgnoredScope(types=["MatMul"], validate=False),
    )
    return NNCFOpenVINOQuantizer(settings, calibration_dataset=samples)


def _exported(exporter: type, config: type, graph: DetectionGraph, info: ArtefactInfo, **options: Any) -> Any:
    """The program that an exporter of transformers makes of the graph."""
    inputs, shapes = _traced_inputs(info)
    dynamic = any(shapes.values())
    try:
        with _quiet():
            program = exporter().export(
                graph.eval(), inputs, config(dynamic=dynamic, dynamic_shapes=shapes if dynamic else None, **options)
            )
    except Exception as error:
        hint = "; fixed shapes may do (batch=1, size_hw=..., --static)" if dynamic else ""
        raise ValueError(f"The {info.format} exporter failed on this model: {error}{hint}.") from error
    return program.program


def _traced_inputs(info: ArtefactInfo) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs to trace with, and which of their dimensions are free."""
    batch, (height, width) = info.batch or 2, info.size_hw or TRACED_HW
    free = torch.export.Dim.DYNAMIC
    dims = {0: info.batch is None, 2: info.size_hw is None, 3: info.size_hw is None}
    inputs = {"pixel_values": torch.zeros(batch, info.num_channels, height, width)}
    shapes = {"pixel_values": {dim: free for dim, is_free in dims.items() if is_free}}
    if info.masked:
        inputs["pixel_mask"] = torch.ones(batch, height, width, dtype=torch.bool)
        shapes["pixel_mask"] = {max(0, dim - 1): free for dim in shapes["pixel_values"]}
    return inputs, shapes


def _samples(calibration: list[np.ndarray], info: ArtefactInfo) -> list[dict[str, Tensor]]:
    return [
        {"pixel_values": torch.from_numpy(case.pixel_values)}
        | ({} if case.pixel_mask is None else {"pixel_mask": torch.from_numpy(case.pixel_mask)})
        for case in _as_cases(calibration, info)
    ]


def _calibration_cases(calibration: list[np.ndarray], info: ArtefactInfo) -> list[Case]:
    """A few calibration pictures, on which an int8 artefact must be good as well."""
    return list(_as_cases(calibration[:4], info))


def _as_cases(pictures: list[np.ndarray], info: ArtefactInfo) -> Iterator[Case]:
    for pixels in pictures:  # (C, h, w)
        channels, height, width = pixels.shape
        canvas_hw = info.size_hw or (height, width)
        if height > canvas_hw[0] or width > canvas_hw[1]:
            raise ValueError(f"A calibration picture of {height}x{width} does not fit the fixed size {canvas_hw}.")
        pixel_values = np.zeros((info.batch or 1, channels, *canvas_hw), dtype=np.float32)
        pixel_values[:, :, :height, :width] = pixels
        pixel_mask = np.zeros((len(pixel_values), *canvas_hw), dtype=bool)
        pixel_mask[:, :height, :width] = True
        yield Case(pixel_values, pixel_mask if info.masked else None)


# Files


def _put_in_place(unfinished: Path, output: Path) -> None:
    _remove(output)
    os.replace(unfinished, output)
    described = unfinished.with_suffix(".json")
    if described.is_file():
        os.replace(described, output.with_suffix(".json"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        if path.suffix == SUFFIX_OF["executorch"]:
            path.with_suffix(".json").unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps out of the output what the exporters say of themselves; their errors are raised all the same."""
    names = ("torch.onnx", "torch.export", "transformers", "nncf", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


__all__ = ["DTYPES_OF", "DetectionGraph", "describe", "export_model"]
