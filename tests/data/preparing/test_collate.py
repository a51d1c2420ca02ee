from pathlib import Path
from typing import Any

import pytest
import torch

from detr_hf import DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.data.preparing.transform import DetectionTransform, prepare
from detr_hf.errors import AnnotationError

from .. import layouts


def row(height: int = 8, width: int = 10, name: str = "a.jpg", **changes: Any) -> dict[str, Any]:
    label = {
        "class_labels": torch.tensor([0, 2]),
        "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.2, 0.3, 0.1, 0.2]]),
        "image_id": torch.tensor([41]),
    }
    return {"pixel_values": torch.ones(3, height, width), "labels": label | changes, "file_name": name}


def test_pictures_masks_and_pixel_mask_are_padded_alike():
    masks = torch.ones(2, 6, 12, dtype=torch.bool)
    batch = DetectionCollator(num_labels=3)([row(), row(6, 12, masks=masks)])
    assert batch["pixel_values"].shape == (2, 3, 8, 12)
    assert batch["pixel_mask"].dtype == torch.bool
    assert torch.equal(batch["pixel_values"][:, 0] > 0, batch["pixel_mask"])
    assert batch["labels"][1]["masks"].shape == (2, 8, 12) and batch["labels"][1]["masks"].sum() == 2 * 72
    assert DetectionCollator(num_labels=3, pad_to_multiple_of=32)([row()])["pixel_values"].shape == (1, 3, 32, 32)


BAD = {
    "class too large": ({"class_labels": torch.tensor([0, 3])}, "class 3, expected 0 to 2 .*no object"),
    "class negative": ({"class_labels": torch.tensor([-1, 0])}, "object 0 has class -1"),
    "classes as floats": ({"class_labels": torch.tensor([0.0, 1.0])}, "float32"),
    "counts differ": ({"class_labels": torch.tensor([0])}, "counts of its objects differ"),
    "masks differ": ({"masks": torch.ones(1, 8, 10, dtype=torch.bool)}, "'masks': 1"),
    "three numbers": ({"boxes": torch.ones(2, 3)}, r"\(2, 3\)"),
    "NaN": ({"boxes": torch.tensor([[0.5, 0.5, 1, 1], [float("nan"), 0.5, 0.1, 0.1]])}, "object 1 has the box .*nan"),
    "pixels": ({"boxes": torch.tensor([[0.5, 0.5, 1, 1], [40.0, 50.0, 20.0, 20.0]])}, "40, 50, 20, 20"),
    "corners": ({"boxes": torch.tensor([[0.5, 0.5, 1, 1], [0.1, 0.1, 0.9, 0.9]])}, "as fractions"),
    "no area": ({"boxes": torch.tensor([[0.5, 0.5, 1, 1], [0.5, 0.5, 0.0, 0.2]])}, "with an area"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_label_is_refused_with_its_image(name: str):
    changes, words = BAD[name]
    with pytest.raises(AnnotationError, match=f"bad.jpg, image_id 41: .*{words}"):
        DetectionCollator(id2label={0: "a", 1: "b", 2: "c"})([row(), row(name="bad.jpg", **changes), row()])


def test_images_without_objects_batch_with_others_and_alone():
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    for rows in ([row(**empty)], [row(**empty), row(), row(**empty)]):
        batch = DetectionCollator(num_labels=3)(rows)
        assert len(batch["labels"]) == len(rows) and batch["labels"][0]["boxes"].shape == (0, 4)


def test_boxes_at_the_edge_pass_rounding():
    edge = {"boxes": torch.tensor([[0.50004, 0.5, 1.0, 1.0], [0.2, 0.3, 0.1, 0.2]])}
    assert len(DetectionCollator(num_labels=3)([row(**edge)])["labels"]) == 1


def test_raw_rows_go_through_the_processor(tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    processor = DETRImageProcessor(size={"shortest_edge": 40, "longest_edge": 60})
    raw = DetectionCollator(processor, id2label=data.id2label)([data["train"][0], data["train"][2]])
    assert raw["labels"][0]["class_labels"].tolist() == [0, 1] and len(raw["labels"][1]["boxes"]) == 0
    with pytest.raises(ValueError, match=r"prepare.*remove_unused_columns"):
        DetectionCollator(id2label=data.id2label)([data["train"][0]])


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="empty"):
        DetectionCollator()([])
    with pytest.raises(ValueError, match="2 classes and num_labels is 3"):
        DetectionCollator(id2label={0: "a", 1: "b"}, num_labels=3)


def test_where_the_processor_pads_to_a_canvas_the_batch_is_on_it(tmp_path: Path):
    rows = load_detection_dataset(layouts.write_coco(tmp_path))["train"]
    settings = {"size": {"max_height": 96, "max_width": 96}, "pad_size": {"height": 96, "width": 128}}
    processor = DETRImageProcessor(**settings)
    for prepared in (prepare(rows, processor), rows.with_transform(DetectionTransform(processor))):
        batch = DetectionCollator()([prepared[0]])
        expected = processor(rows[0]["image"], return_tensors="pt")
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["pixel_mask"], expected["pixel_mask"]) and not batch["pixel_mask"].all()
    unpadded = prepare(rows, DETRImageProcessor(**settings, do_pad=False))
    assert DetectionCollator()([unpadded[0]])["pixel_mask"].all()
