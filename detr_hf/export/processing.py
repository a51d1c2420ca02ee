"""The image processor on Pillow and NumPy alone, for exported models: pictures to arrays and back to detections.

Files, bytes, PIL images and plain uint8 arrays go through the rules of `image_opening_detr` without torch. The rest
(tensors, floats, 16 bits, arrays whose layout has to be told) is handed to the reader of the image processors, which
imports torch. The resize is Pillow's, as in the original; torch's, the default of a `Detector` on a checkpoint, is
within one grey level of it but for isolated pixels.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

from ..model.predictions_detr import NO_MASK, Predictions
from ..processing.image_opening_detr import divides_by_255, opened_image, upright_image
from ..processing.image_sizes_detr import resized_by_pillow, resized_hw
from ..processing.image_sources_detr import as_array, plain_source
from ..processing.segments_detr import ImageMasks, softmax
from .artefact import ArtefactInfo

logger = logging.getLogger(__name__)

CHANNEL_COUNTS = (1, 3, 4)  # as in image_reading_detr


class NumpyProcessor:
    """Prepares pictures as an artefact's metadata says, and turns its outputs into detections.

    Raises:
        ValueError: the artefact takes other than three channels.
    """

    def __init__(self, info: ArtefactInfo):
        if info.num_channels != 3:
            raise ValueError(
                f"This artefact takes {info.num_channels} channels, and pictures are prepared in RGB. Run it with "
                "detr_hf.export.load_runtime and pixels of your own."
            )
        self.info = info
        self._has_warned = False
        constants = info.preprocessing
        rescale = float(constants["rescale_factor"]) if constants.get("do_rescale", True) else 1.0
        mean, std = np.zeros(3), np.ones(3)
        if constants.get("do_normalize", True):
            mean, std = np.array(constants["image_mean"], float), np.array(constants["image_std"], float)
        # in one step: (x * rescale - mean) / std
        self._scale = (rescale / std).astype(np.float32).reshape(-1, 1, 1)
        self._shift = (-mean / std).astype(np.float32).reshape(-1, 1, 1)

    def __call__(self, source: Any) -> tuple[tuple[int, int], np.ndarray]:
        """Returns the upright picture's (height, width), and its `pixel_values (1, 3, H, W)` float32.

        An artefact of fixed size, or whose image processor pads to one, gets the image at the top left of the canvas,
        the rest zero; one of fixed size that takes no mask gets it stretched over the canvas.
        """
        pixels = read_pixels(source, expects_0_255=self.expects_0_255)  # (H, W, 3)
        return (pixels.shape[0], pixels.shape[1]), self.processed(pixels)

    @property
    def expects_0_255(self) -> bool:
        """Whether pixels are read in 0..255, so that floats in 0..1 would come out black."""
        constants = self.info.preprocessing
        return divides_by_255(constants.get("do_rescale", True), constants.get("rescale_factor"))

    def processed(self, pixels: np.ndarray) -> np.ndarray:
        """Returns `pixel_values (1, 3, H, W)` float32 of upright pixels (H, W, 3)."""
        height, width = hw = self.content_hw((pixels.shape[0], pixels.shape[1]))
        resized = resized_by_pillow(pixels, hw, self.info.preprocessing.get("resample", 2))
        canvas = np.zeros((1, 3, *(self.padded_hw or hw)), dtype=np.float32)
        content = canvas[0, :, :height, :width]
        np.multiply(resized.transpose(2, 0, 1), self._scale, out=content, dtype=np.float32)
        content += self._shift
        return canvas

    @property
    def padded_hw(self) -> tuple[int, int] | None:
        """(height, width) of the canvas: the artefact's own, or the one that its image processor pads to."""
        pad_size = self.info.preprocessing.get("pad_size") if self.info.preprocessing.get("do_pad", True) else None
        return self.info.size_hw or (pad_size and (int(pad_size["height"]), int(pad_size["width"]))) or None

    def content_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the (height, width) that an image of `image_hw` is resized to."""
        constants, canvas_hw = self.info.preprocessing, self.padded_hw
        if canvas_hw is not None and not self.info.masked:
            return canvas_hw
        hw = image_hw
        if constants.get("do_resize", True):
            hw = resized_hw(image_hw, constants["size"], constants.get("resize_rule", "original"))
        if canvas_hw is None or (hw[0] <= canvas_hw[0] and hw[1] <= canvas_hw[1]):
            return hw
        if self.info.size_hw is None:
            raise ValueError(
                f"The image processor pads to (height, width) {canvas_hw}, which is smaller than an image of {hw}. "
                "Enlarge its pad_size, or make its size smaller, and export again."
            )
        return resized_hw(image_hw, {"max_height": canvas_hw[0], "max_width": canvas_hw[1]})

    def pixel_mask(self, sizes_hw: list[tuple[int, int]]) -> np.ndarray | None:
        """Returns (B, H, W) bool for these upright sizes, True on the image; None where nothing is padded."""
        if self.padded_hw is None or not self.info.masked:
            return None
        mask = np.zeros((len(sizes_hw), *self.padded_hw), dtype=bool)
        for canvas, image_hw in zip(mask, sizes_hw, strict=True):
            height, width = self.content_hw(image_hw)
            canvas[:height, :width] = True
        return mask

    def masks_of(
        self, predictions: Predictions, threshold: float, sizes_hw: list[tuple[int, int]]
    ) -> Iterator[ImageMasks]:
        """Yields for each image the masks of the queries that `detections_of` keeps, in the same order.

        A query without a mask, which is not among the best of an artefact with `mask_queries`, has an empty one; that
        is said in the log, once for this processor.
        """
        for index, size_hw in enumerate(sizes_hw):
            probabilities = softmax(predictions.logits[index])
            kept = np.flatnonzero(probabilities[:, :-1].max(-1) > threshold)
            masks = predictions.masks[index]
            if predictions.mask_queries is None:
                masks = masks[kept]
            else:
                masks = self._placed(masks, kept[:, None] == predictions.mask_queries[index])
            inside = self.content_hw(size_hw)
            yield ImageMasks(masks, probabilities[kept], inside, self.padded_hw or inside, size_hw)

    def _placed(self, masks: np.ndarray, is_of: np.ndarray) -> np.ndarray:
        """Returns a mask for each row of `is_of` (N, K): the one that is the row's, or an empty one."""
        rows, columns = np.nonzero(is_of)
        missing = len(is_of) - len(rows)
        if missing and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d of %d objects in a picture have a box and no mask: this model was exported with the masks of the "
                "%d best. Raise the threshold, or export with a larger --mask-queries. (Said once.)",
                missing,
                len(is_of),
                is_of.shape[1],
            )
        placed = np.full((len(is_of), *masks.shape[1:]), NO_MASK, dtype=np.float32)
        placed[rows] = masks[columns]
        return placed


