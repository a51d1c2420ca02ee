"""An evaluation as a folder of plots, pictures and numbers: `save_plots`.

What cannot be drawn from what was found is left out, and said: no plot has empty axes. Plots are of boxes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..visualize import plots
from ..visualize.boxes import draw_boxes
from ..visualize.grids import grid
from ..visualize.saving import save_drawing
from ..visualize.slots import QuerySlots
from .analysis import FITS, KINDS, Judged
from .report import Evaluation, write_json

NUMBERS = "numbers.json"
NEEDED = {"hotcoco": "eval", "matplotlib": "viz"}  # and the extra that brings it
LONGEST_NAME = 30  # letters of a class in a plot
MOST_BARS, MOST_SQUARES = 25, 30  # classes in hotcoco's plots of AP by class and of confusions
MOST_IN_REPORT = 4000  # classes, beyond which the page is higher than readers of PDF allow
EACH, TILE_PX = 3, 260  # pictures of a kind in the comparison, and their size


class SavedPlots(NamedTuple):
    """What was written into `folder`: `files`; what was `left_out`, by file and with the reason; and `notes`."""

    folder: Path
    files: list[str]
    left_out: dict[str, str]
    notes: list[str]

    def text(self) -> str:
        """Returns all of it in lines."""
        lines = [f"Plots in {self.folder}: {', '.join(self.files)}."]
        for why in dict.fromkeys(self.left_out.values()):
            lines.append(
                f"Not drawn, as {why}: {', '.join(name for name in self.left_out if self.left_out[name] == why)}."
            )
        return "\n".join([*lines, *self.notes])


class _LeftOut(Exception):
    """Why a plot is not drawn."""


def missing_for_plots() -> str | None:
    """Returns a sentence that says what to install, where plots cannot be drawn; else None."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if not missing:
        return None
    extras = ",".join(NEEDED[name] for name in missing)
    return f"Plots need {' and '.join(missing)}, not installed here: pip install 'detr-hf[{extras}]'."


