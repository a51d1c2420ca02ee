import pickle
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from detr_hf import DETRImageProcessor, DETRImageProcessorPil
from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.preview import decode_boxes, pixels_to_image
from detr_hf.data.preparing.augment import sanitize
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.data.preparing.transform import prepare
from detr_hf.errors import AnnotationError, PictureError
from detr_hf.processing import mask_annotations_detr

from .. import layouts

PROCESSOR = DETRImageProcessor(size={"shortest_edge": 60, "longest_edge": 100})


@pytest.mark.parametrize("augment", ["none", "paper", "strong"])
@pytest.mark.parametrize("masks", [False, True])
def test_rows_give_pixels_and_targets(augment: str, masks: bool, tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    rows = prepare(data["train"], PROCESSOR, augment, masks)
    loader = DataLoader(rows, batch_size=4, collate_fn=DetectionCollator(id2label=data.id2label))
    batch = next(iter(loader))
    height, width = batch["pixel_values"].shape[-2:]
    assert batch["pixel_values"].shape == (4, 3, height, width) and batch["pixel_mask"].shape == (4, height, width)
    for label, mask in zip(batch["labels"], batch["pixel_mask"], strict=True):
        assert label["size"].tolist() == [int(mask.any(1).sum()), int(mask.any(0).sum())]
        if masks:
            assert label["masks"].shape == (len(label["boxes"]), height, width)
            assert not (label["masks"] & ~mask).any()
            assert torch.equal(label["masks"].flatten(1).sum(1).float(), label["area"]) or augment == "none"


def test_decoded_targets_are_where_the_pixels_are(tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    item = prepare(data["train"], PROCESSOR)[0]
    picture = np.asarray(pixels_to_image(item["pixel_values"], PROCESSOR)).astype(int)
    boxes = decode_boxes(item["labels"]["boxes"], picture.shape[:2]).numpy()
    for box, label in zip(boxes, item["labels"]["class_labels"].tolist(), strict=True):
        near = np.abs(picture - np.array(layouts.COLOURS[label])).max(axis=2) < 90
        ys, xs = np.nonzero(near)
        assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - box).max() <= 1.5


def test_a_target_does_not_depend_on_its_batch_mates(tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    rows = prepare(data["train"], PROCESSOR)
    collate = DetectionCollator(id2label=data.id2label)
    alone, together = collate([rows[0]])["labels"][0], collate([rows[1], rows[0], rows[3]])["labels"][1]
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[key], together[key]) for key in alone)


def test_crowds_stay_out_of_training_and_in_the_data(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    content = layouts.read_json(root / "annotations_train.json")
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]}}
    layouts.write_json(root / "annotations_train.json", content)
    data = load_detection_dataset(root)
    assert data["train"][0]["objects"]["iscrowd"] == [1, 0]
    label = prepare(data["train"], PROCESSOR, masks=True)[0]["labels"]
    assert label["class_labels"].tolist() == [1] and len(label["masks"]) == 1


def test_panoptic_targets_have_the_png_s_masks(tmp_path: Path):
    data = load_detection_dataset(layouts.write_panoptic(tmp_path))
    label = prepare(data["train"], DETRImageProcessor(do_resize=False), masks=True)[0]["labels"]
    assert label["class_labels"].tolist() == [3, 0, 1]
    assert (label["masks"].sum(0) == 1).all()
    assert label["masks"][1].sum() == 20 * 10 and label["masks"][1, 6:16, 4:24].all()


class Recorded:
    """An augmentation that keeps what it gave; `cut` flips the image and takes the part in its middle."""

    def __init__(self, cut: bool):
        crop = [v2.RandomHorizontalFlip(1.0), v2.CenterCrop((30, 40))]
        self.transform = v2.Compose(crop) if cut else v2.Identity()

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.image, self.target = self.transform(image, target)
        return self.image, self.target


