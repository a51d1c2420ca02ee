"""Queries that are boxes: where they begin, what they look at, how they move, what they learn from."""

import pytest
import torch
from torch import nn

from detr_hf import DETRConfig, DETRForObjectDetection, DETRForSegmentation, DETRModel
from detr_hf.model.box_queries_detr import BoxAttention, Sight
from detr_hf.model.box_training_detr import align_tokens
from detr_hf.model.matcher_detr import PackedTargets
from detr_hf.model.predictions_detr import Predictions
from detr_hf.model.presets_detr import PRESETS
from detr_hf.model.queries_detr import Memory

from ..conftest import outputs_differ_by, padded_batch, some_labels, tiny_config, tiny_model

BOXES = PRESETS["precise"] | {"dim_feedforward": 64, "num_queries": 7, "num_denoising": 0}


@torch.no_grad()
def box_model(**changes) -> DETRForObjectDetection:
    """Returns a tiny model whose heads say different things of different tokens, as trained ones do."""
    model = tiny_model(**BOXES | changes)
    torch.manual_seed(2)
    for head in (model, model.box_queries):
        head.class_embed.weight *= 8
        nn.init.normal_(head.bbox_embed.layers[-1].weight, std=0.3)
    decoder = model.transformer.decoder
    nn.init.normal_(decoder.borders.move.weight, std=0.1)
    for layer in decoder.layers:
        nn.init.normal_(layer.self_attn.relation[-1].weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> DETRForObjectDetection:
    return box_model()


@pytest.mark.processor
def test_a_new_model_answers_with_the_boxes_that_the_encoder_found_and_expects_next_to_nothing():
    model = tiny_model(**BOXES)
    pixels, _ = padded_batch()
    with torch.no_grad():
        decoded, predictions, *_ = model.detect(pixels, None, None, None, None)
    found = decoded.found.boxes_cxcywh_norm
    assert torch.allclose(predictions.boxes_cxcywh_norm[-1], found, atol=1e-4)
    cells = decoded.found.memory.cells[:, :1]
    sides = found[..., 2:] / 0.05  # the finest level's anchor
    assert torch.allclose(sides.log2(), sides.log2().round(), atol=1e-2), "anchors grow with the cells"
    halves = found[..., :2] / cells * 2
    assert (halves - halves.round()).abs().max() < 1e-2, "anchors stand on the centres of cells"
    score = 1 - predictions.logits.softmax(-1)[..., -1]
    assert score.max() < 0.05


@pytest.mark.processor
def test_tokens_of_a_padded_picture_lie_where_they_lie_alone_and_padding_is_never_looked_at(model):
    pixels, mask = padded_batch()
    with torch.no_grad():
        together = model(pixels, mask, output_attentions=True)
        found = model.detect(pixels, mask, None, None, None)[0].found
        alone = model.detect(pixels[1:, :, :64, :96], None, None, None, None)[0].found
    seen = torch.cat([mask[:, ::stride, ::stride].flatten(1) for stride in (8, 16, 32)], dim=1)
    assert torch.equal(found.memory.valid, seen == 1)
    assert torch.allclose(found.memory.centres[1, seen[1] == 1], alone.memory.centres[0], atol=1e-6)
    assert torch.equal(found.memory.cells[1, 0], alone.memory.cells[0, 0])
    centres = found.boxes_cxcywh_norm[1, :, :2]
    assert (centres < 1).all() and (centres > 0).all()
    for weights in together.cross_attentions:
        assert weights.shape[-1] == seen.shape[1]
        assert weights[1][..., seen[1] == 0].max() == 0
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_finer_maps_do_not_see_what_is_in_the_padding(model):
    torch.manual_seed(0)
    levels = model.box_queries.levels
    sizes = ((12, 16), (6, 8), (3, 4))
    maps = [torch.randn(1, channels, *size) for channels, size in zip((128, 256, 32), sizes, strict=True)]
    masks = [torch.zeros(1, *size, dtype=torch.bool) for size in sizes]
    inside = [(slice(None), slice(size[0] * 2 // 3), slice(size[1] * 3 // 4)) for size in sizes]
    for mask, part in zip(masks, inside, strict=True):
        mask[part] = True
    cropped = [feature_map[:, :, part[1], part[2]] for feature_map, part in zip(maps, inside, strict=True)]
    with torch.no_grad():
        padded = levels(maps[2], maps[:2], masks)
        alone = levels(cropped[2], cropped[:2], [None] * 3)
    for one, other, part in zip(padded, alone, inside, strict=True):
        assert torch.allclose(one[:, :, part[1], part[2]], other, atol=1e-5)


def test_padding_narrower_than_a_cell_of_the_last_map_is_no_fault(model):
    pixels, mask = padded_batch()
    mask[0], mask[1] = 1, 1
    mask[1, :, 116:] = 0
    with torch.no_grad():
        together = model(pixels * mask[:, None], mask)
    assert together.pred_boxes.isfinite().all()


def test_eager_and_sdpa_agree_and_weights_do_not_change_the_answer(model):
    pixels, mask = padded_batch()
    with torch.no_grad():
        plain = model(pixels, mask)
        assert outputs_differ_by(model(pixels, mask, output_attentions=True), plain) < 1e-4


def test_a_picture_with_fewer_cells_than_queries_finds_nothing_with_the_rest():
    model = box_model(num_queries=30)
    pixels = torch.randn(1, 3, 32, 32)  # 16 + 4 + 1 cells
    with torch.no_grad():
        scores = model(pixels).logits.softmax(-1)
    assert scores.shape[1] == 30
    assert (scores[0, 21:, -1] == 1).all()
    assert (scores[0, :21, -1] < 1).any()


def test_attention_prefers_the_surroundings_of_its_box_as_the_formula_says():
    torch.manual_seed(0)
    config = tiny_config(**BOXES, hidden_dim=16, nheads=2)
    attention = BoxAttention(config).eval()
    nn.init.normal_(attention.prior.weight, std=0.2)
    query, boxes = torch.randn(1, 3, 16), torch.rand(1, 3, 4) * 0.3 + 0.2
    centres = torch.rand(1, 11, 2)
    memory = Memory(None, None, None, centres, torch.full((1, 11, 2), 0.01), None)
    half = boxes[..., 2:] / 2
    of_query, of_cell = attention._preference(query, boxes[..., :2], half, memory)
    bias = of_query @ of_cell.transpose(2, 3)
    wanted = attention.prior(query).view(1, 3, 2, 3)
    for number in range(3):
        for head in range(2):
            x, y, spread = wanted[0, number, head]
            middle = boxes[0, number, :2] + torch.stack([x, y]) * half[0, number]
            width = half[0, number] * spread.exp()
            expected = -(((centres[0] - middle) / width) ** 2).sum(-1) / 2
            assert torch.allclose(bias[0, head, number], expected, atol=1e-3)
    sight = Sight(memory, boxes)
    states, weights = attention(query, torch.randn(1, 11, 16), torch.randn(1, 11, 16), sight, output_attentions=True)
    assert states.shape == (1, 3, 16)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def memory_of(height: int, width: int, valid: torch.Tensor | None = None) -> Memory:
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([xs / width, ys / height], dim=-1).view(1, -1, 2)
    cells = torch.tensor([1 / width, 1 / height]).expand(1, height * width, 2)
    return Memory(None, None, valid, centres, cells, None)


def test_every_object_has_the_token_that_fits_it_best_and_padding_has_none():
    valid = torch.ones(2, 64, dtype=torch.bool)
    valid[1, 40:] = False
    memory = memory_of(8, 8, valid)
    wanted = torch.tensor(
        [[0.5, 0.5, 0.5, 0.5], [0.19, 0.19, 0.02, 0.02]]
    )  # 16 cells inside; none, but one is nearest
    targets = PackedTargets.from_list(
        [
            {"class_labels": torch.tensor([1, 0]), "boxes": wanted},
            {"class_labels": torch.empty(0, dtype=torch.int64), "boxes": torch.empty(0, 4)},
        ],
        2,
        torch.device("cpu"),
    )
    logits = torch.zeros(2, 64, 4)
    boxes = torch.full((2, 64, 4), 0.1)
    boxes[0, 18:20] = wanted[0]  # inside the first object, and two that fit it
    logits[0, 18, 1] = 1.0
    boxes[0, 1] = wanted[0]  # as good, and outside of it
    known = align_tokens(Predictions(logits, boxes), memory, targets)
    assert (known.classes[0] == 1).nonzero().flatten().tolist() == [18]
    assert (known.classes[0] == 0).nonzero().flatten().tolist() == [9]
    assert torch.equal(known.boxes_cxcywh_norm[0, 9], wanted[1])
    assert (known.classes[1] == 3).all()
    assert torch.equal(known.valid, valid)


@pytest.mark.parametrize("denoising", [0, 6])
@pytest.mark.parametrize("counts", [(2, 5), (0, 1), (0, 0), (9, 1)], ids=str)
def test_every_weight_gets_a_gradient_with_and_without_objects(counts, denoising):
    model = box_model(num_denoising=denoising).train()
    pixels, mask = padded_batch()
    outputs = model(pixels, mask, labels=some_labels(*counts))
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc", "loss_ce_0", "loss_ce"} <= outputs.loss_dict.keys()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without, f"DDP would wait for {without}"


def test_the_loss_is_the_same_with_and_without_gradients(model):
    pixels, mask = padded_batch()
    labels = some_labels(2, 3)
    expected = model(pixels, mask, labels=labels).loss_dict
    with torch.no_grad():
        found = model(pixels, mask, labels=labels).loss_dict
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_the_loss_of_a_picture_does_not_depend_on_who_is_beside_it(model):
    pixels, mask = padded_batch()
    labels = some_labels(2, 3)
    model.train()
    together = model(pixels, mask, labels=labels).loss_dict
    alone = [model(pixels[i : i + 1], mask[i : i + 1], labels=labels[i : i + 1]).loss_dict for i in range(2)]
    model.eval()
    for name in ("loss_bbox", "loss_giou"):
        expected = (2 * alone[0][name] + 3 * alone[1][name]) / 5
        assert torch.allclose(together[name], expected, rtol=2e-2), name


def test_scores_tell_how_well_boxes_fit_and_easy_background_counts_little():
    criterion = tiny_model(**BOXES).criterion()
    logits = torch.tensor([[2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 6.0]])[None, None]
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])[None, None]
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}]  # IoU 0.5
    _, parts = criterion(logits, boxes, labels)
    log_p = logits[0, 0].log_softmax(-1)
    matched = -(0.5 * log_p[0, 0] + 0.5 * log_p[0, 3])
    background = -log_p[1, 3] * 0.75 * (1 - log_p[1, 3].exp()) ** 2
    assert torch.allclose(parts["loss_ce"], matched + background, rtol=1e-5)


