"""Attention: the weights that the model itself would return, of the asked layer alone, beside an answer that stays."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from detr_hf import Detector, DETRImageProcessor, visualize
from detr_hf.checkpoints.embedded import demo_scene_path
from detr_hf.inference.looking import Kept, joined_levels, keep_attention
from detr_hf.visualize.attention_maps import Grid

from ..conftest import padded_batch, tiny_model
from ..model.test_box_queries_detr import box_model

BODY = {"channels": [16, 16, 32, 32], "layers": [1, 1, 1, 1], "stem_width": 8, "stem_type": "deep"}
SMALL = {"backbone_kwargs": BODY}
MODELS = {
    "plain": lambda: tiny_model(**SMALL),
    "pre-norm": lambda: tiny_model(pre_norm=True, **SMALL),
    "box queries": lambda: box_model(enc_layers=2, **SMALL),
}


@pytest.fixture(scope="module")
def digits() -> Detector:
    return Detector.from_pretrained()


def kept_of(model, layer: int, head: int | None, *batch) -> Kept:
    with torch.inference_mode(), keep_attention(model, layer, head) as kept:
        model(*batch)
    return kept


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_of_any_layer_head_and_picture_are_the_models_own(name, monkeypatch):
    model, batch = MODELS[name](), padded_batch()
    monkeypatch.setattr("detr_hf.inference.looking.SCORES_AT_ONCE", 700)  # a few queries at a time
    with torch.inference_mode():
        plain, asked = model(*batch), model(*batch, output_attentions=True)
    sizes_hw = [[12, 16], [6, 8], [3, 4]] if name == "box queries" else [[3, 4]]
    assert plain.feature_sizes_hw.tolist() == [sizes_hw] * 2
    for layer, head in ((0, None), (1, 3), (-1, 0)):
        kept = kept_of(model, layer, head, *batch)
        assert torch.equal(kept.outputs.logits, plain.logits), "the answer is that of a plain forward pass"
        for weights, given in ((kept.encoder, asked.encoder_attentions), (kept.decoder, asked.cross_attentions)):
            expected = given[layer].mean(1) if head is None else given[layer][:, head]
            assert weights.shape == expected.shape and torch.allclose(weights, expected, atol=2e-6)
            assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        seen = torch.cat([valid[1].flatten() for valid in kept.valid])
        assert (kept.decoder[1][:, ~seen] == 0).all() and (kept.decoder[1][:, seen] > 0).any()
        assert (kept.encoder[1][:, ~kept.valid[-1][1].flatten()] == 0).all() and not seen.all()
    assert not model._forward_hooks and not model.transformer.decoder.layers[-1].multihead_attn._forward_hooks


@pytest.mark.slow
def test_they_equal_those_of_transformers():
    ours = tiny_model()  # transformers cannot store the smaller backbone
    theirs = ours.to_transformers().eval()
    theirs.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = theirs(*padded_batch(), output_attentions=True)
    for layer in range(3):
        kept = kept_of(ours, layer, None, *padded_batch())
        assert torch.allclose(kept.decoder, expected.cross_attentions[layer].mean(1), atol=1e-5)


def peak_bytes(run) -> int:
    """Returns the most bytes that torch held at a time, of those that it took since `run` began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def test_no_more_memory_than_a_plain_pass_and_the_asked_layer():
    model = tiny_model(dilation=True, enc_layers=6, **SMALL)
    pixels = torch.randn(1, 3, 320, 320)
    layer_bytes = model.config.nheads * (20 * 20) ** 2 * 4

    def run(**asked: bool) -> None:
        with torch.inference_mode():
            model(pixels, **asked)

    run()
    plain = peak_bytes(run)
    limit = 1.2 * plain + layer_bytes
    assert peak_bytes(lambda: kept_of(model, -1, None, pixels)) < limit
    assert peak_bytes(lambda: run(output_attentions=True)) > limit, "the limit tells nothing"


def test_what_is_found_is_what_the_detector_finds_and_each_map_is_its_objects(digits):
    plain, seen = digits(demo_scene_path(), 0.5), visualize.attention(digits, demo_scene_path(), 0.5)
    assert np.array_equal(seen.detections.boxes, plain.boxes) and len(plain) == 5
    assert seen.decoder.shape == (5, 16, 16) and np.allclose(seen.decoder.sum((1, 2)), 1, atol=1e-5)
    areas = (plain.boxes[:, 2:] - plain.boxes[:, :2]).prod(1) / np.prod(plain.size_hw)
    assert (seen.in_boxes() > 15 * areas).all()
    pixels = digits.image_processor(demo_scene_path(), return_tensors="pt")["pixel_values"]
    kept = kept_of(digits.model, -1, None, pixels)
    for found in (plain, plain[::-1], plain.filter(names="8"), plain[[2, 0]], plain[:0]):
        assert [one.query for one in found] == found.queries.tolist()
        rows = [int(np.flatnonzero(plain.queries == query)[0]) for query in found.queries]
        assert np.allclose(kept.decoder[0, found.queries].reshape(-1, 16, 16), seen.decoder[rows], atol=1e-6)
    assert "queries" not in plain.to_dict()["objects"][0] and "query" not in plain.to_dict()["objects"][0]


