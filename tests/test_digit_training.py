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
from detr_hf.data.digits import DigitScenes

ROOT = Path(__file__).parent.parent
ASSET = ROOT / "detr_hf" / "assets" / "detr-digits"


def from_examples(name: str):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


train_digits, batches, detector, kept, muon, recipes, report, silent = (
    from_examples(name)
    for name in (
        "train_digits",
        "digits.batches",
        "digits.detector",
        "digits.kept",
        "digits.muon",
        "digits.recipe",
        "digits.report",
        "digits.silent",
    )
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


@pytest.mark.slow
def test_the_whole_backbone_learns_where_it_is_asked_for(trained):
    moved = changed(DETRForObjectDetection.from_pretrained(ASSET), trained[0])
    assert {name for name, _ in trained[0].named_parameters()} <= moved
    assert "backbone.0.body.bn1.bias" in moved
    assert not any("running_" in name for name in moved)


@torch.no_grad()
def test_silent_units_are_renewed_without_a_trace_in_the_outputs():
    model, processor = DETRForObjectDetection.from_pretrained(ASSET).eval(), report.make_processor()
    layer = model.transformer.decoder.layers[2]
    layer.linear1.bias[:7] = -1e4
    scene = processor(DigitScenes("train")[0]["image"], return_tensors="pt")  # one of those that are looked at
    before = model(**scene)
    assert silent.renew_silent_units(model, processor, num_scenes=3) >= 7
    after = model(**scene)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes, rtol=1e-5, atol=1e-5)
    assert layer.linear1.bias[:7].eq(0).all() and layer.linear1.weight[:7].abs().sum() > 0
    assert layer.linear2.weight[:, :7].eq(0).all()
    assert not layer.linear1._forward_hooks


def test_every_layer_of_the_shipped_model_can_learn(trained):
    """A feed-forward network whose units never fire gets no gradient."""
    old, new = DETRForObjectDetection.from_pretrained(ASSET).state_dict(), trained[1].state_dict()
    for name in (name for name in old if "linear1.weight" in name):
        assert (old[name] != new[name]).any(dim=1).float().mean() > 0.5, name


def test_backbone_is_frozen_as_the_original_is_by_default():
    model = DETRForObjectDetection.from_pretrained(ASSET)
    (optimizer,) = detector.make_optimizers(model, recipes.Recipe())
    learning = {id(weight) for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad}
    assert not {id(weight) for name, weight in model.named_parameters() if "body.conv1" in name} & learning
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_a_run_resumes_where_it_was(trained):
    first, second, work = trained
    state = torch.load(work / "detect_state.pt", weights_only=True)
    assert state["step"] == 4
    assert state["optimizers"][0]["state"][0]["step"] == 4
    assert changed(first, second)
    log = [json.loads(line) for line in (work / "detect.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "step" in entry] == [2, 4]
    before = state["seconds"]
    again = detector.train_detector(replace(SHORT, steps=4), None, work, report.make_processor())
    assert not changed(second, again)  # nothing was left to do
    assert torch.load(work / "detect_state.pt", weights_only=True)["seconds"] == before


KEPT = replace(SHORT, draw="auto", whole_backbone=False, kept_batches=3, muon_lr=1e-3, iou_label_power=0.5)


@pytest.fixture
def few_to_a_file(monkeypatch):
    monkeypatch.setattr(kept, "BATCHES_PER_FILE", 2)


@pytest.mark.slow
def test_a_run_on_kept_features_resumes_and_leaves_the_backbone(tmp_path, few_to_a_file):
    processor = report.make_processor()
    first = detector.train_detector(KEPT, None, tmp_path, processor)
    moved = changed(DETRForObjectDetection.from_pretrained(ASSET), first)
    assert not any("backbone" in name for name in moved)
    assert {name for name, _ in first.named_parameters() if "backbone" not in name} <= moved
    assert (first.config.set_cost_class, first.config.iou_label_power) == (1, 0)
    second = detector.train_detector(replace(KEPT, steps=4), None, tmp_path, processor)
    assert changed(first, second) == {name for name in moved if "num_batches" not in name}
    states = torch.load(tmp_path / "detect_state.pt", weights_only=True)["optimizers"]
    assert [len(state["param_groups"]) for state in states] == [1, 1]
    assert states[0]["state"][0]["step"] == 4 and "momentum" in states[1]["state"][0]


def test_kept_features_are_the_backbones_and_come_in_another_order_each_pass(tmp_path, few_to_a_file):
    backbone = DETRForObjectDetection.from_pretrained(ASSET).eval().backbone[0]
    recipe = replace(KEPT, kept_batches=5, steps=10)
    seen = list(kept.kept_batches(recipe, backbone, tmp_path, 0))
    expected = list(batches.loader(recipe, "detect", 0, 5))
    number = {target[0]["boxes"]: index for index, (_, target) in enumerate(expected)}
    order = []
    for features, targets in seen:
        (index,) = (i for boxes, i in number.items() if torch.equal(boxes, targets[0]["boxes"]))
        order.append(index)
        with torch.no_grad():
            ((wanted, _),) = backbone(batches.normalise(expected[index][0]), None)
        torch.testing.assert_close(features, wanted, rtol=1e-3, atol=1e-3)
    assert sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:]
    again = list(kept.kept_batches(recipe, backbone, tmp_path, 8))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(again, seen[8:], strict=True))


