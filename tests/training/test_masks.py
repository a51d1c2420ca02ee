"""Training with masks: what the trainer sees by model and data, a mask head that learns alone, what is refused."""

import pytest
import torch
from datasets import Dataset

from detr_hf import DETRForSegmentation, DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.digits import DigitScenes
from detr_hf.training.arguments import RECIPES
from detr_hf.training.preparing import check_masks
from detr_hf.training.trainer import DETRTrainer

from .scenes import SIZE_HW, Scenes, arguments, micro_model, split_of, trainer, write_coco


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Data by kind."""
    root = tmp_path_factory.mktemp("data")
    scenes = {"length": 2, "size_hw": SIZE_HW, "objects_per_scene": (1, 3), "masks": True}
    return {
        "instances": load_detection_dataset(write_coco(root / "instances", False)),
        "panoptic": load_detection_dataset(write_coco(root / "panoptic", True), task="panoptic"),
        "digit scenes": {name: DigitScenes(name, **scenes) for name in ("train", "validation")},
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A detector of three classes with a processor that fuses a class which it no longer has."""
    folder = tmp_path_factory.mktemp("start")
    micro_model().save_pretrained(folder)
    size = {"shortest_edge": 48, "longest_edge": 64}
    DETRImageProcessor(size=size, label_ids_to_fuse=[120]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "fused"),
    [("instances", []), ("panoptic", [1]), pytest.param("digit scenes", [10, 11], marks=pytest.mark.slow)],
)
def test_the_five_lines(kind, fused, sources, checkpoint, tmp_path):
    data = sources[kind]
    id2label = getattr(data, "id2label", None) or data["train"].id2label
    model = DETRForSegmentation.from_pretrained(checkpoint, id2label=id2label)
    run = DETRTrainer(model, arguments(tmp_path, max_steps=1), data)
    assert all(row["labels"]["masks"].any() for row in (run.train_dataset[0], run.eval_dataset[0]))
    run.train()
    assert {"loss_mask", "loss_dice"} <= run.state.log_history[0].keys()
    saved = tmp_path / "checkpoint-1"
    assert DETRImageProcessor.from_pretrained(saved).label_ids_to_fuse == fused
    assert not DETRForSegmentation.from_pretrained(saved).mask_head_is_new
    detector = DETRTrainer(
        micro_model(id2label=id2label), arguments(tmp_path), data, processing_class=run.processing_class
    )
    assert "masks" not in detector.train_dataset[0]["labels"] and len(detector.train_dataset[0]["labels"]["boxes"])


def test_a_model_that_is_made_for_the_run_gets_masks_too(sources, tmp_path):
    def init() -> DETRForSegmentation:
        return micro_model(masks=True, id2label={0: "owl", 1: "sky"})

    processor = DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    run = DETRTrainer(None, arguments(tmp_path), sources["instances"], model_init=init, processing_class=processor)
    assert "masks" in run.train_dataset[0]["labels"]


def with_masks(rows: Dataset, known: list[bool]) -> Dataset:
    """Rows of one object each, with a mask or without."""
    return Dataset.from_list(
        [
            {**row, "objects": {**row["objects"], "segmentation": ["{}" if k else None] * len(row["objects"]["id"])}}
            for row, k in zip(rows.with_format(None), known, strict=True)
        ],
        features=rows.features,
    )


def test_data_without_masks_is_refused_before_the_first_step(tmp_path):
    data = {"train": split_of([[0], [1], [2]], crowds={1: 0})}
    with pytest.raises(ValueError, match=r"no object of split 'train' has a segmentation.*--task detection"):
        DETRTrainer(micro_model(masks=True), arguments(tmp_path), data, processing_class=DETRImageProcessor())
    some = with_masks(split_of([[0], [1], [2]]), [True, False, True])
    with pytest.raises(ValueError, match=r"1 of 3 objects .* have no segmentation \(in 1.png\).*allow_missing_masks"):
        check_masks(some, "train")
    check_masks(some.select([2, 0]), "train")
    check_masks(split_of([[], []], crowds={1: 0}), "train")  # crowds are not trained on
    bare = Dataset.from_list([{"objects": {"bbox": [[1.0, 1.0, 9.0, 9.0]], "category": [0]}}])
    with pytest.raises(ValueError, match="no object of split"):
        check_masks(bare, "train")
    with pytest.raises(ValueError, match="masks=True"):
        check_masks(DigitScenes(size_hw=SIZE_HW), "train")


def test_a_mask_head_learns_alone(checkpoint, tmp_path):
    model = DETRForSegmentation.from_pretrained(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = {"train": Scenes(masks=True), "evaluation": Scenes(3, noise=False, masks=True)}
    options = {"freeze_detector": True, "learning_rate": None, "warmup_steps": None, "max_steps": 2}
    run = trainer(tmp_path, model, **data, **options)
    recipe = {name: getattr(run.args, name) for name in RECIPES["mask_head"]}
    assert recipe == RECIPES["mask_head"]
    run.train()
    assert {group["name"]: group["initial_lr"] for group in run.optimizer.param_groups} == {"mask_head": 1e-4}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("mask_head.", "bbox_attention.")) for name in changed)
    entry = run.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["loss_mask"] + entry["loss_dice"], rel=1e-5) and entry["loss_ce"] > 0
    metrics = run.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_mask"] + metrics["eval_loss_dice"], rel=1e-4)
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "The mask head learnt alone" in card and "DETRForSegmentation" in card

    again = DETRForSegmentation.from_pretrained(tmp_path / "checkpoint-2")
    assert trainer(tmp_path, again, num_train_epochs=None).args.num_train_epochs == 25  # as the configuration says
    both = trainer(tmp_path, again, freeze_detector=False)
    both.create_optimizer()
    names = ["transformer", "backbone", "class_head", "mask_head"]
    assert [group["name"] for group in both.optimizer.param_groups] == names
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in micro_model(masks=True).named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    ("masks", "changes", "words"),
    [
        (False, {}, "this DETRForObjectDetection has none.*--task instance"),
        (True, {"recipe": "fast"}, "recipe='fast' helps a detector"),
        (True, {"id2label": {0: "cat", 1: "emu"}}, r"does not know 1 of its 2 classes \(emu\)"),
    ],
)
def test_a_detector_that_cannot_be_frozen_is_refused(masks, changes, words, checkpoint, tmp_path):
    changes = dict(changes)
    loading = {"id2label": changes.pop("id2label")} if "id2label" in changes else {}
    model = DETRForSegmentation.from_pretrained(checkpoint, **loading) if masks else micro_model()
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, model, freeze_detector=True, **changes)
