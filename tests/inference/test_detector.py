"""`Detector`: what is found in a picture depends on nothing but the picture."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_hf import Detections, Detector, DETRImageProcessor

from ..conftest import tiny_model

SIZES_HW = [(60, 80), (80, 60), (60, 80), (50, 50), (60, 80), (61, 80), (60, 80)]


def random_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_model(), DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [random_picture(*size_hw, seed) for seed, size_hw in enumerate(SIZES_HW)]


def assert_same(one: Detections, other: Detections) -> None:
    assert one.names == other.names and one.size_hw == other.size_hw
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_picture_gives_the_same_alone_and_in_any_list(detector, pictures, batch_size):
    together = detector(pictures, threshold=0, batch_size=batch_size)
    assert [found.size_hw for found in together] == SIZES_HW
    for picture, found in zip(pictures, together, strict=True):
        assert_same(found, detector(picture, threshold=0))


def test_the_order_is_kept_over_several_windows(detector):
    pictures = [random_picture(40 + seed % 3, 50, seed) for seed in range(20)]
    together = detector(pictures, threshold=0, batch_size=1)
    assert [found.size_hw[0] for found in together] == [40 + seed % 3 for seed in range(20)]
    assert_same(together[17], detector(pictures[17], threshold=0))


def test_equals_processor_model_and_post_processing_by_hand(detector, pictures):
    processor, model = detector.image_processor, detector.model
    inputs = processor(pictures[0], return_tensors="pt")
    with torch.no_grad():
        outputs = model(inputs["pixel_values"])
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(60, 80)])
    order = expected["scores"].argsort(descending=True)
    found = detector(pictures[0], threshold=0.3)
    np.testing.assert_allclose(found.boxes, expected["boxes"][order], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-5)
    assert found.names == [model.config.id2label[label] for label in found.labels.tolist()]


def test_every_kind_of_source_gives_the_same(detector, tmp_path):
    picture = random_picture(60, 80)
    path = tmp_path / "a.png"
    picture.save(path)
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    expected = detector(picture, threshold=0)
    for source in (str(path), path, path.read_bytes(), pixels, tensor):
        assert_same(detector(source, threshold=0), expected)
    assert detector(path).path == path and detector(pixels).path is None
    # Floats are resized as floats, without rounding to grey levels.
    np.testing.assert_allclose(detector(tensor.float(), threshold=0).scores, expected.scores, atol=1e-3)


def test_one_gives_one_and_a_list_gives_a_list(detector, pictures):
    assert isinstance(detector(pictures[0]), Detections)
    assert [type(found) for found in detector(pictures[:1])] == [Detections]
    assert detector([]) == []
    assert len(detector(picture for picture in pictures[:3])) == 3
    batch = np.stack([np.asarray(picture) for picture in (pictures[0], pictures[2])])
    for found, picture in zip(detector(batch, threshold=0), (pictures[0], pictures[2]), strict=True):
        assert_same(found, detector(picture, threshold=0))


def test_the_threshold_keeps_higher_scores_best_first(detector, pictures):
    everything = detector(pictures[0], threshold=0)
    assert len(everything) == detector.model.config.num_queries
    assert (np.diff(everything.scores) <= 0).all()
    middle = float(everything.scores[3])
    assert_same(detector(pictures[0], threshold=middle), everything.filter(threshold=middle))

    with pytest.raises(ValueError, match="No class is named 'zebra'"):
        everything.filter(names="zebra")


def test_no_picture_is_padded(detector, pictures, monkeypatch):
    shapes = []
    forward = detector.model.forward

    def watched(pixel_values, *args, **kwargs):
        assert not args and not kwargs  # no mask: nothing to hide
        shapes.append(tuple(pixel_values.shape))
        return forward(pixel_values)

    monkeypatch.setattr(detector.model, "forward", watched)
    detector(pictures, batch_size=3)
    assert sorted(shapes) == sorted([(2, 3, 64, 85), (2, 3, 64, 85), (1, 3, 85, 64), (1, 3, 64, 64), (1, 3, 64, 83)])


def test_reading_is_lazy(detector, pictures):
    read = []

    def source():
        for number in range(100):
            read.append(number)
            yield pictures[0]

    stream = detector.stream(source(), batch_size=1)
    assert not read
    next(stream)
    assert 1 <= len(read) <= 8


def test_a_bad_picture_is_named(detector, pictures, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"image 1 .*broken\.jpg"):
        detector([pictures[0], broken])
    with pytest.raises(FileNotFoundError, match=r"image 0 .*missing\.jpg"):
        detector(tmp_path / "missing.jpg")
    with pytest.raises(TypeError, match="image 2 is None"):
        detector([*pictures[:2], None])


def test_a_bad_picture_can_be_left_out(detector, pictures, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    failed = []
    found = list(
        detector.stream(
            [pictures[0], broken, pictures[1]], threshold=0, on_error=lambda *failure: failed.append(failure)
        )
    )
    assert [one.size_hw for one in found] == [SIZES_HW[0], SIZES_HW[1]]
    assert [source for source, _ in failed] == [broken] and isinstance(failed[0][1], ValueError)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_wrong_threshold_is_refused_at_once(detector, threshold):
    with pytest.raises(ValueError, match="between 0 and 1"):
        detector.stream([], threshold=threshold)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_wrong_batch_size_is_refused(detector, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        detector([], batch_size=batch_size)


def test_outputs_that_are_not_finite_are_an_error_that_names_the_picture(tmp_path):
    model = tiny_model()
    model.class_embed.bias.data.fill_(float("nan"))
    path = tmp_path / "a.png"
    random_picture(40, 40).save(path)
    with pytest.raises(ValueError, match=r"a\.png"):
        Detector(model, DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))(path)


def test_a_turned_photograph_is_seen_upright(detector):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    random_picture(60, 80).save(file, "JPEG", exif=exif)
    assert detector(file.getvalue()).size_hw == (80, 60)


@pytest.mark.processor
def test_saved_and_loaded_it_finds_the_same(detector, pictures, tmp_path):
    detector.model.save_pretrained(tmp_path)
    detector.image_processor.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path, device="cpu", local_files_only=True)
    assert_same(loaded(pictures[0], threshold=0), detector(pictures[0], threshold=0))
    half = Detector.from_pretrained(str(tmp_path), dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    close = half(pictures[0], threshold=0)
    assert abs(close.scores[0] - detector(pictures[0], threshold=0).scores[0]) < 0.05
    assert "resnet18" in repr(half) and "bfloat16" in repr(half)


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        Detector.from_pretrained(tmp_path, local_files_only=True)


def test_a_folder_without_preprocessing_is_resized_as_in_the_original_and_said(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    assert loaded.image_processor.size["shortest_edge"] == 800
    assert "image sizes" in caplog.text


CANVASES = {
    "the guide's": {"size": {"max_height": 96, "max_width": 96}, "pad_size": {"height": 96, "width": 96}},
    "wide": {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 128}},
    "not resized": {"do_resize": False, "pad_size": {"height": 100, "width": 90}},
}


@pytest.mark.parametrize("settings", CANVASES.values(), ids=CANVASES)
def test_on_a_canvas_the_model_gets_its_mask_and_no_picture_depends_on_another(settings, pictures):
    processor = DETRImageProcessor(**settings)
    padded = Detector(tiny_model(), processor)
    together = padded(pictures, threshold=0, batch_size=4)
    for picture, found in zip(pictures, together, strict=True):
        inputs = processor(picture, return_tensors="pt")
        assert not inputs["pixel_mask"].all() or picture.width == picture.height
        with torch.no_grad():
            outputs = padded.model(**inputs)
        sizes = [picture.size[::-1]]
        (expected,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=sizes)
        order = expected["scores"].argsort(descending=True)
        np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected["boxes"][order], atol=1e-3)
        assert_same(found, padded(picture, threshold=0))


def test_a_stretched_picture_and_one_that_is_not_padded_need_no_mask(pictures):
    for settings in ({"size": {"height": 64, "width": 64}}, {"size": {"longest_edge": 64}, "do_pad": False}):
        detector = Detector(tiny_model(), DETRImageProcessor(**settings))
        assert all(detector._prepare(0, picture).pixel_mask is None for picture in pictures)


ADVICE = {
    "floats to 1": (lambda: torch.rand(3, 20, 30), "ultiply them by 255"),
    "normalised": (lambda: torch.randn(3, 20, 30), "undo that first"),
    "two layouts": (lambda: np.zeros((3, 30, 3), np.uint8), "PIL.Image.fromarray"),
    "five channels": (lambda: np.zeros((20, 30, 5), np.uint8), "Pick the channels"),
}


@pytest.mark.parametrize("make", ADVICE)
def test_advice_can_be_followed_where_it_is_given(detector, make):
    picture, advice = ADVICE[make]
    with pytest.raises(ValueError, match=advice) as caught:
        detector(picture())
    assert not any(option in str(caught.value) for option in ("do_rescale", "input_data_format", "do_convert_rgb"))


def test_a_checkpoint_that_does_not_rescale_takes_floats_to_1(pictures):
    settings = {"size": {"shortest_edge": 64, "longest_edge": 96}, "do_rescale": False, "do_normalize": False}
    detector = Detector(tiny_model(), DETRImageProcessor(**settings))
    pixels = np.asarray(pictures[0])
    found = detector(pixels / 255, threshold=0)
    np.testing.assert_array_equal(np.asarray(found.image), pixels)


def test_a_list_in_a_list_is_refused_and_a_batch_of_one_is_a_picture(detector, pictures):
    with pytest.raises(TypeError, match="image 1 is a list, not an image"):
        detector([pictures[0], [pictures[1], pictures[2]]])
    with pytest.raises(ValueError, match=r"image 0 has shape \(2, 60, 80, 3\)"):
        detector([np.stack([np.asarray(pictures[0])] * 2)])
    (found,) = detector([np.asarray(pictures[0])[None]], threshold=0)
    assert_same(found, detector(pictures[0], threshold=0))


def test_rows_of_a_data_set_are_pictures_and_whole_rows_are_refused(detector, pictures):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": pictures[:2]}, datasets.Features({"image": datasets.Image()}))
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    expected = detector(pictures[:2], threshold=0)
    for given in (rows["image"], (row["image"] for row in rows), undecoded["image"]):
        for found, wanted in zip(detector(given, threshold=0), expected, strict=True):
            assert_same(found, wanted)
    with pytest.raises(TypeError, match=r"image 0 is a dict with the keys \['image'\]"):
        detector(rows)


def test_a_size_that_cannot_be_is_told_with_the_pictures_name(pictures):
    small = DETRImageProcessor(do_resize=False, pad_size={"height": 10, "width": 10})
    with pytest.raises(ValueError, match="image 1: pad_size"):
        Detector(tiny_model(), small)([random_picture(8, 8), pictures[0]])


def test_where_nothing_is_found_the_best_is_told(detector, pictures):
    best = detector(pictures[0], threshold=0)[0]
    empty, full = detector(pictures[0], threshold=1.0), detector(pictures[0], threshold=0)
    assert len(empty) == 0 and full.best_below is None
    assert empty.best_below == (best.name, pytest.approx(best.score, abs=1e-6), 1.0)
