"""Masks from polygons, run lengths and panoptic PNG files. Ids as in the survey of annotations that people have."""

import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from detr_hf.processing.annotations_detr import detection_target, panoptic_target
from detr_hf.processing.mask_annotations_detr import masks_to_boxes, object_masks

coco_mask = pytest.importorskip("pycocotools.mask")

HW = (60, 80)
SQUARE = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]


def mask_of(segmentation, name="Annotation 17 of image 5"):
    return object_masks([(name, {"segmentation": segmentation})], HW)[0].numpy()


def blobs(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    masks = [np.zeros(HW, bool), np.ones(HW, bool)]
    for density in np.linspace(0.02, 0.98, count - 2):
        masks.append(generator.random(HW) < density)
    return masks


def test_polygons_are_drawn_as_pycocotools_draws_them():
    two = [SQUARE, [50.5, 20.2, 70.1, 25.0, 60.0, 55.5]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(two, *HW)))
    np.testing.assert_array_equal(mask_of(two), expected.astype(bool))


@pytest.mark.parametrize("as_text", [False, True])
def test_compressed_run_lengths_are_read(as_text):
    """Every blob that pycocotools encodes comes back."""
    for blob in blobs(12):
        encoded = coco_mask.encode(np.asfortranarray(blob))
        encoded["counts"] = encoded["counts"].decode() if as_text else encoded["counts"]
        np.testing.assert_array_equal(mask_of(encoded), blob)


def test_plain_run_lengths_are_read():
    """Column by column, background first."""
    mask = mask_of({"size": [60, 80], "counts": [10, 5, 60 * 80 - 15]})
    assert mask.sum() == 5
    assert mask[10:15, 0].all()  # column by column


REFUSED = [
    ("two points", [[10, 10, 40, 30]], ValueError, "at least 6 numbers"),
    ("odd count", [[*SQUARE, 5.0]], ValueError, "even count"),
    ("NaN", [[*SQUARE[:-1], float("nan")]], ValueError, "not finite"),
    ("infinity", [[*SQUARE[:-1], float("inf")]], ValueError, "not finite"),
    ("1e9", [[*SQUARE[:-1], 1e9]], ValueError, "up to 1e\\+09"),
    ("endless outline", [[0.0, 0.0, 9e5, 9e5] * 50], ValueError, "outline"),
    ("strings", [["a"] * 6], TypeError, "list of numbers"),
    ("flat list", SQUARE, ValueError, "polygon of shape"),
    ("other size", {"size": [80, 60], "counts": [4800]}, ValueError, "size"),
    ("no size", {"counts": [4800]}, ValueError, "size None"),
    ("garbage", {"size": [60, 80], "counts": "zzzz"}, ValueError, "cannot be read"),
    ("not base 32", {"size": [60, 80], "counts": "\n\n"}, ValueError, "cannot be read"),
    ("other counts", {"size": [60, 80], "counts": "123"}, ValueError, "sum to 4800"),
    ("too large", {"size": [60, 80], "counts": [10, 5, 60 * 80]}, ValueError, "sum to 4800"),
    ("negative", {"size": [60, 80], "counts": [-10, 4810]}, ValueError, "sum to 4800"),
    ("floats", {"size": [60, 80], "counts": [4800.0]}, TypeError, "list of integers"),
    ("no counts", {"size": [60, 80]}, TypeError, "counts of type NoneType"),
    ("a file name", "mask.png", TypeError, "type str"),
]


@pytest.mark.parametrize(
    ("segmentation", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_by_name_before_pycocotools_sees_it(segmentation, error, message):
    with pytest.raises(error, match=message) as caught:
        mask_of(segmentation)
    assert "Annotation 17 of image 5" in str(caught.value)


EMPTY = [
    ("no polygon", []),
    ("null", None),
    ("collinear", [[10, 10, 20, 10, 30, 10]]),
    ("outside", [[100, 100, 120, 100, 120, 120]]),
    ("no pixel", {"size": [60, 80], "counts": [4800]}),
]


@pytest.mark.parametrize(("name", "segmentation"), EMPTY, ids=[row[0] for row in EMPTY])
def test_empty_masks_are_kept_with_a_warning(name, segmentation, caplog):
    with caplog.at_level(logging.WARNING):
        assert not mask_of(segmentation, name=f"{name} of image 5").any()
    assert f"{name} of image 5: its segmentation covers no pixel" in caplog.text


def test_masks_that_are_asked_for_must_be_there():
    """An object without segmentation is fine until masks are asked for."""
    annotation = {"image_id": 5, "annotations": [{"id": 17, "bbox": [10, 10, 30, 20], "category_id": 1}]}
    assert len(detection_target(annotation, HW, HW)["boxes"]) == 1
    with pytest.raises(ValueError, match="Annotation 17 of image 5 has no 'segmentation'"):
        detection_target(annotation, HW, HW, with_masks=True)


def test_crowds_and_degenerate_boxes_go_with_their_masks():
    """What is left keeps its own mask, resized; a crowd's run lengths are not even read."""
    annotation = {
        "image_id": 5,
        "annotations": [
            {"bbox": [0, 0, 80, 60], "category_id": 1, "iscrowd": 1, "segmentation": {"size": [1, 1], "counts": "?"}},
            {"bbox": [5, 5, 0, 9], "category_id": 1, "segmentation": "never read"},
            {"bbox": [10, 10, 30, 20], "category_id": 2, "segmentation": [SQUARE]},
        ],
    }
    target = detection_target(annotation, HW, (30, 40), with_masks=True)
    assert target["class_labels"].tolist() == [2]
    assert target["masks"].shape == (1, 30, 40)
    np.testing.assert_array_equal(target["masks"][0], mask_of([SQUARE])[::2, ::2])


def test_boxes_reach_to_the_outer_edges_of_the_pixels():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:7] = True
    masks[1, 5, 7] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]


