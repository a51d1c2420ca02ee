"""The pipelines read what a `Detector` reads, and find in it what a `Detector` and the image processor find."""

import base64
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from transformers import pipeline

from detr_hf import Detector, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor

from ..conftest import tiny_model, tiny_segmenter

SIZE = {"shortest_edge": 64, "longest_edge": 96}
PIXELS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((80, 60))
)
PICTURE = Image.fromarray(PIXELS)
GREY = np.asarray(PICTURE.convert("L"))
TURNED = Image.Exif()
TURNED[0x0112] = 6
CLEAR = Image.fromarray(np.dstack([PIXELS, np.tile(np.uint8([0, 255]), (60, 40))]))


def pipe_and_detector(**settings):
    model, processor = tiny_model(), DETRImageProcessor(**{"size": SIZE, **settings})
    return pipeline("object-detection", model=model, image_processor=processor, threshold=0.0), Detector(
        model, processor
    )


@pytest.fixture(scope="module")
def roads():
    return pipe_and_detector()


def assert_same(by_pipe: list[dict], found) -> None:
    """The same scores, and boxes that the pipeline cuts to whole pixels."""
    by_pipe = sorted(by_pipe, key=lambda one: -one["score"])
    np.testing.assert_allclose([one["score"] for one in by_pipe], found.scores, atol=1e-5)
    boxes = np.array([list(one["box"].values()) for one in by_pipe])
    assert (np.abs(boxes - found.boxes) < 1.01).all()


def with_planes(kind):
    return lambda path: kind(torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()))


