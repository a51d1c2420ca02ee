"""Masks to instances, panoptic segments and class maps: the faults of both peers, each with what is right."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr_hf.processing.mask_post_processing_detr import MaskPostProcessing
from detr_hf.processing.run_lengths_detr import run_length_mask, run_lengths

ON, OFF = 6.0, -6.0  # logits of a mask inside and outside


def outputs_of(masks: Tensor, labels: list[int], scores: list[float], num_classes: int = 4, **sizes) -> dict[str, Any]:
    """Outputs of one image whose queries have these classes with these scores; the rest is no-object's."""
    logits = torch.full((1, len(labels), num_classes + 1), -20.0)
    for query, (label, score) in enumerate(zip(labels, scores, strict=True)):
        logits[0, query, label] = np.log(score)
        logits[0, query, -1] = np.log(1 - score)
    return {"logits": logits, "pred_masks": masks[None], **sizes}


def rectangle(size_hw: tuple[int, int], top: float, left: float, bottom: float, right: float) -> Tensor:
    """A mask that is on between these fractions of the height and the width."""
    height, width = size_hw
    mask = torch.full(size_hw, OFF)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = ON
    return mask


MAP = (30, 40)
PICTURE = [(120, 160)]
processor = MaskPostProcessing()


def panoptic(outputs: Any, **options: Any) -> dict[str, Any]:
    return processor.post_process_panoptic_segmentation(outputs, **{"target_sizes": PICTURE, **options})[0]


def shares(result: dict[str, Any]) -> list[float]:
    """Part of the picture that each segment has, checked against what it says of itself."""
    counts = [int((result["segmentation"] == segment["id"]).sum()) for segment in result["segments_info"]]
    assert [segment["area"] for segment in result["segments_info"]] == counts
    assert [segment["id"] for segment in result["segments_info"]] == list(range(1, len(counts) + 1))
    assert result["segmentation"].dtype == torch.int32
    return [count / result["segmentation"].numel() for count in counts]


def test_segments_do_not_flood():
    """transformers gives a quarter the whole picture, and two objects of a tenth 89 % and 11 %."""
    quarter = rectangle(MAP, 0, 0, 0.5, 0.5)
    assert shares(panoptic(outputs_of(quarter[None], [0], [0.95]))) == pytest.approx([0.25], abs=0.02)
    two = torch.stack([rectangle(MAP, 0, 0, 0.5, 0.2), rectangle(MAP, 0.5, 0.8, 1, 1)])
    assert shares(panoptic(outputs_of(two, [0, 1], [0.95, 0.9]))) == pytest.approx([0.1, 0.1], abs=0.01)


def test_a_score_does_not_lower_a_masks_probability():
    """transformers multiplies them before the mask threshold: a score of 0.55 hides a probability of 0.88."""
    half = torch.where(rectangle(MAP, 0, 0, 1, 0.5) > 0, 2.0, -6.0)
    found = processor.post_process_instance_segmentation(outputs_of(half[None], [0], [0.55]), target_sizes=PICTURE)[0]
    assert shares(found) == pytest.approx([0.5], abs=0.02)
    assert shares(panoptic(outputs_of(half[None], [0], [0.55]), threshold=0.5)) == pytest.approx([0.5], abs=0.02)


def test_padding_does_not_squeeze_masks():
    """Both peers stretch the padded frame over the picture."""
    inside = torch.full((40, 60), OFF)
    inside[:30, :20] = ON  # the left half of an image of 120 x 160 in a frame of 160 x 240
    sizes = {"image_sizes_hw": torch.tensor([[120, 160]]), "padded_sizes_hw": torch.tensor([[160, 240]])}
    padded = panoptic(outputs_of(inside[None], [0], [0.95], **sizes))
    alone = panoptic(outputs_of(rectangle(MAP, 0, 0, 1, 0.5)[None], [0], [0.95]))
    assert shares(padded) == pytest.approx([0.5], abs=0.01)
    assert (padded["segmentation"] != alone["segmentation"]).float().mean() < 0.01


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_stuff_is_fused_before_anything_is_dropped(order: tuple[int, ...]):
    """The original loses the later masks of a stuff class, transformers gives one id to two segments."""
    masks = torch.stack(
        [
            rectangle(MAP, 0, 0, 0.5, 0.5),  # stuff, upper left
            rectangle(MAP, 0.5, 0, 1, 0.5),  # stuff, lower left
            rectangle(MAP, 0, 0.5, 1, 0.8),  # a thing
            rectangle(MAP, 0, 0.5, 1, 0.8),  # stuff behind the thing
        ]
    )
    labels, scores = [1, 1, 2, 1], [0.95, 0.9, 0.99, 0.91]
    shuffled = outputs_of(masks[list(order)], [labels[i] for i in order], [scores[i] for i in order])
    found = panoptic(shuffled, label_ids_to_fuse=[1], overlap_mask_area_threshold=0.5)
    by_class = {segment["label_id"]: segment for segment in found["segments_info"]}
    assert shares(found) == pytest.approx([0.3, 0.5], abs=0.02)
    assert set(by_class) == {1, 2} and by_class[1]["was_fused"] and not by_class[2]["was_fused"]
    assert by_class[1]["score"] == pytest.approx(0.95, abs=1e-5)


