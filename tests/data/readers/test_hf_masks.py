"""`datasets` with masks, in every shape that is read: the targets are those of the scenes on disk, streamed too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image as Picture, List, Value
from PIL import Image

from detr_hf import DETRImageProcessor
from detr_hf.data import check, load_detection_dataset
from detr_hf.data.preparing.transform import prepare
from detr_hf.errors import AnnotationError, LayoutError
from detr_hf.processing.run_lengths_detr import run_lengths

from .. import layouts

PROCESSOR = DETRImageProcessor(do_resize=False)
PANOPTIC_NAMES = dict(zip((*layouts.SOURCE_IDS, 20), (*layouts.NAMES, "ground"), strict=True))
SCENES = (0, 2)  # one of them is empty
PIXELS = [np.zeros((height, width), dtype=bool) for width, height, _ in layouts.SCENES["train"]]


def drawn(number: int) -> list[np.ndarray]:
    """The masks of a scene's objects, whole."""
    masks = []
    for _, x, y, w, h in layouts.SCENES["train"][number][2]:
        masks.append(np.zeros_like(PIXELS[number]))
        masks[-1][y : y + h, x : x + w] = True
    return masks


def plain_runs(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


SIZE = List(Value("int64"))
# name -> (the feature of one mask, a mask as it, are there boxes)
MASKS: dict[str, tuple[Any, Callable[[np.ndarray, list[float]], Any], bool]] = {
    "polygons": (List(List(Value("float32"))), lambda mask, box: [layouts.polygon(*box)], True),
    "one polygon": (List(Value("float32")), lambda mask, box: layouts.polygon(*box), False),
    "JSON": (Value("string"), lambda mask, box: json.dumps([layouts.polygon(*box)]), True),
    "runs": ({"size": SIZE, "counts": SIZE}, lambda mask, box: plain_runs(mask), True),
    "compressed": ({"size": SIZE, "counts": Value("string")}, lambda mask, box: run_lengths(mask), False),
    "pictures": (Picture(), lambda mask, box: Image.fromarray(mask), False),
    "grey pictures": (Picture(), lambda mask, box: Image.fromarray(mask.astype(np.uint8) * 200), True),
}


def rows_with(name: str, as_list: bool = False) -> Dataset:
    feature, made, with_boxes = MASKS[name]
    key = "mask" if isinstance(feature, Picture) else "segmentation"
    fields = {"category": ClassLabel(names=list(layouts.NAMES)), key: feature}
    fields |= {"bbox": List(Value("float32"), length=4)} if with_boxes else {}
    objects = List(fields) if as_list else {field: List(of) for field, of in fields.items()}
    rows = []
    for number in SCENES:
        scene = layouts.SCENES["train"][number][2]
        found = [
            {"category": c, key: made(mask, box), "bbox": [float(side) for side in box]}
            for mask, (c, *box) in zip(drawn(number), scene, strict=True)
        ]
        found = [{field: item[field] for field in fields} for item in found]
        columns = found if as_list else {field: [item[field] for item in found] for field in fields}
        rows.append({"image": layouts.draw("train", number), "objects": columns})
    return Dataset.from_list(rows, features=Features({"image": Picture(), "objects": objects}))


def segments(root: Path, keep: tuple[str, ...]) -> Dataset:
    """COCO's panoptic files as rows; `keep` are the fields of a segment."""
    layouts.write_panoptic(root)
    content, things = layouts.read_json(root / "panoptic_train.json"), {20: 0}
    rows = []
    for annotation in content["annotations"][:2]:
        listed = [item | {"isthing": things.get(item["category_id"], 1)} for item in annotation["segments_info"]]
        png = Image.open(root / "panoptic_train" / annotation["file_name"])
        rows.append(
            {
                "image": str(root / "train" / annotation["file_name"]),
                "label": png,
                "segments_info": [{key: item[key] for key in keep} for item in listed],
            }
        )
    kinds = {key: List(Value("int64")) if key == "bbox" else Value("int64") for key in keep}
    return Dataset.from_list(
        rows, features=Features({"image": Picture(), "label": Picture(), "segments_info": List(kinds)})
    )


def painted() -> Dataset:
    """Red is the class, green the instance; no object covers another here."""
    rows = []
    for number in SCENES:
        width, height, scene = layouts.SCENES["train"][number]
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        for instance, (mask, (label, *_)) in enumerate(zip(drawn(number), scene, strict=True), 1):
            pixels[mask] = (label + 1, instance, 0)
        ids = {"background": 0, **{name: index for index, name in enumerate(layouts.NAMES, 1)}}
        picture, annotation = layouts.draw("train", number), Image.fromarray(pixels)
        rows.append({"image": picture, "annotation": annotation, "semantic_class_to_id": ids})
    return Dataset.from_list(rows).cast_column("image", Picture()).cast_column("annotation", Picture())


def targets(split: Any) -> list[list[tuple]]:
    """Of each row the class, box in pixels and mask of its objects, in the order of the boxes."""
    found = []
    for row in prepare(split, PROCESSOR, masks=True):
        label = row["labels"]
        boxes = (label["boxes"] * torch.tensor([*label["size"].flip(0).tolist()] * 2)).round(decimals=3).tolist()
        masks = [mask.numpy().tobytes() for mask in label["masks"]]
        found.append(sorted(zip(boxes, label["class_labels"].tolist(), masks, strict=True)))
    return found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple]]:
    split = load_detection_dataset(layouts.write_coco(tmp_path_factory.mktemp("coco")))["train"]
    return targets(split.select(SCENES))