def test_keeping_features_goes_on_where_it_was_killed(tmp_path, few_to_a_file):
    backbone = DETRForObjectDetection.from_pretrained(ASSET).eval().backbone[0]
    files = kept.keep_features(KEPT, backbone, tmp_path)
    times = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    assert kept.keep_features(KEPT, backbone, tmp_path) == files
    assert files[0].stat().st_mtime_ns == times[0] and files[1].exists()


@pytest.mark.parametrize("changes", [{"whole_backbone": True}, {"init": ""}, {"padded_fraction": 0.5}])
def test_features_are_kept_only_of_a_backbone_that_is_trained_and_stays(changes):
    with pytest.raises(ValueError, match=r"kept_batches (trains on a trained backbone|keeps whole scenes)"):
        replace(KEPT, **changes)


def test_padded_batches_hold_scenes_of_several_sizes_whose_targets_do_not_see_the_padding():
    padded, whole = (
        batches.SceneBatches(replace(SHORT, batch_size=4, padded_fraction=fraction), "detect", 0, 3)
        for fraction in (1.0, 0.0)
    )
    for index in range(3):
        pixels, targets = padded[index]
        mask = batches.padding_mask(pixels, targets)
        inputs = batches.normalise(pixels, mask)
        sizes_hw = [tuple(target["size"].tolist()) for target in targets]
        assert len(set(sizes_hw)) > 1
        for picture, row, target, (height, width) in zip(inputs, mask, targets, sizes_hw, strict=True):
            assert row.sum() == height * width and row[:height, :width].all()
            assert not picture[:, height:].any() and not picture[:, :, width:].any()
            assert picture[:, :height, :width].abs().mean() > 0.1
            lower = target["boxes"][:, :2] + target["boxes"][:, 2:] / 2
            assert lower.max() <= 1 and lower.max() > 0.5  # of the scene, not of what it is padded to
    pixels, targets = whole[0]
    assert batches.padding_mask(pixels, targets) is None and len({tuple(t["size"].tolist()) for t in targets}) == 1


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_on_padded_scenes_keeps_weights_in_float32(tmp_path, autocast):
    recipe = replace(SHORT, draw="workers", steps=1, padded_fraction=1.0, autocast=autocast)
    average = detector.train_detector(recipe, None, tmp_path, report.make_processor())
    assert {value.dtype for value in average.parameters()} == {torch.float32}
    assert all(value.isfinite().all() for value in average.parameters())


def test_muon_steps_as_torchs_does():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 12), (12, 30), (30, 12), (12, 12))]
    ours, theirs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    optimizers = (
        muon.Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for weights in zip(ours, theirs, strict=True):
            gradient = torch.randn(weights[0].shape, generator=generator)
            for weight in weights:
                weight.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved, wanted = mine - before, other - before
        assert (moved - wanted).norm() < 0.03 * wanted.norm()  # theirs is computed in bfloat16


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


def test_card_says_what_was_kept_and_which_optimiser_moved_what():
    texts = report.how_it_trained(replace(KEPT, batch_size=16, small_until=2, num_denoising=0), steps=3, drawn=False)
    assert texts["drawn_by"] == "first of all for the backbone's features of 48 scenes"
    assert texts["optimisers"].startswith("Muon 0.001 for the transformer's matrices, AdamW 0.0001")
    assert "backbone left as it was" in texts["optimisers"] and "first 67%" in texts["small_digits"]
    assert texts["denoising"] == ""


@pytest.mark.parametrize(("drawn", "words"), [(True, "also drew the scenes"), (False, "1 more drawing scenes")])
def test_card_says_who_drew_the_scenes(drawn, words):
    texts = report.how_it_trained(SHORT, SHORT.steps, drawn)
    assert words in texts["drawn_by"]
    assert ("last 25%" in texts["small_digits"]) == drawn


def test_card_says_what_was_padded_and_computed_in_bfloat16():
    texts = report.how_it_trained(replace(SHORT, padded_fraction=0.25, autocast=True), SHORT.steps, drawn=False)
    assert texts["small_digits"].endswith("25% of the batches with padded scenes of several sizes")
    assert texts["optimisers"].endswith("forward and backward pass in bfloat16")
    plain = report.how_it_trained(SHORT, SHORT.steps, drawn=False)
    assert "padded" not in plain["small_digits"] and "bfloat16" not in plain["optimisers"]


@pytest.mark.parametrize(("small_until", "words"), [(40, "small digits up to step 40"), (60, "small digits")])
def test_card_says_how_long_digits_were_small(small_until, words):
    texts = report.how_it_trained(replace(SHORT, small_until=small_until), steps=60, drawn=False)
    assert texts["small_digits"].endswith(words)


@pytest.mark.parametrize(("weight", "words"), [(1.0, ""), (2.5, "; box losses weighted 2.5 times")])
def test_card_says_how_box_losses_were_weighted(weight, words):
    assert report.how_it_trained(replace(SHORT, box_weight=weight), SHORT.steps, False)["box_losses"] == words


@pytest.mark.parametrize(
    ("ap", "ap50", "words"),
    [(0.7, 0.9, " and not reached"), (0.81, 0.96, "; AP50 was not reached"), (0.8, 0.97, " and reached")],
)
def test_card_says_what_was_reached(ap, ap50, words):
    assert report.outcome_of({"AP": ap, "AP50": ap50}) == words


def test_a_start_that_takes_no_step_did_not_train(tmp_path):
    started = [{"processes": processes, "threads": 1} for processes in (2, 1)]
    log = [started[0], {"step": 50, "step_seconds": 1.0}, started[0], {"step": 100, "step_seconds": 1.0}, started[1]]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    assert report.processes_used(tmp_path / "log.jsonl") == "2 x 1"