def test_the_processors_own_stuff_classes_count_and_unknown_ones_are_refused():
    halves = torch.stack([rectangle(MAP, 0, 0, 1, 0.5), rectangle(MAP, 0, 0.5, 1, 1)])
    outputs = outputs_of(halves, [1, 1], [0.95, 0.9])
    fusing = MaskPostProcessing()
    fusing.label_ids_to_fuse = [1]
    assert len(fusing.post_process_panoptic_segmentation(outputs)[0]["segments_info"]) == 1
    assert len(fusing.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=[])[0]["segments_info"]) == 2
    with pytest.raises(ValueError, match="label_ids_to_fuse has \\[4\\]"):
        fusing.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=[4])


def test_a_segment_that_keeps_too_little_is_void():
    masks = torch.stack([rectangle(MAP, 0, 0, 1, 0.5), rectangle(MAP, 0, 0, 1, 0.6)])
    outputs = outputs_of(masks, [0, 1], [0.99, 0.9])
    found = panoptic(outputs)  # the second keeps a sixth of itself
    assert [segment["label_id"] for segment in found["segments_info"]] == [0]
    assert found["segmentation"][:, 90:].eq(0).all()
    assert shares(panoptic(outputs, overlap_mask_area_threshold=0.1)) == pytest.approx([0.5, 0.1], abs=0.02)


def test_overlapping_instances_keep_their_own_masks():
    masks = torch.stack([rectangle(MAP, 0, 0, 1, 0.6), rectangle(MAP, 0, 0.4, 1, 1)])
    outputs = outputs_of(masks, [0, 1], [0.9, 0.95])
    call = processor.post_process_instance_segmentation
    maps = call(outputs, target_sizes=PICTURE, return_binary_maps=True)[0]
    assert maps["segmentation"].dtype == torch.bool and maps["segmentation"].shape == (2, 120, 160)
    assert [segment["label_id"] for segment in maps["segments_info"]] == [1, 0]
    assert (maps["segmentation"].all(0)).float().mean() == pytest.approx(0.2, abs=0.02)
    coco = call(outputs, target_sizes=PICTURE, return_coco_annotation=True)[0]
    assert coco["segmentation"] == [run_lengths(mask) for mask in maps["segmentation"]]
    ids = call(outputs, target_sizes=PICTURE, overlap_mask_area_threshold=0.5)[0]
    assert shares(ids) == pytest.approx([0.6, 0.4], abs=0.02)
    assert len(call(outputs, target_sizes=PICTURE)[0]["segments_info"]) == 1  # a third of the lower one is hidden


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (64, 3), (30, 40)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_are_cocos(shape: tuple[int, int], share: float):
    pycocotools = pytest.importorskip("pycocotools.mask")
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    expected = pycocotools.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    assert run_lengths(mask) == {"size": list(shape), "counts": expected["counts"].decode()}
    assert np.array_equal(run_length_mask(run_lengths(mask), shape), mask.numpy())


@pytest.mark.parametrize("least", [0.02, 0.5, 0.9, 0.9999])
def test_a_mask_is_whole_though_only_its_region_is_looked_at(least: float):
    from detr_hf.processing.segments_detr import ImageMasks, as_logit

    logits = np.random.default_rng(0).normal(size=(60, 9, 11)).astype(np.float32) * 3 - 3
    for target in [(37, 41), (5, 4), (1, 1)]:
        masks = ImageMasks(logits, np.ones((60, 2), dtype=np.float32), (61, 97), (80, 120), target)
        for query in range(60):
            whole = masks.sample(logits[query])
            assert np.array_equal(masks.mask(query, least), whole > as_logit(least))
            region, values, claimed = masks.claimed(query, least)
            assert np.array_equal(values, whole[region]) and claimed.sum() == (whole >= as_logit(least)).sum()


