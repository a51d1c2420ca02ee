"""Whether an exported model gives what the model gives: asked on several batches, sizes and masks before it is kept.

The inputs are made from a seed: colours that change smoothly over the image, with a little noise. The outputs are
compared as a user sees them, in scores and boxes, and for float32 as they come. A graph that was traced for one
size, ignores its mask or mixes up images of a batch is off by far more than any precision allows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..model.predictions_detr import Predictions
from ..processing.segments_detr import sigmoid, softmax
from .artefact import ArtefactInfo, each_field, predictions_of

if TYPE_CHECKING:
    from ..model.modeling_detr import DETRForObjectDetection
    from .runtimes import Runtime

# The mean difference that scores and boxes (all that a user sees is in [0, 1]) may show, by precision; float32 is held
# to the largest difference of raw outputs as well, in logits relative to the largest logit. Boxes of queries that see
# nothing, which is most of them on made-up images, move by up to 0.012 on average where bfloat16 is computed in and
# not merely stored.
MEAN_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2, "int8": 5e-2}
# Rounding alone moves single queries of trained models: the panoptic digit model by 1.1e-4 of the largest logit and by
# 2.6e-4 in a box, where the mean was 2e-6.
FLOAT32_TOLERANCE = {"logits": 5e-4, "boxes_cxcywh_norm": 5e-4, "masks": 1e-3}
# More than this in a score, and an object that the model is sure of may be missing.
FAR = 0.5
# Field of `Predictions` -> what it is called as it comes and as a user sees it, and what makes this of that. The other
# fields are seen as they come.
SEEN_AS = {"logits": ("logits", "scores", softmax), "masks": ("mask logits", "masks", sigmoid)}
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


class Difference(NamedTuple):
    """How far one field is from the model's: as it comes, and as a user sees it, which is in [0, 1]."""

    largest: float
    largest_seen: float
    mean_seen: float


class Parity(NamedTuple):
    """The largest and the mean differences over all cases, by the fields of `Predictions` that the model gives."""

    cases: int
    of: dict[str, Difference]

    def __str__(self) -> str:
        return f"{self.cases} cases: {', '.join(_in_words(self.of, '{name} within {largest}', digits=1))}"


def refuse_far(parity: Parity) -> None:
    """Raises a ValueError where a score differs by more than `FAR`: the mean may hide lost objects."""
    largest = parity.of["logits"].largest_seen
    if largest > FAR:
        raise ValueError(
            f"The exported model is like the model on average, but a score differs by {largest:.2f} (compared on "
            f"{parity}): objects may be lost or found. Nothing was kept. Take another dtype (--dtype), calibrate on "
            "more typical pictures (--calibration), or keep it with accept_difference=True (--accept-difference) and "
            "measure it on your data (detr-hf eval)."
        )


