"""`detr-hf export`: a checkpoint as a file for another runtime, kept only if it gives what the model gives."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

# Beyond this many pictures the ranges of activations hardly change, and the measuring takes long.
MOST_CALIBRATION_PICTURES = 300
DIGITS = "digits"


class Task(StrEnum):
    """What the outputs are."""

    DETECTION = "detection"
    SEGMENTATION = "segmentation"


class Format(StrEnum):
    """What to write."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"
    EXECUTORCH = "executorch"


def export(
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint folder, a .pth file or a Hub id; by default the shipped digit detector."),
    ] = None,
    to: Annotated[Format, typer.Option(help="The format.")] = Format.ONNX,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (OpenVINO: the folder); by default here.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or int8, as the format has it.")] = "float32",
    dynamic: Annotated[
        bool, typer.Option("--dynamic/--static", help="Any batch and size, or the ones that --batch and --size name.")
    ] = True,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time, with --static.")] = 1,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH, with --static; by default that of a 4:3 picture.")
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask/--no-mask", help="Take pixel_mask; without it, only pictures without padding.")
    ] = True,
    task: Annotated[
        Task | None,
        typer.Option(
            help="Leave out the masks of a model that has them (detection), or insist on them (segmentation)."
        ),
    ] = None,
    mask_queries: Annotated[
        int | None,
        typer.Option(min=1, help="Masks of so many queries of a picture, those with the best scores; by default all."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="For int8: a folder, file or pattern of typical pictures; or 'digits'.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output.")] = False,
    accept_difference: Annotated[
        bool, typer.Option("--accept-difference", help="Keep the result though single scores differ by far.")
    ] = False,
) -> None:
    """Write a model for ONNX Runtime, OpenVINO, torch.export or ExecuTorch. Detector and predict run the result."""
    from ..checkpoints.embedded import embedded_model_path
    from .console import quiet_loading

    if dynamic and size is not None:
        raise typer.BadParameter("a fixed size needs --static", param_hint="--size")
    source = embedded_model_path() if model is None else model
    quiet_loading(source)
    from ..checkpoints.model_classes import load_model
    from ..checkpoints.processors import processor_of
    from ..export.artefact import SUFFIX_OF, megabytes
    from ..export.exporting import export_model
    from ..model.modeling_detr import DETRForObjectDetection

    load = DETRForObjectDetection.from_pretrained if task is Task.DETECTION else load_model
    loaded = load(source)
    if task is Task.SEGMENTATION and not loaded.has_mask_head:
        raise typer.BadParameter(
            f"{source} is a detector, without masks: leave --task out, or name a checkpoint of DETRForSegmentation.",
            param_hint="--task",
        )
    processor = processor_of(source)
    typer.echo(f"Writing {to.value} and comparing it with the model, which takes a minute or more.", err=True)
    path, parity = export_model(
        loaded,
        processor,
        output or Path(f"{Path(source).stem}{SUFFIX_OF[to.value] or '-openvino'}"),
        to.value,
        dtype=dtype,
        batch=None if dynamic else batch,
        size_hw=None if dynamic else fixed_size(size, processor),
        masked=mask,
        mask_queries=mask_queries,
        calibration=calibration_pixels(calibration, processor) if dtype == "int8" else None,
        overwrite=overwrite,
        accept_difference=accept_difference,
    )
    typer.echo(f"Compared with the model on {parity}.")
    if loaded.has_mask_head and mask_queries is None:
        typer.echo(
            f"It computes the masks of all {loaded.config.num_queries} queries of a picture; --mask-queries leaves "
            "out those of the lowest scores, and their time."
        )
    typer.echo(f"Written: {path.parent if to is Format.OPENVINO else path} ({megabytes(path):.1f} MB)")


def fixed_size(size: str | None, processor: Any) -> tuple[int, int]:
    """(height, width) of `800x1066`; without it, what the processor makes of a 4:3 picture."""
    if size is None:
        import numpy as np

        blank = np.zeros((480, 640, 3), dtype=np.uint8)
        return processor(blank, return_tensors="np")["pixel_values"].shape[-2:]
    sides = size.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"expected HEIGHTxWIDTH, as 800x1066, got {size!r}", param_hint="--size")
    return int(sides[0]), int(sides[1])


def calibration_pixels(source: str | None, processor: Any) -> "list[np.ndarray]":
    """Preprocessed pixels (C, H, W) of at most `MOST_CALIBRATION_PICTURES` pictures, spread over all there are.

    `digits` stands for the training scenes that the shipped model has learned from.
    """
    if source is None:
        return []
    if source == DIGITS and not Path(source).exists():
        from ..data.digits import DigitScenes

        pictures = [scene["image"] for scene in DigitScenes("train", MOST_CALIBRATION_PICTURES)]
    else:
        from ..inference.sources.searching import PictureSearch

        search = PictureSearch([source])
        found = [path for path, _ in search]
        if not found:
            raise typer.BadParameter(search.nothing(), param_hint="--calibration")
        pictures = found[:: -(-len(found) // MOST_CALIBRATION_PICTURES)]
    return [processor(picture, return_tensors="np")["pixel_values"][0] for picture in pictures]