def test_the_region_of_a_small_mask_is_small_and_there_is_one_of_everything():
    from detr_hf.processing.segments_detr import EVERYWHERE, ImageMasks

    logits = np.full((1, 8, 8), -5, dtype=np.float32)
    logits[0, 2, 5] = 5
    masks = ImageMasks(logits, np.ones((1, 2), dtype=np.float32), (64, 64), (64, 64), (32, 32))
    rows, columns = masks.region(logits[0], 0.0)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (6, 14, 18, 26), "a cell is four pixels"
    assert masks.region(logits[0], 6.0) == (slice(0), slice(0))
    assert masks.region(logits[0], -np.inf) is EVERYWHERE


@pytest.mark.parametrize("kind", ["instance", "panoptic", "original"])
def test_nothing_found_is_an_empty_map(kind: str):
    outputs = outputs_of(torch.full((2, *MAP), OFF), [0, 1], [0.3, 0.2])
    if kind == "instance":
        found = processor.post_process_instance_segmentation(outputs, target_sizes=PICTURE)[0]
        empty = processor.post_process_instance_segmentation(outputs, return_binary_maps=True)[0]
        assert empty["segmentation"].shape == (0, *MAP) and empty["segments_info"] == []
    else:
        found = panoptic(outputs, rule="original" if kind == "original" else "confident")
    assert found["segments_info"] == [] and found["segmentation"].dtype == torch.int32
    assert found["segmentation"].shape == (120, 160) and not found["segmentation"].any()