def test_on_a_canvas_it_agrees_with_the_picture_alone(digits):
    picture = Image.open(demo_scene_path()).convert("RGB").resize((256, 224))
    settings = digits.image_processor.to_dict() | {"do_resize": False}
    alone = Detector(digits.model, DETRImageProcessor(**settings))
    padded = Detector(digits.model, DETRImageProcessor(**settings | {"pad_size": {"height": 320, "width": 320}}))
    one, other = (visualize.attention(detector, picture, 0.3) for detector in (alone, padded))
    maps, same = (dict(zip(seen.detections.queries.tolist(), seen.decoder, strict=True)) for seen in (one, other))
    assert len(maps) >= 4 and maps.keys() == same.keys()
    assert one.decoder.shape == other.decoder.shape and np.allclose(other.decoder.sum((1, 2)), 1, atol=1e-5)
    for query, map_ in maps.items():
        assert np.corrcoef(map_.ravel(), same[query].ravel())[0, 1] >= 0.99
    points = one.encoder(200, 100), other.encoder(200, 100)
    assert points[0].shape == points[1].shape and np.allclose([p.sum() for p in points], 1, atol=1e-5)


def test_levels_are_enlarged_and_summed_and_lose_no_weight():
    detector = Detector(MODELS["box queries"](), DETRImageProcessor(do_resize=False))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 100, 3), dtype=np.uint8))
    seen = visualize.attention(detector, picture, 0.0)
    assert seen.decoder.shape == (len(seen.detections), 10, 13)
    assert np.allclose(seen.decoder.sum((1, 2)), 1, atol=1e-5) and seen.encoder(99.5, 74).shape == (3, 4)
    grids = [Grid((3, 3), (2.5, 2.5)), Grid((2, 2), (1.25, 1.25))]
    fine, coarse = np.zeros((1, 3, 3), np.float32), np.array([[[0.4, 0.2], [0.2, 0.1]]], np.float32)
    fine[0, 2, 2] = 0.1
    expected = [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.2]]
    assert np.allclose(joined_levels([fine, coarse], grids)[0], expected)


def test_a_point_is_looked_up_in_the_cell_that_holds_it(digits):
    seen = visualize.attention(digits, demo_scene_path())
    weights = kept_of(digits.model, -1, None, digits.backend.processed(np.asarray(seen.detections.image))[0]).encoder
    for (x, y), cell in {(0, 0): 0, (511.9, 0): 15, (31, 33): 16, (511, 511): 255}.items():
        assert np.allclose(seen.encoder(x, y).ravel(), weights[0, cell], atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 3}, r"layer is 3: the decoder has 3 layers, 0 to 2"),
        ({"layer": -4}, "layer is -4"),
        ({"layer": True}, "layer is True"),
        ({"head": 4}, r"head is 4: there are 4 heads, 0 to 3, or None"),
        ({"head": -1}, "head is -1"),
        ({"threshold": 2}, "threshold"),
    ],
)
def test_what_there_is_not_is_refused_and_leaves_nothing_behind(digits, asked, message):
    with pytest.raises(ValueError, match=message):
        visualize.attention(digits, demo_scene_path(), **asked)
    assert not digits.model._forward_hooks


def test_points_outside_layers_of_one_half_alone_and_exported_models_are_refused(digits, onnx_artefact):
    seen = visualize.attention(digits, demo_scene_path(), threshold=1.0)
    assert seen.decoder.shape == (0, 16, 16) and "nothing over 1.00; the best is 0.96 2" in repr(seen)  # no error
    for point in ((512, 3), (3, 512), (-1, 3), (float("nan"), 3)):
        with pytest.raises(ValueError, match=r"is not in the picture of 512x512 pixels"):
            seen.encoder(*point)
    shallow = Detector(MODELS["plain"](), DETRImageProcessor(size={"longest_edge": 64}))  # 2 + 3 layers
    deep = visualize.attention(shallow, demo_scene_path(), 0.0, layer=2)
    assert len(deep.decoder) == 7
    with pytest.raises(ValueError, match="The encoder has 2 layers, and layer 2"):
        deep.encoder(0, 0)
    with pytest.raises(ValueError, match=r"small\.onnx.*use the checkpoint"):
        visualize.attention(Detector.from_pretrained(onnx_artefact), demo_scene_path())
    assert Detector.from_pretrained(onnx_artefact)(demo_scene_path(), 0.0).queries is not None


@pytest.mark.slow
def test_on_100_scenes_attention_is_15_times_as_dense_in_the_box(digits, capsys):
    """On the average of the objects. Of large boxes none could be: the ceiling is one over the box's share."""
    pytest.importorskip("sklearn")
    from detr_hf.data.digits import DigitScenes

    inside, areas, pictures = [], [], [scene["image"] for scene in DigitScenes("validation", length=100)]
    for picture in pictures:
        seen = visualize.attention(digits, picture)
        boxes = seen.detections.boxes
        inside += seen.in_boxes().tolist()
        areas += ((boxes[:, 2:] - boxes[:, :2]).prod(1) / np.prod(seen.detections.size_hw)).tolist()
    times, of_means = np.mean(np.divide(inside, areas)), np.mean(inside) / np.mean(areas)
    slots = visualize.query_slots(digits, pictures)
    within, over_all = np.nanstd(slots.centres, axis=1).mean(), np.nanstd(slots.centres.reshape(-1, 2), axis=0).mean()
    with capsys.disabled():
        print(
            f"\n{len(areas)} objects: {np.mean(inside):.3f} of the attention in the box, which is "
            f"{np.mean(areas):.4f} of the picture; {times:.1f} times on the average of objects, {of_means:.1f} of "
            f"these means; centres of a query spread by {within:.3f}, of all by {over_all:.3f}"
        )
    assert times >= 15 and of_means >= 12 and within < 0.6 * over_all