def coco_road(row: dict[str, Any], recorded: Recorded, processor: Any, masks: bool) -> dict[str, Any]:
    """The target that the processor makes when the augmented objects are spelled out as a COCO annotation."""
    hw = tuple(recorded.image.shape[-2:])
    target = sanitize(recorded.target, hw)
    objects, annotations = row["objects"], []
    for place, source in enumerate(target["index"].tolist()):
        x0, y0, x1, y1 = target["boxes"][place].tolist()
        _, _, w, h = objects["bbox"][source]
        area = (x1 - x0) * (y1 - y0) * (objects["area"][source] / (w * h))
        annotation = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": int(target["labels"][place]), "area": area}
        if masks:
            mask = target["masks"][place]
            flat = mask.T.reshape(-1).int().tolist()
            runs = [len(list(group)) for _, group in groupby([0, *flat])]
            annotation |= {"area": int(mask.sum()), "segmentation": {"size": hw, "counts": [runs[0] - 1, *runs[1:]]}}
        annotations.append(annotation | {"id": objects["id"][source], "iscrowd": 0})
    batch = processor(
        recorded.image.as_subclass(torch.Tensor),
        annotations={"image_id": row["image_id"], "annotations": annotations},
        return_segmentation_masks=masks,
        do_pad=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    return batch["labels"][0]


@pytest.mark.parametrize("backend", [DETRImageProcessor, DETRImageProcessorPil])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("write", [layouts.write_coco, layouts.write_panoptic])
def test_targets_are_those_that_the_processor_makes_of_coco_annotations(
    write: Any, masks: bool, cut: bool, backend: Any, tmp_path: Path
):
    """To the bit: boxes, areas that are not the box's, crowds, masks, segments, and an image without objects."""
    root = write(tmp_path)
    if write is layouts.write_coco:
        content = layouts.read_json(root / "annotations_train.json")
        content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]}}
        content["annotations"][2] |= {"area": 123.4, "bbox": [8.3, 8.6, 15.7, 39.1]}
        layouts.write_json(root / "annotations_train.json", content)
    split = load_detection_dataset(root)["train"]
    processor = backend(size={"shortest_edge": 61, "longest_edge": 100})
    recorded, counts = Recorded(cut), []
    rows = prepare(split, processor, recorded, masks)
    for index in range(len(split)):
        seen = rows[index]["labels"]
        expected = coco_road(split[index], recorded, processor, masks)
        assert list(seen) == list(expected)
        for key, value in expected.items():
            assert seen[key].dtype == value.dtype and torch.equal(seen[key], value), key
        counts.append(len(seen["boxes"]))
    assert max(counts) >= 2 and (min(counts) == 0 or write is layouts.write_panoptic)


def test_boxes_in_pixels_where_the_processor_gives_them(tmp_path: Path):
    split = load_detection_dataset(layouts.write_coco(tmp_path))["train"]
    processor = DETRImageProcessor(size={"height": 96, "width": 128}, do_convert_annotations=False)
    label = prepare(split, processor)[0]["labels"]
    assert label["boxes"].tolist() == [[8, 12, 48, 32], [60, 40, 120, 88]]


