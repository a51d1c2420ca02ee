"""`Detector` on an artefact: what it finds on the checkpoint, by the same calls, in a process without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf import Detections, Detector, DETRImageProcessor
from detr_hf.export.processing import NumpyProcessor, detections_of, read_pixels
from detr_hf.inference.backends import ArtefactBackend
from detr_hf.model import Predictions
from detr_hf.processing.image_reading_detr import read_images

from ..export.artefacts import ModelRuntime, info_of, small_processor

ROOT = Path(__file__).parents[2]


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Returns a smooth picture, as photographs are."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height)).convert(mode)


@pytest.fixture(scope="module")
def on_checkpoint(exported_model) -> Detector:
    return Detector(exported_model, small_processor())


@pytest.fixture(scope="module")
def on_artefact(onnx_artefact) -> Detector:
    return Detector.from_pretrained(onnx_artefact)


def assert_close(found: Detections, expected: Detections) -> None:
    """The same objects, up to the resize of Pillow in place of torch's."""
    assert len(found) == len(expected) and found.size_hw == expected.size_hw
    distance = np.abs(found.boxes[:, None] - expected.boxes[None]).sum(-1)
    distance += 100 * np.abs(found.scores[:, None] - expected.scores[None])
    other = distance.argmin(axis=1)  # scores that are nearly equal may change places
    assert sorted(other) == list(range(len(found)))
    np.testing.assert_allclose(found.scores, expected.scores[other], atol=5e-3)
    np.testing.assert_allclose(found.boxes, expected.boxes[other], atol=0.5)
    assert found.names == [expected.names[i] for i in other]


def test_it_finds_what_the_checkpoint_finds(on_artefact, on_checkpoint):
    assert type(on_artefact) is Detector and isinstance(on_artefact.backend, ArtefactBackend)
    pictures = [picture(64, 80), picture(120, 90, 1), picture(64, 80, 2), picture(40, 200, 3)]
    for found, expected in zip(on_artefact(pictures, 0.0), on_checkpoint(pictures, 0.0), strict=True):
        assert_close(found, expected)
        assert len(found) == 7 and (np.diff(found.scores) <= 0).all()
    same_size = picture(64, 64)  # not resized: equal to rounding
    np.testing.assert_allclose(on_artefact(same_size, 0.0).boxes, on_checkpoint(same_size, 0.0).boxes, atol=1e-3)


def test_a_batch_gives_what_each_picture_gives(on_artefact):
    pictures = [picture(64, 80, seed) for seed in range(5)]
    for found, one in zip(on_artefact(pictures, 0.0, batch_size=3), pictures, strict=True):
        np.testing.assert_allclose(found.scores, on_artefact(one, 0.0).scores, atol=1e-5)


def test_every_kind_of_source_gives_the_same(on_artefact, tmp_path):
    image = picture(60, 80)
    path = tmp_path / "a.png"
    image.save(path)
    pixels = np.asarray(image)
    expected = on_artefact(image, 0.0)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for source in (str(path), path, path.read_bytes(), pixels, tensor):
        np.testing.assert_array_equal(on_artefact(source, 0.0).boxes, expected.boxes)
    assert on_artefact(path).path == path


def test_errors_are_those_of_a_detector(on_artefact, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"image 1 .*broken\.jpg"):
        on_artefact([picture(64, 64), broken])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        on_artefact(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="threshold"):
        on_artefact(picture(64, 64), threshold=2)


def test_precision_and_device_belong_to_the_artefact(onnx_artefact):
    with pytest.raises(ValueError, match="exported in float32"):
        Detector.from_pretrained(onnx_artefact, dtype=torch.bfloat16)
    assert Detector.from_pretrained(onnx_artefact, dtype="float32", device="cpu").model.device == "cpu"
    shown = repr(Detector.from_pretrained(onnx_artefact))
    assert shown.startswith("Detector(small.onnx") and "3 classes" in shown and "float32" in shown


def test_another_size_of_pictures(onnx_artefact, exported_model):
    detector = Detector.from_pretrained(onnx_artefact)
    detector.resize_to(32)
    assert detector.backend.processed(np.zeros((40, 50, 3), np.uint8))[0].shape == (1, 3, 32, 40)
    fixed = ArtefactBackend(ModelRuntime(exported_model, info_of(exported_model, size_hw=(64, 96))), "fixed.onnx")
    with pytest.raises(ValueError, match=r"takes images of 64x96 only: export the model with --dynamic"):
        fixed.resize_to(32)


def test_the_fingerprint_is_the_files(onnx_artefact, tmp_path):
    copy = tmp_path / "other.onnx"
    copy.write_bytes(onnx_artefact.read_bytes())
    first = Detector.from_pretrained(onnx_artefact).fingerprint()
    assert Detector.from_pretrained(copy).fingerprint() == first
    runtime = Detector.from_pretrained(copy).model
    copy.write_bytes(onnx_artefact.read_bytes() + b"\0")
    assert ArtefactBackend(runtime, copy).fingerprint() != first


