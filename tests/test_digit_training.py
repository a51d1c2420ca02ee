"""The digit detector's training goes on from a checkpoint, stops and resumes; its card says how it was run."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("hotcoco")

from detr_hf import DETRForObjectDetection

ROOT = Path(__file__).parent.parent
ASSET = ROOT / "detr_hf" / "assets" / "detr-digits"


def from_examples(name: str):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


train_digits, detector, recipes, report = (
    from_examples(name) for name in ("train_digits", "digits.detector", "digits.recipe", "digits.report")
)
SHORT = recipes.Recipe(
    batch_size=2,
    steps=2,
    init=str(ASSET),
    draw="device",
    query_groups=2,
    num_denoising=8,
    late_step=0,
    warmup=1,
    lr=1e-4,
    lr_backbone=1e-4,
    decay_fraction=1.0,
    save_every=100,
    whole_backbone=True,
    box_weight=2.0,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two steps, and two more after a stop: the averages of both, and the folder of states."""
    work = tmp_path_factory.mktemp("digits")
    processor = report.make_processor()
    first = detector.train_detector(SHORT, None, work, processor)
    return first, detector.train_detector(replace(SHORT, steps=4), None, work, processor), work


def changed(before: DETRForObjectDetection, after: DETRForObjectDetection) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_the_whole_backbone_learns_where_it_is_asked_for(trained):
    moved = changed(DETRForObjectDetection.from_pretrained(ASSET), trained[0])
    assert {name for name, _ in trained[0].named_parameters()} <= moved
    assert "backbone.0.body.bn1.bias" in moved
    assert not any("running_" in name for name in moved)


def test_backbone_is_frozen_as_the_original_is_by_default():
    model = DETRForObjectDetection.from_pretrained(ASSET)
    optimizer = detector.make_optimizer(model, recipes.Recipe())
    learning = {id(weight) for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad}
    assert not {id(weight) for name, weight in model.named_parameters() if "body.conv1" in name} & learning
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_a_run_resumes_where_it_was(trained):
    first, second, work = trained
    state = torch.load(work / "detect_state.pt", weights_only=True)
    assert state["step"] == 4
    assert state["optimizer"]["state"][0]["step"] == 4
    assert changed(first, second)
    log = [json.loads(line) for line in (work / "detect.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "step" in entry] == [2, 4]
    before = state["seconds"]
    again = detector.train_detector(replace(SHORT, steps=4), None, work, report.make_processor())
    assert not changed(second, again)  # nothing was left to do
    assert torch.load(work / "detect_state.pt", weights_only=True)["seconds"] == before


def test_what_comes_out_is_plain_and_folds_the_weights_it_has(trained, tmp_path):
    average = trained[1]
    assert not average.config.has_training_aids
    assert (average.config.bbox_loss_coef, average.config.giou_loss_coef) == (5.0, 2.0)
    average.save_pretrained(tmp_path)
    loaded = DETRForObjectDetection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 224, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # they differ in memory layout and kernel of attention
        torch.testing.assert_close(average(pixels).pred_boxes, loaded(pixels).pred_boxes, rtol=1e-4, atol=1e-5)


def test_box_weight_multiplies_the_box_losses(tmp_path):
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    targets = [{"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6]])}]
    plain = replace(SHORT, query_groups=1, num_denoising=0, encoder_weight=0.0)
    losses = {}
    for weight in (1.0, 3.0):
        run = detector.Run(replace(plain, box_weight=weight), detector.start_model(plain, None), tmp_path)
        outputs = run.take_step(pixels, targets, progress=0.0)
        losses[weight] = outputs.loss.item()
    parts = {name: value.item() for name, value in outputs.loss_dict.items()}
    boxes = sum(value * (5 if "bbox" in name else 2 if "giou" in name else 0) for name, value in parts.items())
    assert losses[3.0] - losses[1.0] == pytest.approx(2 * boxes, rel=1e-4)


def test_average_follows_the_weights_and_norms(trained):
    fast, slow = DETRForObjectDetection.from_pretrained(ASSET).eval(), trained[0]
    pixels = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        fast.backbone[0].body.layer4[0].bn2.bias += 0.5
        before = slow(pixels).logits  # folds the norms into the convolutions: they must be folded anew below
        detector.update_average(detector.pair_weights(slow, fast), step=0, decay=0.0)
        assert not changed(fast, slow)
        after = slow(pixels).logits
        assert (after - before).abs().max() > 0.05
        torch.testing.assert_close(after, fast(pixels).logits, rtol=1e-4, atol=1e-4)


def test_the_cards_command_line_makes_the_recipe(monkeypatch):
    recipe = replace(SHORT, minutes=7.5, channels=[16, 32, 64, 96])
    words = report.wrapped_options(recipe).replace("\\\n", " ").split()
    monkeypatch.setattr(sys, "argv", ["train_digits.py", *words])
    assert train_digits.parse_arguments()[0] == replace(recipe, init="FOLDER")


@pytest.mark.parametrize(("drawn", "words"), [(True, "also drew the scenes"), (False, "1 processes drawing scenes")])
def test_card_says_who_drew_the_scenes(drawn, words):
    texts = report.how_it_trained(SHORT, drawn)
    assert words in texts["drawn_by"]
    assert ("last 25%" in texts["small_digits"]) == drawn