def parity_cases(info: ArtefactInfo) -> Iterator[Case]:
    """Yields inputs that an artefact must take: its sizes, batches of one to three, whole, half padded and mixed."""
    rng = np.random.default_rng(0)
    batches = (1, 2, 3) if info.batch is None else (info.batch,)
    sizes_hw = SIZES_HW if info.size_hw is None else (info.size_hw,)
    for number, batch in enumerate(batches):
        for height, width in sizes_hw:
            pixel_values = smooth_images(rng, (batch, info.num_channels, height, width))
            yield Case(pixel_values, None)
            if info.masked:
                mask = np.ones((batch, height, width), dtype=bool)
                mask[-1, height * 2 // 3 :] = False
                mask[-1, :, width * (3 + number) // 6 :] = False
                yield Case(pixel_values * mask[:, None], mask)


def calibration_cases(images: Iterable[np.ndarray], info: ArtefactInfo) -> Iterator[Case]:
    """Yields a case for each image (C, h, w), at the top left of the canvas of an artefact of fixed size.

    Raises:
        ValueError: an image that is larger than the canvas.
    """
    for pixels in images:
        channels, height, width = pixels.shape
        canvas_hw = info.size_hw or (height, width)
        if height > canvas_hw[0] or width > canvas_hw[1]:
            raise ValueError(f"A calibration picture of {height}x{width} does not fit the fixed size {canvas_hw}.")
        pixel_values = np.zeros((info.batch or 1, channels, *canvas_hw), dtype=np.float32)
        pixel_values[:, :, :height, :width] = pixels
        pixel_mask = np.zeros((len(pixel_values), *canvas_hw), dtype=bool)
        pixel_mask[:, :height, :width] = True
        yield Case(pixel_values, pixel_mask if info.masked else None)


def smooth_images(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Returns normalised pixels (B, C, H, W) float32: a coarse random grid, enlarged linearly, and some noise."""
    batch, channels, height, width = shape
    grid = rng.standard_normal((batch, channels, 7, 9)).astype(np.float32)
    rows, columns = np.linspace(0, 5.999, height), np.linspace(0, 7.999, width)
    above, left = rows.astype(int), columns.astype(int)
    down, right = (rows - above).astype(np.float32)[:, None], (columns - left).astype(np.float32)
    upper = grid[:, :, above][..., left] * (1 - right) + grid[:, :, above][..., left + 1] * right
    lower = grid[:, :, above + 1][..., left] * (1 - right) + grid[:, :, above + 1][..., left + 1] * right
    return upper * (1 - down) + lower * down + 0.1 * rng.standard_normal(shape).astype(np.float32)


def check_parity(model: "DETRForObjectDetection", runtime: "Runtime", cases: Iterable[Case] | None = None) -> Parity:
    """Returns how far an artefact's outputs are from the model's, over all cases.

    Args:
        model: the float32 model that was exported, in eval mode.
        runtime: the loaded artefact.
        cases: inputs to compare on; `parity_cases` by default.

    Raises:
        ValueError: they are further apart than its precision allows, or not finite, or it cannot run a case.
    """
    rows: dict[str, list[Difference]] = {}
    for case in parity_cases(runtime.info) if cases is None else cases:
        try:
            found = runtime(*case)
        except Exception as error:  # a runtime's own errors, of whatever type
            raise ValueError(f"The exported model fails on a {case}: {error}") from error
        expected = _reference(model, case)
        if model.config.box_queries:
            expected = _in_the_order_of(found, expected)
        expected = _of_found_queries(expected, found, runtime.info.dtype)
        differences = _differences(expected, found)
        _check(differences, expected, runtime.info.dtype, case)
        for field, difference in differences.items():
            rows.setdefault(field, []).append(difference)
    if not rows:
        raise ValueError("There is no case to compare on: an artefact that was not checked is not kept.")
    return Parity(len(rows["logits"]), {field: _over_cases(differences) for field, differences in rows.items()})


def _reference(model: "DETRForObjectDetection", case: Case) -> Predictions:
    import torch

    parameter = next(model.parameters())
    mask = None if case.pixel_mask is None else torch.from_numpy(case.pixel_mask).to(parameter.device)
    with torch.inference_mode():
        output = model(torch.from_numpy(case.pixel_values).to(parameter.device, parameter.dtype), mask)
    return each_field(predictions_of(output), lambda values: values.float().cpu().numpy())


def _in_the_order_of(found: Predictions, expected: Predictions) -> Predictions:
    """Returns what is expected with its queries in another order: each where the query lies that is most like it.

    Box queries come in the order of what the encoder says of them, and rounding decides between two that it says
    nearly the same of. The answer of a model is a set.
    """
    from scipy.optimize import linear_sum_assignment

    fields = [values for values in expected if values is not None]
    ordered = [values.copy() for values in fields]
    for image in range(len(expected.logits)):
        apart = sum(
            np.abs(one[image][:, None] - other[image][None]).sum(-1)
            for one, other in (
                (found.boxes_cxcywh_norm, expected.boxes_cxcywh_norm),
                (softmax(found.logits), softmax(expected.logits)),
            )
        )
        order = linear_sum_assignment(apart)[1]
        for values, of in zip(ordered, fields, strict=True):
            values[image] = of[image][order]
    values = iter(ordered)
    return Predictions(*(None if field is None else next(values) for field in expected))


def _of_found_queries(expected: Predictions, found: Predictions, dtype: str) -> Predictions:
    """Returns what is expected with the masks of those queries alone that the exported model chose.

    It must have chosen the best by its own scores, which are compared with the model's like all else. Where two are
    nearly equal either will do.
    """
    queries = found.mask_queries
    if queries is None or expected.masks is None:
        return expected
    scores = softmax(found.logits)[..., :-1].max(-1)
    count = queries.shape[1]
    if queries.min() < 0 or queries.max() >= scores.shape[1] or any(len(set(row)) < count for row in queries.tolist()):
        raise ValueError(f"The exported model's mask_queries are not {count} of {scores.shape[1]} queries: {queries}.")
    lowest, tolerance = np.take_along_axis(scores, queries, axis=1).min(axis=1), MEAN_TOLERANCE[dtype]
    if (lowest < np.sort(scores, axis=1)[:, -count] - tolerance).any():
        raise ValueError(f"The exported model's masks are not of the {count} queries with the best scores.")
    masks = np.take_along_axis(expected.masks, queries[..., None, None], axis=1)
    return expected._replace(masks=masks, mask_queries=queries)


def _differences(expected: Predictions, found: Predictions) -> dict[str, Difference]:
    """Returns the differences of one case by field, in the order of `Predictions`."""
    differences = {}
    for field, wanted in expected._asdict().items():
        got = getattr(found, field)
        if field == "mask_queries" or (wanted is None and got is None):
            continue
        if wanted is None or got is None:
            has, lacks = ("model", "exported model") if got is None else ("exported model", "model")
            raise ValueError(f"The {has} gives {_view(field)[1]}, and the {lacks} gives none.")
        if wanted.shape != got.shape:
            raise ValueError(f"The exported model's output has shape {got.shape}; the model's has {wanted.shape}.")
        _, _, seen = _view(field)
        apart, seen_apart = np.abs(wanted - got), np.abs(seen(wanted) - seen(got))
        differences[field] = Difference(float(apart.max()), float(seen_apart.max()), float(seen_apart.mean()))
    return differences


def _over_cases(differences: list[Difference]) -> Difference:
    largest, mean = np.max(differences, axis=0), np.mean(differences, axis=0)
    return Difference(float(largest[0]), float(largest[1]), float(mean[2]))


def _check(differences: dict[str, Difference], expected: Predictions, dtype: str, case: Case) -> None:
    good = all(one.mean_seen <= MEAN_TOLERANCE[dtype] for one in differences.values())
    if dtype == "float32":
        largest = {field: float(np.abs(getattr(expected, field)).max()) for field in differences}
        near = (
            one.largest <= FLOAT32_TOLERANCE[field] * max(1.0, largest[field]) for field, one in differences.items()
        )
        good = good and all(near)
        bounds = [
            f"{FLOAT32_TOLERANCE[field]:g} in {_view(field)[0]}"
            + (f" (relative to the largest, {largest[field]:.3g})" if field in SEEN_AS else "")
            for field in differences
        ]
        allowed = f"at most {_listed(bounds)}, and {MEAN_TOLERANCE[dtype]:g} on average in all"
    else:
        allowed = (
            f"at most {MEAN_TOLERANCE[dtype]:g} on average in {_listed([_view(field)[1] for field in differences])}"
        )
    if not good:  # also where a difference is NaN
        raise ValueError(
            f"The exported {dtype} model differs from the model on a {case}: by up to "
            f"{_listed(_in_words(differences, '{largest} in {name}', digits=2))}; expected {allowed}."
        )


def _view(field: str) -> tuple[str, str, Callable[[np.ndarray], np.ndarray]]:
    """Returns what a field is called as it comes and as a user sees it, and what makes this of that."""
    name = field.partition("_")[0]
    return SEEN_AS.get(field, (name, name, lambda values: values))


def _in_words(differences: Mapping[str, Difference], template: str, digits: int) -> list[str]:
    """Returns a phrase for everything that was compared, with the mean of what a user sees."""
    phrases = []
    for field, one in differences.items():
        name, name_seen, _ = _view(field)
        if name != name_seen:
            phrases.append(template.format(name=name, largest=f"{one.largest:.{digits}e}"))
        seen = template.format(name=name_seen, largest=f"{one.largest_seen:.{digits}e}")
        phrases.append(f"{seen} (mean {one.mean_seen:.{digits}e})")
    return phrases


def _listed(phrases: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