def detections_of(
    predictions: Predictions, threshold: float, sizes_hw: list[tuple[int, int]]
) -> list[dict[str, np.ndarray]]:
    """Returns for each image `scores`, `labels`, `queries` (N,) and `boxes` (N, 4), xyxy in its pixels and inside it.

    `predictions` are of the last decoder layer, `sizes_hw` those of the upright images; higher scores are kept. Where
    there is none `best_below` says class and score of what came nearest.

    Raises:
        ValueError: outputs with NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in predictions if values is not None):
        raise ValueError("The exported model's outputs hold NaN or infinity. Check its inputs, or export it again.")
    probabilities = softmax(predictions.logits)[..., :-1]
    labels, scores = probabilities.argmax(-1), probabilities.max(-1)  # (B, Q)
    centers, half_sizes = predictions.boxes_cxcywh_norm[..., :2], predictions.boxes_cxcywh_norm[..., 2:] / 2
    boxes_xyxy_norm = np.concatenate([centers - half_sizes, centers + half_sizes], axis=-1)
    results = []
    for index, (height, width) in enumerate(sizes_hw):
        keep = scores[index] > threshold
        sides = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.clip(boxes_xyxy_norm[index][keep] * sides, 0, sides)
        of_each = {"scores": scores[index][keep], "labels": labels[index][keep], "queries": np.flatnonzero(keep)}
        results.append(of_each | {"boxes": boxes})
        if not keep.any():
            best = int(scores[index].argmax())
            results[-1]["best_below"] = (int(labels[index, best]), float(scores[index, best]))
    return results


def read_pixels(
    source: Any, name: str = "image 0", *, expects_0_255: bool = True, takes_options: bool = True
) -> np.ndarray:
    """Returns the upright image as (H, W, 3), uint8 or float32, both in 0..255 where that is expected.

    The arguments and errors are those of `read_image`, which reads all that needs torch.
    """
    image, name = plain_source(source, name)
    if isinstance(image, str | os.PathLike | bytes):
        image = opened_image(image, name)
    plain = image
    if isinstance(image, PIL.Image.Image):
        plain, _ = upright_image(image, name)
        if plain.mode in ("RGB", "RGBA"):
            plain = np.asarray(plain)
    elif isinstance(image, np.ndarray):
        plain = as_array(image, name)
    if isinstance(plain, np.ndarray) and _is_plain(plain):
        return _rgb(plain if plain.ndim == 3 else plain[..., None])
    from ..processing.image_reading_detr import read_image  # imports torch

    return read_image(image, name, expects_0_255=expects_0_255, takes_options=takes_options).numpy(force=True)


def _is_plain(pixels: np.ndarray) -> bool:
    """Whether these are uint8 pixels, channels last beyond doubt."""
    if pixels.dtype != np.uint8 or 0 in pixels.shape or pixels.ndim not in (2, 3):
        return False
    return pixels.ndim == 2 or (pixels.shape[2] in CHANNEL_COUNTS and pixels.shape[0] not in CHANNEL_COUNTS)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns (H, W, 3) uint8 of one, three or four channels; alpha is laid on white."""
    channels = pixels.shape[2]
    if channels == 3:
        return pixels
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if (alpha == 255).all():
        return colour
    blended = 255 + (colour.astype(np.float32) - 255) * (alpha.astype(np.float32) / 255)
    return blended.round().astype(np.uint8)