IN_A_NEW_PROCESS = """
import json, sys
from detr_hf import Detector
detector = Detector.from_pretrained(sys.argv[1])
found = [detector(sys.argv[2], threshold=0.0), *detector(sys.argv[2:4], threshold=0.0)]
for detections in found:
    detections.save(sys.argv[4])
heavy = [name for name in ("torch", "torchvision", "transformers", "timm", "scipy") if name in sys.modules]
print(json.dumps({"heavy": heavy, "found": [detections.to_dict() for detections in found]}))
"""


@pytest.mark.parametrize("kind", ["boxes", pytest.param("masks", marks=pytest.mark.slow)])
def test_it_runs_without_importing_torch(kind, request, tmp_path):
    onnx_artefact = request.getfixturevalue("onnx_artefact" if kind == "boxes" else "onnx_artefact_with_masks")
    on_artefact = Detector.from_pretrained(onnx_artefact)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    picture(70, 90, 4).save(paths[0])
    grey = picture(80, 60, 5, "L")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(paths[1], exif=exif)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, onnx_artefact, *paths, tmp_path / "drawn.png"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["heavy"] == []
    expected = [on_artefact(path, 0.0).to_dict() for path in (paths[0], *paths)]
    for found, wanted in zip(shown["found"], expected, strict=True):
        assert found["height"] == wanted["height"] and set(found) == set(wanted)
        assert found.get("segments") == wanted.get("segments")
        assert [one.get("segmentation") for one in found["objects"]] == [
            one.get("segmentation") for one in wanted["objects"]
        ]
        assert ("segments" in found) == ("segmentation" in found["objects"][0]) == (kind == "masks")
        np.testing.assert_allclose(
            [one["box"] for one in found["objects"]], [one["box"] for one in wanted["objects"]], atol=1e-3
        )


def test_naming_predictions_needs_no_torch():
    program = "import sys; from detr_hf.model.predictions_detr import Predictions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


# The processor alone


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("hw", [(50, 70), (500, 333), (90, 300), (64, 64)])
def test_pixels_equal_the_image_processors(exported_model, mode, hw):
    processor = small_processor()
    image = picture(*hw, seed=7, mode=mode)
    size_hw, pixel_values = NumpyProcessor(info_of(exported_model))(image)
    expected = processor(image, return_tensors="np")["pixel_values"]
    assert size_hw == hw and pixel_values.shape == expected.shape and pixel_values.dtype == np.float32
    grey_levels = np.abs(pixel_values - expected) * np.array(processor.image_std).reshape(-1, 1, 1) * 255
    assert grey_levels.max() <= 2.01 and (grey_levels > 1.01).mean() < 1e-3
    pillow = NumpyProcessor(info_of(exported_model))(image)[1]
    np.testing.assert_array_equal(pillow, pixel_values)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False},
        {"size": {"height": 40, "width": 72}},
        {"size": {"max_height": 60, "max_width": 60}},
        {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3},
        {"resize_rule": "transformers"},
        {"size": {"longest_edge": 90}},
        {"pad_size": {"height": 100, "width": 110}},
        {"size": {"max_height": 80, "max_width": 80}, "pad_size": {"height": 80, "width": 80}},
        {"pad_size": {"height": 100, "width": 110}, "do_pad": False},
    ],
)
def test_pixels_follow_the_settings(exported_model, changes):
    from detr_hf import DETRImageProcessorPil

    options = {"size": {"shortest_edge": 64, "longest_edge": 96}, **changes}
    image = picture(100, 190, 3)
    expected = DETRImageProcessorPil(**options)(image, return_tensors="np")["pixel_values"]
    found = NumpyProcessor(info_of(exported_model, DETRImageProcessor(**options)))(image)[1]
    np.testing.assert_allclose(found, expected, atol=1e-4 if changes.get("do_rescale", True) else 1e-2)


@pytest.mark.parametrize(
    "source",
    [
        picture(20, 30),
        picture(20, 30, mode="RGBA"),
        Image.new("I;16", (30, 20), 40000),
        np.full((20, 30), 7, np.uint8),
        np.full((20, 30, 1), 7, np.uint8),
        np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8),
        np.full((3, 20, 30), 9, np.uint8),
        np.full((20, 30, 3), 9.5, np.float32),
        np.ones((20, 30), bool),
        torch.full((3, 20, 30), 5, dtype=torch.uint8),
    ],
    ids=["rgb", "rgba", "16 bit", "grey", "one channel", "alpha", "planes", "floats", "boolean", "tensor"],
)
def test_reading_is_the_image_processors(source):
    (expected,) = read_images(source)
    np.testing.assert_array_equal(read_pixels(source), expected.numpy())


@pytest.mark.parametrize("source", [np.zeros((3, 20, 3), np.uint8), np.zeros((0, 5, 3), np.uint8), None, 3])
def test_what_cannot_be_read_fails_alike(source):
    with pytest.raises((ValueError, TypeError)) as expected:
        read_images(source)
    with pytest.raises(type(expected.value)) as found:
        read_pixels(source)
    assert str(found.value) == str(expected.value)


