"""COCO results: a list of `{"image_id", "category_id", "bbox", "score"}`, boxes x, y, width, height in pixels, with
`segmentation`, run lengths, where there are masks; as JSON the usual file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_files import whole_file

NEEDED = ("image_id", "category_id", "bbox", "score")  # or `segmentation` in the place of the box


def write_results(path: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes a results file, whole or not at all."""
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, result in enumerate(results):  # one at a time: the text of all would take more memory
            file.write((",\n" if number else "\n") + json.dumps(result))
        file.write("\n]\n")


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Returns the detections of a results file.

    Raises:
        ValueError: it is not a results file; the message says what was found.
    """
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        raise ValueError(
            f"{path} is a COCO annotation file; a results file is a list of detections with {', '.join(NEEDED)}."
        )
    if not isinstance(content, list):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a list of detections with {', '.join(NEEDED)}."
        )
    for number, result in enumerate(content):
        missing = [key for key in NEEDED if key not in result] if isinstance(result, dict) else list(NEEDED)
        if "segmentation" in result:
            missing = [key for key in missing if key != "bbox"]
        if missing:
            raise ValueError(f"Detection {number} of {path} has no {' and no '.join(missing)}.")
    return content


def read_json(path: str | Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def results_array(
    results: Sequence[Mapping[str, Any]],
    image_ids: Mapping[Any, int],
    labels: Mapping[Any, int],
    source: str = "the results",
) -> np.ndarray:
    """Returns results as (N, 7): image id, x, y, width, height, score, label.

    Args:
        results: detections with the ids of the data set's source.
        image_ids: source image id to the evaluation's.
        labels: source category id to label.
        source: what to call them in an error.

    Raises:
        ValueError: a picture or category that the data set does not have.
    """
    rows = np.empty((len(results), 7))
    for number, result in enumerate(results):
        for key, known in (("image_id", image_ids), ("category_id", labels)):
            if result[key] not in known:
                some = ", ".join(map(repr, list(known)[:10]))
                raise ValueError(
                    f"Detection {number} of {source} has {key} {result[key]!r}; the data set has "
                    f"{some}{', ...' if len(known) > 10 else ''}."
                )
        rows[number] = (image_ids[result["image_id"]], *result["bbox"], result["score"], labels[result["category_id"]])
    return rows


def coco_results(
    detections: np.ndarray,
    image_ids: Mapping[int, Any] | None = None,
    category_ids: Sequence[Any] | None = None,
    segmentations: Sequence[Any] | None = None,
) -> list[dict[str, Any]]:
    """Returns detections (N, 7) as COCO results: what `results_array` takes, the other way.

    Args:
        detections: image id, x, y, width, height, score, label.
        image_ids: the evaluation's image id to the source's; by default they are the same.
        category_ids: the source's category id by label; by default the label itself.
        segmentations: the run lengths of each, or None for one without.
    """
    results = [
        {
            "image_id": int(image_id) if image_ids is None else image_ids[int(image_id)],
            "category_id": int(label) if category_ids is None else category_ids[int(label)],
            "bbox": [round(side, 3) for side in box],
            "score": score,
        }
        for image_id, *box, score, label in detections.tolist()
    ]
    for result, segmentation in zip(results, segmentations or (), strict=False):
        if segmentation is not None:
            result["segmentation"] = segmentation
    return results
