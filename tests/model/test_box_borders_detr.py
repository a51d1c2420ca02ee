"""What lies at the borders of a box, and how the boxes of two queries lie to each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_hf.model.box_attention_detr import RelatedAttention
from detr_hf.model.box_borders_detr import GRID, REACH, BoxBorders, interpolated, points_of_boxes
from detr_hf.model.queries_detr import Memory

from ..conftest import padded_batch, tiny_config, tiny_model
from .test_box_queries_detr import BOXES, box_model


def boxes_of(batch_size: int, count: int) -> torch.Tensor:
    return torch.cat([torch.rand(batch_size, count, 2), torch.rand(batch_size, count, 2) * 0.4 + 0.01], dim=-1)


@pytest.mark.processor
def test_places_between_cells_are_those_of_torchs_own_operator():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 7, 3, dtype=torch.float64, requires_grad=True)
    places = torch.rand(2, 40, 2, dtype=torch.float64) * torch.tensor([6, 4])
    places[0, :4] = torch.tensor([[0, 0], [6, 4], [6, 0], [2.5, 4]])
    found = interpolated(features, places)
    normed = (places + 0.5) / torch.tensor([7, 5]) * 2 - 1
    expected = F.grid_sample(features.permute(0, 3, 1, 2), normed[:, None], align_corners=False, padding_mode="border")
    assert torch.allclose(found, expected[:, :, 0].transpose(1, 2), atol=1e-12)
    found.square().sum().backward()
    gradient, features.grad = features.grad, None
    expected.square().sum().backward()
    assert torch.allclose(gradient, features.grad, atol=1e-12)


def test_a_grid_of_points_about_each_box_is_read_where_it_lies():
    """A map that holds its own places gives them back, in parts of the picture, which ends within the map."""
    width, height = 0.37, 0.29  # of a cell: 3 by 4 of them hold the picture
    ys, xs = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(5) + 0.5, indexing="ij")
    finest = torch.stack([xs * width, ys * height], dim=-1)[None]
    memory = Memory(None, None, None, None, torch.tensor([[[width, height]]]), finest)
    box = torch.tensor([[[0.5, 0.45, 0.2, 0.1], [0.95, 0.1, 0.4, 0.4]]])
    found = points_of_boxes(box, memory).view(2, GRID, GRID, 2)
    steps = torch.linspace(-REACH, REACH, GRID)
    assert torch.allclose(found[0, 0, :, 0], 0.5 + steps * 0.1, atol=1e-6)
    assert torch.allclose(found[0, :, 0, 1], 0.45 + steps * 0.05, atol=1e-6)
    assert torch.allclose(found[1, 0, :, 0], (0.95 + steps * 0.2).clamp(width / 2, 1 - width / 2), atol=1e-6)
    assert torch.allclose(found[1, :, 0, 1], (0.1 + steps * 0.2).clamp(height / 2, 1 - height / 2), atol=1e-6)


def test_what_lies_beyond_the_picture_is_never_read():
    torch.manual_seed(0)
    cells = torch.tensor([[[0.3, 0.21]]])  # 4 by 5 cells hold the picture
    finest, boxes = torch.randn(1, 8, 9, 2), boxes_of(1, 50)
    found = points_of_boxes(boxes, Memory(None, None, None, None, cells, finest))
    finest[:, 5:], finest[:, :, 4:] = torch.nan, torch.nan
    finest = finest.nan_to_num(1e9)
    assert torch.equal(found, points_of_boxes(boxes, Memory(None, None, None, None, cells, finest)))


def test_borders_move_boxes_and_leave_scores_alone():
    """With one layer; with more the moved boxes are what the next one looks at."""
    model, (pixels, mask) = box_model(dec_layers=1), padded_batch()
    with torch.no_grad():
        before = model(pixels, mask)
        model.transformer.decoder.borders.move.bias += torch.tensor([0.5, 0, 0, 0])
        after = model(pixels, mask)
    assert torch.equal(before.logits, after.logits)
    assert (after.pred_boxes[..., 0] > before.pred_boxes[..., 0]).all()
    assert torch.equal(before.pred_boxes[..., 1:], after.pred_boxes[..., 1:])


def test_borders_are_read_at_the_box_and_learn_from_its_loss():
    torch.manual_seed(0)
    borders = BoxBorders(tiny_config(**BOXES))
    nn.init.normal_(borders.move.weight)
    finest = torch.randn(1, 6, 6, 16, requires_grad=True)
    memory = Memory(None, None, None, None, torch.full((1, 1, 2), 1 / 6), finest)
    states = torch.randn(1, 2, borders.state.in_features)
    borders(states, torch.tensor([[[0.25, 0.25, 0.1, 0.1]] * 2]), memory).sum().backward()
    read = finest.grad.abs().sum(-1)[0] > 0
    assert read[:3, :3].any() and not read[3:].any() and not read[:, 3:].any()


def test_what_self_attention_adds_depends_on_how_boxes_lie_to_each_other_and_not_on_where():
    torch.manual_seed(0)
    attention = RelatedAttention(tiny_config(**BOXES)).eval()
    boxes = boxes_of(2, 5) * 0.4 + 0.1
    added = attention.related(boxes)
    assert added.shape == (2, attention.config.nheads, 5, 5)
    moved = boxes * 0.5 + torch.tensor([0.2, 0.1, 0, 0])  # half as large, elsewhere
    assert torch.allclose(added, attention.related(moved), atol=1e-4)
    other = boxes.clone()
    other[:, 0, :2] += 0.05
    assert not torch.allclose(added, attention.related(other), atol=1e-4)
    assert not torch.allclose(added, attention.related(boxes.flip(1)).flip(2, 3), atol=1e-4), "who was chosen before"


def test_queries_that_are_not_valid_are_not_seen():
    torch.manual_seed(0)
    attention = RelatedAttention(tiny_config(**BOXES)).eval()
    valid = torch.tensor([[True, True, True, False], [True, False, True, True]])
    added = attention.related(boxes_of(2, 4), valid)
    states = torch.randn(2, 4, attention.q_proj.in_features)
    _, weights = attention(states, states, states, added, output_attentions=True)
    assert (weights.transpose(1, 3)[~valid] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_a_new_model_adds_nothing_at_first():
    decoder = tiny_model(**BOXES).transformer.decoder
    assert all(not layer.self_attn.related(boxes_of(1, 4)).any() for layer in decoder.layers)
    assert not decoder.borders.move.weight.any() and not decoder.borders.move.bias.any()
