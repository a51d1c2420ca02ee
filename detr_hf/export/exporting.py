"""From a checkpoint to an artefact: write it, compare it with the model, and only then put it in place.

What can be wrong with a call is said before anything is traced, and nothing is kept that differs from the model. The
formats are in `writers.py`.
"""

import copy
import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.modeling_detr import DETRForObjectDetection
from ..model.segmentation_detr import refuse_without_masks
from ..processing.segments_detr import checked_labels
from ..version import version_of
from ..whole_files import exchange, unfinished_folder
from .artefact import OPENVINO_GRAPH, SUFFIX_OF, ArtefactInfo
from .parity import Parity, calibration_cases, check_parity, parity_cases, refuse_far
from .runtimes import INSTALL, load_runtime
from .writers import WRITERS, graph_of

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
# An int8 artefact must be good on calibration pictures as well; a few show it.
CALIBRATION_CASES = 4
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
    "do_pad",
    "pad_size",
)


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
    mask_queries: int | None = None,
    calibration: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
    accept_difference: bool = False,
) -> tuple[Path, Parity]:
    """Writes an artefact, compares it with the model, and returns its path and how close it is.

    Args:
        model: a float32 detector; it is not changed.
        image_processor: its preprocessing, of which the constants go into the artefact.
        output: the file (for OpenVINO the folder) to write.
        to: "onnx", "openvino", "torch-export" or "executorch".
        dtype: one of `DTYPES_OF[to]`. OpenVINO stores float16 and bfloat16 alike as float16 and computes bfloat16 as
            such where the processor can; its int8 is for convolutions and computes the rest as bfloat16.
        batch: a fixed number of images, which some runtimes run faster; None for any.
        size_hw: a fixed height and width; None for any.
        masked: take `pixel_mask`. Without it the graph is smaller and serves pictures without padding.
        mask_queries: of a segmentation model, give masks of so many queries of a picture only, those with the best
            scores, which is so much faster; None for all.
        calibration: for int8, pixels (C, H, W) float32 of typical pictures, preprocessed; a few dozen to 300.
        overwrite: replace what is at `output`.
        accept_difference: keep what is like the model on average, and differs by far in single scores.

    Raises:
        ValueError: an argument that does not fit, or an artefact that differs from the model: it is deleted.
        ImportError: a package of the format is missing.
        FileExistsError: there is something at `output`.
    """
    output = _checked_output(Path(output), to, overwrite)
    calibration = _checked_dtype(model, to, dtype, calibration)
    _require(to, dtype)
    info = describe(model, image_processor, to, dtype, batch, size_hw, masked, mask_queries)
    model = copy.deepcopy(model).cpu().eval()
    model.config.mask_score_threshold = None  # an artefact's masks do not depend on scores
    with unfinished_folder(output) as folder:
        # a copy of its own, which a writer may halve or an exporter patch: the other is what it is compared with
        path = WRITERS[to](graph_of(copy.deepcopy(model), info), info, folder / output.name, calibration)
        cases = [*parity_cases(info), *calibration_cases(calibration[:CALIBRATION_CASES], info)]
        parity = check_parity(model, load_runtime(path), cases)
        if not accept_difference:
            refuse_far(parity)
        put_in_place(folder, output)
    return (output / OPENVINO_GRAPH if to == "openvino" else output), parity


def put_in_place(folder: Path, output: Path) -> None:
    """Moves an artefact out of the folder where it was made.

    A process that is killed meanwhile leaves the old one or the new one. Where the system cannot exchange two folders
    it can leave none of OpenVINO's; of ExecuTorch's two files it can leave the program alone, which is refused.
    """
    new, metadata = folder / output.name, folder / output.with_suffix(".json").name
    if output.is_dir():
        if exchange(new, output):
            return
        os.replace(output, folder / "replaced")  # no folder takes the place of one with files in it
    if metadata.exists():
        output.with_name(metadata.name).unlink(missing_ok=True)
    os.replace(new, output)
    if metadata.exists():
        os.replace(metadata, output.with_name(metadata.name))


def describe(
    model: DETRForObjectDetection,
    image_processor: Any,
    to: str,
    dtype: str,
    batch: int | None,
    size_hw: tuple[int, int] | None,
    masked: bool,
    mask_queries: int | None = None,
) -> ArtefactInfo:
    """Returns the metadata of an artefact to be made."""
    config = model.config
    _check_masks(model, mask_queries)
    name = str(getattr(config, "name_or_path", "") or config.model_type)
    constants = json.loads(json.dumps(image_processor.to_dict(), default=str))  # enums and tuples as a file has them
    packages = ("detr_hf", "torch", "transformers", "timm", *_packages(to, dtype))
    size_hw = None if size_hw is None else (int(size_hw[0]), int(size_hw[1]))
    fused_labels = constants.get("label_ids_to_fuse") or () if model.has_mask_head else ()
    _check_canvas(constants, size_hw, masked)
    return ArtefactInfo(
        format=to,
        model=Path(name).name if os.path.exists(name) else name,
        id2label={int(label): str(text) for label, text in config.id2label.items()},
        num_queries=config.num_queries,
        num_channels=config.num_channels,
        dtype=dtype,
        batch=batch,
        size_hw=size_hw,
        masked=masked,
        preprocessing={key: constants[key] for key in PREPROCESSING_KEYS if key in constants},
        versions={package: found for package in packages if (found := version_of(package)) is not None},
        has_masks=model.has_mask_head,
        mask_queries=mask_queries,
        label_ids_to_fuse=tuple(sorted(checked_labels(fused_labels, config.num_labels))),
    )