@pytest.mark.parametrize("name", [*MASKS, "painted"])
def test_objects_with_masks(name: str, on_disk: list[list[tuple]]):
    rows = painted() if name == "painted" else rows_with(name, as_list=name in ("runs", "pictures"))
    for source in (rows, rows.to_iterable_dataset()):
        data = load_detection_dataset(source, task="instance")
        assert data.id2label == dict(enumerate(layouts.NAMES)) and data.is_thing is None
        assert targets(data["train"]) == on_disk
    report = check(rows, task="instance")
    assert report.errors == report.warnings == {}
    again = load_detection_dataset(load_detection_dataset(rows).splits, task="instance")
    assert targets(again["train"]) == on_disk, "saved or pushed, and read again"


BOXES = ("id", "category_id", "bbox", "iscrowd", "area")


@pytest.mark.parametrize(
    ("keep", "options"),
    [
        (BOXES, {"stuff": ["ground"]}),
        (("id", "category_id"), {"stuff": [20]}),
        ((*BOXES, "isthing"), {"task": "panoptic"}),
    ],
)
def test_segments_with_their_picture(keep: tuple[str, ...], options: dict[str, Any], tmp_path: Path):
    rows = segments(tmp_path, keep)
    expected = targets(load_detection_dataset(tmp_path)["train"].select(range(2)))
    data = load_detection_dataset(rows, id2label=PANOPTIC_NAMES, **options)
    assert data.is_thing == [True, True, True, False] and targets(data["train"]) == expected
    again = load_detection_dataset(data.splits)
    assert again.is_thing == data.is_thing and targets(again["train"]) == expected, "saved or pushed, and read again"
    report = check(data)
    assert report.errors == report.warnings == {}
    stream = rows.to_iterable_dataset()
    streamed = load_detection_dataset(stream, id2label=PANOPTIC_NAMES, stuff=["ground"])
    assert streamed.is_thing == data.is_thing and targets(streamed["train"]) == expected
    with pytest.raises(LayoutError, match="which of its classes are stuff"):
        load_detection_dataset(stream, id2label=PANOPTIC_NAMES)


def test_what_rows_do_not_tell_is_asked_for(tmp_path: Path):
    rows = segments(tmp_path, BOXES)
    with pytest.raises(AnnotationError, match=r"isthing of category 3 \(cat\) is missing, .* pass stuff="):
        load_detection_dataset(rows, id2label=PANOPTIC_NAMES)
    with pytest.raises(LayoutError, match=r"'grund', which is no class of .* Did you mean ground"):
        load_detection_dataset(rows, id2label=PANOPTIC_NAMES, stuff=["grund"])
    with pytest.raises(LayoutError, match="looked for one picture of segments beside `image`, found none"):
        load_detection_dataset(rows.remove_columns("label"), id2label=PANOPTIC_NAMES)
    with pytest.raises(LayoutError, match="its masks are panoptic segments"):
        load_detection_dataset(rows, id2label=PANOPTIC_NAMES, task="instance")
    with pytest.raises(LayoutError, match="looked for `segments_info`"):
        load_detection_dataset(rows_with("runs"), task="panoptic")
    with pytest.raises(LayoutError, match="hold none"):
        load_detection_dataset(rows_with("runs"), stuff=["cat"])
    with pytest.raises(LayoutError, match="has no boxes: they are measured"):
        load_detection_dataset(rows_with("compressed"), box_format="xyxy")


