"""Predictions as a data set: `coco_instances.json`, which labelling tools import and `load_detection_dataset` reads.

COCO's `images`, `categories` and `annotations`, these with their `score`; `segmentation` holds run lengths where the
model has masks. File names start from the folder that all pictures have in common, which `info` says: what a tool is
given, and `image_root=` of loading. A picture that could not be read is left out, and so is a box without area, which
no tool takes; both are counted and logged.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoints.coco_names import UNUSED
from ...processing.run_lengths_detr import run_length_counts
from ...version import __version__
from ..results import FIELDS, coco_results
from .result_formats import all_records, coco_ids, write_json_lists
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

COCO_INSTANCES = "coco_instances.json"


def write_coco_instances(run: RunFolder, id2label: Mapping[int, str], model: str | None) -> None:
    """Writes the data set of a complete run, whole or not at all; a picture's id is that of COCO's results."""
    ids = coco_ids(run)
    root = _common_folder(run)
    left_out: Counter[str] = Counter()

    def images() -> Iterator[dict[str, Any]]:
        for place, record in enumerate(all_records(run)):
            if "error" in record:
                left_out["pictures that could not be read"] += 1
                continue
            name = record["picture"][len(root) :].replace(os.sep, "/")
            sizes = {key: record[key] for key in ("width", "height")}
            yield {"id": ids(place, record), "file_name": name, **sizes}

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for place, record in enumerate(all_records(run)):
            found = record.get("objects", ())
            for result in coco_results(ids(place, record), found, FIELDS["boxes"].digits):
                width, height = result["bbox"][2:]
                if min(width, height) <= 0:
                    left_out["boxes without area"] += 1
                    continue
                number += 1
                yield {"id": number, **_with_area(result, (record["height"], record["width"])), "iscrowd": 0}

    info = {
        "description": f"Found by {model or 'a model'} with detr_hf {__version__}",
        "image_root": os.path.dirname(root) or ".",
    }
    categories = ({"id": label, "name": name} for label, name in sorted(id2label.items()) if name != UNUSED)
    lists = {"info": info, "images": images(), "categories": categories, "annotations": annotations()}
    write_json_lists(run.folder / COCO_INSTANCES, lists)
    for what, count in left_out.items():
        logger.warning("%s is without %d %s.", run.folder / COCO_INSTANCES, count, what)


def _with_area(result: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Returns the result with its area; a mask of no pixel goes, and leaves the box."""
    segmentation = result.get("segmentation")
    area = 0 if segmentation is None else int(run_length_counts(segmentation, size_hw)[1::2].sum())
    if area:
        return {**result, "area": area}
    return {**{key: value for key, value in result.items() if key != "segmentation"}, "area": _box_area(result)}


def _box_area(result: dict[str, Any]) -> float:
    return round(result["bbox"][2] * result["bbox"][3], FIELDS["boxes"].digits)


def _common_folder(run: RunFolder) -> str:
    """Returns what the names of all pictures begin with: a folder with a separator behind it, or nothing."""
    common = None
    for record in all_records(run):
        folder = os.path.dirname(record["picture"])
        try:
            common = folder if common is None else os.path.commonpath([common, folder])
        except ValueError:  # absolute and relative ones, or of other drives
            common = ""
        if not common:
            return ""
    return "" if common is None else os.path.join(common, "")
