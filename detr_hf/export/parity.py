"""Whether an exported model gives what the model gives: asked on several batches, sizes and masks before it is kept.

The inputs are made from a seed: colours that change smoothly over the picture, with a little noise. The outputs are
compared as a user sees them, in scores and boxes, and for float32 in raw logits too. A graph that was traced for one
size, ignores its mask or mixes up pictures of a batch is off by far more than any precision allows.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .artefact import ArtefactInfo

if TYPE_CHECKING:
    from ..model.modeling_detr import DETRForObjectDetection
    from .runtimes import Runtime

# The mean difference that scores and boxes (both in [0, 1]) may show, by precision; float32 is held to the largest
# difference instead, in logits relative to the largest logit. Boxes of queries that see nothing, which is most of them
# on made-up pictures, move by up to 0.012 on average where bfloat16 is computed in and not merely stored.
MEAN_TOLERANCE = {"float16": 5e-3, "bfloat16": 2e-2, "int8": 5e-2}
FLOAT32_TOLERANCE = 1e-4
# (height, width) of the test inputs of an artefact that takes any; 333 does not divide by the stride of a backbone,
# and of 800 a graph that computes lengths in bfloat16 makes a cell too many.
SIZES_HW = ((160, 224), (224, 160), (192, 333), (64, 800))


class Case(NamedTuple):
    """One input: `pixel_values (B, C, H, W)` float32 and `pixel_mask (B, H, W)` bool, or None for no mask."""

    pixel_values: np.ndarray
    pixel_mask: np.ndarray | None

    def __str__(self) -> str:
        batch, _, height, width = self.pixel_values.shape
        padding = 0 if self.pixel_mask is None else 1 - self.pixel_mask.mean()
        return f"batch of {batch}, {height}x{width} pixels, {padding:.0%} of it padding"


class Parity(NamedTuple):
    """The largest and the mean difference over all cases, in logits, scores and boxes (fractions of the picture)."""

    cases: int
    largest_logits: float
    largest_scores: float
    largest_boxes: float
    mean_scores: float
    mean_boxes: float

    def __str__(self) -> str:
        return (
            f"{self.cases} cases: logits within {self.largest_logits:.1e}, scores within {self.largest_scores:.1e} "
            f"(mean {self.mean_scores:.1e}), boxes within {self.largest_boxes:.1e} (mean {self.mean_boxes:.1e})"
        )


def parity_cases(info: ArtefactInfo, seed: int = 0) -> Iterator[Case]:
    """Inputs that an artefact must take: its sizes, batches of one, two and three, whole, half padded and mixed."""
    rng = np.random.default_rng(seed)
    batches = (1, 2, 3) if info.batch is None else (info.batch,)
    sizes_hw = SIZES_HW if info.size_hw is None else (info.size_hw,)
    for number, batch in enumerate(batches):
        for height, width in sizes_hw:
            pixel_values = smooth_pictures(rng, (batch, info.num_channels, height, width))
            yield Case(pixel_values, None)
            if info.masked:
                mask = np.ones((batch, height, width), dtype=bool)
                mask[-1, height * 2 // 3 :] = False
                mask[-1, :, width * (3 + number) // 6 :] = False
                yield Case(pixel_values * mask[:, None], mask)


def smooth_pictures(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Normalised pixels (B, C, H, W) float32: a coarse random grid, enlarged linearly, and some noise."""
    batch, channels, height, width = shape
    grid = rng.standard_normal((batch, channels, 7, 9)).astype(np.float32)
    rows, columns = np.linspace(0, 5.999, height), np.linspace(0, 7.999, width)
    above, left = rows.astype(int), columns.astype(int)
    down, right = (rows - above).astype(np.float32)[:, None], (columns - left).astype(np.float32)
    upper = grid[:, :, above][..., left] * (1 - right) + grid[:, :, above][..., left + 1] * right
    lower = grid[:, :, above + 1][..., left] * (1 - right) + grid[:, :, above + 1][..., left + 1] * right
    return upper * (1 - down) + lower * down + 0.1 * rng.standard_normal(shape).astype(np.float32)


def check_parity(model: "DETRForObjectDetection", runtime: "Runtime", cases: Iterable[Case] | None = None) -> Parity:
    """How far an artefact's outputs are from the model's, over all cases.

    Args:
        model: the float32 model that was exported, in eval mode.
        runtime: the loaded artefact.
        cases: inputs to compare on; `parity_cases` by default.

    Raises:
        ValueError: they are further apart than its precision allows, or not finite, or it cannot run a case.
    """
    rows = []
    for case in parity_cases(runtime.info) if cases is None else cases:
        try:
            found = runtime(*case)
        except Exception as error:  # a runtime's own errors, of whatever type
            raise ValueError(f"The exported model fails on a {case}: {error}") from error
        row = _differences(_reference(model, case), found)
        _check_row(row, runtime.info.dtype, case)
        rows.append(row)
    if not rows:
        raise ValueError("There is no case to compare on: an artefact that was not checked is not kept.")
    largest, mean = np.max(rows, axis=0), np.mean(rows, axis=0)
    return Parity(len(rows), *map(float, largest[1:4]), *map(float, mean[4:]))


def _reference(model: "DETRForObjectDetection", case: Case) -> tuple[np.ndarray, np.ndarray]:
    import torch

    parameter = next(model.parameters())
    mask = None if case.pixel_mask is None else torch.from_numpy(case.pixel_mask).to(parameter.device)
    with torch.inference_mode():
        output = model(torch.from_numpy(case.pixel_values).to(parameter.device, parameter.dtype), mask)
    return output.logits.float().cpu().numpy(), output.pred_boxes.float().cpu().numpy()


def _differences(expected: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The largest logit, the largest differences of logits, scores and boxes, and the mean ones of the last two."""
    for wanted, got in zip(expected, found, strict=True):
        if wanted.shape != got.shape:
            raise ValueError(f"The exported model's output has shape {got.shape}; the model's has {wanted.shape}.")
    logits = np.abs(expected[0] - found[0])
    scores = np.abs(softmax(expected[0]) - softmax(found[0]))
    boxes = np.abs(expected[1] - found[1])
    return np.array([np.abs(expected[0]).max(), logits.max(), scores.max(), boxes.max(), scores.mean(), boxes.mean()])


def _check_row(row: np.ndarray, dtype: str, case: Case) -> None:
    largest_logit, logits, scores, boxes, mean_scores, mean_boxes = row
    if dtype == "float32":
        good = logits <= FLOAT32_TOLERANCE * max(1.0, largest_logit) and boxes <= FLOAT32_TOLERANCE
        allowed = f"at most {FLOAT32_TOLERANCE:g} (in logits relative to the largest, {largest_logit:.3g})"
    else:
        good = max(mean_scores, mean_boxes) <= MEAN_TOLERANCE[dtype]
        allowed = f"at most {MEAN_TOLERANCE[dtype]:g} on average in scores and boxes"
    if not good:  # also where a difference is NaN
        raise ValueError(
            f"The exported {dtype} model differs from the model on a {case}: by up to {logits:.2e} in logits, "
            f"{scores:.2e} in scores (mean {mean_scores:.2e}) and {boxes:.2e} in boxes (mean {mean_boxes:.2e}); "
            f"expected {allowed}."
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last dimension."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


__all__ = ["Case", "Parity", "check_parity", "parity_cases", "softmax"]