def broken(change: Callable[[dict[str, Any]], Any], source: Dataset) -> Dataset:
    rows = list(source.cast_column("image", Picture(decode=False)))
    change(rows[0])
    return Dataset.from_list(rows, features=source.features)


SOFT = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64))


@pytest.mark.parametrize(
    ("name", "change", "code", "words"),
    [
        ("pictures", lambda row: row["objects"]["mask"].__setitem__(0, SOFT), "mask-malformed", "256 values"),
        (
            "pictures",
            lambda row: row["objects"]["mask"].__setitem__(0, Image.new("1", (9, 9))),
            "mask-malformed",
            "is for 9x9",
        ),
        (
            "pictures",
            lambda row: row["objects"]["mask"].__setitem__(0, {"path": None, "bytes": b"x"}),
            "mask-malformed",
            "cannot be read",
        ),
        ("JSON", lambda row: row["objects"]["segmentation"].__setitem__(0, "[[1"), "mask-malformed", "no JSON"),
        ("JSON", lambda row: row["objects"]["segmentation"].__setitem__(0, None), "mask-missing", "no segmentation"),
        ("painted", lambda row: row.update(annotation=SOFT), "panoptic-unreadable", "has mode 'L'"),
        ("painted", lambda row: row["semantic_class_to_id"].update(cat=7), "category-conflict", "says 1 for 'cat'"),
    ],
)
def test_a_faulty_mask_is_named(name: str, change: Callable, code: str, words: str):
    """In rows that are read, and in a stream when it comes to them."""
    rows = broken(change, painted() if name == "painted" else rows_with(name))
    with pytest.raises(AnnotationError, match=f"(?s){code}.*{words}"):
        load_detection_dataset(rows, task="instance")
    if code != "category-conflict":
        stream = load_detection_dataset(rows.to_iterable_dataset(), task="instance")
        with pytest.raises(AnnotationError, match=f"Row 0: .*{words}"):
            list(stream["train"])


@pytest.mark.parametrize(("code", "label"), [("panoptic-missing", None), ("panoptic-unreadable", b"x")])
def test_a_segment_picture_that_is_not_there(code: str, label: bytes | None, tmp_path: Path):
    rows = segments(tmp_path, BOXES)
    value = None if label is None else {"path": None, "bytes": label}
    rows = broken(lambda row: row.update(label=value), rows.cast_column("label", Picture(decode=False)))
    options = {"id2label": PANOPTIC_NAMES, "stuff": ["ground"]}
    assert check(rows, **options).errors == {code: 1}
    assert len(load_detection_dataset(rows, on_fault="drop", **options)["train"]) == 1


def test_boxes_alone_where_a_mask_is_missing():
    """The object stays, says that it has no mask, through augmentation too; without the option it is an error."""
    rows = broken(lambda row: row["objects"]["segmentation"].__setitem__(0, None), rows_with("JSON"))
    for source in (rows, rows.to_iterable_dataset()):
        with pytest.raises(
            AnnotationError, match=r"masks are asked for and the annotations \[1\] have no segmentation"
        ):
            next(iter(prepare(load_detection_dataset(source)["train"], PROCESSOR, masks=True)))
        data = load_detection_dataset(source, allow_missing_masks=True)
        for augment in ("none", "strong"):
            torch.manual_seed(3)
            prepared = prepare(data["train"], DETRImageProcessor(size={"shortest_edge": 60}), augment, masks=True)
            label = next(iter(prepared))["labels"]
            assert label["has_mask"].tolist() == label["masks"].flatten(1).any(1).tolist() == [False, True]
            assert len(label["boxes"]) == 2 and (label["area"] > 0).all()
        assert "has_mask" not in list(prepared)[1]["labels"]
    assert load_detection_dataset(rows, allow_missing_masks=True).findings.of("info") == {"mask-missing": 1}