def test_detections_equal_the_image_processors():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, 5, generator=generator) * 2
    boxes = torch.rand(3, 20, 4, generator=generator)  # many reach over the edge
    sizes_hw = [(100, 200), (33, 77), (480, 640)]
    expected = DETRImageProcessor().post_process_object_detection(
        {"logits": logits, "pred_boxes": boxes}, threshold=0.3, target_sizes=torch.tensor(sizes_hw)
    )
    found = detections_of(Predictions(logits.numpy(), boxes.numpy()), 0.3, sizes_hw)
    for one, other in zip(found, expected, strict=True):
        assert len(one["scores"]) == len(other["scores"]) > 0
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-6)
        np.testing.assert_array_equal(one["labels"], other["labels"])
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)
        assert "best_below" not in one
    empty = detections_of(Predictions(logits.numpy(), boxes.numpy()), 1.0, sizes_hw)
    for one, other in zip(empty, found, strict=True):
        best = other["scores"].argmax()
        assert one["best_below"] == (other["labels"][best], other["scores"][best])


def test_outputs_that_are_not_finite_are_an_error():
    logits, boxes = np.zeros((1, 2, 3), np.float32), np.full((1, 2, 4), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN or infinity"):
        detections_of(Predictions(logits, boxes), 0.5, [(10, 10)])


# Fixed shapes: the runtime is the model itself, which sees what the detector puts on the canvas.


def test_a_fixed_canvas_is_masked_and_changes_little(exported_model, on_checkpoint):
    info = info_of(exported_model, batch=2, size_hw=(64, 96))
    detector = Detector.on(ArtefactBackend(ModelRuntime(exported_model, info), "fixed.onnx"))
    pictures = [picture(64, 96, 1), picture(64, 70, 2), picture(96, 64, 3)]
    seen = []

    class Watched(ModelRuntime):
        def __call__(self, pixel_values, pixel_mask=None):
            seen.append((pixel_values.shape, pixel_mask.sum(axis=(1, 2)).tolist()))
            return super().__call__(pixel_values, pixel_mask)

    detector.model = Watched(exported_model, info)
    found = detector(pictures, 0.0)
    # the portrait is scaled down to the height of the canvas, and fills the batch twice
    assert seen == [((2, 3, 64, 96), [64 * 96, 64 * 70]), ((2, 3, 64, 96), [64 * 42, 64 * 42])]
    np.testing.assert_allclose(found[0].boxes, on_checkpoint(pictures[0], 0.0).boxes, atol=1e-2)
    assert [one.size_hw for one in found] == [(64, 96), (64, 70), (96, 64)]
    for one in found:
        assert (one.boxes >= 0).all() and (one.boxes[:, 2] <= one.size_hw[1]).all()


@pytest.mark.parametrize("size_hw", [None, (96, 96)])
def test_an_artefact_pads_to_the_canvas_of_its_image_processor(exported_model, size_hw):
    processor = small_processor(size={"max_height": 96, "max_width": 96}, pad_size={"height": 96, "width": 96})
    info = info_of(exported_model, processor, size_hw=size_hw)
    on_artefact = Detector.on(ArtefactBackend(ModelRuntime(exported_model, info), "padded.onnx"))
    pictures = [picture(48, 96, 1), picture(96, 70, 2), picture(64, 64, 3), picture(96, 96, 4)]
    for found, expected in zip(
        on_artefact(pictures, 0.0), Detector(exported_model, processor)(pictures, 0.0), strict=True
    ):
        assert_close(found, expected)


def test_a_picture_that_does_not_fit_the_canvas_is_refused_by_both(exported_model):
    processor = small_processor(do_resize=False, pad_size={"height": 30, "width": 30})
    on_artefact = Detector.on(
        ArtefactBackend(ModelRuntime(exported_model, info_of(exported_model, processor)), "a.onnx")
    )
    for detector in (on_artefact, Detector(exported_model, processor)):
        with pytest.raises(ValueError, match=r"image 1: .*smaller than an image of .*\(20, 40\)"):
            detector([picture(20, 20), picture(20, 40)])


def test_without_a_mask_the_picture_is_stretched(exported_model):
    info = info_of(exported_model, batch=1, size_hw=(64, 96), masked=False)
    processor = NumpyProcessor(info)
    size_hw, pixel_values = processor(picture(50, 50))
    assert size_hw == (50, 50) and pixel_values.shape == (1, 3, 64, 96) and processor.pixel_mask([size_hw]) is None
    assert (np.abs(pixel_values).sum(axis=1) > 0).mean() > 0.99


def test_other_channels_are_refused(exported_model):
    from dataclasses import replace

    with pytest.raises(ValueError, match="takes 1 channels"):
        NumpyProcessor(replace(info_of(exported_model), num_channels=1))
