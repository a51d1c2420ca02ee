"""A DETR with its image processor: pictures in, `Detections` out.

Pictures are never padded to each other. Each is processed alone, and those whose processed sizes are equal share a
batch. So what is found in a picture does not depend on the pictures beside it (padding would move the outputs, as it
does in the original), and no time goes into padding. Pictures of a camera share one size and fill their batches; a
folder where every size is different runs one by one. Threads read and process the next pictures while the model runs
(`batching.py`).

This module does not import torch: an exported model needs none (`backends.py`).
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from ..checkpoints.embedded import ABOUT, embedded_model_path
from ..checkpoints.finding import Hub, refuse_no_checkpoint
from ..export.artefact import find_artefact
from ..export.processing import read_pixels
from ..processing.image_sources_detr import plain_source
from .backends import ArtefactBackend, ModelBackend
from .batching import (
    BATCHES_PREPARED,
    PICTURE_ERRORS,
    Failure,
    Prepared,
    ordered_outcomes,
    prepare_ahead,
    preparing_threads,
)
from .forks import mind_fork
from .pictures import is_single_picture, path_of, stamp_of_source
from .results import BestBelow, Detections
from .segments import SegmentMap, chosen_task
from .showing import DetectionsList, shown_pixels
from .sources.opening import refuse_many

if TYPE_CHECKING:
    import torch

    from ..model.modeling_detr import DETRForObjectDetection
    from ..visualize.attention_maps import Attention

logger = logging.getLogger(__name__)

OnError = Callable[[Any, Exception], None]


class Detector:
    """Finds objects in pictures with a DETR model, and their masks with one that has a mask head.

    >>> detections = Detector.from_pretrained("facebook/detr-resnet-50")("street.jpg", threshold=0.7)
    >>> detections.save("street_boxes.png")
    """

    def __init__(self, model: "DETRForObjectDetection", image_processor: Any, task: str | None = None):
        self.backend: ModelBackend | ArtefactBackend = ModelBackend(model, image_processor, task)

    @classmethod
    def on(cls, backend: ModelBackend | ArtefactBackend) -> "Detector":
        """Returns a detector on a backend, such as an exported model's."""
        detector = cls.__new__(cls)
        detector.backend = backend
        return detector

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        task: str | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str = "main",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **loading: Any,
    ) -> "Detector":
        """Returns a detector with the weights and the preprocessing of a checkpoint.

        Args:
            name_or_path: whatever `DETRForObjectDetection.from_pretrained` takes: a folder or Hub id of this package,
                of transformers' DETR or of Table Transformer, or an original `.pth` file. "detr-digits" (or None,
                with a warning) is the small model that ships with the package and finds handwritten digits. Also what
                `detr-hf export` wrote: a `.onnx` or `.pt2` file, or an OpenVINO folder.
            task: "detection" for boxes alone, "instance" for masks too, "panoptic" (the default where the checkpoint
                has masks) for both and a map of segments; "semantic" for boxes and a map of classes, which needs the
                masks of all queries, where the others need those of the objects found.
            device: where to run; by default the first CUDA device, or else the CPU.
            dtype: of weights and computation, as `"bfloat16"` or `torch.bfloat16`; float32 by default. What
                is exported keeps its own.
            revision: of a Hub id, as in transformers.
            token: for a Hub id that not everybody may read, as in transformers.
            cache_dir: where what the Hub gives is kept.
            local_files_only: ask no Hub.
            **loading: further arguments of `DETRForObjectDetection.from_pretrained`, such as `subfolder`, `variant` or
                `use_safetensors`, or `nheads` of a weight file that does not show it.
        """
        if name_or_path is None:
            logger.warning("No model is named: %s", ABOUT)
        source = embedded_model_path() if name_or_path is None else name_or_path
        artefact = find_artefact(source)
        if artefact is not None:
            if loading:
                raise TypeError(f"{source} is an exported model, for which {', '.join(loading)} cannot be given.")
            return cls.on(ArtefactBackend.from_artefact(artefact, task=task, device=device, dtype=dtype))
        hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        of_hub = Hub(loading.get("subfolder") or "", **hub)
        refuse_no_checkpoint(source, of_hub)
        import torch

        from ..checkpoints.model_classes import load_model
        from ..checkpoints.processors import processor_of
        from ..model.compiling_detr import warn_of_slow_dtype
        from ..model.modeling_detr import DETRForObjectDetection

        load = DETRForObjectDetection.from_pretrained if task == "detection" else load_model
        model = load(source, dtype=dtype or torch.float32, **hub, **loading)
        chosen_task(task, model.has_mask_head, str(source))  # before anything moves to a device
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        warn_of_slow_dtype(model.dtype, device)
        return cls(model.to(device), processor_of(source, of_hub), task)

    @overload
    def __call__(
        self, images: list[Any] | tuple[Any, ...] | Iterator[Any], threshold: float = 0.7, batch_size: int = 8
    ) -> list[Detections]: ...

    @overload
    def __call__(
        self, images: str | Path | bytes | Image.Image, threshold: float = 0.7, batch_size: int = 8
    ) -> Detections: ...

    @overload
    def __call__(self, images: Any, threshold: float = 0.7, batch_size: int = 8) -> Detections | list[Detections]: ...

    def __call__(self, images: Any, threshold: float = 0.7, batch_size: int = 8) -> Detections | list[Detections]:
        """Returns the objects that score more than `threshold`: one `Detections` for one picture, a list for several.

        Args:
            images: a path, URL, encoded bytes, opened file or upload, row of `datasets.Image`, PIL image, array or
                tensor; or a list, an iterator or a 4-D batch of them.
            threshold: in [0, 1]; objects with a higher score are kept.
            batch_size: how many pictures of equal size go through the model together, at most.

        Raises:
            ValueError, TypeError, OSError: naming the picture that cannot be read, or whose outputs are not finite.
        """
        if is_single_picture(images):
            (detections,) = self.stream([images], threshold, batch_size)
            return detections
        return DetectionsList(self.stream(images, threshold, batch_size))

    def attention(self, picture: Any, threshold: float = 0.7, layer: int = -1, head: int | None = None) -> "Attention":
        """Returns what `visualize.attention` does, which says what it means."""
        from .looking import look

        seen = look(self, picture, threshold, layer, head)
        if isinstance(seen, Failure):
            raise seen.error
        return seen

    @property
    def gives_attention(self) -> bool:
        """Whether `attention` can be asked for: of a checkpoint's model, not of an exported or a converted one."""
        return hasattr(self.model, "transformer")

    def stream(
        self,
        images: Iterable[Any],
        threshold: float = 0.7,
        batch_size: int = 8,
        on_error: OnError | None = None,
        panoptic_threshold: float | None = None,
        masks_from: float | None = None,
    ) -> Iterator[Detections]:
        """Yields the detections of each picture, in order, while threads read the next ones.

        Only a few batches are held at a time. A picture that cannot be read is an error; with `on_error` it is
        left out instead, after `on_error(picture, error)` was called. `panoptic_threshold` is of the scores of
        panoptic segments, where it is another than that of boxes, as in an evaluation; and objects that do not score
        more than `masks_from` have an empty mask, which costs nothing.
        """
        of_masks: dict[str, Any] = {"panoptic_threshold": panoptic_threshold, "masks_from": masks_from}
        outcomes = self.outcomes(images, threshold, batch_size, **of_masks)
        return self._without_errors(outcomes, on_error)

    def outcomes(
        self,
        images: Iterable[Any],
        threshold: float = 0.7,
        batch_size: int = 8,
        *,
        unchanging: bool = False,
        panoptic_threshold: float | None = None,
        masks_from: float | None = None,
    ) -> Iterator[Detections | Failure]:
        """Yields for each picture, in order, its detections or what is wrong with it.

        `unchanging` promises that the pictures are objects of their own that nobody changes, so that threads may
        prepare arrays and PIL images too; paths and bytes they always do.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a score between 0 and 1, got {threshold}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        given = {"panoptic_threshold": panoptic_threshold, "masks_from": masks_from}
        of_masks = {name: value for name, value in given.items() if value is not None}
        return self._outcomes(images, threshold, batch_size, unchanging, of_masks)

    def _outcomes(
        self, images: Iterable[Any], threshold: float, batch_size: int, unchanging: bool, of_masks: dict[str, float]
    ) -> Iterator[Detections | Failure]:
        mind_fork()
        alone = isinstance(images, list | tuple) and len(images) == 1
        with nullcontext() if alone else preparing_threads() as pool:
            prepared = prepare_ahead(images, self._prepare, pool, batch_size * BATCHES_PREPARED, unchanging)
            yield from ordered_outcomes(
                prepared, lambda batch: self._detect_each(batch, threshold, **of_masks), batch_size
            )

    def _without_errors(
        self, outcomes: Iterator[Detections | Failure], on_error: OnError | None
    ) -> Iterator[Detections]:
        for outcome in outcomes:
            if isinstance(outcome, Detections):
                yield outcome
            elif on_error is None:
                raise outcome.error
            else:
                on_error(outcome.source, outcome.error)

    def _prepare(self, index: int, source: Any) -> Prepared:
        """Returns one picture, read and processed, with what shows it again: its file, its bytes, or a copy of it."""
        plain, name = plain_source(source, f"image {index}")
        refuse_many(plain, name)
        stamp = stamp_of_source(plain)
        pixels = read_pixels(plain, name, expects_0_255=self.backend.expects_0_255, takes_options=False)
        try:
            pixel_values, pixel_mask = self.backend.processed(pixels)
        except PICTURE_ERRORS as error:
            kind = next(kind for kind in PICTURE_ERRORS if isinstance(error, kind))
            raise kind(f"{name}: {error}") from error
        shown = None
        if stamp is None:
            shown = plain if isinstance(plain, bytes) else Image.fromarray(shown_pixels(pixels))
        size_hw = (pixels.shape[0], pixels.shape[1])
        return Prepared(index, source, size_hw, pixel_values, pixel_mask, stamp, shown)

    def _detect_each(self, batch: list[Prepared], threshold: float, **of_masks: float) -> list[Detections | Failure]:
        """Returns what is found in a batch; where outputs are not finite, each picture runs alone, to find whose."""
        try:
            results = self.backend.results(batch, threshold, **of_masks)
        except ValueError as error:
            if len(batch) > 1:
                return [outcome for item in batch for outcome in self._detect_each([item], threshold, **of_masks)]
            (item,) = batch
            why = ValueError(f"In the batch of image {item.index} ({path_of(item.source) or 'in memory'}): {error}")
            why.__cause__ = error
            return [Failure(item.index, item.source, why)]
        return [self._detections(item, result, threshold) for item, result in zip(batch, results, strict=True)]

    def _detections(self, item: Prepared, result: dict[str, Any], threshold: float) -> Detections:
        order = np.argsort(-result["scores"], kind="stable")
        names = ("scores", "labels", "boxes", "queries")
        found: dict[str, Any] = {name: result[name][order] for name in names if name in result}
        if "segmentations" in result:
            found["segmentations"] = [result["segmentations"][index] for index in order]
        if "panoptic" in result:
            found["panoptic"] = SegmentMap.of_panoptic(result["panoptic"], self._name_of)
        if "semantic" in result:
            found["semantic"] = SegmentMap.of_classes(result["semantic"], self._name_of)
        if "best_below" in result:
            label, score = result["best_below"]
            found["best_below"] = BestBelow(self._name_of(label), score, threshold)
        return Detections(
            **found,
            names=[self._name_of(label) for label in found["labels"].tolist()],
            id2label=self.id2label,
            size_hw=item.size_hw,
            path=path_of(item.source),
            source=item.shown,
            stamp=item.stamp,
        )

    def _name_of(self, label: int) -> str:
        return self.id2label.get(label, str(label))

    def resize_to(self, shortest_edge: int) -> None:
        """Changes the size of pictures for the model: so many pixels of the shorter side, the longer in proportion.

        Raises:
            ValueError: the image processor makes all pictures one size, or the exported model takes one size only.
        """
        self.backend.resize_to(shortest_edge)

    @property
    def task(self) -> str:
        """What is looked for: "detection", "instance", "panoptic" or "semantic"."""
        return self.backend.task

    @property
    def stuff_labels(self) -> list[int]:
        """The classes of which a picture has one panoptic segment at most; the others are things."""
        return self.backend.stuff_labels

    @property
    def model(self) -> Any:
        """The model in torch, or the runtime of an exported one."""
        return self.backend.model

    @model.setter
    def model(self, model: Any) -> None:
        self.backend.model = model

    @property
    def image_processor(self) -> Any:
        """What prepares pictures for the model."""
        return self.backend.image_processor

    @image_processor.setter
    def image_processor(self, image_processor: Any) -> None:
        self.backend.image_processor = image_processor

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by label."""
        return self.backend.id2label

    def fingerprint(self) -> str:
        """Returns a text that differs as soon as weights, architecture, preprocessing or precision do."""
        return self.backend.fingerprint()

    def __repr__(self) -> str:
        return f"Detector({self.backend})"
