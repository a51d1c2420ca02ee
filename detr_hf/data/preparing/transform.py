"""From a row of the schema to what the model reads: decode, augment, and the image processor.

The image processor makes the pixels in training as in inference, so both see pictures the same way; after a preset
that has resized already it is told not to resize. The target is assembled from the row's arrays by the function that
the processor uses for COCO annotations: boxes and masks stay arrays all the way.
"""

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, Image as ImageFeature, IterableDataset
from torch import Tensor
from torchvision import tv_tensors

from ...errors import AnnotationError, DataError
from ...processing.annotations_detr import assemble_target
from ...processing.mask_annotations_detr import masks_of_segments, masks_to_boxes, read_segment_ids
from ..detection_data import NO_MASK
from ..picture_truth import TRUTH, PictureTruth
from ..pictures import load_pixels, open_undecoded
from ..readers.mask_text import decode_masks
from .augment import SMALLEST_BOX_PX, augmentation, in_agreement, sanitize, tighten
from .given import usable

logger = logging.getLogger(__name__)

# An annotated area beyond this makes no sense, and that of the box is taken.
LARGEST_AREA = 1e30


class DetectionTransform:
    """Rows of the schema to `{"pixel_values", "labels", "file_name"}`, one picture at a time.

    Where the processor pads to a canvas of its own, `canvas_hw` says to which: the collator does it, with a mask.

    Args:
        processor: an image processor; it makes the pixels, and its `do_convert_annotations` says how boxes are given.
        augment: a preset's name or a callable, see `augment.py`.
        masks: whether targets hold masks. Of a picture with an object that may lack one (`NO_MASK`) they hold
            `has_mask` (N,) bool too.
        truth: whether targets hold the `PictureTruth`, by which evaluation measures masks; by default those with masks
            do, where nothing is augmented.

    Raises (when called):
        PictureError: a picture cannot be decoded, or has not the recorded size; named by file.
        AnnotationError: an annotation of the picture cannot be used; named by file and id.
    """

    def __init__(
        self,
        processor: Any,
        augment: str | Callable | None = "none",
        masks: bool = False,
        truth: bool | None = None,
    ):
        self.processor = processor
        self.augment = augmentation(augment, *model_sides(processor))
        self.masks = masks
        self.truth = masks and not self._augments if truth is None else truth
        pad_size = getattr(processor, "pad_size", None) if getattr(processor, "do_pad", False) else None
        self.canvas = {"canvas_hw": (pad_size["height"], pad_size["width"])} if pad_size else {}
        self.tiny = 0  # objects left out so far, in this process

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Returns the rows prepared, in columns as `datasets` hands them over."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        prepared = [self.one(row) for row in rows]
        keys = ("pixel_values", "labels", "file_name", *self.canvas)
        return {key: [item[key] for item in prepared] for key in keys}

    def one(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns one row prepared."""
        name = str(row.get("file_name") or f"image {row.get('image_id')}")
        recorded_wh = (row["width"], row["height"]) if row.get("width") and row.get("height") else None
        pixels = load_pixels(row["image"], name, recorded_wh)
        _, height, width = pixels.shape
        target, bare = self._target(row, name, (height, width))
        agreeing = in_agreement(target) if self.masks and getattr(self.augment, "name", None) != "none" else set()
        try:
            image, target = usable(self.augment(tv_tensors.Image(pixels), target))
            size_hw = (image.height, image.width) if hasattr(image, "height") else tuple(image.shape[-2:])
            self._count_tiny(target["boxes"], name)
            target = sanitize(target, size_hw, bare)
            if self.masks and "masks" not in target:
                raise ValueError("masks are asked for and it returned none.")
            tighten(target, agreeing)
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise AnnotationError(
                f"{name}: the augmentation {self.augment!r} failed: {type(error).__name__}: {error}"
            ) from error
        pixel_values = self._pixel_values(image, name)
        image_id = row["image_id"]
        try:
            labels: dict[str, Any] = assemble_target(
                image_id if isinstance(image_id, str) else operator.index(image_id),
                size_hw,  # before the resize
                (pixel_values.shape[-2], pixel_values.shape[-1]),
                target["labels"],
                target["boxes"],
                self._areas(row, target),
                target["masks"] if self.masks else None,
                normalize_boxes=bool(getattr(self.processor, "do_convert_annotations", True)),
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise AnnotationError(f"{name}: {error}") from error
        if "has_mask" in target:
            labels["has_mask"] = target["has_mask"]
        if self.truth:
            labels[TRUTH] = PictureTruth.of(row, (height, width))
        return {"pixel_values": pixel_values, "labels": labels, "file_name": name, **self.canvas}

    @property
    def _augments(self) -> bool:
        return getattr(self.augment, "name", None) != "none"

    def _count_tiny(self, boxes: Any, name: str) -> None:
        """Says how many objects an augmentation has made so small that they are left out: 1, 10, 100 and so on."""
        if not self._augments:
            return  # loading says what is so small in the data
        boxes = torch.as_tensor(boxes).as_subclass(Tensor).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        tiny = int(((sides > 0).all(dim=1) & (sides < SMALLEST_BOX_PX).any(dim=1)).sum())  # 0: it was cut away
        said, self.tiny = len(str(self.tiny)) if self.tiny else 0, self.tiny + tiny
        if tiny and len(str(self.tiny)) > said:
            logger.warning(
                "%d object(s) so far were below one pixel after the augmentation %r, and left out of training (now in "
                "%s).",
                *(self.tiny, self.augment, name),
            )

    def _target(
        self, row: dict[str, Any], name: str, size_hw: tuple[int, int]
    ) -> tuple[dict[str, Any], frozenset[int]]:
        """Returns the row's objects as tensors, boxes xyxy in pixels, and which of its objects may lack a mask.

        Crowds stay out: DETR does not train on them.
        """
        objects = row["objects"]
        height, width = size_hw
        count = len(objects["bbox"])
        crowd = objects.get("iscrowd") or [0] * count
        ids = objects.get("id") or list(range(count))
        chosen = [index for index in range(count) if not crowd[index]]
        masks: Tensor | None = None
        bare: frozenset[int] = frozenset()
        if self.masks and row.get("panoptic") is not None:
            chosen, masks = self._panoptic_masks(row, ids, chosen, name, size_hw)
        elif self.masks:
            texts = objects.get("segmentation") or [None] * count
            missing = [ids[index] for index in chosen if not texts[index]]
            if missing:
                raise AnnotationError(
                    f"{name}: masks are asked for and the annotations {missing[:5]} have no segmentation. Add them, "
                    "or load with allow_missing_masks=True: of such objects only the boxes are learnt."
                )
            names = [f"{name}, annotation {ids[index]}" for index in chosen]
            bare = frozenset(index for index in chosen if texts[index] == NO_MASK)
            masks = decode_masks([texts[index] for index in chosen], height, width, names)
        boxes = torch.tensor([objects["bbox"][index] for index in chosen], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if masks is not None and row.get("panoptic") is not None:
            boxes = masks_to_boxes(masks)  # a file's boxes of segments often end a pixel early
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([objects["category"][index] for index in chosen], dtype=torch.int64),
            "index": torch.tensor(chosen, dtype=torch.int64),
        }
        if masks is not None:
            target["masks"] = tv_tensors.Mask(masks)
        return target, bare

    def _panoptic_masks(
        self, row: dict[str, Any], ids: list[int], chosen: list[int], name: str, size_hw: tuple[int, int]
    ) -> tuple[list[int], Tensor]:
        """Returns which of the chosen segments the PNG holds, and their masks `(N, H, W)`."""
        listed = [{"id": identity, "index": index} for index, identity in enumerate(ids)]
        image = open_undecoded(row["panoptic"], f"{name}, segment picture")
        try:
            segment_ids = read_segment_ids(image, size_hw, name, "the segment picture")
            segments, masks = masks_of_segments(segment_ids, listed, name, "the segment picture")
        except ValueError as error:
            raise AnnotationError(str(error)) from error
        wanted = [place for place, segment in enumerate(segments) if segment["index"] in set(chosen)]
        return [segments[place]["index"] for place in wanted], masks[wanted]

    @staticmethod
    def _areas(row: dict[str, Any], target: dict[str, Tensor]) -> Tensor:
        """Returns areas `(N,)` in pixels of the augmented image.

        They are those of the masks; else the annotated ones, shrunk as their boxes did; else those of the boxes.
        """
        boxes = target["boxes"]
        box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        if "masks" in target:
            # mask by mask: a sum over rows of booleans takes twenty times as long
            counts = [mask.count_nonzero() for mask in target["masks"]]
            areas = torch.stack(counts).double() if counts else box_areas
            return torch.where(target["has_mask"], areas, box_areas) if "has_mask" in target else areas
        annotated = row["objects"].get("area")
        if "index" not in target or not annotated:
            return box_areas
        ratios = [
            annotated[i] / max(row["objects"]["bbox"][i][2] * row["objects"]["bbox"][i][3], 1e-9)
            for i in target["index"].tolist()
        ]
        areas = box_areas * torch.tensor(ratios, dtype=box_areas.dtype)
        return torch.where((areas >= 0) & (areas < LARGEST_AREA), areas, box_areas)  # false for NaN too

    def _pixel_values(self, image: Any, name: str) -> Tensor:
        """Returns the processor's pixels `(3, h, w)` of the augmented image."""
        options: dict[str, Any] = {"do_pad": False, "return_tensors": "pt"}
        if getattr(self.augment, "resizes", False):
            options["do_resize"] = False
        if isinstance(image, Tensor):
            options["input_data_format"] = "channels_first"
            image = image.as_subclass(Tensor)
        try:
            return self.processor(image, **options)["pixel_values"][0]
        except (ValueError, TypeError) as error:
            raise AnnotationError(f"{name}: {error}") from error


def model_sides(processor: Any) -> tuple[int, int]:
    """Returns the shortest and longest side that a processor resizes to; 800 and 1333 when it has other rules."""
    size = dict(getattr(processor, "size", None) or {})
    for height, width in (("height", "width"), ("max_height", "max_width")):
        if size.get(height) and size.get(width):
            return min(size[height], size[width]), max(size[height], size[width])
    shortest = size.get("shortest_edge") or 800
    return shortest, size.get("longest_edge") or round(shortest * 1333 / 800)


class PreparedDataset(torch.utils.data.Dataset):
    """A map-style data set whose rows go through a `DetectionTransform` when they are read."""

    def __init__(self, rows: Any, transform: DetectionTransform):
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform.one(self.rows[index])


def prepare(
    rows: Any,
    processor: Any,
    augment: str | Callable | None = "none",
    masks: bool = False,
    truth: bool | None = None,
) -> Any:
    """Returns a split that gives `{"pixel_values" (3, h, w), "labels", "file_name"}` when it is read.

    `rows` is a `datasets.Dataset` or `IterableDataset` in the schema, or any map-style data set of such rows (digit
    scenes); the other arguments are those of `DetectionTransform`.
    """
    transform = DetectionTransform(processor, augment, masks, truth)
    if isinstance(rows, IterableDataset):
        if rows.features is not None:
            rows = rows.cast_column("image", ImageFeature(decode=False))
        # Without features: what comes out are tensors, not Arrow values.
        return StreamedRows(rows, transform)
    if isinstance(rows, Dataset):
        for column in ("image", "panoptic"):
            if column in rows.column_names:
                rows = rows.cast_column(column, ImageFeature(decode=False))
        return rows.with_transform(transform)
    return PreparedDataset(rows, transform)


class StreamedRows(torch.utils.data.IterableDataset):
    """A stream whose rows go through a `DetectionTransform`; its own sharding over workers and processes is kept."""

    def __init__(self, rows: IterableDataset, transform: DetectionTransform):
        self.rows = rows
        self.transform = transform

    def __iter__(self) -> Any:
        for row in self.rows:
            yield self.transform.one(row)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which gives another order where the stream is shuffled."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