def save_plots(
    evaluation: Evaluation, folder: str | Path, rows: Any = None, about: Mapping[str, Any] | None = None
) -> SavedPlots:
    """Writes plots of an evaluation, pictures, a page as PDF and all numbers as JSON into a folder.

    Args:
        evaluation: what `evaluate` returned.
        folder: it is made where it is not there; files of these names are replaced.
        rows: those that were evaluated, to draw the worst, middling and best pictures from; without them there are
            none.
        about: what else stands in the numbers, for example the model's name; `model` and `data` are in the PDF too.

    Raises:
        ImportError: hotcoco or matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    if missing := missing_for_plots():
        raise ImportError(missing)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawing = _Drawing(evaluation, rows, dict(about or {}))
    files, left_out = [], {}
    for name, draw in drawing.plots().items():
        (folder / name).unlink(missing_ok=True)  # one of an earlier evaluation would stand for this one
        try:
            draw(folder / name)
            files.append(name)
        except _LeftOut as why:
            left_out[name] = str(why)
    write_json(folder / NUMBERS, drawing.numbers())
    return SavedPlots(folder, [*files, NUMBERS], left_out, drawing.notes)


class _Drawing:
    """The plots of one evaluation, by file name, and what is to be said of them."""

    def __init__(self, evaluation: Evaluation, rows: Any, about: dict[str, Any]):
        self.found, self.rows, self.about = evaluation, rows, about
        self.judged = Judged(_with_short_names(evaluation.ground_truth), evaluation.detections)
        self.names = [str(category["name"]) for category in self.judged.categories]
        shown = zip(self.names, _classes_by_id(evaluation.ground_truth), strict=True)
        scores = {short: evaluation.per_class[name]["AP"] for short, name in shown}
        self.per_class = {name: value for name, value in scores.items() if not np.isnan(value)}
        judged = self.judged
        self.calibration: Any = judged.evaluation.calibration(iou_threshold=FITS) if judged.counted.any() else None
        self.notes = self._notes([name for name in scores if name not in self.per_class])

    def _notes(self, without_objects: Sequence[str]) -> list[str]:
        notes, count = [], len(self.names)
        if self.found.masks is not None or self.found.panoptic is not None:
            notes.append(f"The plots are of boxes; what was measured of masks is in {NUMBERS}.")
        if without_objects and self.per_class:
            some = ", ".join(without_objects[:5]) + (", ..." if len(without_objects) > 5 else "")
            notes.append(f"{len(without_objects)} of {count} classes have no objects, and so no AP: {some}.")
        if len(self.per_class) > MOST_BARS:
            notes.append(f"ap_by_class.png shows the 20 best and the 5 worst of {len(self.per_class)} classes.")
        if count > MOST_SQUARES:
            notes.append(f"confusion.png shows the 25 most confused of {count} classes.")
        return notes

    def plots(self) -> dict[str, Callable[[Path], Any]]:
        """Returns what writes each file, or raises `_LeftOut`."""
        judged, mistakes = self.judged.evaluation, self.found.mistakes or self.judged.mistakes(self.found.threshold)
        ap50, lost = self.found.metrics["AP50"], mistakes.ap50_lost
        nothing_right = None if self.judged.right.any() else "no detection is right at any score"
        no_loss = None if any(lost.values()) else "AP50 gains nothing where one kind of mistake alone is mended"
        no_scores = None if any(self.per_class.values()) else "AP of every class is 0"
        too_many = f"{len(self.names)} classes are too many for a page"
        draw, save = partial, self._with_objects
        return {
            "precision_recall.png": save(draw(plots.save_precision_recall, judged), nothing_right),
            "confusion.png": save(
                draw(plots.save_confusion, mistakes.confusion, self.names, mistakes.threshold), None
            ),
            "mistakes.png": save(draw(plots.save_mistakes, lost, KINDS, ap50), no_loss),
            "ap_by_class.png": save(draw(plots.save_ap_by_class, self.per_class), no_scores),
            "calibration.png": save(
                draw(plots.save_calibration, self.calibration), None if self.calibration else "nothing was detected"
            ),
            "report.pdf": save(
                draw(plots.save_report, judged, self.about.get("model"), self.about.get("data"), self.names),
                too_many if len(self.names) > MOST_IN_REPORT else None,
            ),
            "query_slots.png": self._query_slots,
            "comparison.png": self._comparison,
        }

    def _with_objects(self, save: Callable[[Path], Any], left_out: str | None) -> Callable[[Path], Any]:
        """Returns what draws where there is something to measure on, and no reason to leave it out."""

        def draw(path: Path) -> None:
            if not len(self.judged.objects()):
                raise _LeftOut("the pictures have no objects to measure on")
            if left_out is not None:
                raise _LeftOut(left_out if self.judged.counted.any() else "nothing was detected")
            save(path)

        return draw

    def _query_slots(self, path: Path) -> None:
        slots = slots_of(self.found)
        if slots is None:
            raise _LeftOut("nobody knows which learned query found what (nor have box queries a place)")
        slots.save(path)

    def _comparison(self, path: Path) -> None:
        """Writes truth and detections of the worst, middling and best pictures, by their F1 at the threshold."""
        rows = self.rows
        if rows is None or not hasattr(rows, "__len__") or not hasattr(rows, "column_names"):
            raise _LeftOut("the pictures are not at hand (a stream is read once)")
        if not {"image", "image_id", "objects"} <= set(rows.column_names):
            raise _LeftOut("the rows have no pictures")
        places = {image_id: place for place, image_id in enumerate(rows.with_format(None)["image_id"])}
        chosen = [one for one in self._worst_middling_best() if one[1] in places]
        if not chosen:
            raise _LeftOut("no picture has an object or a detection")
        images = images_of(rows, [places[image_id] for _, image_id, _ in chosen])
        cells, captions = [], []
        for image, (kind, image_id, text) in zip(images, chosen, strict=True):
            cells += [self._drawn(image, *objects) for objects in (self._truth_of(image_id), self._found_in(image_id))]
            captions += [f"{kind}, {text}", ""]  # one above both
        columns = EACH if len(chosen) == 3 * EACH else 1
        save_drawing(grid(cells, captions=captions, heads=("truth", "found") * columns, side=TILE_PX), path)

    def _drawn(
        self, image: np.ndarray, boxes: np.ndarray, labels: list[int], scores: list[float] | None
    ) -> Image.Image:
        names = {category["id"]: str(category["name"]) for category in self.found.ground_truth["categories"]}
        named = [names.get(label, f"? {label}") for label in labels]
        return draw_boxes(Image.fromarray(image), boxes, named, labels=labels, scores=scores, side=TILE_PX)

    def _worst_middling_best(self) -> list[tuple[str, int, str]]:
        """Returns kind, image id and caption of the pictures to compare; with few pictures each comes once."""
        counts = self.judged.of_pictures(self.found.threshold)
        scored = []
        for image_id, (right, wrong, objects) in counts.items():
            if wrong or objects:
                f1 = 2 * right / (right + wrong + objects)
                text = f"F1 {f1:.2f}, {right} of {objects} found, {wrong} wrong"
                scored.append((f1, -(wrong + objects), image_id, text))
        scored.sort()  # of equal ones those with most to see
        each = min(EACH, max(len(scored) // 3, 1))
        worst, rest = scored[:each], scored[each:]
        best = sorted(rest, key=lambda one: (-one[0], *one[1:]))[:each]
        rest = [one for one in rest if one not in best]
        first = max((len(rest) - each) // 2, 0)
        groups = {"worst": worst, "middling": rest[first : first + each], "best": best}
        return [(kind, image_id, text) for kind, some in groups.items() for _, _, image_id, text in some]

    def _truth_of(self, image_id: int) -> tuple[np.ndarray, list[int], None]:
        of_picture = [one for one in self.found.ground_truth["annotations"] if one["image_id"] == image_id]
        boxes = np.array([one["bbox"] for one in of_picture], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, [one["category_id"] for one in of_picture], None

    def _found_in(self, image_id: int) -> tuple[np.ndarray, list[int], list[float]]:
        rows = self.found.detections
        rows = rows[(rows[:, 0] == image_id) & (rows[:, 5] >= self.found.threshold)]
        return _corners(rows), rows[:, 6].astype(int).tolist(), rows[:, 5].tolist()

    def numbers(self) -> dict[str, Any]:
        """Returns every number of the plots, for a JSON file."""
        content = {**self.about, **self.found.to_dict(curves=True)}
        content["calibration"] = self.calibration and {**self.calibration}
        if self.calibration:
            of_classes, full = self.calibration["per_category"], _classes_by_id(self.found.ground_truth)
            named = {name: of_classes.get(short) for short, name in zip(self.names, full, strict=True)}
            content["calibration"]["per_category"] = named
        return content


def slots_of(evaluation: Evaluation) -> QuerySlots | None:
    """Returns where each learned query puts its boxes, whatever their scores; None where nobody knows the queries."""
    queries, detections, images = evaluation.queries, evaluation.detections, evaluation.ground_truth["images"]
    if queries is None:
        return None
    numbers = {image["id"]: number for number, image in enumerate(images)}
    sizes_wh = np.array([(image["width"], image["height"]) * 2 for image in images])
    places = np.array([numbers[image_id] for image_id in detections[:, 0].astype(int).tolist()])
    boxes = np.full((int(queries.max()) + 1, len(images), 4), np.nan, dtype=np.float32)
    boxes[queries, places] = _corners(detections) / sizes_wh[places]
    return QuerySlots(boxes)


def _corners(detections: np.ndarray) -> np.ndarray:
    """Returns the boxes (N, 4), xyxy, of detections (N, 7)."""
    return np.concatenate([detections[:, 1:3], detections[:, 1:3] + detections[:, 3:5]], axis=1)


def images_of(rows: Any, places: Sequence[int]) -> list[np.ndarray]:
    """Returns the images (H, W, 3) of some rows, in the frame of their annotations."""
    from .running import pictures_of, undecoded

    plain = undecoded(rows) if getattr(rows, "features", None) else rows
    return list(pictures_of([plain[place] for place in places], [], None))


def _classes_by_id(ground_truth: Mapping[str, Any]) -> list[str]:
    return [str(one["name"]) for one in sorted(ground_truth["categories"], key=lambda category: category["id"])]


def _with_short_names(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a COCO dictionary whose class names fit beside an axis, and still differ."""
    categories, taken = [], set()
    for category in ground_truth["categories"]:
        name = " ".join(str(category["name"]).split()) or "?"
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        short, number = name, 1
        while short in taken:
            number += 1
            short = f"{name[: LONGEST_NAME - 5]}… {number}"
        taken.add(short)
        categories.append({**category, "name": short})
    return {**ground_truth, "categories": categories}
