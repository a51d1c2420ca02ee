"""What a `Detector` runs on: a checkpoint's model in torch, or an exported model without torch and transformers.

Neither pads pictures to each other: those of one processed size come together. Where the image processor pads to a
canvas of its own, or an artefact is of fixed size, a picture comes with its mask; an artefact of fixed batch size gets
its missing pictures filled up with copies.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..export.artefact import each_field
from ..export.processing import NumpyProcessor, detections_of
from ..export.runtimes import Runtime, load_runtime
from ..processing.image_opening_detr import divides_by_255
from ..processing.image_sizes_detr import scaled_size
from ..processing.segments_detr import checked_labels
from .batching import Prepared
from .segments import chosen_task, segmented

if TYPE_CHECKING:
    from ..model.modeling_detr import DETRForObjectDetection


ROUNDING = 0.01  # more than bfloat16's, of scores


def expects_0_255(image_processor: Any) -> bool:
    """Whether an image processor in torch reads pixels in 0..255."""
    do_rescale = getattr(image_processor, "do_rescale", True)
    return divides_by_255(do_rescale, getattr(image_processor, "rescale_factor", 1 / 255))


def processed(image_processor: Any, pixels: np.ndarray) -> tuple[Any, Any]:
    """Returns what `ModelBackend.processed` does, with any image processor in torch."""
    features = image_processor(pixels, input_data_format="channels_last", return_tensors="pt")
    pixel_mask = features.get("pixel_mask")
    return features["pixel_values"], None if pixel_mask is None or pixel_mask.all() else pixel_mask.bool()


class ModelBackend:
    """A model in torch, with the image processor of its checkpoint; `str` of it tells what it is, for people.

    `task` is of `TASKS`, by default all that the model can.

    Raises:
        ValueError: the model has no masks for the task, or has them only at random; or the image processor fuses
            classes that the model does not have.
    """

    def __init__(self, model: "DETRForObjectDetection", image_processor: Any, task: str | None = None):
        if getattr(model, "mask_head_is_new", False):
            from ..model.segmentation_detr import refuse_without_masks

            refuse_without_masks(model)
        self.task = chosen_task(task, getattr(model, "has_mask_head", False), getattr(model, "name_or_path", "model"))
        self.model = model.eval()
        self.image_processor = image_processor
        if self.task == "panoptic":
            checked_labels(self.stuff_labels, model.config.num_labels)

    @property
    def expects_0_255(self) -> bool:
        """Whether pixels are read in 0..255, so that floats in 0..1 would come out black."""
        return expects_0_255(self.image_processor)

    def processed(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """Returns `pixel_values (1, C, H, W)` of upright pixels (H, W, 3), and `pixel_mask (1, H, W)` if padded."""
        return processed(self.image_processor, pixels)

    def results(
        self,
        batch: list[Prepared],
        threshold: float,
        panoptic_threshold: float | None = None,
        masks_from: float | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Returns for each picture `scores`, `labels`, `queries` (N,) and `boxes` (N, 4), xyxy in its pixels.

        Where there is none `best_below`, class and score of what came nearest to the threshold.
        Besides, whatever `segmented` gives for the task, of the same queries in the same order; those that do not
        score more than `masks_from` need no mask.

        Raises:
            ValueError: the model's outputs are not finite.
        """
        import torch

        parameter = next(self.model.parameters())
        with torch.inference_mode():
            pixel_values = torch.cat([item.pixel_values for item in batch])
            inputs = {"pixel_values": pixel_values.to(parameter.device, parameter.dtype)}
            if any(item.pixel_mask is not None for item in batch):
                whole = torch.ones(1, *pixel_values.shape[-2:], dtype=torch.bool)
                masks = [whole if item.pixel_mask is None else item.pixel_mask.cpu() for item in batch]
                inputs["pixel_mask"] = torch.cat(masks).to(parameter.device)
            outputs = self.model(**inputs, **self._asked_masks(threshold, masks_from))
            boxes = type(outputs)(logits=outputs.logits.cpu(), pred_boxes=outputs.pred_boxes.cpu())
            results = self.image_processor.post_process_object_detection(
                boxes, threshold=threshold, target_sizes=torch.tensor([item.size_hw for item in batch])
            )
            scores = boxes.logits.float().softmax(-1)[..., :-1].amax(-1)  # (B, Q), as post-processing has them
            results = [
                {**{name: values.numpy() for name, values in result.items()}, "queries": np.flatnonzero(kept)}
                for result, kept in zip(results, scores > threshold, strict=True)
            ]
            for image, result in enumerate(results):
                if not len(result["queries"]):
                    best = int(scores[image].argmax())
                    label = int(boxes.logits[image, best, :-1].argmax())
                    result["best_below"] = (label, float(scores[image, best]))
            if self.task == "detection":
                return results
            of_segments = threshold if panoptic_threshold is None else panoptic_threshold
            sizes_hw = [item.size_hw for item in batch]
            masks = self._masks(outputs, results, of_segments, masks_from, sizes_hw)
            return [result | of_image for result, of_image in zip(results, masks, strict=True)]

    def _asked_masks(self, threshold: float, masks_from: float | None) -> dict[str, float]:
        """Returns the argument by which a model with a mask head runs it on the queries that need one."""
        if not getattr(self.model, "has_mask_head", False):
            return {}
        if self.task == "detection":
            return {"mask_score_threshold": 1.0}
        if self.task == "semantic":
            return {"mask_score_threshold": -1.0}
        # The device rounds scores otherwise than the processor does here: none at the threshold may lack its mask.
        return {"mask_score_threshold": max(threshold - ROUNDING, -1.0 if masks_from is None else masks_from)}

    def _masks(
        self,
        outputs: Any,
        results: list[dict[str, np.ndarray]],
        threshold: float,
        masks_from: float | None,
        sizes_hw: list[tuple[int, int]],
    ) -> Iterator[dict[str, Any]]:
        import torch

        from ..processing.mask_post_processing_detr import images_of

        fused_labels = set(self.stuff_labels)
        every_query = np.arange(outputs.logits.shape[1])
        for image, size_hw in enumerate(sizes_hw):
            kept = every_query if self.task == "semantic" else results[image]["queries"]
            queries = torch.from_numpy(kept).to(outputs.pred_masks.device)
            of_image = {name: outputs[name][image : image + 1] for name in ("image_sizes_hw", "padded_sizes_hw")}
            of_image |= {name: outputs[name][image, queries][None] for name in ("logits", "pred_masks")}
            (masks,) = images_of(of_image, [size_hw])
            yield segmented(masks, self.task, threshold, fused_labels, masks_from)

    def resize_to(self, shortest_edge: int) -> None:
        """Changes the size of pictures, see `Detector.resize_to`."""
        self.image_processor.size = scaled_size(self.image_processor.to_dict(), shortest_edge)

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by label."""
        return self.model.config.id2label

    @property
    def stuff_labels(self) -> list[int]:
        """The classes of which a picture has one panoptic segment at most."""
        return sorted(getattr(self.image_processor, "label_ids_to_fuse", ()))

    def fingerprint(self) -> str:
        """Returns a text that differs as soon as weights, architecture, preprocessing or precision do."""
        import torch

        settings = {**self.model.config.to_diff_dict(), **self.image_processor.to_dict()}
        plain = {key: value for key, value in settings.items() if key not in ("_name_or_path", "transformers_version")}
        digest = hashlib.blake2b(json.dumps(plain, sort_keys=True, default=str).encode(), digest_size=16)
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def __str__(self) -> str:
        config = self.model.config
        parameter = next(self.model.parameters())
        return (
            f"{config.backbone}, {config.num_labels} classes, {config.num_queries} queries, "
            f"{parameter.dtype}, {parameter.device}"
        )


class ArtefactBackend:
    """An exported model in its runtime, with the preprocessing that its file describes; does what `ModelBackend` does.

    The fingerprint is taken of the file at `path`.
    """

    def __init__(self, runtime: Runtime, path: str | Path, task: str | None = None):
        self.task = chosen_task(task, runtime.info.has_masks, str(path))
        if self.task == "semantic" and runtime.info.mask_queries is not None:
            raise ValueError(
                f"{path} gives the masks of the {runtime.info.mask_queries} best queries, and a semantic map is made "
                "of all: export the model without --mask-queries, or use task='panoptic' (--task)."
            )
        self.model = runtime
        self.image_processor = NumpyProcessor(runtime.info)
        self.path = Path(path)

    @classmethod
    def from_artefact(
        cls, path: Path, *, task: str | None = None, device: Any = None, dtype: Any = None
    ) -> "ArtefactBackend":
        """Returns a backend on the artefact at `path`, on the CPU by default.

        Raises:
            ValueError: another `dtype` than the artefact's, a device that its runtime lacks, or a task that needs
                masks where it has none.
        """
        runtime = load_runtime(path, device)
        if dtype is not None and str(dtype).removeprefix("torch.") != runtime.info.dtype:
            raise ValueError(
                f"{path} was exported in {runtime.info.dtype} and stays so: leave dtype out, or export the model "
                f"with --dtype {str(dtype).removeprefix('torch.')}."
            )
        return cls(runtime, path, task)

    @property
    def expects_0_255(self) -> bool:
        return self.image_processor.expects_0_255

    def processed(self, pixels: np.ndarray) -> tuple[np.ndarray, None]:
        """Returns `pixel_values`; the mask of a batch follows from its sizes."""
        return self.image_processor.processed(pixels), None

    def results(
        self,
        batch: list[Prepared],
        threshold: float,
        panoptic_threshold: float | None = None,
        masks_from: float | None = None,
    ) -> list[dict[str, Any]]:
        step = self.model.info.batch or len(batch)
        thresholds = (threshold, threshold if panoptic_threshold is None else panoptic_threshold, masks_from)
        results = []
        for first in range(0, len(batch), step):
            results += self._chunk_results(batch[first : first + step], *thresholds)
        return results

    def _chunk_results(
        self, chunk: list[Prepared], threshold: float, panoptic_threshold: float, masks_from: float | None
    ) -> list[dict[str, Any]]:
        """Returns what is found in no more pictures than the artefact takes at a time."""
        sizes_hw = [item.size_hw for item in chunk]
        filled = [*chunk, *[chunk[-1]] * ((self.model.info.batch or len(chunk)) - len(chunk))]
        pixel_mask = self.image_processor.pixel_mask([item.size_hw for item in filled])
        pixel_values = np.concatenate([item.pixel_values for item in filled])
        predictions = each_field(self.model(pixel_values, pixel_mask), lambda values: values[: len(chunk)])
        results = detections_of(predictions, threshold, sizes_hw)
        if self.task == "detection":
            return results
        least, fused_labels = -1.0 if self.task == "semantic" else threshold, set(self.stuff_labels)
        masks = self.image_processor.masks_of(predictions, least, sizes_hw)
        return [
            result | segmented(of_image, self.task, panoptic_threshold, fused_labels, masks_from)
            for result, of_image in zip(results, masks, strict=True)
        ]

    def resize_to(self, shortest_edge: int) -> None:
        """Changes the size of pictures, see `Detector.resize_to`."""
        info = self.image_processor.info
        if info.size_hw is not None:
            raise ValueError(
                f"{self.path} takes images of {info.size_hw[0]}x{info.size_hw[1]} only: export the model with "
                "--dynamic, or with the size that is wanted."
            )
        size = scaled_size(info.preprocessing, shortest_edge)
        self.image_processor.info = replace(info, preprocessing={**info.preprocessing, "size": size})

    @property
    def id2label(self) -> dict[int, str]:
        return self.model.info.id2label

    @property
    def stuff_labels(self) -> list[int]:
        return sorted(self.model.info.label_ids_to_fuse)

    def fingerprint(self) -> str:
        """Returns a text that differs as soon as the artefact's bytes do."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted({self.path, self.path.with_suffix(".bin")}):
            if file.is_file():
                with file.open("rb") as stream:
                    hashlib.file_digest(stream, lambda: digest)
        return digest.hexdigest()

    def __str__(self) -> str:
        info = self.model.info
        return (
            f"{self.path.name}: {info.model}, {len(info.id2label)} classes, {info.num_queries} queries, "
            f"{info.dtype}, {info.format}, {self.model.device}"
        )
