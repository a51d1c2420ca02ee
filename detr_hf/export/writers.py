"""The four formats: each writer traces the model, converts it, and puts an artefact with its metadata at a path.

Tracing and conversion are `transformers.exporters`', for all four formats and for int8. It takes this package's model
because `graph_of` hands it a plain module with named outputs: the model itself would export its hidden states as well,
and (its output class being no part of transformers) a structure that cannot be read back. What is done here and
not there: shapes are dynamic in batch, height and width alone, an ONNX file holds its weights, the metadata says how
pictures are prepared, and OpenVINO's graph is corrected in two places.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.modeling_detr import DETRForObjectDetection, DETRForSegmentation
from ..model.segmentation_detr import best_queries, masks_of_batch
from .artefact import METADATA_KEY, OPENVINO_GRAPH, ArtefactInfo
from .parity import calibration_cases

TRACED_HW = (160, 224)


class DetectionGraph(nn.Module):
    """What is exported of a detector: pixels (and mask) in, the last decoder layer's `logits` and `pred_boxes` out."""

    def __init__(self, model: DETRForObjectDetection):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns (B, Q, K + 1) logits and (B, Q, 4) boxes, cxcywh in [0, 1]."""
        output = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}


class SegmentationGraph(nn.Module):
    """What is exported of a model with masks: `pred_masks` besides, of all queries or of the `mask_queries` best."""

    def __init__(self, model: DETRForSegmentation, mask_queries: int | None):
        super().__init__()
        self.model, self.mask_queries = model, mask_queries

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns (B, Q, K + 1) logits, (B, Q, 4) boxes, (B, n, h4, w4) masks and, unless of all, (B, n) queries."""
        decoded, predictions, _, _ = self.model.detect(pixel_values, pixel_mask, None, False, False)
        found = {"logits": predictions.logits[-1], "pred_boxes": predictions.boxes_cxcywh_norm[-1]}
        chosen = None if self.mask_queries is None else best_queries(found["logits"], self.mask_queries)
        found["pred_masks"] = masks_of_batch(self.model, decoded, chosen)
        return found if chosen is None else found | {"mask_queries": chosen}


def graph_of(model: DETRForObjectDetection, info: ArtefactInfo) -> nn.Module:
    """Returns what is exported of a model, in eval mode."""
    return (SegmentationGraph(model, info.mask_queries) if info.has_masks else DetectionGraph(model)).eval()


def _write_onnx(graph: nn.Module, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]) -> Path:
    import onnx_ir
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    graph = graph.half() if info.dtype == "float16" else graph
    program = _exported(OnnxExporter, OnnxConfig, graph, info)
    program.metadata_props[METADATA_KEY] = info.to_json()
    onnx_ir.save(program, str(path))  # weights inside: one file, up to protobuf's 2 GB
    return path


def _write_openvino(graph: nn.Module, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]) -> Path:
    import openvino
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    options = {"compress_to_fp16": info.dtype in ("float16", "bfloat16"), "stateful": False}
    program = _exported(OpenVINOExporter, OpenVINOConfig, graph, info, **options)
    if info.batch or info.size_hw:
        _fix_shapes(program, info)
    if info.dtype == "int8":
        program = _quantized(program, info, calibration)
        _add_quantized_shortcuts(program)
    _divide_lengths_as_integers(program)
    program.set_rt_info(info.to_json(), [METADATA_KEY])
    path.mkdir()
    openvino.save_model(program, str(path / OPENVINO_GRAPH), compress_to_fp16=False)
    return path / OPENVINO_GRAPH


def _fix_shapes(program: Any, info: ArtefactInfo) -> None:
    """Gives the inputs the shapes that were asked for, where the converter leaves all of them open.

    Open, a batch of one picture would also fail with masks: the sums of its map with those of its queries would be
    taken for sums of equal shapes, and computed in place.
    """
    shape = [side if isinstance(side, int) else -1 for side in info.input_shape()]
    shapes = {"pixel_values": shape, "pixel_mask": [shape[0], *shape[2:]]}
    program.reshape({value: shapes[value.get_any_name()] for value in program.inputs})


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


