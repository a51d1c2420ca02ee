"""What people give as augmentation: torchvision's transforms, Albumentations' `Compose`, functions of their own.

All are taken as the libraries make them. What comes back is looked at here: a pair in another shape, pixels that were
normalised already and boxes in another format would otherwise be trained on as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as tv_functional

EXPECTED = (
    "expected (image, target): an image (3, H, W), or a PIL image, and a dictionary with 'boxes' (N, 4), xyxy in "
    "pixels, and 'labels' (N,)"
)
# of a box in Albumentations -> torchvision's name, and whether it is in parts of the picture
BOX_FORMATS = {
    "pascal_voc": ("xyxy", False),
    "coco": ("xywh", False),
    "albumentations": ("xyxy", True),
    "yolo": ("cxcywh", True),
}


class AlbumentationsCompose:
    """An Albumentations `Compose` in the shape of torchvision's transforms.

    It is handed the place of each object in every label field, and so objects that it removes are found again; its
    chance comes from torch's generator, as everybody's here.

    Raises:
        ValueError: it does not move boxes, or wants them in a format that is not known.
    """

    def __init__(self, compose: Any):
        self.compose = compose
        boxes = compose.processors.get("bboxes")
        if boxes is None:
            raise ValueError(
                f"The augmentation {type(compose).__name__} has no bbox_params, so that boxes would stay where they "
                "are. Make it A.Compose([...], bbox_params=A.BboxParams(format='pascal_voc', "
                "label_fields=['category']))."
            )
        name = str(getattr(boxes.params.format, "value", boxes.params.format))
        if name not in BOX_FORMATS:
            raise ValueError(f"The augmentation's boxes are {name!r}; expected one of {', '.join(BOX_FORMATS)}.")
        self.format, self.in_parts = BOX_FORMATS[name]
        self.fields = list(boxes.params.label_fields or [])

    def __call__(self, image: Tensor, target: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Returns the augmented image and what is left of the target."""
        height, width = image.shape[-2:]
        size = torch.tensor([width, height] * 2, dtype=torch.float64)
        boxes = torch.as_tensor(target["boxes"]).as_subclass(Tensor).double()
        boxes = torch.minimum(boxes.clamp(min=0), size)  # it refuses boxes that leave the picture
        places = torch.nonzero((boxes[:, 2:] > boxes[:, :2]).all(dim=1)).flatten()
        boxes = box_convert(boxes[places] / size if self.in_parts else boxes[places], "xyxy", self.format).numpy()
        given: dict[str, Any] = {field: places.tolist() for field in self.fields}
        if not self.fields:
            boxes = np.column_stack([boxes, places.numpy()])
        if "masks" in target:
            given["masks"] = list(torch.as_tensor(target["masks"]).as_subclass(Tensor).to(torch.uint8).numpy())
        if hasattr(self.compose, "set_random_seed"):
            self.compose.set_random_seed(int(torch.randint(2**31 - 1, ())))
        pixels = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        result = self.compose(image=pixels, bboxes=boxes, **given)
        rows = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4 if self.fields else 5)
        left = result[self.fields[0]] if self.fields else rows[:, 4]
        left = torch.tensor([round(float(place)) for place in left], dtype=torch.int64)
        image = as_image(result["image"])
        boxes = box_convert(torch.from_numpy(rows[:, :4].copy()), self.format, "xyxy")
        if self.in_parts:
            boxes = boxes * torch.tensor([image.shape[-1], image.shape[-2]] * 2)
        kept = {key: torch.as_tensor(target[key])[left] for key in ("labels", "index") if key in target}
        if "masks" in target:
            masks = torch.as_tensor(np.asarray(result["masks"])).bool().reshape(-1, *image.shape[-2:])
            kept["masks"] = masks[left]
        return image, {"boxes": boxes, **kept}

    def __repr__(self) -> str:
        return repr(self.compose)


def is_albumentations(choice: Any) -> bool:
    """Whether an augmentation is called as Albumentations' are, without that library being imported."""
    return callable(choice) and isinstance(getattr(choice, "processors", None), Mapping)


def usable(result: Any) -> tuple[Any, dict[str, Any]]:
    """Returns what an augmentation returned as (image, target): a uint8 image, boxes xyxy, labels whole numbers.

    Raises:
        TypeError: it is something else.
        ValueError: its values cannot be used.
    """
    pair = isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], Mapping)
    if not pair or not {"boxes", "labels"} <= set(result[1]):
        raise TypeError(f"it returned {_described(result)}; {EXPECTED}.")
    image, target = result
    labels = torch.as_tensor(target["labels"])
    if labels.is_floating_point():
        if bool((labels != labels.round()).any()):
            raise ValueError(f"it returned the labels {labels.tolist()[:5]}; expected whole numbers.")
        labels = labels.long()
    return as_image(image), {**target, "boxes": as_xyxy(target["boxes"]), "labels": labels}


def as_image(image: Any) -> Any:
    """Returns a PIL image as it is, and an array (H, W, 3) or a tensor (3, H, W) as a tensor of bytes."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] in (1, 3):
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise TypeError(f"it returned {_described(image)} as image; {EXPECTED}.")
    if not image.is_floating_point():
        return image
    low, high = (float(value) for value in image.aminmax()) if image.numel() else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"it returned floating-point pixels from {low:.3g} to {high:.3g}; expected bytes, or 0 to 1. The image "
            "processor normalises: leave that out."
        )
    return tv_functional.to_dtype(image.clamp(0, 1), torch.uint8, scale=True)


def as_xyxy(boxes: Any) -> Any:
    """Returns torchvision's boxes as xyxy, whatever format a transform left them in; others as they are."""
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or boxes.format == tv_tensors.BoundingBoxFormat.XYXY:
        return boxes
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"it returned boxes in the format {boxes.format.value}; expected upright ones.")
    return tv_functional.convert_bounding_box_format(boxes, new_format="XYXY")


def _described(result: Any) -> str:
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {', '.join(_described(item) for item in result[:4]) or 'nothing'}"
    if isinstance(result, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(result)[:6])) or 'nothing'}"
    shape = getattr(result, "shape", None)
    return f"{type(result).__name__}{tuple(shape) if shape is not None else ''}"
