"""A detector without a network, for what happens around it, and a run that can be killed: `python -m
tests.inference.stand_in SOURCE OUT SECONDS_A_PICTURE [FORMAT]`.

It imports no torch, so a process is there in a fraction of a second.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from detr_hf.inference.batching import Failure, Prepared, ordered_outcomes, prepare_ahead
from detr_hf.inference.pictures import path_of
from detr_hf.inference.results import Detections
from detr_hf.inference.runs.prediction import predict_to_shards
from detr_hf.inference.runs.result_formats import FORMATS
from detr_hf.inference.segments import SegmentMap
from detr_hf.inference.sources.base import SourceOptions
from detr_hf.processing.run_lengths_detr import run_lengths


class StandIn:
    """Finds in each picture one object as large as the picture, whose score is the mean brightness.

    Its mask are the pixels that are brighter; in a panoptic map the rest is sand, but for the first row, which is
    nothing.
    """

    id2label: ClassVar = {1: "thing", 300: "sand"}
    stuff_labels = (300,)

    def __init__(self, seconds_a_picture: float = 0.0, name: str = "stand-in", task: str = "detection"):
        self.seconds_a_picture = seconds_a_picture
        self.name = name
        self.task = task
        self.seen = 0

    def fingerprint(self) -> str:
        return self.name

    def outcomes(
        self, images: Iterable, threshold: float, batch_size: int, *, unchanging: bool = False
    ) -> Iterator[Detections | Failure]:
        prepared = prepare_ahead(images, self.prepare, None, 1, unchanging)
        return ordered_outcomes(prepared, self.detect, batch_size)

    def prepare(self, index: int, source) -> Prepared:
        if isinstance(source, bytes | str | Path):
            import io

            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = np.asarray(image.convert("RGB"))
        else:
            pixels = np.asarray(source)
        shown = Image.fromarray(pixels) if isinstance(source, np.ndarray) else None
        return Prepared(index, source, pixels.shape[:2], pixels.transpose(2, 0, 1)[None], shown=shown)

    def detect(self, batch: list[Prepared]) -> list[Detections]:
        time.sleep(self.seconds_a_picture * len(batch))
        self.seen += len(batch)
        return [
            Detections(
                [[0, 0, item.size_hw[1], item.size_hw[0]]],
                [item.pixel_values.mean() / 255],
                [1],
                ["thing"],
                size_hw=item.size_hw,
                path=path_of(item.source),
                source=item.shown,
                **self.masks(item),
            )
            for item in batch
        ]

    def masks(self, item: Prepared) -> dict[str, Any]:
        brightness = item.pixel_values[0].mean(axis=0)
        bright = brightness > brightness.mean()
        if self.task == "detection":
            return {}
        if self.task == "semantic":
            return {"semantic": SegmentMap.of_classes(np.where(bright, 1, 300), self.id2label.get)}
        masks: dict[str, Any] = {"segmentations": [run_lengths(bright)]}
        if self.task == "panoptic":
            ids = np.where(bright, 1, 2)
            ids[0] = 0
            segments = [
                {"id": number, "label_id": label, "score": 0.5, "was_fused": False, "area": int((ids == number).sum())}
                for number, label in ((1, 1), (2, 300))
            ]
            found = {"segmentation": ids, "segments_info": segments}
            masks["panoptic"] = SegmentMap.of_panoptic(found, self.id2label.get)
        return masks


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Writes small PNG files of three sizes, brighter and brighter."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:05d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        size_hw = [(12, 16), (16, 12), (12, 12)][number % 7 % 3]
        pixels = rng.integers(0, 56, (*size_hw, 3)) + 200 * number // max(count, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return paths


if __name__ == "__main__":
    source, out, seconds, *rest = sys.argv[1:]
    format = rest[0] if rest else "jsonl"
    detector = StandIn(float(seconds), task=FORMATS[format] or "detection")
    options = SourceOptions(shard_size=37)
    predict_to_shards(detector, source, out, threshold=0.0, batch_size=4, format=format, options=options)
