"""Which step's weights a training keeps: the last, unless an earlier one is better by more than noise.

Different on purpose from transformers' Trainer, which keeps the highest number. The highest of many evaluations on
some dozen pictures is mostly chance, and a later step has learnt more. So an earlier step has to show that it is
better:

- its AP is at least `LEAST_AP`. COCO's AP has 101 points of recall, so a single detection that is right and comes
  first gives 1/101 in its class, whatever else the model does; below that "the best" is a lucky box;
- its lead over the last step is more than what the choice of the validation pictures makes of nothing: the deviation
  of the lead over draws of them (bootstrap, both steps on the same draw) times the quantile of 95 %, corrected for the
  number of evaluations that the best was chosen from. A metric that cannot be drawn again (masks, panoptic quality,
  losses, means of sets) has to lead by more than twice the usual change between two evaluations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np

from ..evaluation.coco import METRIC_NAMES, evaluate_boxes

LEAST_AP = 0.01  # 1/101, rounded
DRAWS = 50  # the deviation is known to a tenth
CONFIDENCE = 0.95
FOUND_NAME = "validation_detections.npy"  # in a checkpoint
BOX_METRICS = {name.lower(): name for name in METRIC_NAMES}


@dataclass(frozen=True)
class Kept:
    """What was kept: the step, a sentence that says why, and of how many evaluations it was chosen."""

    step: int
    text: str
    evaluations: int


class FoundByStep:
    """What was found in the validation pictures at the best step so far and at the last that was measured.

    Attributes:
        truth: the COCO ground truth of these pictures.
    """

    def __init__(self) -> None:
        self.truth: Mapping[str, Any] | None = None
        self._found: dict[int, np.ndarray] = {}

    def add(self, step: int, found: np.ndarray, truth: Mapping[str, Any], best: int | None) -> None:
        """Adds the detections (N, 7) of a step, and forgets those of all but the `best` before it."""
        self.truth = truth
        self._found = {known: rows for known, rows in self._found.items() if known == best} | {step: found}

    def write(self, step: int, folder: Path) -> None:
        """Writes the detections of a step into its checkpoint, if they are known."""
        if step in self._found:
            np.save(folder / FOUND_NAME, self._found[step])

    def of(self, step: int, checkpoint: str | None) -> np.ndarray | None:
        """Returns the detections of a step, from its checkpoint where a resumed run has not seen them."""
        file = Path(checkpoint or "") / FOUND_NAME
        if step not in self._found and checkpoint and file.is_file():
            return np.load(file)
        return self._found.get(step)


def choose(
    values: Mapping[int, float],
    best: int,
    metric: str,
    greater_is_better: bool,
    found: Mapping[int, np.ndarray | None],
    truth: Mapping[str, Any] | None,
) -> Kept:
    """Returns which step is kept.

    Args:
        values: the metric at every step that was measured; the last step is among them.
        best: the step with the best of them.
        metric: its name in the log, as "ap".
        greater_is_better: whether more of it is better.
        found: the detections (N, 7) of the best and of the last step, as far as they are known.
        truth: the COCO ground truth that they are compared with.
    """
    sign, label = 1 if greater_is_better else -1, BOX_METRICS.get(metric, metric)
    last, count = max(values), len(values)
    if best == last:
        return Kept(last, f"Kept: step {last}, the last and best of {count}, {label} {values[last]:.3f}.", count)
    lead = sign * (values[best] - values[last])
    behind = f"Step {best} had {values[best]:.3g}"
    if metric in BOX_METRICS and values[best] < LEAST_AP:
        why = f"{behind}: under {LEAST_AP} no step is better than another but by luck."
        return Kept(last, f"Kept: step {last}, the last, {label} {values[last]:.3g}. {why}", count)
    noise, of_what = _noise(values, metric, best, last, found, truth)
    if lead > noise or math.isnan(values[last]):
        text = (
            f"Kept: step {best}, {label} {values[best]:.3f}, {lead:.3f} better than the last step, {last}; {of_what} "
            f"would make {noise:.3f} of nothing."
        )
        return Kept(best, text, count)
    why = f"{behind}, {lead:.3f} better: no more than what {of_what} makes of nothing ({noise:.3f})."
    return Kept(last, f"Kept: step {last}, the last, {label} {values[last]:.3f}. {why}", count)


def _noise(
    values: Mapping[int, float],
    metric: str,
    best: int,
    last: int,
    found: Mapping[int, np.ndarray | None],
    truth: Mapping[str, Any] | None,
) -> tuple[float, str]:
    """Returns by how much a step must lead, and what would make so much of nothing."""
    rows = [found.get(step) for step in (best, last)]
    if metric in BOX_METRICS and truth is not None and all(one is not None for one in rows):
        quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / max(len(values) - 1, 1))
        pictures = len(truth["images"])
        return quantile * deviation_of_lead(truth, *rows, BOX_METRICS[metric]), f"the choice of {pictures} pictures"
    ordered = [values[step] for step in sorted(values)]
    changes = [abs(after - before) for before, after in pairwise(ordered)]
    changes = [change for change in changes if not math.isnan(change)]
    return 2 * median(changes) if changes else math.inf, "the change from one evaluation to the next"


def deviation_of_lead(truth: Mapping[str, Any], first: np.ndarray, second: np.ndarray, metric: str) -> float:
    """Returns the deviation of `metric` of the first detections (N, 7) minus that of the second, over draws of the
    pictures with replacement; the draws are the same each time."""
    images, place = truth["images"], {image["id"]: number for number, image in enumerate(truth["images"])}
    annotations: list[list[Mapping[str, Any]]] = [[] for _ in images]
    for annotation in truth["annotations"]:
        annotations[place[annotation["image_id"]]].append(annotation)
    rows = [_by_picture(found, place) for found in (first, second)]
    generator = np.random.default_rng(0)
    leads = []
    for _ in range(DRAWS):
        drawn = list(enumerate(generator.integers(len(images), size=len(images)).tolist()))
        of_draw = [{**one, "image_id": number} for number, index in drawn for one in annotations[index]]
        renumbered = {
            **truth,
            "images": [{**images[index], "id": number} for number, index in drawn],
            "annotations": of_draw,
        }
        scores = [evaluate_boxes(renumbered, _of_draw(found, drawn)).summary[metric] for found in rows]
        leads.append(scores[0] - scores[1])
    known = [lead for lead in leads if not math.isnan(lead)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.inf


def _by_picture(found: np.ndarray, place: Mapping[Any, int]) -> list[np.ndarray]:
    """Returns the detections (N, 7) of each picture, by its place in the ground truth."""
    places = np.array([place[image] for image in found[:, 0].tolist()], dtype=np.int64)
    order = np.argsort(places, kind="stable")
    return np.split(found[order], np.cumsum(np.bincount(places, minlength=len(place)))[:-1])


def _of_draw(found: list[np.ndarray], drawn: list[tuple[int, int]]) -> np.ndarray:
    """Returns the detections (N, 7) of the pictures that were drawn, by their number in the draw."""
    rows = np.concatenate([found[index] for _, index in drawn])
    rows[:, 0] = np.repeat([number for number, _ in drawn], [len(found[index]) for _, index in drawn])
    return rows