def test_one_pixel_is_a_segment_and_duplicates_are_one():
    pixel = torch.full(MAP, -40.0)
    pixel[3, 5] = 40.0
    found = panoptic(outputs_of(torch.stack([pixel, pixel]), [0, 0], [0.95, 0.9]), target_sizes=None)
    assert shares(found) == [1 / (30 * 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_stay_as_they_are_and_types_agree(dtype: torch.dtype):
    torch.manual_seed(0)
    outputs = {"logits": torch.randn(1, 9, 5).to(dtype), "pred_masks": (torch.randn(1, 9, *MAP) * 4).to(dtype)}
    before = {name: values.clone() for name, values in outputs.items()}
    named = SimpleNamespace(**outputs)
    for result in (panoptic(outputs, threshold=0.3), panoptic(named, threshold=0.3, rule="original")):
        assert all(type(value) in (int, float, bool) for value in result["segments_info"][0].values())
        shares(result)
    processor.post_process_semantic_segmentation(outputs)
    assert all(torch.equal(outputs[name], values) for name, values in before.items())


def independent_original(outputs: dict[str, Any], threshold: float, fuse: set[int], target_hw: tuple[int, int]) -> Any:
    """The published rule by Pillow and torch's own resize, for an image without padding at the masks' own size."""
    probabilities = outputs["logits"][0].softmax(-1)
    scores, labels = probabilities.max(-1)
    keep = (labels < probabilities.shape[1] - 1) & (scores > threshold)
    masks, labels = outputs["pred_masks"][0][keep], labels[keep].tolist()

    def areas_of(masks: Tensor, labels: list[int], dedup: bool) -> tuple[list[int], np.ndarray]:
        owner = masks.argmax(0) if len(masks) else torch.zeros(masks.shape[1:], dtype=torch.long)
        for label in fuse if dedup else ():
            same = [number for number, own in enumerate(labels) if own == label]
            for number in same[1:]:
                owner[owner == number] = same[0]
        image = Image.fromarray(owner.numpy().astype(np.int32)).resize(target_hw[::-1], Image.NEAREST)
        seen = np.array(image)
        return [int((seen == number).sum()) for number in range(len(labels))], seen

    areas, seen = areas_of(masks, labels, True)
    while labels and min(areas) <= 4:
        large = [number for number, area in enumerate(areas) if area > 4]
        masks, labels = masks[large], [labels[number] for number in large]
        areas, seen = areas_of(masks, labels, False)
    return labels, areas, seen


@pytest.mark.parametrize("seed", range(6))
def test_the_published_rule_equals_an_independent_writing(seed: int):
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        "logits": torch.randn(1, 12, 5, generator=generator) * 3,
        "pred_masks": torch.nn.functional.interpolate(torch.randn(1, 12, 6, 8, generator=generator) * 4, size=MAP),
    }
    labels, areas, seen = independent_original(outputs, 0.6, {1, 2}, (120, 160))
    found = panoptic(outputs, threshold=0.6, rule="original", label_ids_to_fuse=[1, 2])
    assert [segment["label_id"] for segment in found["segments_info"]] == labels
    assert [segment["area"] for segment in found["segments_info"]] == areas
    if labels:
        assert np.array_equal(found["segmentation"].numpy(), seen + 1)


def test_semantic_maps_add_what_queries_say():
    halves = torch.stack([rectangle(MAP, 0, 0, 1, 0.5), rectangle(MAP, 0, 0.5, 1, 1)])
    outputs = outputs_of(halves, [2, 3], [0.9, 0.9])
    plain = processor.post_process_semantic_segmentation(outputs, target_sizes=PICTURE)[0]
    assert plain.dtype == torch.int64 and plain[:, :70].eq(2).all() and plain[:, 90:].eq(3).all()
    scored = processor.post_process_semantic_segmentation(outputs, PICTURE, return_segmentation_scores=True)[0]
    assert torch.equal(scored["segmentation"], plain) and scored["segmentation_scores"].shape == (4, 120, 160)
    assert torch.equal(scored["segmentation_scores"].argmax(0), plain)


def test_sampling_equals_resize_crop_resize():
    """One sampling stands for torch's bilinear to the padded frame, the crop, and the way to the picture's size."""
    from detr_hf.processing.mask_post_processing_detr import images_of

    maps = torch.randn(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    outputs = {"logits": torch.zeros(1, 1, 2), "pred_masks": maps}
    sizes = {"image_sizes_hw": torch.tensor([[61, 97]]), "padded_sizes_hw": torch.tensor([[80, 120]])}
    masks = next(images_of(outputs | sizes, None))
    full = torch.nn.functional.interpolate(maps, size=(80, 120), mode="bilinear", align_corners=False)[0, 0]
    sampled = torch.from_numpy(masks.sample(maps[0, 0].numpy()))
    torch.testing.assert_close(sampled, full[:61, :97], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_large_picture_with_300_queries_takes_little_time_and_memory():
    import resource
    import time

    outputs = {"logits": torch.full((1, 300, 3), 0.0), "pred_masks": torch.randn(1, 300, 50, 75)}
    outputs["logits"][..., 0] = 4.0
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    panoptic(outputs, target_sizes=[(1200, 1800)])
    assert time.process_time() - started < 60  # 5 s on a free processor
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_masks": None}, "have no pred_masks"),
        ({"pred_masks": torch.full((1, 1, *MAP), float("nan"))}, "hold NaN"),
        ({"logits": torch.full((1, 1, 5), float("inf"))}, "hold NaN"),
        ({"pred_masks": torch.zeros(2, 1, *MAP)}, "as many images and queries"),
        ({"pred_masks": torch.zeros(1, 2, *MAP)}, "as many images and queries"),
    ],
)
def test_outputs_that_are_no_masks_are_refused(change: dict, words: str):
    outputs = outputs_of(torch.zeros(1, *MAP), [0], [0.9]) | change
    for call in ("instance", "panoptic", "semantic"):
        with pytest.raises(ValueError, match=words):
            getattr(processor, f"post_process_{call}_segmentation")(outputs)


@pytest.mark.parametrize(
    ("call", "options", "words"),
    [
        ("instance", {"threshold": 1.5}, "threshold must be a number"),
        ("instance", {"mask_threshold": "0.5"}, "mask_threshold must be"),
        ("instance", {"return_coco_annotation": True, "return_binary_maps": True}, "ask for one"),
        ("instance", {"target_sizes": [(10, 10), (10, 10)]}, "2 target_sizes for 1 images"),
        ("panoptic", {"target_sizes": [(0, 10)]}, "both above 0"),
        ("panoptic", {"overlap_mask_area_threshold": -0.1}, "overlap_mask_area_threshold must be"),
        ("panoptic", {"rule": "best"}, "rule is 'best'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(call: str, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        outputs = outputs_of(torch.zeros(1, *MAP), [0], [0.9])
        getattr(processor, f"post_process_{call}_segmentation")(outputs, **options)
