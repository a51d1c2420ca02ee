"""Converts a checkpoint folder, file or Hub repository to a folder of this package, or of transformers."""

import logging
from pathlib import Path
from typing import Any, Literal

from ..whole_files import is_leftover, whole_folder
from .finding import Hub, local_path
from .processors import PROCESSOR_FILES, processor_of

logger = logging.getLogger(__name__)

FORMATS = ("detr_hf", "transformers")
_MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)
_THEIR_PROCESSOR_ARGUMENTS = [
    "format",
    "do_convert_annotations",
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
    "label_ids_to_fuse",
]


def convert(
    src: str | Path,
    dst: str | Path,
    to: Literal["detr_hf", "transformers"] = "detr_hf",
    *,
    overwrite: bool = False,
    **loading: Any,
) -> Path:
    """Returns the folder `dst` after writing model and image processor there, in the format `to`.

    `dst` is whole or no model: everything is written apart first and moved there at the end. A failure leaves it as it
    was.

    Args:
        src: anything that `DETRForObjectDetection.from_pretrained` reads. What has a mask head keeps it.
        dst: a new or empty folder.
        to: "detr_hf", or "transformers" for a plain `DetrForObjectDetection`, `DetrForSegmentation` or
            `TableTransformerForObjectDetection`.
        overwrite: write into a folder that has files; those of an earlier model there are replaced, others stay.
        **loading: further arguments of `from_pretrained`, such as `revision` or `id2label`.

    Raises:
        ValueError: an unknown format, or a model that transformers cannot hold.
        FileExistsError: `dst` has files and `overwrite` is False.
        NotADirectoryError: `dst` is a file.
        OSError, ValueError: as `read_checkpoint`.
    """
    from .model_classes import load_model

    if to not in FORMATS:
        raise ValueError(f"to={to!r} is not known; the choices are {' and '.join(map(repr, FORMATS))}.")
    dst = Path(dst).expanduser()
    _check_destination(dst, local_path(src), overwrite)
    hub = Hub(**{name: loading[name] for name in Hub.__dataclass_fields__ if loading.get(name) is not None})
    processor = processor_of(src, hub)
    model = load_model(src, **loading)
    with whole_folder(dst, (*_MODEL_FILES, *PROCESSOR_FILES)) as scratch:
        (model if to == "detr_hf" else model.to_transformers()).save_pretrained(scratch)
        (processor if to == "detr_hf" else processor_for_transformers(processor)).save_pretrained(scratch)
    return dst


def _check_destination(dst: Path, source: Path | None, overwrite: bool) -> None:
    if dst.exists() and not dst.is_dir():
        raise NotADirectoryError(f"{dst} is a file; give the folder to write to.")
    if source is not None and dst.exists() and dst.samefile(source):
        raise ValueError(f"{dst} is the source itself; give another folder to write to.")
    is_model_file = source is not None and source.is_file() and any(map(source.match, _MODEL_FILES))
    if source is not None and is_model_file and dst.exists() and dst.samefile(source.parent):
        raise ValueError(f"{dst} holds the source itself, {source.name}; give another folder to write to.")
    if dst.is_dir() and not all(map(is_leftover, dst.iterdir())) and not overwrite:
        raise FileExistsError(
            f"{dst} is not empty. Give another folder, or overwrite=True (--overwrite) to replace the model in it."
        )


def processor_for_transformers(processor: Any) -> Any:
    """Returns transformers' `DetrImageProcessor` with the settings of ours."""
    from transformers import DetrImageProcessor

    if processor.resize_rule != "transformers":
        logger.warning(
            "transformers resizes by its own rule: a picture that reaches the longest edge may come out one pixel "
            "larger or smaller."
        )
    if processor.label_ids_to_fuse:
        logger.warning(
            "transformers keeps label_ids_to_fuse in the file and does not read it: give it to "
            "post_process_panoptic_segmentation there."
        )
    ours = processor.to_dict()
    return DetrImageProcessor(
        **{name: ours[name] for name in _THEIR_PROCESSOR_ARGUMENTS if ours.get(name) not in (None, [])}
    )
