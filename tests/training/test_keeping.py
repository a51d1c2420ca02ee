"""Which step is kept: the last, unless an earlier one is better by more than noise."""

import math

import numpy as np
import pytest
import torch

from detr_hf import DETRForObjectDetection
from detr_hf.evaluation.coco import evaluate_boxes
from detr_hf.training import checkpointed, keeping
from detr_hf.training.keeping import Kept, choose

from .scenes import Scenes, digest, trainer

PICTURES = 12


def truth():
    """Twelve pictures with two objects of one class each."""
    boxes = [(image, [10.0 + 40 * place, 20.0, 30.0, 30.0]) for image in range(PICTURES) for place in range(2)]
    return {
        "images": [{"id": image, "width": 100, "height": 100} for image in range(PICTURES)],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 0, "bbox": box, "area": 900.0, "iscrowd": 0}
            for number, (image, box) in enumerate(boxes, start=1)
        ],
    }


def found(shift: float, seed: int) -> np.ndarray:
    """Every object, moved by about `shift` pixels."""
    rng = np.random.default_rng(seed)
    rows = []
    for one in truth()["annotations"]:
        x, y = np.array(one["bbox"][:2]) + rng.normal(0, shift, 2)
        rows.append([one["image_id"], x, y, 30.0, 30.0, rng.uniform(0.5, 1), 0])
    return np.array(rows)


def ap(rows: np.ndarray) -> float:
    return evaluate_boxes(truth(), rows).summary["AP"]


def chosen(earlier: np.ndarray, last: np.ndarray, others: int = 3) -> Kept:
    values = {step: 0.0 for step in range(1, others)} | {50: ap(earlier), 100: ap(last)}
    return choose(values, 50, "ap", True, {50: earlier, 100: last}, truth())


def test_an_earlier_step_is_kept_where_it_is_better_by_more_than_noise():
    kept = chosen(found(1, 0), found(6, 1))
    assert kept.step == 50 and "better than the last step, 100" in kept.text


def test_a_lead_that_other_pictures_would_not_have_is_noise():
    """Of steps that are alike, the best of many numbers is chance: the last is kept."""
    pairs = [(found(4, 2 * seed), found(4, 2 * seed + 1)) for seed in range(5)]
    pairs = [pair if ap(pair[0]) > ap(pair[1]) else pair[::-1] for pair in pairs]
    assert [chosen(*pair, others=10).step for pair in pairs] == [100] * len(pairs)


@pytest.mark.parametrize(
    ("values", "best", "metric", "greater", "step", "words"),
    [
        ({10: 0.0007, 20: 0.0004}, 10, "ap", True, 20, "by luck"),
        ({10: 0.2, 20: 0.3}, 20, "ap", True, 20, "best of 2"),
        ({10: 0.50, 20: 0.52, 30: 0.51}, 20, "pq", True, 30, "from one evaluation to the next"),
        ({10: 0.50, 20: 0.51, 30: 0.50, 40: 0.2}, 20, "pq", True, 20, "better than the last"),
        ({10: 9.0, 20: 6.0, 30: 5.5, 40: 5.3, 50: 5.5, 60: 9.0}, 40, "loss", False, 40, "better than the last"),
        ({10: 0.3, 20: math.nan}, 10, "ap", True, 10, "Kept: step 10"),
    ],
)
def test_what_is_kept_without_drawing_pictures(values, best, metric, greater, step, words):
    kept = choose(values, best, metric, greater, {}, None)
    assert kept.step == step and words in kept.text and kept.evaluations == len(values)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_trainer_keeps_that_step_and_its_card_says_so(earlier, tmp_path, monkeypatch, capsys):
    if earlier:
        monkeypatch.setattr(checkpointed, "choose", lambda values, *rest: Kept(min(values), "Kept: step 2.", 2))
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 3, "save_total_limit": None}
    run = trainer(tmp_path, evaluation=Scenes(4, noise=False), learning_rate=1e-2, **options)
    determine = run._determine_best_metric

    def first_is_best(metrics, trial):
        return determine(metrics | {"eval_ap": 1 / run.state.global_step}, trial)

    run._determine_best_metric = first_is_best
    run.train()
    step = 2 if earlier else 3
    assert run.kept.step == step and f"Kept: step {step}" in capsys.readouterr().err
    measured = [entry["step"] for entry in run.state.log_history if "eval_ap" in entry]
    assert measured == [2, 3]  # the last one too
    assert digest(run.model) == digest(DETRForObjectDetection.from_pretrained(tmp_path / f"checkpoint-{step}"))
    run.evaluate()
    run.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert run.kept.text in card.replace("\\", "") and "These pictures were used twice" in card
    assert np.load(tmp_path / "checkpoint-2" / keeping.FOUND_NAME).shape[1] == 7


def test_without_a_choice_the_card_says_nothing_of_one(tmp_path):
    run = trainer(tmp_path, evaluation=Scenes(4, noise=False), max_steps=1, save_strategy="no")
    run.train()
    run.evaluate()
    run.create_model_card()
    assert run.kept is None and "used twice" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert torch.isfinite(run.model.class_embed.weight).all()