FILES = {
    "RGB": (PICTURE, {}),
    "16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), {}),
    "partly clear": (CLEAR, {}),
    "palette, one colour clear": (PICTURE.quantize(16), {"transparency": 3}),
    "turned": (PICTURE, {"exif": TURNED}),
    "turned, 16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), {"exif": TURNED}),
    "one bit": (PICTURE.convert("1"), {}),
    "grey and alpha": (Image.merge("LA", (PICTURE.convert("L"), PICTURE.convert("L"))), {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_read_by_one_reader(roads, kind, tmp_path):
    pipe, detector = roads
    image, options = FILES[kind]
    path = tmp_path / "a.png"
    image.save(path, **options)
    found = detector(path, threshold=0)
    for given in (str(path), path, path.read_bytes(), Image.open(path), path.open("rb"), {"bytes": path.read_bytes()}):
        assert_same(pipe(given), found)
    assert_same(pipe([str(path), PICTURE], batch_size=2)[0], found)


def test_32_bits_are_refused_as_by_the_detector(roads, tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    for road in roads:
        with pytest.raises(ValueError, match="mode 'F'"):
            road(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("kind", [lambda path: PIXELS, with_planes(tv_tensors.Image), with_planes(torch.Tensor.float)])
def test_an_array_is_one_picture(roads, kind):
    pipe, detector = roads
    assert_same(pipe(kind(None)), detector(kind(None), threshold=0))


def test_text_of_base64_is_read_as_the_stock_pipeline_does(roads):
    pipe, detector = roads
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    for given in (text, f"data:image/png;base64,{text}"):
        assert_same(pipe(given), detector(PICTURE, threshold=0))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        pipe("gone.png")


PICTURES = [PICTURE, PICTURE.resize((60, 80)), PICTURE.rotate(180), PICTURE.resize((70, 70))]
SEVERAL = {
    "list": lambda: PICTURES,
    "tuple": lambda: tuple(PICTURES),
    "generator": lambda: (picture for picture in PICTURES),
    "values": lambda: dict(enumerate(PICTURES)).values(),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", SEVERAL)
def test_what_is_found_does_not_depend_on_the_batch(roads, kind, batch_size):
    pipe, detector = roads
    several = list(pipe(SEVERAL[kind](), batch_size=batch_size))
    assert len(several) == len(PICTURES)
    for picture, by_pipe in zip(PICTURES, several, strict=True):
        assert_same(by_pipe, detector(picture, threshold=0))


def test_none_and_a_batch_in_an_array(roads):
    pipe, detector = roads
    assert pipe([]) == pipe(images=[]) == []
    (first, second) = pipe(np.stack([PIXELS, PIXELS[::-1]]))
    assert_same(first, detector(PIXELS, threshold=0))
    assert_same(second, detector(PIXELS[::-1], threshold=0))


@pytest.mark.parametrize(
    "settings",
    [{"do_pad": False}, {"pad_size": {"height": 96, "width": 128}}, {"size": {"longest_edge": 64}}],
    ids=["unpadded", "canvas", "longest edge"],
)
def test_the_settings_of_a_processor_are_kept(settings):
    pipe, detector = pipe_and_detector(**settings)
    for picture, by_pipe in zip(PICTURES, pipe(PICTURES, batch_size=3), strict=True):
        assert_same(by_pipe, detector(picture, threshold=0))


def test_advice_can_be_followed(roads, tmp_path: Path):
    with pytest.raises(ValueError, match="Multiply them by 255"):
        roads[0](PIXELS / 255)


# --- masks ---

LOW = {"threshold": 0.3, "overlap_mask_area_threshold": 0.1}
PROCESSOR = DETRImageProcessor(size=SIZE, label_ids_to_fuse=[2])


@pytest.fixture(scope="module")
def segmenter() -> DETRForSegmentation:
    return tiny_segmenter()


@pytest.fixture(scope="module")
def segment(segmenter):
    return pipeline("image-segmentation", model=segmenter, image_processor=PROCESSOR)


@torch.no_grad()
def alone(model: DETRForSegmentation, picture: Image.Image, subtask: str | None) -> list[tuple]:
    """Class, score and mask of what the image processor finds in a picture that runs by itself, all masks made."""
    outputs = model(**PROCESSOR(picture, return_tensors="pt"))
    size = {"target_sizes": [(picture.height, picture.width)]}
    if subtask == "semantic":
        (classes,) = PROCESSOR.post_process_semantic_segmentation(outputs, **size)
        return [(label, None, classes.numpy() == label) for label in classes.unique().tolist()]
    post_process = getattr(PROCESSOR, f"post_process_{subtask or 'panoptic'}_segmentation")
    (found,) = post_process(outputs, **LOW, **size)
    ids = found["segmentation"].numpy()
    return [(segment["label_id"], segment["score"], ids == segment["id"]) for segment in found["segments_info"]]


@pytest.mark.parametrize(("subtask", "batch_size"), [(None, 1), ("panoptic", 3), ("instance", 3), ("semantic", 3)])
def test_masks_do_not_depend_on_the_batch(segmenter, segment, subtask, batch_size):
    pictures = PICTURES[:3]
    options = {} if subtask == "semantic" else LOW
    for picture, by_pipe in zip(
        pictures, segment(pictures, batch_size=batch_size, subtask=subtask, **options), strict=True
    ):
        expected = alone(segmenter, picture, subtask)
        assert len(by_pipe) == len(expected) > (0 if subtask == "semantic" else 1)
        for one, (label, score, mask) in zip(by_pipe, expected, strict=True):
            assert one["label"] == segmenter.config.id2label[label] and one["mask"].size == picture.size
            assert one["score"] == (score if score is None else pytest.approx(score, abs=1e-5))
            assert (np.asarray(one["mask"]) == mask * np.uint8(255)).mean() > 0.999


def test_pictures_are_read_as_by_a_detector(segment, tmp_path):
    PICTURE.save(tmp_path / "turned.png", exif=TURNED)
    (by_name,), (by_bytes,) = (
        segment([given], **LOW) for given in (str(tmp_path / "turned.png"), (tmp_path / "turned.png").read_bytes())
    )
    assert by_name == by_bytes and by_name[0]["mask"].size == (60, 80)
    assert segment([]) == []
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        segment("gone.png")


def test_only_masks_that_a_result_can_hold_are_made(segmenter, segment, monkeypatch):
    asked = []
    forward = segmenter.forward
    monkeypatch.setattr(segmenter, "forward", lambda *args, **given: asked.append(given) or forward(*args, **given))
    for options in ({}, {"threshold": 0.95}, {"subtask": "semantic"}):
        segment(PICTURE, **options)
    assert [given["mask_score_threshold"] for given in asked] == [0.9, 0.95, None]


def test_boxes_of_a_segmentation_model_cost_no_masks(segmenter, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(type(segmenter.mask_head), "adapt", None)  # the first step of any mask
    pipe = pipeline("object-detection", model=segmenter, image_processor=PROCESSOR, threshold=0.0)
    detector = DETRForObjectDetection(segmenter.config).eval()
    detector.load_state_dict(segmenter.state_dict(), strict=False)
    assert_same(pipe(PICTURE), Detector(detector, PROCESSOR)(PICTURE, threshold=0))
    assert "not supported" not in caplog.text
