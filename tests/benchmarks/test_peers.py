"""Transformers' other detectors as arms, frozen photographs, and kinds of mistakes: what the records say is so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from benchmarks import convergence, learning_tables
from benchmarks.__main__ import app
from benchmarks.convergence import measure, run_arms
from benchmarks.convergence_arms import arm_of_config, build_model, known_arms
from benchmarks.convergence_features import FixedFeatures, backbone_for
from benchmarks.convergence_peers import KINDS, Peer, build_peer, peer_arms
from benchmarks.convergence_tasks import Settings, Task, crop_and_flip
from benchmarks.forgiven import KINDS as MISTAKES, forgiven
from detr_hf.evaluation.coco import evaluate_boxes
from tests.data.layouts import write_coco

SHAPES = [(8, 8, 8), (12, 4, 4), (16, 2, 2)]
BACKBONE = "test_resnet"  # the smallest of timm


def feature_task(kind) -> Task:
    shapes = SHAPES if len(kind.maps) > 1 else SHAPES[1:2]
    return Task({0: "cat", 1: "dog", 2: "owl"}, None, None, {}, True, shapes=shapes)


@pytest.fixture
def small() -> Settings:
    return Settings(hidden_dim=32, nheads=4, layers=2, num_queries=12)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_mended_holds_in_the_mended_arm_and_not_in_the_one_as_shipped(name, small):
    kind, arms = KINDS[name], peer_arms()
    torch.manual_seed(0)
    shipped, mended = (build_peer(arms[arm], small, feature_task(kind)) for arm in (name, f"{name}-mended"))
    assert {mend.what: (mend.holds(shipped.model), mend.holds(mended.model)) for mend in kind.mends} == {
        mend.what: (False, True) for mend in kind.mends
    }
    listed = arms[f"{name}-mended"]["mended"]
    assert listed == kind.sentences() and len(set(listed)) == len(listed) and "mended" not in arms[name]
    assert (shipped.class_loss, mended.class_loss) == (1.0, kind.class_loss)
    assert ("class loss weighs 2" in " ".join(listed)) == (kind.class_loss == 2.0)
    assert not shipped.slow and ("tenth of the rate" in " ".join(listed)) == bool(mended.slow)
    slow = [name for name, _ in mended.named_parameters() if mended.group_of(name) == "slow"]
    assert bool(slow) == bool(mended.slow)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_peer_that_reads_no_mask_is_given_boxes_of_the_padded_picture(weight):
    class Model(nn.Module):
        def forward(self, pixels, mask=None, labels=None):
            self.saw = (mask, labels)
            boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.5]]] * 2)
            losses = {"loss_ce": torch.tensor(1.0), "loss_ce_0": torch.tensor(2.0), "loss_bbox": torch.tensor(4.0)}
            return SimpleNamespace(loss=torch.tensor(7.0), loss_dict=losses, pred_boxes=boxes)

    mask = torch.ones(2, 8, 16, dtype=torch.long)
    mask[1, 4:], mask[1, :, 12:] = 0, 0  # half of the height, three quarters of the width
    labels = [{"boxes": torch.tensor([[0.4, 0.8, 0.2, 0.4]])}] * 2
    inner = Model()
    out = Peer(inner, SimpleNamespace(reads_mask=False, class_loss=weight, slow=()), True)(None, mask, labels)
    assert inner.saw[0] is None
    seen = [one["boxes"] for one in inner.saw[1]]
    assert torch.equal(seen[0], labels[0]["boxes"]) and torch.allclose(seen[1], torch.tensor([[0.3, 0.4, 0.15, 0.2]]))
    assert torch.allclose(out.pred_boxes[1], torch.tensor([[0.5 / 0.75, 0.5, 0.5 / 0.75, 1.0]]))
    out = Peer(inner, SimpleNamespace(reads_mask=True, class_loss=weight, slow=()), True)(None, mask, labels)
    assert inner.saw[0] is mask and inner.saw[1] is labels
    assert float(out.loss) == 7 + (weight - 1) * 3, "the class loss of every layer weighs so much"


def test_the_best_pairs_of_query_and_class_are_the_detections_of_a_peer():
    peer = Peer(nn.Identity(), SimpleNamespace(reads_mask=True, class_loss=1.0, slow=()), False)
    logits = torch.tensor([[[2.0, 1.0], [-1.0, 3.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.4, 0.4]]])
    (found,) = peer.detections(SimpleNamespace(logits=logits, pred_boxes=boxes), torch.tensor([[50, 100]]))
    assert found["labels"].tolist() == [1, 0, 1, 0]
    assert torch.allclose(found["scores"], torch.tensor([3.0, 2.0, 1.0, -1.0]).sigmoid())
    assert torch.allclose(found["boxes"][:2], torch.tensor([[0.0, 0, 30, 15], [40, 20, 60, 30]])), "clipped"


# What is found beside one object of class 0 at (10, 10, 20, 20), and the kind of mistake that it is.
OBJECT = [10, 10, 20, 20]
FOUND = {
    "place": [[20, 10, 20, 20, 0.9, 0]],
    "class": [[*OBJECT, 0.9, 1]],
    "background": [[60, 60, 20, 20, 0.9, 0], [*OBJECT, 0.8, 0]],
    "duplicates": [[*OBJECT, 0.9, 0], [11, 10, 20, 20, 0.8, 0]],
    "missed": [],
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_ap50_rises_where_its_kind_of_mistake_is_forgiven_and_nowhere_else(kind):
    """Three pictures are found rightly but for this one; the last has a crowd, which is nothing."""
    images = [{"id": number, "height": 100, "width": 100} for number in range(4)]
    truth = {"images": images, "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}
    truth["annotations"] = [{"image_id": number, "category_id": 0, "bbox": OBJECT} for number in (0, 1, 2)]
    truth["annotations"] += [{"image_id": number, "category_id": 1, "bbox": [50, 0, 30, 30]} for number in (0, 1, 2)]
    truth["annotations"].append({"image_id": 3, "category_id": 0, "bbox": [0, 0, 50, 50], "iscrowd": 1})
    rows = [[0, *row] for row in FOUND[kind]]
    rows += [[number, *OBJECT, 0.7, 0] for number in (1, 2)] + [
        [number, 50, 0, 30, 30, 0.7, 1] for number in (0, 1, 2)
    ]
    found = forgiven(truth, np.array(rows, dtype=float))
    before = evaluate_boxes(truth, np.array(rows, dtype=float)).summary["AP50"]
    assert before < 1 and found[kind] == pytest.approx(1), found
    for other in set(MISTAKES) - {kind}:
        assert found[other] == pytest.approx(before), other


def test_a_forgiven_mistake_takes_no_object_twice():
    truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 0, "name": "cat"}]}
    truth["annotations"] = [{"image_id": 1, "category_id": 0, "bbox": OBJECT}]
    rows = np.array([[1, 20, 10, 20, 20, 0.9, 0], [1, *OBJECT, 0.8, 0], [1, 18, 10, 20, 20, 0.7, 0]], dtype=float)
    assert forgiven(truth, rows)["place"] == pytest.approx(1), "both misplaced ones are left out"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden_dimension": 8}, "no 'hidden_dimension'"),
        ({"name": "fast"}, "named 'fast'"),
        ({"name": "a/b"}, "named 'a/b'"),
        ({"recipe": "quick"}, "'quick'.*fast"),
        ({"maps": [4, 8]}, r"\[16\], \[8, 16, 32\]"),
    ],
)
def test_an_arm_that_could_not_be_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        arm_of_config(given)


def test_an_arm_is_data():
    name, options = arm_of_config({"name": "wide", "recipe": "fast", "num_denoising": 40, "maps": [8, 16, 32]})
    assert name == "wide" and options == {**known_arms()["fast"], "num_denoising": 40, "maps": [8, 16, 32]}
    settings = Settings(hidden_dim=32, layers=1, num_queries=5)
    task = Task({0: "cat"}, None, None, {"backbone": "resnet18"}, True, shapes=[(64, 4, 4)])
    model = build_model(name, settings, task, {"num_queries": 7, "dec_layers": 2, "dim_feedforward": 16})
    config = model.config
    assert (config.num_queries, config.dec_layers, config.enc_layers, config.dim_feedforward) == (7, 2, 1, 16)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Settings of a frozen backbone with a few pictures."""
    folder = tmp_path_factory.mktemp("photographs")
    write_coco(folder / "data")
    torch.manual_seed(0)
    weights = {name: value for name, value in timm.create_model(BACKBONE).state_dict().items() if value.dim()}
    save_file(weights, folder / "weights.safetensors")
    return Settings(
        data=str(folder / "data"), work=str(folder / "work"), backbone=BACKBONE, side=64, crops=2, batch=4, steps=2,
        eval_every=1, warmup=1, hidden_dim=16, nheads=2, layers=1, num_queries=6,
        backbone_weights=str(folder / "weights.safetensors"),
    )  # fmt: skip


