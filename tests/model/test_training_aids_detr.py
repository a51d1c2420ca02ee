"""Training aids: they change no output in evaluation, leave nothing behind, never leak, and survive empty batches."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import DetrForObjectDetection

from detr_hf import DETRConfig, DETRForObjectDetection
from detr_hf.model.matcher_detr import PackedTargets
from detr_hf.model.queries_detr import QuerySet, attend_within_groups
from detr_hf.model.training_aids_detr import FeatureFrame, assign_tokens, sine_of_boxes

from ..conftest import padded_batch, some_labels, tiny_config, tiny_model

AIDS = {
    "encoder": {"encoder_aux_head": True},
    "groups": {"num_query_groups": 3},
    "denoising": {"num_denoising": 12},
    "negatives": {"num_denoising": 12, "denoising_negatives": True},
    "all": {"encoder_aux_head": True, "num_query_groups": 2, "num_denoising": 8, "reference_points": True},
}
ALL_PLAIN = {"encoder_aux_head": True, "num_query_groups": 2, "num_denoising": 8}


@pytest.fixture(params=AIDS.values(), ids=AIDS)
def aided(request) -> DETRForObjectDetection:
    return tiny_model(dropout=0.0, **request.param)


@torch.no_grad()
def outputs(model, *batch):
    found = model.eval()(*batch)
    return found.logits, found.pred_boxes


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_weight_gets_a_gradient_with_and_without_objects(aided):
    pixels, mask = padded_batch()
    for counts in ((2, 5), (0, 1), (0, 0)):
        aided.train().zero_grad()
        loss = aided(pixels, mask, labels=some_labels(*counts)).loss
        loss.backward()
        assert torch.isfinite(loss)
        without = [name for name, value in aided.named_parameters() if value.requires_grad and value.grad is None]
        assert not without, f"DDP would wait for {without}"


def test_more_objects_than_queries_only_warn(aided):
    pixels, mask = padded_batch()
    loss = aided.train()(pixels, mask, labels=some_labels(9, 20)).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_fault_is_that_of_the_image_however_many_groups_of_queries_it_has(broken, aided):
    pixels, mask = padded_batch()
    labels = some_labels(2, 3)
    labels[broken]["class_labels"][1] = 3
    with pytest.raises(ValueError, match=rf"class_labels of image {broken} of the batch"):
        aided.train()(pixels, mask, labels=labels)
    pixels[broken] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"boxes that the model gives for image {broken} of the batch"):
        aided(pixels, mask, labels=some_labels(2, 3))


def test_denoising_queries_that_are_not_finite_are_no_secret():
    model = tiny_model(num_denoising=12).train()
    model.training_aids.denoising.label_embed.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss is not finite"):
        model(*padded_batch(), labels=some_labels(2, 3))


def test_callers_see_the_object_queries_alone(aided):
    pixels, mask = padded_batch()
    out = aided.train()(pixels, mask, labels=some_labels(2, 3))
    assert out.logits.shape == (2, 7, 4) and out.pred_boxes.shape == (2, 7, 4)
    assert all(layer["logits"].shape[1] == 7 for layer in out.auxiliary_outputs)


def test_stripping_changes_no_bit_and_leaves_plain_detr(aided, tmp_path):
    batch = padded_batch()
    before = outputs(aided, *batch)
    aided.save_pretrained(tmp_path / "kept")
    aided.save_pretrained(tmp_path / "plain", inference_only=True)
    assert aided.config.has_training_aids, "saving must leave the model as it was"
    kept = DETRForObjectDetection.from_pretrained(tmp_path / "kept")
    assert kept.config.has_training_aids and same(outputs(kept, *batch), before)
    plain = DETRForObjectDetection.from_pretrained(tmp_path / "plain")
    assert not plain.config.has_training_aids and same(outputs(plain, *batch), before)
    assert same(outputs(aided.strip_training_aids(), *batch), before)
    assert set(aided.state_dict()) == set(plain.state_dict())
    assert not [name for name in plain.state_dict() if "training_aids" in name]


def test_what_was_trained_with_aids_loads_strictly_into_transformers(tmp_path):
    model, batch = tiny_model(**ALL_PLAIN), padded_batch()
    theirs = model.to_transformers()
    assert isinstance(theirs, DetrForObjectDetection)
    with torch.no_grad():
        found = theirs.eval()(*batch)
    logits, boxes = outputs(model, *batch)
    assert (found.logits - logits).abs().max() < 1e-5 and (found.pred_boxes - boxes).abs().max() < 1e-5


def test_reference_points_are_refused_where_they_would_be_misread(tmp_path):
    model = tiny_model(reference_points=True)
    with pytest.raises(ValueError, match="reference"):
        model.to_transformers()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["reference_points"] is True
    with pytest.raises((ValueError, OSError, KeyError)):
        DetrForObjectDetection.from_pretrained(tmp_path / "model.safetensors")


def test_reference_points_of_zero_are_plain_detr(tmp_path):
    plain, batch = tiny_model(), padded_batch()
    plain.save_pretrained(tmp_path)
    pointed = DETRForObjectDetection.from_pretrained(tmp_path, reference_points=True, num_query_groups=2)
    assert torch.count_nonzero(pointed.refpoint_embed.weight) == 0
    assert same(outputs(pointed, *batch), outputs(plain, *batch))
    copies, queries = pointed.training_aids.more_queries.weight, plain.query_embed.weight
    assert 0 < (copies - queries).std() < 0.2 * queries.std()


def test_a_point_moves_its_box_alone():
    model, batch = tiny_model(reference_points=True), padded_batch()
    _, before = outputs(model, *batch)
    with torch.no_grad():
        model.refpoint_embed.weight[3, 0] += 2.0
    _, after = outputs(model, *batch)
    moved = (after != before).any(dim=-1)
    assert moved[:, 3].all() and not moved[:, [0, 1, 2, 4, 5, 6]].any()
    shift = torch.logit(after[:, 3, 0]) - torch.logit(before[:, 3, 0])
    assert torch.allclose(shift, torch.tensor(2.0), atol=1e-3)


@pytest.mark.parametrize("option", [{"num_query_groups": 3}, {"num_denoising": 12}])
def test_object_queries_never_see_the_others(option):
    """The logits of the object queries, in training, are those of the model without aids: nothing leaks."""
    aided = tiny_model(dropout=0.0, **option).train()
    plain = copy.deepcopy(aided).strip_training_aids()
    pixels, mask = padded_batch()
    labels = some_labels(2, 4)
    ours, alone = aided(pixels, mask, labels=labels), plain(pixels, mask, labels=labels)
    assert torch.allclose(ours.logits, alone.logits, atol=1e-5)
    assert torch.allclose(ours.pred_boxes, alone.pred_boxes, atol=1e-5)


def test_denoising_groups_see_neither_each_other_nor_padding():
    torch.manual_seed(0)
    attention = tiny_model().transformer.decoder.layers[0].self_attn.eval()
    values = torch.randn(2, 8, 32)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[1, :, :, 3] = False
    mask[1, :, 3, 3] = True
    sets = [QuerySet(2, 4, mask)]
    with torch.no_grad():
        before = attend_within_groups(attention, values, values, sets)
        other = values.clone()
        other[:, 4:] += 1.0  # the second group
        assert torch.equal(attend_within_groups(attention, other, other, sets)[:, :4], before[:, :4])
        padding = values.clone()
        padding[1, 3] += 1.0  # a padded slot of the second picture
        after = attend_within_groups(attention, padding, padding, sets)
        assert torch.equal(after[1, :3], before[1, :3]) and not torch.equal(after[1, 3], before[1, 3])


def test_groups_average_the_loss_of_each_matched_alone():
    model = tiny_model(dropout=0.0, num_query_groups=2).train()
    pixels, mask = padded_batch()
    labels = some_labels(2, 3)
    both = model(pixels, mask, labels=labels).loss
    alone = []
    for queries in (model.query_embed.weight, model.training_aids.more_queries.weight):
        single = copy.deepcopy(model).strip_training_aids()
        single.query_embed.weight.data = queries.detach().clone()
        alone.append(single(pixels, mask, labels=labels).loss)
    # the class weights of the groups are summed before the division, and are equal here
    assert torch.allclose(both, sum(alone) / 2, rtol=1e-4)


def test_without_noise_denoising_starts_from_the_objects_themselves():
    model = tiny_model(num_denoising=12, label_noise_ratio=0.0, box_noise_scale=0.0, reference_points=True)
    labels = some_labels(3, 1)
    targets = PackedTargets.from_list(labels, 2, torch.device("cpu"))
    queries, known = model.training_aids.denoising(targets)
    assert queries.query_sets[0].groups == 4 and queries.query_sets[0].size == 3
    assert known.valid.sum() == 4 * (3 + 1)
    for group in range(4):
        part = slice(3 * group, 3 * group + 3)
        assert torch.equal(known.classes[0, part], labels[0]["class_labels"])
        assert torch.allclose(known.boxes_cxcywh_norm[0, part], labels[0]["boxes"])
        points = torch.sigmoid(queries.reference[0, part])
        assert torch.allclose(points, labels[0]["boxes"][:, :2], atol=1e-5)


def test_negatives_lie_farther_out_and_should_find_nothing():
    model = tiny_model(num_denoising=200, denoising_negatives=True, label_noise_ratio=0.0, box_noise_scale=0.5)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    targets = PackedTargets.from_list(labels, 1, torch.device("cpu"))
    noisy = []
    model.training_aids.denoising.box_embed.register_forward_hook(lambda _, inputs, __: noisy.append(inputs[0]))
    _, known = model.training_aids.denoising(targets)
    assert known.classes[0, 0::2].eq(1).all() and known.classes[0, 1::2].eq(3).all()
    true = sine_of_boxes(labels[0]["boxes"], 32)
    moved = (noisy[0][0] - true).abs().mean(dim=-1)
    assert moved[1::2].mean() > 1.3 * moved[0::2].mean()


def test_tokens_belong_to_the_object_they_lie_deepest_in():
    labels = [
        {"class_labels": torch.tensor([0, 1, 2]), "boxes": torch.tensor(
            [[0.5, 0.5, 0.8, 0.8], [0.25, 0.25, 0.25, 0.25], [0.93, 0.06, 0.01, 0.01]]
        )},
        {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]  # fmt: skip
    targets = PackedTargets.from_list(labels, 2, torch.device("cpu"))
    found = assign_tokens(FeatureFrame(4, 4, None), targets, num_classes=3)
    grid = found.classes[0].view(4, 4)  # 3 is no-object
    assert grid[1, 1] == 0 and grid[2, 2] == 0 and grid[3, 3] == 3
    assert grid[0, 3] == 2, "an object smaller than a cell gets the nearest token"
    assert found.classes[1].eq(3).all() and found.valid[1].all()


def test_padding_belongs_to_nothing_and_centres_are_of_the_unpadded_picture():
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[:, :2, :4] = True
    frame = FeatureFrame(4, 8, mask)
    centres = frame.centres(torch.device("cpu")).view(4, 8, 2)
    assert torch.allclose(centres[0, 0], torch.tensor([0.125, 0.25]))
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]])}]
    found = assign_tokens(frame, PackedTargets.from_list(labels, 1, torch.device("cpu")), num_classes=3)
    outside = ~mask.flatten(1)
    assert found.classes[outside].eq(3).all() and not found.valid[outside].any()
    assert found.classes.eq(1).any()


def test_learning_from_the_encoder_loss_alone_finds_the_objects():
    """The loss means what it says: a few steps on one batch bring the heads' answers at its tokens to the objects."""
    model = tiny_model(dropout=0.0, encoder_aux_head=True, backbone="test_resnet").train()
    pixels, mask = padded_batch(64, 96)
    labels = some_labels(2, 2)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    first = None
    for _ in range(40):
        parts = model(pixels, mask, labels=labels).loss_dict
        loss = parts["loss_ce_enc"] + 5 * parts["loss_bbox_enc"] + 2 * parts["loss_giou_enc"]
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(loss.detach()) < 0.6 * first