@pytest.mark.parametrize("queries", [7, 30], ids=["", "more_than_cells"])
def test_denoising_queries_begin_at_noisy_boxes_and_box_queries_do_not_see_them(queries):
    model = box_model(num_denoising=12, box_noise_scale=0.0, label_noise_ratio=0.0, num_queries=queries).train()
    nn.init.zeros_(model.bbox_embed.layers[-1].weight)  # boxes stay where they begin
    nn.init.zeros_(model.transformer.decoder.borders.move.weight)
    nn.init.zeros_(model.transformer.decoder.borders.move.bias)
    pixels, mask = padded_batch()
    if queries == 30:
        pixels, mask = pixels[..., :32, :32], mask[..., :32, :32]
    labels = some_labels(2, 3)
    outputs = model(pixels, mask, labels=labels)
    assert outputs.loss_dict["loss_bbox_dn"] < 1e-4 < outputs.loss_dict["loss_bbox"]
    assert outputs.loss_dict["loss_ce_dn"] > 0
    with torch.no_grad():
        assert outputs_differ_by(model.eval()(pixels, mask), outputs) < 2e-4
        stripped = box_model(num_queries=queries)
        stripped.load_state_dict(model.strip_training_aids().state_dict())
        assert outputs_differ_by(stripped(pixels, mask), model(pixels, mask)) == 0
    assert model.config.num_denoising == 0


