"""A detector on an exported model: the same calls and the same `Detections`, without torch or transformers.

It is what `Detector.from_pretrained` returns for a file of `detr-hf export`. Batches are made as there, of pictures of
one processed size, so nothing is padded; an artefact of fixed size takes each picture on its canvas, with a mask, and
one of fixed batch size gets its missing pictures filled up with copies.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..export.artefact import ArtefactInfo
from ..export.processing import NumpyProcessor, detections_of
from ..export.runtimes import Runtime, load_runtime
from .batching import Prepared
from .detector import Detector


class ExportedDetector(Detector):
    """Finds objects in pictures with an exported DETR.

    >>> Detector.from_pretrained("detr-digits.onnx")("scene.png")
    """

    def __init__(self, runtime: Runtime, path: str | Path):
        self.model = runtime
        self.image_processor = NumpyProcessor(runtime.info)
        self.path = Path(path)

    @classmethod
    def from_artefact(
        cls, path: str | Path, *, device: Any = None, dtype: Any = None, threads: int | None = None
    ) -> "ExportedDetector":
        """A detector on the artefact at `path`.

        Args:
            path: what `find_artefact` returns.
            device: "cpu", the default, or "cuda" where the runtime can.
            dtype: None; the precision of an artefact is part of it.
            threads: that the model may use; the runtime's choice by default.

        Raises:
            ValueError: another `dtype` than the artefact's, or a device that its runtime lacks.
        """
        runtime = load_runtime(path, None if device is None else str(device), threads)
        if dtype is not None and str(dtype).removeprefix("torch.") != runtime.info.dtype:
            raise ValueError(
                f"{path} was exported in {runtime.info.dtype} and stays so: leave dtype out, or export the model "
                f"with --dtype {str(dtype).removeprefix('torch.')}."
            )
        return cls(runtime, path)

    @property
    def info(self) -> ArtefactInfo:
        """What the artefact says of itself."""
        return self.model.info

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by label."""
        return self.info.id2label

    def _processed(self, source: Any) -> tuple[tuple[int, int], np.ndarray]:
        return self.image_processor(source)

    def _results(self, batch: list[Prepared], threshold: float) -> list[dict[str, np.ndarray]]:
        step = self.info.batch or len(batch)
        results = []
        for first in range(0, len(batch), step):
            results += self._chunk_results(batch[first : first + step], threshold)
        return results

    def _chunk_results(self, chunk: list[Prepared], threshold: float) -> list[dict[str, np.ndarray]]:
        """What is found in no more pictures than the artefact takes at a time."""
        sizes_hw = [item.size_hw for item in chunk]
        filled = [*chunk, *[chunk[-1]] * ((self.info.batch or len(chunk)) - len(chunk))]
        pixel_mask = self.image_processor.pixel_mask([item.size_hw for item in filled])
        pixel_values = np.concatenate([item.pixel_values for item in filled])
        logits, boxes_cxcywh_norm = self.model(pixel_values, pixel_mask)
        return detections_of(logits[: len(chunk)], boxes_cxcywh_norm[: len(chunk)], threshold, sizes_hw)

    def fingerprint(self) -> str:
        """A text that differs as soon as the artefact's bytes do."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted({self.path, self.path.with_suffix(".bin")}):
            if file.is_file():
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    def __repr__(self) -> str:
        info = self.info
        return (
            f"ExportedDetector({self.path.name}: {info.model}, {len(info.id2label)} classes, {info.num_queries} "
            f"queries, {info.dtype}, {info.format}, {self.model.device})"
        )


__all__ = ["ExportedDetector"]