@pytest.mark.parametrize("maps", [(16,), (8, 16, 32)])
def test_features_are_the_frozen_backbones_of_the_same_crops(photographs, maps, monkeypatch):
    task, pictures = photographs.task(maps), photographs.pictures()
    assert len(task.train.pixels) == 2 * len(pictures.train.pixels) == len(task.train.targets)
    monkeypatch.setattr("benchmarks.convergence_features._compute", lambda *_: pytest.fail("they are computed once"))
    again = photographs.task(maps)
    assert torch.equal(again.train.pixels, task.train.pixels)
    _, mask, _ = task.batch(0, 0, 8, "cpu")
    assert mask.shape == (8, 64, 64) and not mask.all(), "what is padding is told"
    number = len(pictures.train.pixels) + 1  # the second crop of the second picture
    rng = np.random.default_rng((1, 1))
    cut, target = crop_and_flip(rng, pictures.train.pixels[1], pictures.train.targets[1], pictures.train.sizes_hw[1])
    expected = backbone_for(maps, pictures.backbone).eval()(pictures.normalise(cut[None]), None)[-len(maps) :]
    found = FixedFeatures(task.shapes)(task.train.pixels[number : number + 1].float())
    assert torch.equal(task.train.targets[number]["boxes"], target["boxes"])
    for one, (other, _) in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=2e-3, rtol=2e-3)
    assert [64 // shape[1] for shape in task.shapes] == list(maps)


def test_a_point_says_classes_sizes_and_mistakes_and_stands_in_the_file_at_once(photographs, tmp_path, monkeypatch):
    out, seen = tmp_path / "run.json", []

    def measured(*arguments):
        seen.append(len(json.loads(out.read_text())["runs"][0]["curve"]) if out.exists() else 0)
        return measure(*arguments)

    monkeypatch.setattr(convergence, "measure", measured)
    record = run_arms(["rtdetr-mended"], [0], photographs, out)
    assert seen == [0, 0, 1, 1], "twice a point: the weights and their average"
    (run,) = record["runs"]
    for point in run["curve"]:
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= point.keys() and set(point["averaged"]) >= {"AP50"}
        assert {name: row["objects"] for name, row in point["classes"].items()} == {"cat": 1, "dog": 1, "owl": 1}
        assert set(point["forgiven"]) == set(MISTAKES)
    ran = run["environment"]
    assert {"torch", "transformers", "timm", ran["evaluator"]} < ran["versions"].keys() and ran["commit"]
    assert record["arms"]["rtdetr-mended"]["mended"] == peer_arms()["rtdetr-mended"]["mended"]
    assert str(tmp_path) not in out.read_text() and photographs.data not in out.read_text(), "no folder of the machine"
    monkeypatch.setattr(convergence, "train", lambda *_: pytest.fail("a run that has ended is not run again"))
    assert run_arms(["rtdetr-mended"], [0], photographs, out)["runs"] == record["runs"]
    other = Settings(**{**vars(photographs), "clip": 1.0})
    with pytest.raises(ValueError, match=r"clip 0\.1 and not 1\.0.*--name"):
        run_arms(["rtdetr-mended"], [0], other, out)
    with pytest.raises(ValueError, match=r"'rtdetr-mended'.*anew"):
        run_arms({"rtdetr-mended": {"num_queries": 5}}, [0], photographs, out)


def test_a_run_whose_loss_is_not_finite_ends_and_says_so(photographs, tmp_path, monkeypatch):
    class Broken(nn.Linear):
        def set_attn_implementation(self, name):
            pass

        def forward(self, *_, labels=None):
            return SimpleNamespace(loss=self.weight.sum() * float("nan"))

    monkeypatch.setattr(convergence, "build_model", lambda *_: Broken(1, 1))
    (run,) = run_arms(["detr"], [0], photographs, tmp_path / "run.json")["runs"]
    assert run["diverged"] == 1 and run["curve"][-1]["AP50"] == 0 and len(run["curve"]) == 1


def test_protocol_a_is_one_command(photographs, tmp_path, monkeypatch):
    """An arm that ships and one given as data; started again with another seed it adds this."""
    command = ["convergence", photographs.data, "--protocol", "A", "--arms", "detr"]
    command += ["--config", '{"name": "more", "num_queries": 9}']
    monkeypatch.setattr("benchmarks.convergence_report.draw", lambda *_: None)
    options = {"steps": 1, "eval-every": 1, "batch": 4, "crops": 2, "layers": 1, "hidden-dim": 16, "nheads": 2}
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command += ["--side", "64", "--backbone", BACKBONE, "--backbone-weights", photographs.backbone_weights]
    command += ["--work", photographs.work, "--out", str(tmp_path / "toaster")]
    for seeds in ("0", "0,1"):
        done = CliRunner().invoke(app, [*command, "--seeds", seeds])
        assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "toaster/convergence-A-data.json").read_text())
    runs = [(run["arm"], run["seed"]) for run in record["runs"]]
    assert runs == [("detr", 0), ("more", 0), ("detr", 1), ("more", 1)]
    assert record["settings"]["lr"] == 1e-3 and record["settings"]["hidden_dim"] == 16
    assert record["arms"]["more"] == {"num_queries": 9}
    tables = (tmp_path / "toaster/convergence-A-data.md").read_text()
    expected = ("worst class: AP50", "place forgiven", "cat (1 objects)", '"num_queries": 9')
    rendered = learning_tables.protocol("A", tmp_path)
    assert all(words in text for text in (tables, rendered) for words in expected) and "On data, toaster" in rendered
    assert "no record" in learning_tables.protocol("B", tmp_path)
    refused = CliRunner().invoke(app, ["convergence", photographs.data, "--config", '{"queries": 9}'])
    assert refused.exit_code == 2 and "queries" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("arm", peer_arms())
@pytest.mark.parametrize("crops", [0, 2])
def test_every_peer_trains_on_features_and_on_pictures(photographs, tmp_path, arm, crops):
    settings = Settings(**{**vars(photographs), "crops": crops, "hidden_dim": 32, "layers": 2})
    (run,) = run_arms([arm], [0], settings, tmp_path / "run.json")["runs"]
    assert len(run["curve"]) == 2 and bool(run["parameters"]["in the backbone"]) == (crops == 0)
    assert ("averaged" in run["curve"][0]) == arm.endswith("-mended")