def test_it_survives_being_saved_and_a_base_model_has_the_same_states(tmp_path, model):
    model.save_pretrained(tmp_path)
    pixels, mask = padded_batch()
    again = DETRForObjectDetection.from_pretrained(tmp_path)
    base = DETRModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixels, mask)
        assert outputs_differ_by(again(pixels, mask), expected) == 0
        assert torch.equal(base.eval()(pixels, mask).last_hidden_state, expected.last_hidden_state)
    with pytest.raises(ValueError, match="box_queries=True"):
        model.to_transformers()


def test_from_plain_detr_what_is_new_is_said_and_boxes_begin_where_the_encoder_finds_them(tmp_path, caplog):
    tiny_model(**{name: BOXES[name] for name in ("enc_layers", "dec_layers")}).save_pretrained(tmp_path)
    model, info = DETRForObjectDetection.from_pretrained(tmp_path, **BOXES, output_loading_info=True)
    assert "box_queries" in caplog.text
    new = ("box_queries", "prior", "where", "box_embed", "relation", "borders")
    assert all(any(part in name for part in new) for name in info["missing_keys"])
    pixels, _ = padded_batch()
    with torch.no_grad():
        decoded, predictions, *_ = model.eval().detect(pixels, None, None, None, None)
    assert torch.allclose(predictions.boxes_cxcywh_norm[-1], decoded.found.boxes_cxcywh_norm, atol=1e-4)


