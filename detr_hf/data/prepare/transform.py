"""From a row of the schema to what the model reads: decode, augment, and the image processor.

The image processor makes the pixels and targets in training and in inference, so both see pictures the same way; after
a preset that has resized already it is told not to resize.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, Image as ImageFeature, IterableDataset
from torch import Tensor
from torchvision import tv_tensors

from ...errors import AnnotationError, DataError
from ...processing.mask_annotations_detr import panoptic_masks
from ..pictures import load_pixels
from ..readers.mask_text import decode_masks, encode_mask
from .augment import augmentation, sanitize


class DetectionTransform:
    """Rows of the schema to `{"pixel_values", "labels", "file_name"}`, one picture at a time.

    Args:
        processor: an image processor that takes COCO annotations.
        augment: a preset's name or a callable, see `augment.py`.
        masks: whether targets hold masks.

    Raises (when called):
        PictureError: a picture cannot be decoded, or has not the recorded size; named by file.
        AnnotationError: an annotation of the picture cannot be used; named by file and id.
    """

    def __init__(self, processor: Any, augment: str | Callable | None = "none", masks: bool = False):
        self.processor = processor
        self.augment = augmentation(augment, *model_sides(processor))
        self.masks = masks

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Transforms columns, as `datasets` hands them over."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        prepared = [self.one(row) for row in rows]
        return {key: [item[key] for item in prepared] for key in ("pixel_values", "labels", "file_name")}

    def one(self, row: dict[str, Any]) -> dict[str, Any]:
        """Transforms one row."""
        name = str(row.get("file_name") or f"image {row.get('image_id')}")
        recorded_wh = (row["width"], row["height"]) if row.get("width") and row.get("height") else None
        pixels = load_pixels(row["image"], name, recorded_wh)  # (3, H, W)
        target = self._target(row, name, pixels.shape[1:])
        try:
            image, target = self.augment(tv_tensors.Image(pixels), target)
            size_hw = (image.height, image.width) if hasattr(image, "height") else tuple(image.shape[-2:])
            target = sanitize(target, size_hw)
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise AnnotationError(
                f"{name}: the augmentation {self.augment!r} failed: {type(error).__name__}: {error}"
            ) from error
        annotation = {"image_id": row["image_id"], "annotations": self._annotations(row, target)}
        return {**self._process(image, annotation, name), "file_name": name}

    def _target(self, row: dict[str, Any], name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
        """The row's objects as tensors, boxes xyxy in pixels; crowds stay out: DETR does not train on them."""
        objects = row["objects"]
        height, width = size_hw
        count = len(objects["bbox"])
        crowd = objects.get("iscrowd") or [0] * count
        ids = objects.get("id") or list(range(count))
        chosen = [index for index in range(count) if not crowd[index]]
        masks = None
        if self.masks and row.get("panoptic") is not None:
            chosen, masks = self._panoptic_masks(row, ids, chosen, name, size_hw)
        elif self.masks:
            texts = objects.get("segmentation") or [None] * count
            missing = [ids[index] for index in chosen if not texts[index]]
            if missing:
                raise AnnotationError(
                    f"{name}: masks are asked for and the annotations {missing[:5]} have no segmentation."
                )
            names = [f"{name}, annotation {ids[index]}" for index in chosen]
            masks = decode_masks([texts[index] for index in chosen], height, width, names)
        boxes = torch.tensor([objects["bbox"][index] for index in chosen], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([objects["category"][index] for index in chosen], dtype=torch.int64),
            "index": torch.tensor(chosen, dtype=torch.int64),
        }
        if masks is not None:
            target["masks"] = tv_tensors.Mask(masks)
        return target

    def _panoptic_masks(
        self, row: dict[str, Any], ids: list[int], chosen: list[int], name: str, size_hw: tuple[int, int]
    ) -> tuple[list[int], Tensor]:
        """Which of the chosen segments the PNG holds, and their masks `(N, H, W)`."""
        source = row["panoptic"]
        path = source["path"] if isinstance(source, dict) else source.filename
        annotation = {
            "image_id": row["image_id"],
            "file_name": os.path.basename(path),
            "segments_info": [{"id": identity, "index": index} for index, identity in enumerate(ids)],
        }
        try:
            segments, masks = panoptic_masks(annotation, os.path.dirname(path), tuple(size_hw))
        except (ValueError, TypeError, OSError) as error:
            raise AnnotationError(f"{name}: {error}") from error
        wanted = [place for place, segment in enumerate(segments) if segment["index"] in set(chosen)]
        return [segments[place]["index"] for place in wanted], masks[wanted]

    def _annotations(self, row: dict[str, Any], target: dict[str, Tensor]) -> list[dict[str, Any]]:
        """COCO annotations of the augmented picture."""
        boxes = target["boxes"]
        areas = self._areas(row, target)
        sources = target["index"].tolist() if "index" in target else [None] * len(boxes)
        ids = row["objects"].get("id")
        annotations = []
        for place, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            annotation = {
                "id": ids[sources[place]] if ids and sources[place] is not None else place,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": int(target["labels"][place]),
                "area": float(areas[place]),
                "iscrowd": 0,
            }
            if "masks" in target:
                annotation["segmentation"] = encode_mask(target["masks"][place].numpy())
            annotations.append(annotation)
        return annotations

    @staticmethod
    def _areas(row: dict[str, Any], target: dict[str, Tensor]) -> Tensor:
        """Areas `(N,)` in pixels of the augmented picture: of the mask; else the annotated one, shrunk as its box did;
        else of the box."""
        boxes = target["boxes"]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        if "masks" in target:
            return target["masks"].flatten(1).sum(dim=1).double() if len(boxes) else areas
        annotated = row["objects"].get("area")
        if "index" not in target or not annotated:
            return areas
        ratios = [
            annotated[i] / max(row["objects"]["bbox"][i][2] * row["objects"]["bbox"][i][3], 1e-9)
            for i in target["index"].tolist()
        ]
        return areas * torch.tensor(ratios, dtype=areas.dtype)

    def _process(self, image: Any, annotation: dict[str, Any], name: str) -> dict[str, Any]:
        options: dict[str, Any] = {"do_pad": False, "return_tensors": "pt"}
        if getattr(self.augment, "resizes", False):
            options["do_resize"] = False
        if isinstance(image, Tensor):
            options["input_data_format"] = "channels_first"
            image = image.as_subclass(Tensor)
        try:
            batch = self.processor(image, annotations=annotation, return_segmentation_masks=self.masks, **options)
        except (ValueError, TypeError) as error:
            raise AnnotationError(f"{name}: {error}") from error
        return {"pixel_values": batch["pixel_values"][0], "labels": dict(batch["labels"][0])}


def model_sides(processor: Any) -> tuple[int, int]:
    """The shortest and longest side that a processor resizes to; the recipe's 800 and 1333 when it has other rules."""
    size = dict(getattr(processor, "size", None) or {})
    if size.get("height") and size.get("width"):
        return min(size["height"], size["width"]), max(size["height"], size["width"])
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


def prepare(rows: Any, processor: Any, augment: str | Callable | None = "none", masks: bool = False) -> Any:
    """A split that gives `{"pixel_values" (3, h, w), "labels", "file_name"}` when it is read.

    `rows` is a `datasets.Dataset` or `IterableDataset` in the schema, or any map-style data set of such rows (digit
    scenes).
    """
    transform = DetectionTransform(processor, augment, masks)
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
        """Another order for each epoch, where the stream is shuffled."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