def _check_masks(model: DETRForObjectDetection, mask_queries: int | None) -> None:
    """Raises a ValueError for masks that the model does not have."""
    if model.has_mask_head:
        refuse_without_masks(model)
    if mask_queries is None:
        return
    if not model.has_mask_head:
        raise ValueError(
            f"mask_queries={mask_queries} (--mask-queries) is for a model with masks, and this is a detector: leave "
            "it out, or export a checkpoint of DETRForSegmentation."
        )
    if not 1 <= mask_queries <= model.config.num_queries:
        raise ValueError(
            f"mask_queries={mask_queries} (--mask-queries) must be from 1 to {model.config.num_queries}, the number "
            "of the model's queries; leave it out for masks of all."
        )


def _check_canvas(constants: dict[str, Any], size_hw: tuple[int, int] | None, masked: bool) -> None:
    """Raises a ValueError where pictures would not be padded as the image processor pads them."""
    pad_size = constants.get("pad_size") if constants.get("do_pad", True) else None
    if not pad_size:
        return
    canvas_hw = pad_size["height"], pad_size["width"]
    if not masked:
        raise ValueError(
            f"The image processor pads to (height, width) {canvas_hw}, which needs the mask: export with masked=True "
            "(--mask)."
        )
    if size_hw is not None and size_hw != canvas_hw:
        raise ValueError(
            f"The image processor pads to (height, width) {canvas_hw}, and the fixed size is {size_hw}: export with "
            "that size, or for any (--dynamic)."
        )


def _checked_output(output: Path, to: str, overwrite: bool) -> Path:
    if to not in SUFFIX_OF:
        raise ValueError(f"There is no export to {to!r}; choose {', '.join(SUFFIX_OF)}.")
    if output.suffix.lower() != SUFFIX_OF[to]:
        wanted = "a folder, named without an ending" if to == "openvino" else f"one file that ends in {SUFFIX_OF[to]}"
        raise ValueError(f"output={str(output)!r}: {to} writes {wanted}.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists. Choose another name, or pass overwrite=True (--overwrite).")
    if to != "openvino" and output.is_dir():
        raise FileExistsError(f"{output} is a folder: it is not replaced by a file. Choose another name.")
    beside = output.with_suffix(".json")
    if to == "executorch" and beside.exists() and not (overwrite and _is_metadata(beside)):
        raise FileExistsError(f"{beside} exists, where {output} would keep its metadata. Choose another name.")
    if to == "openvino" and output.exists() and not (output.is_dir() and _is_openvino_folder(output)):
        raise FileExistsError(f"{output} holds more than an OpenVINO model: it is not overwritten.")
    return output


def _is_metadata(path: Path) -> bool:
    """Whether a file is what an export writes beside an ExecuTorch program."""
    try:
        ArtefactInfo.from_json(path.read_text(encoding="utf-8"), path)
    except (OSError, ValueError):
        return False
    return True


def _is_openvino_folder(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {OPENVINO_GRAPH, OPENVINO_GRAPH.replace(".xml", ".bin")}


def _checked_dtype(
    model: DETRForObjectDetection, to: str, dtype: str, calibration: Iterable[np.ndarray] | None
) -> list[np.ndarray]:
    if dtype not in DTYPES_OF[to]:
        raise ValueError(f"{to} artefacts come in {', '.join(DTYPES_OF[to])}; got dtype={dtype!r}.")
    if model.dtype != torch.float32:
        raise ValueError(f"The model to export must be float32 (dtype= says what it becomes); this is {model.dtype}.")
    pictures = [] if calibration is None else list(calibration)
    if dtype == "int8" and not pictures:
        raise ValueError(
            "int8 needs pictures to measure the ranges of activations on: a few dozen to 300 like those it will see "
            "(calibration=, --calibration)."
        )
    return pictures


def _packages(to: str, dtype: str) -> tuple[str, ...]:
    return (*PACKAGES_OF[to], "nncf") if dtype == "int8" else PACKAGES_OF[to]


def _require(to: str, dtype: str) -> None:
    for package in _packages(to, dtype):
        try:
            importlib.import_module(package)
        except ImportError as error:
            install = "pip install executorch (a version made for your torch)" if to == "executorch" else INSTALL
            raise ImportError(
                f"Exporting to {to} needs {package}, which does not load ({error}): {install}."
            ) from error