def test_a_checkpoint_that_lacks_some_of_its_parts_is_refused(tmp_path, model):
    state = {name: value for name, value in model.state_dict().items() if "prior" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lacks"):
        DETRForObjectDetection.from_pretrained(tmp_path)


@pytest.mark.parametrize("denoising", [0, 6])
def test_masks_stand_on_box_queries_too(denoising):
    config = tiny_config(**BOXES | {"num_denoising": denoising})
    pixels, mask = padded_batch()
    labels = some_labels(2, 1)
    for label in labels:
        label["masks"] = torch.ones(len(label["boxes"]), 64, 96, dtype=torch.bool)
    outputs = DETRForSegmentation(config).train()(pixels, mask, labels=labels)
    outputs.loss.backward()
    assert outputs.pred_masks.shape == (2, 7, 24, 32)
    assert torch.isfinite(outputs.loss)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"num_feature_levels": 3}, "box_queries=True"),
        ({"box_queries": True, "num_query_groups": 2}, "num_query_groups"),
        ({"box_queries": True, "encoder_aux_head": True}, "encoder_aux_head"),
        ({"box_queries": True, "reference_points": True}, "reference_points"),
        ({"box_queries": True, "num_feature_levels": 0}, "at least 1"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        DETRConfig(**fields)


def test_a_preset_is_named_and_its_fields_can_be_changed():
    config = DETRConfig.from_preset("precise", id2label={0: "cat"}, num_queries=20)
    assert config.box_queries and config.num_queries == 20
    assert DETRConfig.from_preset("detr").to_dict() == DETRConfig().to_dict()
    with pytest.raises(ValueError, match="Did you mean 'precise'"):
        DETRConfig.from_preset("precis")
