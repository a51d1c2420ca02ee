"""The collator: pads images to their batch and refuses a label that training would suffer from, naming its image.

A class index equal to the number of classes is the dangerous one: to DETR's loss it means "no object", so the model
silently learns to see nothing there.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import AnnotationError
from .transform import DetectionTransform

# Centre and size are rounded to float32 and, for resized images, computed from rounded sides.
BOX_TOLERANCE = 1e-3


class DetectionCollator:
    """Batches prepared rows; rows of the schema are processed first when a processor is given.

    Args:
        processor: for rows that hold `image` and `objects` still; prepared rows need none.
        id2label: the model's label map; or
        num_labels: its number of classes K. Without either, only negative labels are refused.
        pad_to_multiple_of: pads height and width up to a multiple, so that fewer shapes occur.
        masks: passed on to the transform of raw rows.

    Calling it returns `pixel_values` (B, C, H, W) float32, zero where padded; `pixel_mask` (B, H, W) bool, True on the
    image; `labels`, a list of B dicts with `class_labels`, `boxes` (cxcywh in [0, 1] of the unpadded image),
    `image_id` and so on, `masks` (N, H, W) padded as the images.

    Raises:
        AnnotationError: a label is not valid; the message says which image.
    """

    def __init__(
        self,
        processor: Any = None,
        id2label: Mapping[int, str] | None = None,
        num_labels: int | None = None,
        pad_to_multiple_of: int | None = None,
        masks: bool = False,
    ):
        if id2label is not None and num_labels is not None and len(id2label) != num_labels:
            raise ValueError(f"id2label has {len(id2label)} classes and num_labels is {num_labels}; give one of them.")
        self.num_labels = len(id2label) if id2label is not None else num_labels
        self.transform = DetectionTransform(processor, masks=masks) if processor is not None else None
        self.pad_to_multiple_of = pad_to_multiple_of

    def padding_to(self, multiple: int | None) -> "DetectionCollator":
        """Returns a collator like this one that pads to another multiple."""
        other = copy.copy(self)
        other.pad_to_multiple_of = multiple
        return other

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the batch of prepared (or raw) rows, on their canvas where the processor pads to one."""
        if not rows:
            raise ValueError("The batch is empty: the data loader gave no rows.")
        prepared = [self._prepared(row) for row in rows]
        pixels = [torch.as_tensor(row["pixel_values"]) for row in prepared]
        sizes_hw = [(image.shape[-2], image.shape[-1]) for image in pixels]
        padded_hw = self._padded_hw([*sizes_hw, *(row["canvas_hw"] for row in prepared if "canvas_hw" in row)])
        shown = [torch.ones(size_hw, dtype=torch.bool) for size_hw in sizes_hw]
        batch: dict[str, Any] = {
            "pixel_values": torch.stack([_pad(image, padded_hw) for image in pixels]),
            "pixel_mask": torch.stack([_pad(mask, padded_hw) for mask in shown]),
        }
        labels: list[Any] = [row.get("labels") for row in prepared]
        if all(label is None for label in labels):
            return batch
        names = [_name(row, position) for position, row in enumerate(prepared)]
        check_labels(labels, names, self.num_labels)
        batch["labels"] = [dict(label) for label in labels]
        for label in batch["labels"]:
            if "masks" in label:
                label["masks"] = _pad(label["masks"], padded_hw)
        return batch

    def _prepared(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if "pixel_values" in row:
            return row
        if self.transform is not None and "image" in row and "objects" in row:
            return self.transform.one(dict(row))
        raise ValueError(
            f"A row has the keys {', '.join(map(str, row))}; expected pixel_values and labels. Use prepare(split, "
            "processor), or give the collator a processor; with Trainer, set remove_unused_columns=False."
        )

    def _padded_hw(self, sizes_hw: list[tuple[int, int]]) -> tuple[int, int]:
        height, width = (max(sides) for sides in zip(*sizes_hw, strict=True))
        multiple = self.pad_to_multiple_of or 1
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def _pad(planes: Tensor, padded_hw: tuple[int, int]) -> Tensor:
    """Returns planes `(..., h, w)` with zeros added at the bottom and right."""
    return torch.nn.functional.pad(planes, (0, padded_hw[1] - planes.shape[-1], 0, padded_hw[0] - planes.shape[-2]))


def _name(row: Mapping[str, Any], position: int) -> str:
    """Returns what to call a row's image in an error: its file and id, or its place in the batch."""
    label = row.get("labels")
    image_id = label.get("image_id") if isinstance(label, Mapping) else None
    image_id = image_id.tolist() if isinstance(image_id, Tensor) else image_id
    image_id = image_id[0] if isinstance(image_id, list) and len(image_id) == 1 else image_id
    parts = [str(row["file_name"])] if row.get("file_name") else []
    parts += [f"image_id {image_id}"] if image_id is not None else []
    return ", ".join(parts) or f"number {position} of the batch"


def check_labels(labels: Sequence[Any], names: Sequence[str], num_labels: int | None) -> None:
    """Checks the labels of a batch at once: counts, class indices in 0..K-1, boxes finite and cxcywh in [0, 1].

    Raises:
        AnnotationError: the first label that is not valid, with its image's name.
    """
    for label, name in zip(labels, names, strict=True):
        _check_shapes(label, name)
    counts = torch.tensor([len(label["class_labels"]) for label in labels])
    classes = torch.cat([label["class_labels"] for label in labels])  # (N of the batch,)
    boxes = torch.cat([label["boxes"] for label in labels]).double()  # (N of the batch, 4)
    owner = torch.repeat_interleave(torch.arange(len(labels)), counts)
    centre, size = boxes[:, :2], boxes[:, 2:]
    bad_class = classes < 0 if num_labels is None else (classes < 0) | (classes >= num_labels)
    leaves = (centre - size / 2 < -BOX_TOLERANCE) | (centre + size / 2 > 1 + BOX_TOLERANCE)
    bad_box = ~torch.isfinite(boxes).all(dim=1) | (size <= 0).any(dim=1) | leaves.any(dim=1)
    if not bool((bad_class | bad_box).any()):
        return
    first = int(torch.nonzero(bad_class | bad_box)[0])
    name = names[int(owner[first])]
    place = first - int(counts[: int(owner[first])].sum())
    if bool(bad_class[first]):
        limit = "0 or more" if num_labels is None else f"0 to {num_labels - 1} ({num_labels} is the class 'no object')"
        raise AnnotationError(
            f"{name}: object {place} has class {int(classes[first])}, expected {limit}. Is the model's id2label that "
            "of the data?"
        )
    shown = ", ".join(f"{value:.4g}" for value in boxes[first].tolist())
    raise AnnotationError(
        f"{name}: object {place} has the box ({shown}), expected centre x, centre y, width, height as fractions of "
        "the picture, inside it and with an area."
    )


def _check_shapes(label: Any, name: str) -> None:
    if not isinstance(label, Mapping) or not {"class_labels", "boxes"} <= set(label):
        seen = ", ".join(map(str, label)) if isinstance(label, Mapping) else type(label).__name__
        raise AnnotationError(f"{name}: its label is {seen}, expected a dict with class_labels and boxes.")
    classes, boxes = label["class_labels"], label["boxes"]
    whole = isinstance(classes, Tensor) and not classes.is_floating_point() and classes.dtype != torch.bool
    if not whole or classes.ndim != 1:
        raise AnnotationError(f"{name}: class_labels is {_shape(classes)}, expected integers of the shape (N,).")
    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise AnnotationError(f"{name}: boxes is {_shape(boxes)}, expected the shape (N, 4).")
    masks = label.get("masks")
    counts = {"class_labels": len(classes), "boxes": len(boxes)} | ({} if masks is None else {"masks": len(masks)})
    if len(set(counts.values())) > 1:
        raise AnnotationError(f"{name}: the counts of its objects differ: {counts}.")


def _shape(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
