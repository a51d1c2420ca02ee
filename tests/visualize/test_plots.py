"""The curves of a training, from its log."""

import math

import numpy as np

from detr_hf.visualize.plots import Line, Panel, draw_panels, draw_training, training_panels

LOG = [
    {
        "step": 10,
        "loss": 9.0,
        "loss_ce": 2.0,
        "loss_giou_dn": 1.5,
        "learning_rate": 1e-4,
        "learning_rate_backbone": 0.0,
    },
    {"step": 20, "eval_loss": 8.0, "eval_ap": 0.1, "eval_ap50": 0.3, "eval_mask_ap": math.nan},
    {"step": 20, "loss": math.inf, "loss_ce": 1.0, "learning_rate": 5e-5, "learning_rate_class_head": 2e-4},
    {"step": 30, "loss": 6.0, "eval_ap": 0.4, "eval_ap50": 0.2, "eval_night_pq": 0.5, "eval_ap_of": 3},
]


def test_losses_by_part_rates_by_group_and_scores_each_have_their_place():
    shown = {panel.title: {line.label: list(line.points) for line in panel.lines} for panel in training_panels(LOG)}
    assert shown == {
        "loss": {"training": [(10, 9.0), (30, 6.0)], "validation": [(20, 8.0)]},
        "loss by part, in training": {"class": [(10, 2.0), (20, 1.0)], "box, GIoU, denoising": [(10, 1.5)]},
        "learning rate": {"transformer": [(10, 1e-4), (20, 5e-5)], "class head": [(20, 2e-4)]},  # on a log scale
        "AP on the validation pictures": {
            "AP": [(20, 0.1), (30, 0.4)],
            "AP50": [(20, 0.3), (30, 0.2)],
            "PQ of night": [(30, 0.5)],
        },
    }


def test_what_was_not_logged_has_no_axes_and_a_single_point_is_no_curve():
    assert [panel.title for panel in training_panels([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}])] == ["loss"]
    assert draw_training([]) is None and draw_training(LOG[:1] * 2) is None  # the last step is measured twice


def test_it_is_drawn_and_every_panel_has_ink():
    drawn = np.asarray(draw_training(LOG).convert("L"))
    height, width = drawn.shape
    assert width > height > 500
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert (drawn[rows, columns] < 128).sum() > 500


def test_panels_of_many_lines_share_a_legend():
    lines = [Line([(0, 0.1), (1, 0.2)], f"arm {n}", f"C{n}", dashed=n > 1) for n in range(3)]
    alone = draw_panels([Panel("AP", lines)] * 2, one_legend=True, title="three arms")
    assert alone.width > 2 * alone.height
