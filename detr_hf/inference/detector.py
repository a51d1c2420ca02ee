"""A DETR with its image processor: pictures in, `Detections` out.

Pictures are never padded here. Each is processed alone, and those whose processed sizes are equal share a batch. So
what is found in a picture does not depend on the pictures beside it (padding would move the outputs, as it does in the
original), and no time goes into padding. Pictures of a camera share one size and fill their batches; a folder where
every size is different runs one by one.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..image_processing_detr import DETRImageProcessor
from ..image_reading_detr import read_images
from ..modeling_detr import DETRForObjectDetection
from .detections import Detections
from .embedded import embedded_model_path
from .pictures import is_single_picture, path_of

logger = logging.getLogger(__name__)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# This many batches are read ahead, in which pictures of equal size are looked for.
BATCHES_AHEAD = 8

OnError = Callable[[Any, Exception], None]


class Prepared(NamedTuple):
    """A picture on its way: place in the order, source, upright (height, width), and `pixel_values (1, C, H, W)`."""

    index: int
    source: Any
    size_hw: tuple[int, int]
    pixel_values: Tensor


class Detector:
    """Finds objects in pictures with a DETR model.

    >>> detections = Detector.from_pretrained("facebook/detr-resnet-50")("street.jpg", threshold=0.7)
    >>> detections.save("street_boxes.png")
    """

    def __init__(self, model: DETRForObjectDetection, image_processor: Any):
        self.model = model.eval()
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str = "main",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "Detector":
        """A detector with the weights and the preprocessing of a checkpoint.

        Args:
            name_or_path: whatever `DETRForObjectDetection.from_pretrained` takes: a folder or Hub id of this package,
                of transformers' DETR or of Table Transformer, or an original `.pth` file. None is the small model that
                ships with the package and finds handwritten digits.
            device: where to run; by default the first CUDA device, or else the CPU.
            dtype: of weights and computation, as `"bfloat16"` or `torch.bfloat16`; float32 by default.
            revision, token, cache_dir, local_files_only: as in transformers, for a Hub id.
        """
        source = embedded_model_path() if name_or_path is None else name_or_path
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        model = DETRForObjectDetection.from_pretrained(source, dtype=dtype or torch.float32, **hub)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), _load_processor(source, hub))

    def __call__(self, images: Any, threshold: float = 0.7, batch_size: int = 8) -> Detections | list[Detections]:
        """The objects that score more than `threshold`: one `Detections` for one picture, a list for several.

        Args:
            images: a path, `Path`, encoded bytes, PIL image, array or tensor; or a list, an iterator or a 4-D batch of
                them.
            threshold: in [0, 1]; objects with a higher score are kept.
            batch_size: how many pictures of equal size go through the model together, at most.

        Raises:
            ValueError, TypeError, OSError: naming the picture that cannot be read, or whose outputs are not finite.
        """
        if is_single_picture(images):
            (detections,) = self.stream([images], threshold, batch_size)
            return detections
        return list(self.stream(images, threshold, batch_size))

    def stream(
        self,
        images: Iterable[Any],
        threshold: float = 0.7,
        batch_size: int = 8,
        on_error: OnError | None = None,
    ) -> Iterator[Detections]:
        """Yields the detections of each picture, in order, while later pictures are still to be read.

        Only a few batches are held at a time. A picture that cannot be read is an error; with `on_error` it is
        left out instead, after `on_error(picture, error)` was called.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a score between 0 and 1, got {threshold}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        return self._stream(images, threshold, batch_size, on_error)

    def _stream(
        self, images: Iterable[Any], threshold: float, batch_size: int, on_error: OnError | None
    ) -> Iterator[Detections]:
        numbered = enumerate(images)
        while window := list(islice(numbered, batch_size * BATCHES_AHEAD)):
            prepared = [item for index, source in window if (item := self._prepare(index, source, on_error))]
            found: dict[int, Detections] = {}
            for batch in equal_size_batches(prepared, batch_size):
                found.update(zip((item.index for item in batch), self._detect(batch, threshold), strict=True))
            for item in prepared:
                yield found[item.index]

    def _prepare(self, index: int, source: Any, on_error: OnError | None) -> Prepared | None:
        """Reads and processes one picture; None where it could not be read and `on_error` took note."""
        try:
            (pixels,) = read_images(source)  # (H, W, 3)
            features = self.image_processor(pixels, input_data_format="channels_last", return_tensors="pt")
        except (OSError, TypeError, ValueError) as error:
            # The reader saw a list of one; the caller's list may be longer.
            named = type(error)(f"image {index}{str(error).removeprefix('image 0')}")
            if on_error is None:
                raise named from error
            on_error(source, named)
            return None
        return Prepared(index, source, tuple(pixels.shape[:2]), features["pixel_values"])

    @torch.inference_mode()
    def _detect(self, batch: list[Prepared], threshold: float) -> list[Detections]:
        """Runs pictures of one processed size through the model."""
        parameter = next(self.model.parameters())
        pixel_values = torch.cat([item.pixel_values for item in batch])
        outputs = self.model(pixel_values.to(parameter.device, parameter.dtype))
        outputs = type(outputs)(logits=outputs.logits.cpu(), pred_boxes=outputs.pred_boxes.cpu())
        target_sizes = torch.tensor([item.size_hw for item in batch])
        try:
            results = self.image_processor.post_process_object_detection(
                outputs, threshold=threshold, target_sizes=target_sizes
            )
        except ValueError as error:
            named = ", ".join(f"image {item.index} ({path_of(item.source) or 'in memory'})" for item in batch)
            raise ValueError(f"In the batch of {named}: {error}") from error
        return [self._detections(item, result) for item, result in zip(batch, results, strict=True)]

    def _detections(self, item: Prepared, result: dict[str, Tensor]) -> Detections:
        order = result["scores"].argsort(descending=True, stable=True)
        labels = result["labels"][order].tolist()
        id2label = self.model.config.id2label
        path = path_of(item.source)
        return Detections(
            result["boxes"][order].numpy(),
            result["scores"][order].numpy(),
            labels,
            [id2label.get(label, str(label)) for label in labels],
            size_hw=item.size_hw,
            path=path,
            source=None if path is not None else item.source,
        )

    def __repr__(self) -> str:
        config = self.model.config
        parameter = next(self.model.parameters())
        return (
            f"Detector({config.backbone}, {config.num_labels} classes, {config.num_queries} queries, "
            f"{parameter.dtype}, {parameter.device})"
        )


def equal_size_batches(prepared: list[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Splits pictures into batches of one processed size, so that none of them is padded."""
    by_size: dict[tuple[int, ...], list[Prepared]] = defaultdict(list)
    for item in prepared:
        by_size[tuple(item.pixel_values.shape[-2:])].append(item)
    for items in by_size.values():
        # 9 pictures at a batch size of 8 are better run as 5 and 4 than as 8 and 1.
        batches = math.ceil(len(items) / batch_size)
        for first in range(batches):
            yield items[first::batches]


def _load_processor(source: str | Path, hub: dict[str, Any]) -> DETRImageProcessor:
    """The checkpoint's own preprocessing; the original's (800 to 1333 pixels) where a file or folder holds none."""
    path = Path(source)
    if path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in PROCESSOR_FILES)):
        logger.warning("%s says nothing of image sizes: pictures are resized as the original does.", path)
        return DETRImageProcessor()
    return DETRImageProcessor.from_pretrained(source, **hub)
