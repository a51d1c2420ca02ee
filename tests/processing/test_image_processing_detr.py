"""Both image processors: what holds for either, alone and in a batch, and where they agree with transformers."""

import io
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from packaging.version import Version
from transformers import AutoImageProcessor, DetrImageProcessorPil
from transformers.image_processing_utils import BatchFeature

from detr_hf import DETRConfig, DETRImageProcessor, DETRImageProcessorPil

BACKENDS = [DETRImageProcessor, DETRImageProcessorPil]
SMALL = {"shortest_edge": 48, "longest_edge": 80}
GREY_LEVEL = 1 / 255 / 0.224  # of the channel where it is largest, normalised
COCO = Path(__file__).parents[3] / "shared" / "data" / "coco128"

both_backends = pytest.mark.parametrize("backend", BACKENDS, ids=["torchvision", "pil"])


def picture(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """Returns a smooth colour picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC)


PICTURES = [picture(60, 80, 0), picture(100, 50, 1), picture(30, 33, 2), picture(8, 200, 3)]


def annotation(image_id: int) -> dict:
    width, height = PICTURES[image_id].size
    square = [[2, 2, width / 2, 2, width / 2, height / 2, 2, height / 2]]
    return {
        "image_id": image_id,
        "annotations": [
            {"id": 1, "bbox": [0, 0, width, height], "category_id": 2, "segmentation": square},
            {"id": 2, "bbox": [1, 2, width / 3, height / 2], "category_id": 0, "segmentation": square},
            {"id": 3, "bbox": [1, 2, 3, 4], "category_id": 1, "iscrowd": 1},
        ],
    }


ANNOTATIONS = [annotation(index) for index in range(len(PICTURES))]


def assert_same_target(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


def assert_equal_within_grey_levels(one: torch.Tensor, other: torch.Tensor, level: float = GREY_LEVEL) -> None:
    """One grey level; at some ratios of sizes torch's integer weights put isolated pixels two from Pillow's."""
    assert one.shape == other.shape
    difference = (one - other).abs()
    assert difference.max() <= 2 * level + 1e-5
    assert (difference > level + 1e-5).float().mean() < 1e-3


# --- invariants -----------------------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize(
    "options", [{}, {"pad_size": {"height": 100, "width": 100}}, {"do_convert_annotations": False}]
)
def test_a_target_never_depends_on_its_batch_mates(backend, options):
    pytest.importorskip("pycocotools")
    processor = backend(size=SMALL)
    together = processor(PICTURES, ANNOTATIONS, return_segmentation_masks=True, return_tensors="pt", **options)
    for index, (image, target) in enumerate(zip(PICTURES, ANNOTATIONS, strict=True)):
        alone = processor(image, target, return_segmentation_masks=True, return_tensors="pt", **options)
        assert_same_target(together["labels"][index], alone["labels"][0])
        height, width = alone["labels"][0]["size"].tolist()
        torch.testing.assert_close(
            together["pixel_values"][index, :, :height, :width], alone["pixel_values"][0, :, :height, :width]
        )


@both_backends
def test_a_full_image_box_is_the_unit_square_whatever_the_padding(backend):
    batch = backend(size=SMALL)(PICTURES, ANNOTATIONS, return_tensors="pt")
    for target in batch["labels"]:
        torch.testing.assert_close(target["boxes"][0], torch.tensor([0.5, 0.5, 1.0, 1.0]))


@both_backends
def test_sizes_are_of_the_image_and_of_its_resized_self(backend):
    batch = backend(size=SMALL)(PICTURES, ANNOTATIONS, return_tensors="pt")
    mask_sizes = torch.stack([batch["pixel_mask"].any(2).sum(1), batch["pixel_mask"].any(1).sum(1)], dim=1)
    for image, target, mask_size in zip(PICTURES, batch["labels"], mask_sizes, strict=True):
        assert target["orig_size"].tolist() == [image.height, image.width]
        assert target["size"].tolist() == mask_size.tolist()


@both_backends
def test_padding_is_zero_and_masked_and_at_the_bottom_right(backend):
    batch = backend(size=SMALL)(PICTURES, return_tensors="pt")
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == torch.bool
    assert batch["pixel_mask"].shape == (4, *batch["pixel_values"].shape[2:])
    assert not batch["pixel_values"].masked_select(~batch["pixel_mask"][:, None]).any()
    assert batch["pixel_mask"][:, 0, 0].all()
    assert batch["pixel_mask"].any(1).any(0).all()  # the batch is as large as its largest image, and no larger
    for mask in batch["pixel_mask"]:
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()  # a rectangle


@pytest.mark.processor
def test_both_backends_give_the_same():
    """Equal sizes and targets, pixels within one grey level."""
    pytest.importorskip("pycocotools")
    first, second = (
        backend(size=SMALL)(PICTURES, ANNOTATIONS, return_segmentation_masks=True, return_tensors="pt")
        for backend in BACKENDS
    )
    assert_equal_within_grey_levels(first["pixel_values"], second["pixel_values"])
    assert torch.equal(first["pixel_mask"], second["pixel_mask"])
    for one, other in zip(first["labels"], second["labels"], strict=True):
        assert_same_target(one, other)


@pytest.mark.processor
@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["uint8", "float32", "grey"])
def test_both_backends_resample_alike(resample, kind):
    image = np.asarray(PICTURES[0])
    options = {"size": SMALL, "resample": resample, "do_convert_rgb": False, "image_mean": 0.5, "image_std": 0.25}
    image = image[..., :1] if kind == "grey" else image.astype(kind)
    if resample == 1 and Version(torchvision.__version__) < Version("0.27"):
        with pytest.raises(ValueError, match="LANCZOS is not in torchvision"):
            DETRImageProcessor(**options)(image, return_tensors="pt")
        return
    first, second = (backend(**options)(image, return_tensors="pt")["pixel_values"] for backend in BACKENDS)
    assert_equal_within_grey_levels(first, second, level=1 / 255 / 0.25)


@both_backends
@pytest.mark.parametrize("image_hw", [(1, 1), (3, 10000), (10000, 3), (100, 1)])
def test_absurd_pictures(backend, image_hw):
    """One pixel, or far longer than wide."""
    image = PIL.Image.new("RGB", image_hw[::-1], (10, 20, 30))
    values = backend()(image, return_tensors="pt", size={"shortest_edge": 64, "longest_edge": 96})["pixel_values"]
    assert min(values.shape[2:]) >= 1
    assert max(values.shape[2:]) <= 2 * 96
    torch.testing.assert_close(values[0, :, 0, 0], (torch.tensor([10, 20, 30]) / 255 - mean()) / std())


def mean() -> torch.Tensor:
    return torch.tensor([0.485, 0.456, 0.406])


def std() -> torch.Tensor:
    return torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.processor
def test_the_pixels_are_pillows():
    """The pixels of the original code: Pillow's bilinear resize, / 255, ImageNet mean and std; both backends."""
    resized = torch.tensor(np.asarray(PICTURES[0].resize((64, 48), PIL.Image.Resampling.BILINEAR))).permute(2, 0, 1)
    expected = (resized / 255 - mean()[:, None, None]) / std()[:, None, None]
    by_pillow, by_torch = (backend(size=SMALL)(PICTURES[0])["pixel_values"][0] for backend in reversed(BACKENDS))
    torch.testing.assert_close(torch.from_numpy(by_pillow), expected, rtol=0, atol=2e-6)
    assert_equal_within_grey_levels(by_torch, expected)


@pytest.mark.processor
@both_backends
def test_equals_transformers_for_one_picture(backend):
    """With its resize rule: pixels, and targets of a picture alone. In a padded batch its boxes shrink."""
    target = {"image_id": 7, "annotations": [{"bbox": [5, 6, 30, 20], "category_id": 1, "area": 300, "iscrowd": 0}]}
    expected = DetrImageProcessorPil()(PICTURES[1], target, return_tensors="pt")
    found = backend(resize_rule="transformers")(PICTURES[1], target, return_tensors="pt")
    assert_equal_within_grey_levels(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["pixel_mask"].long(), expected["pixel_mask"])
    assert found["labels"][0].keys() == expected["labels"][0].keys()
    for key, value in expected["labels"][0].items():
        torch.testing.assert_close(found["labels"][0][key], value)


# --- options --------------------------------------------------------------------------------------------------------


@both_backends
def test_steps_can_be_left_out(backend):
    image = np.asarray(PICTURES[0]).astype(np.float32)
    values = backend(do_resize=False, do_normalize=False)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(values, torch.from_numpy(image).permute(2, 0, 1) / 255)
    values = backend(do_resize=False, do_normalize=False, do_rescale=False)(image, return_tensors="pt")[
        "pixel_values"
    ][0]
    torch.testing.assert_close(values, torch.from_numpy(image).permute(2, 0, 1))
    values = backend(do_resize=False, do_rescale=False)(image / 255, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(values, backend(do_resize=False)(PICTURES[0], return_tensors="pt")["pixel_values"][0])


@both_backends
def test_without_padding(backend):
    processor = backend(size=SMALL, do_pad=False)
    batch = processor([PICTURES[0]] * 2, return_tensors="pt")
    assert set(batch) == {"pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 48, 64)
    assert [tuple(image.shape) for image in processor(PICTURES[:2])["pixel_values"]] == [(3, 48, 64), (3, 80, 40)]
    with pytest.raises(ValueError, match="do_pad=True"):
        processor(PICTURES[:2], return_tensors="pt")


@both_backends
def test_kinds_of_returned_tensors(backend):
    processor = backend(size=SMALL)
    as_numpy = processor(PICTURES, ANNOTATIONS, return_tensors="np")
    as_torch = processor(PICTURES, ANNOTATIONS, return_tensors="pt")
    own_kind = np.ndarray if backend is DETRImageProcessorPil else torch.Tensor
    assert isinstance(processor(PICTURES)["pixel_values"], own_kind)
    for key in ("pixel_values", "pixel_mask"):
        assert isinstance(as_numpy[key], np.ndarray)
        np.testing.assert_array_equal(as_numpy[key], as_torch[key].numpy())
    np.testing.assert_array_equal(as_numpy["labels"][0]["boxes"], as_torch["labels"][0]["boxes"].numpy())


@both_backends
def test_several_pictures_are_processed_in_inference_mode_too(backend, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    processor = backend(size=SMALL)
    expected = processor(PICTURES, annotations=ANNOTATIONS, return_tensors="pt")
    with torch.inference_mode():
        found = processor(PICTURES, annotations=ANNOTATIONS, return_tensors="pt")
        assert torch.equal(found["pixel_values"] + 0, expected["pixel_values"])
    found["pixel_values"] += 1  # ordinary memory


@both_backends
def test_the_batch_is_a_batch_feature_that_moves_and_pickles(backend):
    batch = backend(size=SMALL)(PICTURES, ANNOTATIONS, return_tensors="pt")
    assert isinstance(batch, BatchFeature)
    half = pickle.loads(pickle.dumps(batch)).to(torch.float16)
    assert half["pixel_values"].dtype == torch.float16
    assert half["pixel_mask"].dtype == torch.bool
    assert type(batch["labels"][0]) is dict


@both_backends
def test_pad_collates_what_was_processed_one_by_one(backend):
    processor = backend(size=SMALL)
    together = processor(PICTURES, return_tensors="pt")
    collated = processor.pad([processor(image)["pixel_values"][0] for image in PICTURES], return_tensors="pt")
    assert torch.equal(collated["pixel_values"], together["pixel_values"])
    assert torch.equal(collated["pixel_mask"], together["pixel_mask"])
    sized = processor.pad(list(collated["pixel_values"]), pad_size={"height": 90, "width": 300}, return_tensors="pt")
    assert sized["pixel_values"].shape == (4, 3, 90, 300)


@both_backends
def test_panoptic_format_is_the_same_alone_and_in_a_batch(backend, tmp_path):
    ids = np.zeros((60, 80, 3), np.uint8)
    ids[10:30, 20:40, 0], ids[30:, :, 1] = 7, 1
    PIL.Image.fromarray(ids).save(tmp_path / "0.png")
    info = [{"id": 7, "category_id": 3, "iscrowd": 0}, {"id": 256, "category_id": 1, "iscrowd": 0}]
    target = {"image_id": 0, "file_name": "0.png", "segments_info": info}
    processor = backend(size=SMALL, format="coco_panoptic")
    alone = processor(PICTURES[0], target, masks_path=tmp_path, return_tensors="pt")["labels"][0]
    together = processor([PICTURES[0]] * 2, [target] * 2, masks_path=str(tmp_path), return_tensors="pt")["labels"][1]
    assert_same_target(alone, together)
    torch.testing.assert_close(
        alone["boxes"], torch.tensor([[30 / 80, 20 / 60, 20 / 80, 20 / 60], [0.5, 0.75, 1, 0.5]])
    )
    assert alone["masks"].shape == (2, 48, 64)


PANOPTIC = {"image_id": 1, "file_name": "a.png", "segments_info": []}
REFUSED = [
    ("mean of four", {"image_mean": [0.5] * 4}, ValueError, "image_mean has 4 numbers and the images have 3"),
    ("std of two", {"image_std": [0.5] * 2}, ValueError, "image_std has 2 numbers"),
    ("std of zero", {"image_std": 0.0}, ValueError, "above 0"),
    ("pad_size too small", {"pad_size": {"height": 10, "width": 500}}, ValueError, "smaller than an image"),
    ("pad_size by its edge", {"pad_size": {"shortest_edge": 10}}, ValueError, "'height' and 'width'"),
    ("size by its pixels", {"size": {"min_pixels": 1, "max_pixels": 9}}, ValueError, "'shortest_edge'"),
    ("resize_rule", {"resize_rule": "orginal"}, ValueError, "'original', 'transformers'"),
    ("format", {"format": "coco"}, ValueError, "coco_detection"),
    ("center crop", {"do_center_crop": True, "crop_size": 5}, ValueError, "Crop images and annotations together"),
    ("channels last", {"data_format": "channels_last"}, ValueError, "channels_first"),
    ("no annotation", {"annotations": []}, ValueError, "1 images and 0 annotations"),
    ("no folder of masks", {"format": "coco_panoptic", "annotations": PANOPTIC},
     ValueError, "need masks_path"),
]  # fmt: skip


@both_backends
@pytest.mark.parametrize(
    ("options", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_options(backend, options, error, message):
    with pytest.raises(error, match=message):
        backend()(PICTURES[0], **{"size": SMALL, "return_tensors": "pt", **options})


@both_backends
def test_typing_errors_are_named(backend):
    with pytest.raises(TypeError, match="no argument 'do_normalise'; did you mean 'do_normalize'"):
        backend(do_normalise=False)
    with pytest.raises(Exception, match="do_normalise"):
        backend()(PICTURES[0], do_normalise=False)
    with pytest.raises(ValueError, match="resize_rule must be one of"):
        backend(resize_rule="detr")


def test_resampling_that_torchvision_lacks_is_named():
    box = {"size": SMALL, "resample": 4}
    with pytest.raises(ValueError, match="resample BOX is not in torchvision"):
        DETRImageProcessor(**box)(PICTURES[0])
    assert DETRImageProcessorPil(**box)(PICTURES[0])["pixel_values"].shape == (1, 3, 48, 64)


@both_backends
def test_channel_counts_cannot_be_mixed_unconverted(backend):
    with pytest.raises(ValueError, match="image 1 has 1 channels and image 0 has 3"):
        backend(do_convert_rgb=False)([PICTURES[0], PICTURES[0].convert("L")])


# --- files ----------------------------------------------------------------------------------------------------------

SLOW, FAST = {"image_processor_type": "DetrImageProcessor"}, {"image_processor_type": "DetrImageProcessorFast"}
CONFIGURATIONS = [
    ("first", {"feature_extractor_type": "DetrFeatureExtractor", "size": 800, "max_size": 1333}, (800, 1333), True),
    ("int size", {"image_processor_type": "DetrFeatureExtractor", "size": 600}, (600, 1333), True),
    ("max_size", {**SLOW, "size": 400, "max_size": 700}, (400, 700), True),
    ("no size", {**SLOW, "max_size": 700}, (800, 700), True),
    ("dict", {**FAST, "size": {"shortest_edge": 500, "longest_edge": 900}}, (500, 900), True),
    ("padding", {**SLOW, "pad_and_return_pixel_mask": False}, (800, 1333), False),
    ("empty keys", {**SLOW, "size": {"shortest_edge": 500, "longest_edge": 900, "height": None}}, (500, 900), True),
    ("both", {**SLOW, "size": {"shortest_edge": 500, "longest_edge": 900}, "max_size": 7}, (500, 900), True),
    ("one edge", {**SLOW, "size": {"longest_edge": 900}}, (None, 900), True),
    ("unknown keys", {**SLOW, "num_things": 4, "_max_size": 3}, (800, 1333), True),
]  # fmt: skip


@both_backends
@pytest.mark.parametrize(
    ("written", "size", "do_pad"), [row[1:] for row in CONFIGURATIONS], ids=[row[0] for row in CONFIGURATIONS]
)
def test_configurations_of_transformers_detr(backend, written, size, do_pad, tmp_path):
    common = {"format": "coco_detection", "do_normalize": True, "image_mean": [0.485, 0.456, 0.406]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**common, **written}))
    processor = backend.from_pretrained(tmp_path)
    assert (processor.size.shortest_edge, processor.size.longest_edge) == size
    assert processor.resize_rule == "transformers"
    assert processor.do_pad is do_pad
    assert processor.do_convert_annotations is True
    assert processor.format == "coco_detection"
    again = backend.from_dict(processor.to_dict())
    assert again.to_dict() == processor.to_dict()


@both_backends
def test_a_saved_transformers_processor_gives_its_pixels(backend, tmp_path):
    theirs = DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 75}, image_mean=[0.4, 0.5, 0.6])
    theirs.save_pretrained(tmp_path)
    expected = theirs(PICTURES, return_tensors="pt")
    found = backend.from_pretrained(tmp_path)(PICTURES, return_tensors="pt")
    assert_equal_within_grey_levels(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["pixel_mask"].long(), expected["pixel_mask"])


@both_backends
def test_saved_and_loaded(backend, tmp_path):
    processor = backend(size=SMALL, resize_rule="transformers", image_std=[0.5, 0.6, 0.7], do_pad=False)
    processor.save_pretrained(tmp_path)
    for loader in BACKENDS:
        loaded = loader.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.resize_rule == "transformers"
    assert backend().resize_rule == "original"
    processor.to_json_file(tmp_path / "one.json")
    assert backend.from_json_file(tmp_path / "one.json").to_dict() == processor.to_dict()


@both_backends
def test_a_setting_of_none_stays(backend, tmp_path):
    backend(size=SMALL, do_resize=None).save_pretrained(tmp_path)
    loaded = backend.from_pretrained(tmp_path)
    assert loaded.do_resize is None
    assert loaded(PICTURES[0], return_tensors="pt")["pixel_values"].shape[-2:] == np.asarray(PICTURES[0]).shape[:2]


@pytest.mark.parametrize("saved_by", BACKENDS, ids=["torchvision", "pil"])
@pytest.mark.parametrize(("name", "expected"), list(zip(("torchvision", "pil"), BACKENDS, strict=True)))
def test_auto_image_processor(saved_by, name, expected, tmp_path):
    DETRConfig().save_pretrained(tmp_path)
    saved_by(size=SMALL).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=name)
    assert type(loaded) is expected
    assert loaded.size == SMALL


CUSTOM_CODE = """
import sys, numpy
from transformers import AutoImageProcessor
folder, again = sys.argv[1:]
for backend in ("torchvision", "pil"):
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    assert processor.backend == backend
    target = {"image_id": "a", "annotations": [{"bbox": [0, 0, 60, 50], "category_id": 1}]}
    batch = processor(numpy.zeros((50, 60, 3), "uint8"), target, return_tensors="pt")
    assert batch["labels"][0]["boxes"].tolist() == [[0.5, 0.5, 1, 1]]
processor.save_pretrained(again)
AutoImageProcessor.from_pretrained(again, backend="torchvision", trust_remote_code=True)
assert "detr_hf" not in sys.modules
"""


@pytest.mark.slow
def test_custom_code_loads_with_either_backend_where_the_package_is_absent(tmp_path, monkeypatch):
    for backend in BACKENDS:
        monkeypatch.setattr(backend, "_auto_class", None)
    assert "auto_map" not in DETRImageProcessor().to_dict()
    DETRImageProcessorPil.register_for_auto_class()
    folder = tmp_path / "saved"
    DETRImageProcessor(size=SMALL).save_pretrained(folder)
    assert json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"] == {
        "torchvision": "image_processing_detr.DETRImageProcessor",
        "pil": "image_processing_detr.DETRImageProcessorPil",
    }
    assert not [file for file in folder.glob("*.py") if not file.stem.endswith("_detr")]
    # blocked by name, because the package may be installed where this runs
    blocked = "import sys; sys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod(refuse)}))"
    refuse = (
        "def refuse(name, path=None, target=None):\n"
        "    if name.split('.')[0] == 'detr_hf':\n        raise ImportError(name)\n"
    )
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    result = subprocess.run(
        [sys.executable, "-c", refuse + blocked + CUSTOM_CODE, str(folder), str(tmp_path / "again")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


# --- detections and real pictures -----------------------------------------------------------------------------------


@both_backends
def test_detections_round_trip(backend):
    """Boxes of a target, given back as predictions, are the boxes of the annotation again."""
    batch = backend(size=SMALL)(PICTURES, ANNOTATIONS, return_tensors="pt")
    for index, target in enumerate(batch["labels"]):
        logits = torch.nn.functional.one_hot(target["class_labels"], 5).float()[None] * 20
        outputs = {"logits": logits, "pred_boxes": target["boxes"][None]}
        processor = backend()
        (found,) = processor.post_process_object_detection(outputs, 0.9, target["orig_size"][None])
        expected = torch.tensor(
            [item["bbox"] for item in ANNOTATIONS[index]["annotations"] if not item.get("iscrowd")]
        )
        expected[:, 2:] += expected[:, :2]
        torch.testing.assert_close(found["boxes"], expected, rtol=0, atol=1e-3)
        assert torch.equal(found["labels"], target["class_labels"])


@both_backends
def test_boxes_refer_to_the_upright_image(backend):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying, 80 x 60; upright it is 60 wide and 80 high
    stored = io.BytesIO()
    PICTURES[0].save(stored, "JPEG", exif=exif)
    target = {"image_id": 0, "annotations": [{"bbox": [0, 0, 60, 80], "category_id": 1}]}
    for image in (stored.getvalue(), PIL.Image.open(stored)):
        batch = backend(size=SMALL)(image, target, return_tensors="pt")
        assert batch["pixel_values"].shape == (1, 3, 64, 48)
        assert batch["labels"][0]["orig_size"].tolist() == [80, 60]
        assert batch["labels"][0]["boxes"].tolist() == [[0.5, 0.5, 1, 1]]


def real_annotations(name: str, key: str) -> dict[Path, list[dict]]:
    content = json.loads((COCO / f"{name}.json").read_text())
    by_image = {image["id"]: (COCO / "train" / image["file_name"], []) for image in content["images"]}
    for item in content["annotations"]:
        by_image[item["image_id"]][1].append(item)
    return {path: [image_id, items] for image_id, (path, items) in by_image.items()}


@pytest.mark.skipif(not COCO.is_dir(), reason="the sample of COCO is not there")
def test_real_coco_with_masks(caplog):
    """Crowds, run lengths, images without objects, a grey JPEG: no picture of COCO is refused, and backends agree."""
    pytest.importorskip("pycocotools")
    examples = real_annotations("instances_train", "annotations")
    processors = [backend(size={"shortest_edge": 60, "longest_edge": 100}) for backend in BACKENDS]
    with caplog.at_level(logging.WARNING):
        for number, (path, (image_id, items)) in enumerate(examples.items()):
            target = {"image_id": image_id, "annotations": items}
            first = processors[0](path, target, return_segmentation_masks=True, return_tensors="pt")
            assert len(first["labels"][0]["masks"]) == sum(not item["iscrowd"] for item in items)
            if number % 8 == 0:
                second = processors[1](path, target, return_segmentation_masks=True, return_tensors="pt")
                assert_same_target(first["labels"][0], second["labels"][0])
                assert_equal_within_grey_levels(first["pixel_values"], second["pixel_values"])
    assert len(examples) == 128
    assert "dropped" not in caplog.text


@pytest.mark.skipif(not COCO.is_dir(), reason="the sample of COCO is not there")
def test_real_coco_panoptic_boxes_are_those_of_the_annotations():
    processor = DETRImageProcessor(size={"shortest_edge": 60, "longest_edge": 100}, format="coco_panoptic")
    examples = {
        path: items for path, (_, items) in real_annotations("panoptic_train", "segments_info").items() if items
    }
    for path, (target,) in list(examples.items())[::4]:
        labels = processor(path, target, masks_path=COCO / "panoptic_train", return_tensors="pt")["labels"][0]
        height, width = labels["orig_size"].tolist()
        found = labels["boxes"].double() * torch.tensor([width, height, width, height])
        found[:, :2] -= found[:, 2:] / 2
        wanted = [segment["bbox"] for segment in target["segments_info"] if not segment["iscrowd"]]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-3)


@both_backends
def test_a_step_that_a_file_asks_for_and_is_not_there_is_said(backend, tmp_path, caplog):
    written = {**SLOW, "reduce_labels": True, "do_thumbnail": False, "size": {"longest_edge": 90}, "max_size": 7}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    with caplog.at_level("WARNING"):
        backend.from_pretrained(tmp_path)
    assert "no use for: reduce_labels" in caplog.text and "do_thumbnail" not in caplog.text
    assert "max_size 7 does nothing beside size {'longest_edge': 90}" in caplog.text


@both_backends
@pytest.mark.parametrize("images", [lambda: (image for image in PICTURES), lambda: {"a": PICTURES}["a"]])
def test_an_iterator_is_as_many_images(backend, images):
    expected = backend(size=SMALL)(PICTURES, return_tensors="pt")
    torch.testing.assert_close(dict(backend(size=SMALL)(images(), return_tensors="pt")), dict(expected))