@pytest.mark.parametrize("write", [layouts.write_coco, layouts.write_panoptic])
def test_no_mask_becomes_run_lengths_on_its_way(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is encoded has to be decoded again: only the polygons of the file are, each once."""
    split = load_detection_dataset(write(tmp_path))["train"]
    decode, decoded = mask_annotations_detr.run_length_mask, []
    monkeypatch.setattr(mask_annotations_detr, "run_length_mask", lambda *args: decoded.append(args) or decode(*args))
    label = prepare(split, PROCESSOR, "paper", masks=True)[0]["labels"]
    assert label["masks"].any()
    assert len(decoded) == (2 if write is layouts.write_coco else 0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda target: {key: target[key] for key in ("boxes", "labels", "index")}, "it returned none"),
        (
            lambda target: {**target, "masks": target["masks"][:, :5]},
            r"masks of .* \(5, 64\) for an .* \(48, 64",
        ),
    ],
)
def test_an_augmentation_that_loses_masks_is_named(fault: Any, words: str, tmp_path: Path):
    split = load_detection_dataset(layouts.write_coco(tmp_path))["train"]
    rows = prepare(split, PROCESSOR, lambda image, target: (image, fault(target)), masks=True)
    with pytest.raises(AnnotationError, match=f"train_0.png: the augmentation .*{words}"):
        rows[0]


def test_an_image_id_that_is_no_number_is_named():
    row = {"image": layouts.draw("train", 0), "image_id": 1.5, "file_name": "a.png", "width": 64, "height": 48}
    row["objects"] = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0], "area": [float("nan")]}
    with pytest.raises(AnnotationError, match=r"a.png: .*float"):
        prepare([row], PROCESSOR)[0]
    label = prepare([row | {"image_id": "scene 7"}], DETRImageProcessor(do_resize=False))[0]["labels"]
    assert label["image_id"] == "scene 7" and label["area"].tolist() == [12]  # without an area, the box's


def test_area_shrinks_with_the_box(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    content = layouts.read_json(root / "annotations_train.json")
    content["annotations"][1]["area"] = 360  # half of its box
    layouts.write_json(root / "annotations_train.json", content)
    data = load_detection_dataset(root)

    def halve(image, target):
        target["boxes"][:, 0] = target["boxes"][:, 0::2].mean(dim=1)
        return image, target

    label = prepare(data["train"], DETRImageProcessor(do_resize=False), halve)[0]["labels"]
    box = label["boxes"][-1] * torch.tensor([64, 48, 64, 48])
    assert (box[2] * box[3]).item() == pytest.approx(360)
    assert label["area"][-1].item() == pytest.approx(180)


def test_a_turned_picture_is_read_in_the_frame_of_its_annotations(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = np.asarray(layouts.draw("train", 0))
    for stored in (layouts.draw("train", 0), layouts.draw("train", 0).transpose(Image.Transpose.ROTATE_90)):
        root = layouts.write_coco(tmp_path / str(stored.size))
        stored.save(root / "train" / "train_0.png", exif=exif)
        data = load_detection_dataset(root)
        item = prepare(data["train"], DETRImageProcessor(do_resize=False))[0]
        assert np.abs(np.asarray(pixels_to_image(item["pixel_values"], PROCESSOR)).astype(int) - expected).max() <= 1


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path):
    root = layouts.write_coco(tmp_path)
    data = load_detection_dataset(root)
    rows = prepare(data["train"], PROCESSOR)
    path = root / "train" / "train_1.png"
    path.write_bytes(path.read_bytes()[:-300])
    layouts.draw("train", 0).save(root / "train" / "train_2.png")
    (root / "train" / "train_3.png").unlink()
    for index, words in ((1, "cannot be decoded"), (2, "64x48 .* annotations say 60x60"), (3, "no file")):
        with pytest.raises(PictureError, match=f"train_{index}.png: .*{words}"):
            rows[index]


def test_masks_asked_for_and_not_there_are_named(tmp_path: Path):
    data = load_detection_dataset(layouts.write_yolo(tmp_path))
    with pytest.raises(AnnotationError, match=r"train_0.png: masks are asked for and the annotations \[1, 2\]"):
        prepare(data["train"], PROCESSOR, masks=True)[0]


def test_streams_and_digit_scenes_and_workers():
    from detr_hf.data.digits import DigitScenes

    splits = layouts.hf_splits()
    whole = load_detection_dataset(splits)
    streamed = load_detection_dataset(splits["train"].to_iterable_dataset())
    expected = [prepare(whole["train"], PROCESSOR)[index] for index in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one shard, two workers: the second has nothing to do
        for workers in (0, 1):
            rows = list(DataLoader(prepare(streamed["train"], PROCESSOR), batch_size=None, num_workers=workers))
            for row, wanted in zip(rows, expected, strict=True):
                assert torch.equal(row["pixel_values"], wanted["pixel_values"])
                assert torch.equal(row["labels"]["boxes"], wanted["labels"]["boxes"])
    scenes = DigitScenes(length=3, size_hw=(96, 96))
    batch = DetectionCollator(id2label=scenes.id2label)(
        [prepare(scenes, PROCESSOR, "paper")[index] for index in range(3)]
    )
    assert len(batch["labels"]) == 3


def test_prepared_splits_travel_to_workers(tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    rows = pickle.loads(pickle.dumps(prepare(data["train"], PROCESSOR)))
    assert torch.equal(rows[0]["pixel_values"], prepare(data["train"], PROCESSOR)[0]["pixel_values"])