@pytest.fixture
def panoptic(tmp_path) -> Path:
    """A folder with 5.png: segment 300 above, segment 2 below, one pixel of segment 70000 at the bottom right."""
    ids = np.full(HW, 300)
    ids[30:] = 2
    ids[-1, -1] = 70000
    write_ids(tmp_path / "panoptic" / "5.png", ids)
    write_ids(tmp_path / "secret.png", ids)
    return tmp_path / "panoptic"


def write_ids(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(colours).save(path)


def segments(*ids, **changes):
    return [{"id": identity, "category_id": place, "iscrowd": 0, **changes} for place, identity in enumerate(ids)]


def panoptic_of(folder, segments_info, file_name="5.png", image_id=5, **options):
    annotation = {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}
    return panoptic_target(annotation, HW, (120, 160), folder, **options)


def test_panoptic_target(panoptic):
    target = panoptic_of(panoptic, segments(2, 300, 70000))
    expected = torch.tensor([[0.5, 0.75, 1, 0.5], [0.5, 0.25, 1, 0.5], [79.5 / 80, 59.5 / 60, 1 / 80, 1 / 60]])
    torch.testing.assert_close(target["boxes"], expected)
    assert target["class_labels"].tolist() == [0, 1, 2]
    assert target["area"].tolist() == [4 * 2399, 4 * 2400, 4]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [4 * 2399, 4 * 2400, 4]
    assert target["masks"].sum(dim=0).max() == 1
    assert "masks" not in panoptic_of(panoptic, segments(2, 300, 70000), with_masks=False)


def test_panoptic_crowds_are_dropped_and_iscrowd_may_be_missing(panoptic):
    """As in detection."""
    info = [{"id": 2, "category_id": 4, "iscrowd": 1}, {"id": 300, "category_id": 5}, {"id": 70000, "category_id": 6}]
    assert panoptic_of(panoptic, info)["class_labels"].tolist() == [5, 6]


def test_segments_and_png_that_disagree(panoptic, caplog):
    """What only one of them knows is left out with a warning."""
    with caplog.at_level(logging.WARNING):
        target = panoptic_of(panoptic, segments(2, 9999), image_id="disagree")
    assert target["class_labels"].tolist() == [0]
    assert "dropped segments that 5.png does not hold: 9999" in caplog.text
    assert "left out: 300, 70000" in caplog.text


def test_no_segments(panoptic):
    """A picture without any object."""
    target = panoptic_of(panoptic, [], image_id="none")
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 120, 160)


PATHS = [
    ("leaves the folder", "../secret.png", ValueError, "inside masks_path"),
    ("leaves it on the way", "a/../../secret.png", ValueError, "inside masks_path"),
    ("with backslashes", "..\\secret.png", ValueError, "inside masks_path"),
    ("absolute", "/etc/hostname", ValueError, "inside masks_path"),
    ("absolute, Windows", "C:\\secret.png", ValueError, "inside masks_path"),
    ("missing", "6.png", FileNotFoundError, "no panoptic PNG"),
    ("too long a name", "x" * 5000, FileNotFoundError, "no panoptic PNG"),
    ("URL", "https://example.org/5.png", ValueError, "inside masks_path"),
    ("a number", 5, TypeError, "file_name 5"),
]


@pytest.mark.parametrize(("file_name", "error", "message"), [row[1:] for row in PATHS], ids=[row[0] for row in PATHS])
def test_panoptic_file_names(panoptic, file_name, error, message):
    with pytest.raises(error, match=message) as caught:
        panoptic_of(panoptic, segments(2), file_name=file_name)
    assert "image 5" in str(caught.value)


def test_panoptic_folders(panoptic):
    """None given, one that is not there, no path at all."""
    with pytest.raises(ValueError, match="need masks_path"):
        panoptic_of(None, segments(2))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        panoptic_of(panoptic / "nowhere", segments(2))
    with pytest.raises(TypeError, match="got int"):
        panoptic_of(7, segments(2))


def test_panoptic_files(panoptic):
    """Another size, a greyscale picture, no picture."""
    write_ids(panoptic / "small.png", np.full((10, 10), 2))
    PIL.Image.new("L", HW[::-1]).save(panoptic / "grey.png")
    (panoptic / "text.png").write_text("no picture")
    for name, message in {"small.png": r"\(10, 10\)", "grey.png": "mode 'L'", "text.png": "cannot be read"}.items():
        with pytest.raises(ValueError, match=message):
            panoptic_of(panoptic, segments(2), file_name=name)


@pytest.mark.parametrize("identity", [None, "2", 2.0])
def test_segment_ids_are_integers(panoptic, identity):
    with pytest.raises(ValueError, match="Segment number 0 of image 5 has id"):
        panoptic_of(panoptic, segments(identity))


def test_fuzzed_run_lengths_never_reach_memory_they_should_not():
    generator = np.random.default_rng(0)
    source = coco_mask.encode(np.asfortranarray(blobs(5)[3]))["counts"]
    refused = 0
    for _ in range(300):
        text = bytearray(source)
        for position in generator.integers(0, len(text), 2):
            text[position] = generator.integers(256)
        try:
            mask_of({"size": list(HW), "counts": bytes(text[: generator.integers(1, len(text) + 1)])})
        except ValueError as error:
            assert "Annotation 17" in str(error)
            refused += 1
    assert refused > 200