def _write_torch_export(graph: nn.Module, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]) -> Path:
    from transformers.exporters import DynamoConfig
    from transformers.exporters.exporter_dynamo import DynamoExporter

    program = _exported(DynamoExporter, DynamoConfig, graph.to(getattr(torch, info.dtype)), info)
    archive = io.BytesIO()  # torch's own writer of files ends the process on a full disk
    torch.export.save(program, archive, extra_files={METADATA_KEY: info.to_json()})
    path.write_bytes(archive.getbuffer())
    return path


def _write_executorch(graph: nn.Module, info: ArtefactInfo, path: Path, calibration: list[np.ndarray]) -> Path:
    from transformers.exporters import ExecutorchConfig
    from transformers.exporters.exporter_executorch import ExecutorchExporter

    program = _exported(ExecutorchExporter, ExecutorchConfig, graph, info)
    ExecutorchExporter.save_program(program, path)
    path.with_suffix(".json").write_text(info.to_json(), encoding="utf-8")
    return path


# Format -> what puts an artefact at a path, from a graph, its metadata and calibration pixels, and returns the file to
# load.
WRITERS: dict[str, Callable[[nn.Module, ArtefactInfo, Path, list[np.ndarray]], Path]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch-export": _write_torch_export,
    "executorch": _write_executorch,
}


def _quantized(program: Any, info: ArtefactInfo, calibration: list[np.ndarray]) -> Any:
    """Returns the program with its convolutions in int8, which take most of the time.

    The transformer stays as it is: with it in int8 as well, the shipped checkpoint lost 8.0 points of AP on its
    validation scenes instead of 0.9. So does all that masks alone come of: with its convolutions in int8, and even
    with only the sums and norms between them, masks of the panoptic digit model were off by 0.15 on average of a case.
    """
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig

    settings = NNCFQuantizationConfig(
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        # validated: a name that NNCF does not find is an error
        ignored_scope=nncf.IgnoredScope(types=["MatMul"], names=only_of_masks(program) if info.has_masks else []),
    )
    quantizer = NNCFOpenVINOQuantizer(settings, calibration_dataset=_samples(calibration, info))
    try:
        with _quiet():
            quantizer.validate_environment(info.format)
            return quantizer.quantize(program, {}, info.format)
    except Exception as error:
        raise ValueError(f"NNCF failed to make int8 of this model: {error}") from error


def only_of_masks(program: Any) -> list[str]:
    """Returns the names of the operations that masks alone come of, not boxes and classes: the mask head's."""
    of_masks, of_others = (
        _behind([output.get_node() for output in program.outputs if ("pred_masks" in output.get_names()) == is_mask])
        for is_mask in (True, False)
    )
    found = [node for name, node in of_masks.items() if name not in of_others]
    kinds = [node.get_type_name() for node in found]
    if not {"Convolution", "MatMul"} <= set(kinds):
        raise ValueError(
            f"The mask head was not found in the traced model: masks alone come of {sorted(set(kinds))}, and "
            "Convolution and MatMul were expected. Export with dtype='bfloat16', or for boxes (--task detection)."
        )
    return [node.get_friendly_name() for node in found if node.get_type_name() not in ("Constant", "Result")]


def _behind(nodes: list[Any]) -> dict[str, Any]:
    """Returns all that nodes of an OpenVINO graph come of, themselves too, by name."""
    found: dict[str, Any] = {}
    while nodes:
        node = nodes.pop()
        if node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = node
            nodes += [value.get_node() for value in node.input_values()]
    return found


def _exported(exporter: type, config: type, graph: nn.Module, info: ArtefactInfo, **options: Any) -> Any:
    """Returns the program that an exporter of transformers makes of the graph."""
    inputs, shapes = _traced_inputs(info)
    dynamic = any(shapes.values())
    try:
        with _quiet():
            program = exporter().export(
                graph, inputs, config(dynamic=dynamic, dynamic_shapes=shapes if dynamic else None, **options)
            )
    except Exception as error:
        hint = "; fixed shapes may do (batch=1, size_hw=..., --static)" if dynamic else ""
        raise ValueError(f"The {info.format} exporter failed on this model: {error}{hint}.") from error
    return program.program


def _traced_inputs(info: ArtefactInfo) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Returns inputs to trace with, and which of their dimensions are free."""
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
        for case in calibration_cases(calibration, info)
    ]


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