def test_aids_are_added_to_a_loaded_model_without_changing_it(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, batch = DETRForObjectDetection.from_pretrained(tmp_path), padded_batch()
    before = outputs(model, *batch)
    model.add_training_aids(**ALL_PLAIN, reference_points=True)
    assert same(outputs(model, *batch), before)
    loss = model.train()(*batch, labels=some_labels(1, 2)).loss
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="num_denoise"):
        model.add_training_aids(num_denoise=3)


@pytest.mark.parametrize(
    "changes",
    [{"id2label": {0: "cat", 1: "ant", 2: "owl", 3: "elk"}}, {"num_queries": 9}, {"num_query_groups": 3},
     {"num_denoising": 0, "num_query_groups": 1, "encoder_aux_head": False}],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_with_aids_is_fine_tuned_like_any_other(changes, tmp_path):
    tiny_model(**ALL_PLAIN).save_pretrained(tmp_path)
    model = DETRForObjectDetection.from_pretrained(tmp_path, **changes)
    for name, value in changes.items():
        assert getattr(model.config, name) == value
    loss = model.train()(*padded_batch(), labels=some_labels(1, 2)).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "wrong",
    [{"num_query_groups": 0}, {"num_denoising": -1}, {"label_noise_ratio": 1.5}, {"box_noise_scale": -1.0},
     {"encoder_aux_coef": -1.0}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny_config(**wrong)


def test_the_default_has_no_aid():
    config = DETRConfig()
    assert not config.has_training_aids and not config.reference_points
    assert not hasattr(tiny_model(), "training_aids")
