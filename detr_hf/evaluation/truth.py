"""The ground truth of a split as a COCO dictionary, from its rows and without opening a picture."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def ground_truth_of(rows: Any, id2label: Mapping[int, str]) -> dict[str, Any] | None:
    """Returns the objects of a split, crowds too, as COCO has them; None where the rows are no `datasets.Dataset`.

    Args:
        rows: a split in the schema of `detr_hf.data`, prepared or not.
        id2label: the classes by label.
    """
    try:
        from datasets import Dataset
    except ImportError:
        return None
    if not isinstance(rows, Dataset) or not {"image_id", "width", "height", "objects"} <= set(rows.column_names):
        return None
    return coco_truth(rows.with_format(None).select_columns(["image_id", "width", "height", "objects"]), id2label)


def coco_truth(rows: Iterable[Mapping[str, Any]], id2label: Mapping[int, str]) -> dict[str, Any]:
    """Returns the objects of rows in the schema of `detr_hf.data` as a COCO dictionary, whose category ids are labels.

    Pictures are not looked at, and may be missing.

    Raises:
        ValueError: a category that is no label.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in rows:
        images.append({"id": row["image_id"], "width": row["width"], "height": row["height"]})
        annotations.extend(_annotations(row, len(annotations)))
    categories = [{"id": int(label), "name": str(name)} for label, name in id2label.items()]
    unknown = {annotation["category_id"] for annotation in annotations} - {category["id"] for category in categories}
    if unknown:
        raise ValueError(
            f"The rows have objects of the categories {sorted(unknown)[:5]}, and the classes are {dict(id2label)}. "
            "Give the data with its class names, as load_detection_dataset returns it."
        )
    return {"images": images, "categories": categories, "annotations": annotations}


def _annotations(row: Mapping[str, Any], first: int) -> Iterator[dict[str, Any]]:
    objects = row["objects"]
    count = len(objects["bbox"])
    areas = objects.get("area") or [None] * count
    crowds = objects.get("iscrowd") or [0] * count
    for index in range(count):
        box = [float(value) for value in objects["bbox"][index]]
        yield {
            "id": first + index + 1,
            "image_id": row["image_id"],
            "category_id": int(objects["category"][index]),
            "bbox": box,
            "area": float(box[2] * box[3] if areas[index] is None else areas[index]),
            "iscrowd": int(crowds[index] or 0),
        }
