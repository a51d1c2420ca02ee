"""The catalogue of 233 bad inputs, `catalogue.txt`: each is proved by a test that there is, or by a road here.

What transformers 5.23 made of the same input is in its third column: right or harmless (ok), an error that names the
fault (clear), one that does not (obscure), a wrong result without a word (silent), the end of the process (killed).
`python -m tests.reliability.run catalogue` runs every test that it names.
"""

import ast
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf import DETRForObjectDetection, DETRImageProcessor, DETRImageProcessorPil
from detr_hf.data import load_detection_dataset
from detr_hf.processing import image_reading_detr

from ..conftest import NARROW, some_labels, tiny_config, tiny_model
from .kinds import Holds, Kind, Refused, coco_with, picture, try_out
from .models import PROCESSOR, segmenter

TESTS = Path(__file__).parents[1]
HERE = "here"
# Pictures, model inputs, annotations, masks, panoptic, configurations, targets, checkpoints, trainer, Hub.
ROWS_OF = {"I": 53, "M": 9, "A": 40, "S": 15, "P": 13, "C": 17, "T": 26, "K": 29, "R": 11, "H": 20}
PIXELS = torch.zeros(2, 3, 64, 64)


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue."""

    id: str
    given: str
    peer: str
    should: str
    proof: str


@functools.cache
def catalogue() -> list[Entry]:
    """Returns the entries, in order."""
    lines = (Path(__file__).parent / "catalogue.txt").read_text(encoding="utf-8").splitlines()[1:]
    return [Entry(*line.split(" | ")) for line in lines]


def read_alike(what: Any) -> str:
    """The road: both processors make of it what they make of the picture in memory."""
    for processor in (DETRImageProcessor(size=PROCESSOR.size), DETRImageProcessorPil(size=PROCESSOR.size)):
        seen = processor(what, return_tensors="pt")["pixel_values"]
        if not torch.equal(seen, processor(Image.open(what), return_tensors="pt")["pixel_values"]):
            return "other pixels"
    return "the same pixels"


def png_named_jpg(root: Path) -> str:
    return str(picture(root / "a.png").rename(root / "a.jpg"))


@functools.cache
def model() -> DETRForObjectDetection:
    return tiny_model(**NARROW)


def finite_loss(labels: Any, pixel_values: torch.Tensor = PIXELS, **changes: Any) -> bool:
    """The road: whether the loss of a batch of these labels is finite."""
    chosen = tiny_model(**NARROW, **changes) if changes else model()
    return chosen(pixel_values, labels=labels).loss.isfinite().item()


def long_picture(root: Path) -> tuple[int, ...]:
    long = Image.fromarray(np.zeros((3, 10_000, 3), np.uint8))
    pixels = DETRImageProcessor(size={"shortest_edge": 400, "longest_edge": 666})(long, return_tensors="pt")[
        "pixel_values"
    ]
    return (*pixels.shape, *model()(pixels).logits.shape[:1])


def of_nan(root: Path) -> Any:
    return PROCESSOR.post_process_object_detection(model()(torch.full((1, 3, 64, 64), float("nan"))), threshold=0.0)


def labels(**changes: Any) -> list[dict[str, Any]]:
    one, other = some_labels(2, 2)
    return [one, {**other, **changes}]


def classes_of(root: Path) -> list[int]:
    """The road: the labels that a data set's annotations get."""
    return [label for row in load_detection_dataset(root)["train"] for label in row["objects"]["category"]]


