"""What people give as augmentation is taken as its library makes it, and what comes back is looked at."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detr_hf import DETRImageProcessor
from detr_hf.data.preparing.augment import augmentation
from detr_hf.data.preparing.transform import prepare
from detr_hf.errors import AnnotationError

from ...training.scenes import split_of

PROCESSOR = DETRImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
CATS_AND_DOG = split_of([[0, 0, 1]])  # boxes (4, 5), (7, 5) and (10, 5), 20 x 15, in 64 x 32


def label_after(augment, rows=CATS_AND_DOG) -> dict:
    return prepare(rows, PROCESSOR, augment)[0]["labels"]


PLAIN = label_after("none")


def mirrored(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([1 - boxes[:, :1], boxes[:, 1:]], dim=1)


class Compose:
    """Called as Albumentations' `Compose` is: by name, boxes in its own format, label fields come back as floats. It
    mirrors the picture and removes the first object."""

    def __init__(self, box_format: str | None, fields: tuple[str, ...] | None):
        params = SimpleNamespace(format=box_format, label_fields=fields)
        self.processors = {"bboxes": SimpleNamespace(params=params)} if box_format else {}
        self.format, self.fields, self.seeds = box_format, fields or (), []

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def __call__(self, *args, image, bboxes, **fields):
        assert not args and set(fields) == set(self.fields) and image.shape == (32, 64, 3)
        size = np.array([64, 32, 64, 32]) if self.format in ("albumentations", "yolo") else np.ones(4)
        boxes, rest = np.asarray(bboxes)[1:, :4] * size, np.asarray(bboxes)[1:, 4:]
        x, width = boxes[:, 0].copy(), boxes[:, 2].copy()
        if self.format in ("pascal_voc", "albumentations"):
            boxes[:, 0], boxes[:, 2] = 64 - width, 64 - x
        else:
            boxes[:, 0] = 64 - x - (width if self.format == "coco" else 0)
        kept = {name: [float(value) for value in values[1:]] for name, values in fields.items()}
        return {"image": image[:, ::-1], "bboxes": np.concatenate([boxes / size, rest], axis=1), **kept}


@pytest.mark.parametrize("box_format", ["coco", "pascal_voc", "albumentations", "yolo"])
@pytest.mark.parametrize("fields", [("category",), ("labels", "ids"), None])
def test_albumentations_compose_moves_and_removes_objects(box_format, fields):
    compose = Compose(box_format, fields)
    label = label_after(compose)
    assert label["class_labels"].tolist() == [0, 1]
    assert torch.allclose(label["boxes"], mirrored(PLAIN["boxes"][1:]), atol=1e-6)
    assert torch.allclose(label["area"], PLAIN["area"][1:])
    torch.manual_seed(3)
    for _ in range(2):
        label_after(compose)
    torch.manual_seed(3)
    label_after(compose)
    assert compose.seeds[-1] == compose.seeds[-3] != compose.seeds[-2]  # its chance comes from torch's


def test_albumentations_compose_that_leaves_boxes_where_they_are_is_refused():
    with pytest.raises(ValueError, match=r"no bbox_params.*A\.BboxParams"):
        augmentation(Compose(None, None))
    with pytest.raises(ValueError, match="boxes are 'polygons'; expected one of pascal_voc"):
        augmentation(Compose("polygons", ("category",)))


def test_the_real_albumentations():
    albumentations = pytest.importorskip("albumentations")
    for box_format, fields in (("coco", ["category"]), ("yolo", ["category"]), ("pascal_voc", ["a", "b"])):
        params = albumentations.BboxParams(format=box_format, label_fields=fields, min_area=25, clip=True)
        steps = [albumentations.HorizontalFlip(p=1), albumentations.RandomBrightnessContrast(p=1)]
        label = label_after(albumentations.Compose(steps, bbox_params=params))
        assert label["class_labels"].tolist() == [0, 0, 1]
        assert torch.allclose(label["boxes"], mirrored(PLAIN["boxes"]), atol=1e-5)


# transforms of torchvision that know nothing of `index` -> the places of the objects that are left
TORCHVISION = {
    "sanitize": (v2.SanitizeBoundingBoxes(min_size=10), [0, 1, 2]),
    "sanitize removes": (v2.Compose([v2.CenterCrop((32, 20)), v2.SanitizeBoundingBoxes(min_size=5)]), [1, 2]),
    "IoU crop": (v2.Compose([v2.RandomIoUCrop(trials=1), v2.SanitizeBoundingBoxes()]), None),
    "another box format": (v2.ConvertBoundingBoxFormat("CXCYWH"), [0, 1, 2]),
    "pixels from 0 to 1": (v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), [0, 1, 2]),
    "pure tensors": (v2.ToPureTensor(), [0, 1, 2]),
    "a PIL image": (v2.ToPILImage(), [0, 1, 2]),
}


@pytest.mark.parametrize("case", TORCHVISION)
def test_torchvisions_transforms_work_as_they_are(case):
    transform, left = TORCHVISION[case]
    torch.manual_seed(0)
    label = label_after(transform)
    assert len(label["boxes"]) == len(label["class_labels"]) == len(label["area"])
    if left is not None:
        assert label["class_labels"].tolist() == PLAIN["class_labels"][left].tolist()
    if left == [0, 1, 2]:
        assert torch.allclose(label["boxes"], PLAIN["boxes"], atol=1e-6)


def test_pixels_from_0_to_1_are_those_of_bytes():
    row = prepare(CATS_AND_DOG, PROCESSOR, TORCHVISION["pixels from 0 to 1"][0])[0]
    assert torch.allclose(row["pixel_values"], prepare(CATS_AND_DOG, PROCESSOR)[0]["pixel_values"], atol=1e-5)


# what a function returns for (image, target) -> what the message says
WRONG = {
    "nothing": (lambda image, target: None, r"it returned NoneType; expected \(image, target\)"),
    "the image alone": (lambda image, target: image, r"it returned Image\(3, 32, 64\); expected"),
    "a dictionary": (
        lambda image, target: {"image": image, "bboxes": []},
        "a dictionary of 'image', 'bboxes'; expected",
    ),
    "other keys": (lambda image, target: (image, {"bboxes": [], "labels": []}), "a tuple of Image.*a dictionary of"),
    "three things": (lambda image, target: (image, target, 1), "a tuple of Image.*int; expected"),
    "swapped": (lambda image, target: (target, image), "a tuple of a dictionary of .*Image"),
    "a grey image": (lambda image, target: (image[0], target), r"Image\(32, 64\) as image|Tensor\(32, 64\) as image"),
    "normalised": (lambda image, target: (image.float() / 60 - 2, target), "pixels from -2 to .*leave that out"),
    "names": (lambda image, target: (image, {**target, "labels": torch.full((3,), 0.5)}), "expected whole numbers"),
    "half removed": (lambda image, target: (image, {**target, "boxes": target["boxes"][:1]}), "remove an object from"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_function_that_returns_something_else_is_told_what_was_expected(case):
    function, message = WRONG[case]
    with pytest.raises(AnnotationError, match=rf"0\.png: the augmentation .* failed.*{message}"):
        label_after(function)


def test_whole_floats_and_arrays_are_taken():
    def augment(image, target):
        arrays = {"boxes": target["boxes"].numpy().tolist(), "labels": target["labels"].double().numpy()}
        return image.permute(1, 2, 0).numpy(), arrays

    label = label_after(augment)
    assert label["class_labels"].tolist() == [0, 0, 1] and torch.allclose(label["boxes"], PLAIN["boxes"])


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_the_format_of_a_data_set_does_not_matter(form):
    rows = CATS_AND_DOG.with_format(form)
    assert torch.equal(label_after("none", rows)["boxes"], PLAIN["boxes"])


def test_objects_that_shrink_below_a_pixel_are_counted(caplog):
    shrink = v2.Resize((1, 2))
    rows = prepare(CATS_AND_DOG, PROCESSOR, v2.Compose([shrink]))
    assert [len(rows[0]["labels"]["boxes"]) for _ in range(4)] == [0] * 4
    said = [record.getMessage() for record in caplog.records if "below one pixel" in record.getMessage()]
    assert [int(text.split()[0]) for text in said] == [3, 12] and "now in 0.png" in said[0]
