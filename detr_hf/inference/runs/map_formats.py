"""Maps of pictures on disk, made of the records of a run: COCO's panoptic format, and PNGs of labels.

`panoptic/000000000139.png` holds segment ids, R + 256 G + 65536 B with 0 for nothing, and `panoptic.json` beside the
folder says what they are, in COCO's form: `images`, `categories` and `annotations`. The category ids are the model's
labels, and `isthing` is 1 for all but the classes that are fused. `semantic/000000000139.png` holds the label of each
pixel itself, and `semantic.json` says the like. A picture that could not be read has no map; its error stands in
`images`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...processing.panoptic_png_detr import write_panoptic_png
from ...processing.run_lengths_detr import run_length_mask
from ...whole_files import whole_file
from ..segments import mask_crop
from .result_formats import all_records, coco_ids, coco_images, write_json_lists
from .run_folder import RunFolder

# Kind of map, which names its folder and file -> where a record has it.
KEYS = {"panoptic": "segments", "semantic": "classes"}


def write_maps(run: RunFolder, kind: str, id2label: Mapping[int, str], stuff_labels: Sequence[int]) -> None:
    """Writes the maps of a complete run, each file whole or not at all, and last the JSON.

    Stopped and started again, it goes on with the maps that are missing.

    Args:
        run: whose records have maps of this kind.
        kind: "panoptic" or "semantic".
        id2label: class names by label.
        stuff_labels: the classes that are no things.
    """
    ids = coco_ids(run)
    stuff = set(stuff_labels)

    def annotations() -> Iterator[dict[str, Any]]:
        for place, record in enumerate(all_records(run)):
            if "error" in record:
                continue
            image_id = ids(place, record)
            name = f"{image_id:012d}.png"
            segments = record[KEYS[kind]]
            path = run.folder / kind / name
            if not path.exists():
                with whole_file(path, flushed=True) as unfinished:
                    _write_map(kind, segments, (record["height"], record["width"]), unfinished)
            infos = [_segment_info(kind, number, one, stuff) for number, one in enumerate(segments, start=1)]
            yield {"image_id": image_id, "file_name": name, "segments_info": infos}

    categories = ({"id": n, "name": name, "isthing": int(n not in stuff)} for n, name in sorted(id2label.items()))
    lists = {"images": coco_images(run, ids), "categories": categories, "annotations": annotations()}
    write_json_lists(run.folder / f"{kind}.json", lists)


def _write_map(kind: str, segments: Sequence[Mapping[str, Any]], size_hw: tuple[int, int], path: Path) -> None:
    map_ = np.zeros(size_hw, dtype=np.int32)
    for number, segment in enumerate(segments, start=1):
        map_[run_length_mask(segment["segmentation"], size_hw)] = number if kind == "panoptic" else segment["label"]
    if kind == "panoptic":
        write_panoptic_png(map_, path)
    else:
        Image.fromarray(map_.astype(np.uint8 if map_.max() < 256 else np.uint16)).save(path, "PNG")


def _segment_info(kind: str, number: int, segment: Mapping[str, Any], stuff: set[int]) -> dict[str, Any]:
    label = segment["label"]
    if kind == "semantic":
        return {"id": label, "category_id": label, "area": segment["area"]}
    x0, y0, pixels = mask_crop(segment["segmentation"])
    bbox = [x0, y0, pixels.shape[1], pixels.shape[0]]
    info = {"id": number, "category_id": label, "area": segment["area"], "bbox": bbox, "iscrowd": 0}
    return info | {"isthing": int(label not in stuff), "score": segment["score"]}