def with_gaps(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    content["annotations"][0]["category_id"], content["annotations"][1]["category_id"] = 90, 3


def unknown_category(content: dict[str, Any]) -> None:
    content["annotations"][0] |= {"id": 17, "category_id": 4}


def detection_as_panoptic(root: Path) -> Any:
    annotation = {"image_id": 5, "annotations": [{"id": 17, "bbox": [1, 1, 5, 5], "category_id": 1}]}
    return PROCESSOR(Image.new("RGB", (80, 60)), annotations=annotation, format="coco_panoptic", masks_path=root)


def loaded(**options: Any) -> Callable[[Path], Any]:
    """Returns the road: an own folder of three classes and seven queries, loaded with options; its shapes."""

    def road(root: Path) -> Any:
        model().save_pretrained(root)
        found = DETRForObjectDetection.from_pretrained(root, **options)
        return found.class_embed.out_features - 1, found.config.num_queries

    return road


def edited_queries(root: Path) -> Any:
    model().save_pretrained(root)
    config = root / "config.json"
    config.write_text(config.read_text().replace('"num_queries": 7', '"num_queries": 20'))
    return DETRForObjectDetection.from_pretrained(root)


def onto_a_file(root: Path) -> None:
    (root / "model").write_text("mine")
    model().save_pretrained(root / "model")


# Id -> (what is done, what comes of it, what is said).
ROADS: dict[str, tuple[Any, ...]] = {
    "I05": (lambda root: read_alike(png_named_jpg(root)), "the same pixels"),
    "I06b": (lambda root: read_alike(picture(root / "a.png")), "the same pixels"),
    "I19b": (long_picture, (1, 3, 1, 666, 1)),
    "I33": (lambda root: image_reading_detr.__doc__, Holds("BGR", "convert it first")),
    "M04": (of_nan, Refused("image 0", "NaN")),
    "M07": (lambda root: model()(torch.zeros(1, 3, 16, 16)).pred_boxes.isfinite().all().item(), True),
    "A10": (lambda root: finite_loss(labels(class_labels=torch.tensor([0, 3]))), Refused("image 1", "0..2", "3")),
    "A11": (
        lambda root: (coco_with(unknown_category)(root), classes_of(root)),
        Refused("annotation 17: category_id 4 is not defined; the data set defines 1, 2"),
    ),
    "A12": (lambda root: (coco_with(with_gaps)(root), classes_of(root))[1], [1, 0]),
    "A35": (lambda root: finite_loss(some_labels(2, 0)), True),
    "P13": (detection_as_panoptic, Refused("segments_info")),
    "C04": (lambda root: tiny_config(num_queries=-1), Refused("num_queries must be at least 1, but is -1")),
    "C16": (lambda root: finite_loss(some_labels(0, 0), eos_coef=0), True),
    "T11": (lambda root: finite_loss(labels(boxes=torch.tensor([[1, 1, 0, 0]] * 2))), True),
    "T20": (lambda root: segmenter()(PIXELS, labels=some_labels(1, 1, num_classes=2)), Refused("labels[0]", "masks")),
    "T26": (lambda root: DETRImageProcessor.post_process_object_detection.__doc__, Holds("(height, width)")),
    "K08": (loaded(num_labels=7), (7, 7), ["class"]),
    "K08b": (loaded(num_labels=7, ignore_mismatched_sizes=True), (7, 7), ["class"]),
    "K26": (edited_queries, Refused("query_embed.weight has (7, 32) there and (20, 32) here", "config.json")),
    "K27": (onto_a_file, Refused("model")),
    "K28": (lambda root: model().save_pretrained("/proc/x"), Refused("/proc/x")),
}


@pytest.mark.parametrize("entry", [entry for entry in catalogue() if entry.proof == HERE], ids=lambda entry: entry.id)
def test_here(entry: Entry, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    road, should, *says = ROADS[entry.id]
    try_out(Kind(entry.given, lambda root: None, road, should, *says), tmp_path, caplog)


def test_all_are_accounted_for():
    ids = [entry.id for entry in catalogue()]
    assert Counter(identity[0] for identity in ids) == ROWS_OF and len(set(ids)) == 233
    assert {entry.peer for entry in catalogue()} == {"ok", "clear", "obscure", "silent", "killed"}
    assert {entry.id for entry in catalogue() if entry.proof == HERE} == set(ROADS)


@functools.cache
def functions_and_text(path: str) -> tuple[set[str], str]:
    text = (TESTS / path).read_text(encoding="utf-8")
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}, text


def test_the_tests_that_are_named_exist():
    """By their function and, in brackets, the name that a table of that file gives a case."""
    for entry in catalogue():
        if entry.proof != HERE:
            path, _, test = entry.proof.partition("::")
            name, _, case = test.partition("[")
            names, text = functions_and_text(path)
            assert name in names and (not case or f'"{case[:-1]}"' in text), entry
