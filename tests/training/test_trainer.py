"""DETRTrainer: recipe, logs, evaluation, stops; and plain Trainer with the same model and collator."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from detr_hf import DETRConfig, DETRForObjectDetection, DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.errors import NonFiniteLossError
from detr_hf.training.checkpointing import last_complete_checkpoint
from detr_hf.training.trainer import DETRTrainer

from ..conftest import tiny_config
from .scenes import Scenes, arguments, digest, micro_model, trained, trainer

NAMES = {0: "cat", 1: "dog", 2: "owl"}


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """A COCO data set of six pictures, one object each and a crowd, in train and val."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in (("train", 6), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            name = f"{split}{index}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / split / name)
            images.append({"id": index + 10, "file_name": name, "width": 64, "height": 48})
            for label, crowd in ((index % 3, 0), ((index + 1) % 3, int(index == 0))):
                box = [4.0 + index, 6.0 + 10 * label, 30.0, 15.0]
                mask = {"counts": [0, 1500, 48 * 64 - 1500], "size": [48, 64]} if crowd else []
                annotation = {"bbox": box, "area": 450.0, "iscrowd": crowd, "segmentation": mask}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": index + 10, "category_id": (3, 5, 9)[label], **annotation}
                )
        categories = [{"id": identity, "name": name} for identity, name in zip((3, 5, 9), NAMES.values(), strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def data(coco_folder):
    return load_detection_dataset(coco_folder)


def small_processor():
    return DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})


def test_the_five_lines(data, tmp_path):
    """Data, model, trainer: everything else has a default, and the checkpoint is a detector."""
    trained(micro_model()).save_pretrained(tmp_path / "start")
    small_processor().save_pretrained(tmp_path / "start")
    model = DETRForObjectDetection.from_pretrained(tmp_path / "start", id2label=data.id2label)
    run = DETRTrainer(
        model, arguments(tmp_path / "out", max_steps=3, eval_strategy="steps", eval_steps=1, learning_rate=None), data
    )
    run.train()

    assert run.args.learning_rate == 5e-5  # the transformer's weights are trained ones: the fine-tuning recipe
    assert run.processing_class.size["shortest_edge"] == 48  # the checkpoint's image processor
    entries = [entry for entry in run.state.log_history if "eval_ap" in entry]
    assert len(entries) == 3
    assert {"eval_ap50", "eval_ap75", "eval_ar100", "eval_loss", "eval_loss_ce", "eval_class_error"} <= entries[
        0
    ].keys()
    assert run.last_evaluation.num_images == 3
    assert sum(row["objects"] for row in run.last_evaluation.per_class.values()) == 5  # the crowd is no object
    assert run.state.best_metric == max(entry["eval_ap"] for entry in entries)
    run.save_model()
    assert DETRForObjectDetection.from_pretrained(tmp_path / "out").config.id2label == NAMES
    assert DETRImageProcessor.from_pretrained(tmp_path / "out").size["shortest_edge"] == 48


def test_only_training_batches_are_padded_to_a_multiple(data, tmp_path):
    run = DETRTrainer(
        micro_model(), arguments(tmp_path, pad_to_multiple_of=40), data, processing_class=small_processor()
    )
    plain = DETRTrainer(micro_model(), arguments(tmp_path), data, processing_class=small_processor())
    sides = {side for batch in run.get_train_dataloader() for side in batch["pixel_values"].shape[2:]}
    assert sides and all(side % 40 == 0 for side in sides)
    for loader in (run.get_eval_dataloader(), plain.get_train_dataloader(), run.get_eval_dataloader()):
        for batch in loader:
            whole = batch["pixel_mask"].any(0)
            assert whole.any(0).all() and whole.any(1).all(), "no row and no column is padding in every picture"


def test_metrics_are_those_of_the_detections(data, tmp_path):
    """AP of the streaming evaluation equals AP of the results file, computed from the data's own annotations."""
    from detr_hf.evaluation import evaluate_boxes

    run = DETRTrainer(micro_model(), arguments(tmp_path), data, processing_class=small_processor())
    metrics = run.evaluate()
    results = run.predict(run.eval_dataset).predictions
    truth = json.loads((data_annotations(data)).read_text())
    back = [{**result, "category_id": data.source_category_ids[result["category_id"]]} for result in results]
    expected = evaluate_boxes(truth, back).summary
    assert metrics["eval_ap"] == pytest.approx(expected["AP"], abs=1e-6)
    assert metrics["eval_ar100"] == pytest.approx(expected["AR100"], abs=1e-6)
    assert {result["image_id"] for result in results} == {10, 11, 12}


def data_annotations(data):
    from pathlib import Path

    return Path(data.source) / "annotations" / "instances_val.json"


def test_groups_have_their_own_rates_and_decay(tmp_path):
    run = trainer(tmp_path, learning_rate=None)
    run.create_optimizer()
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "transformer": 1e-4,
        "backbone": 1e-5,
        "class_head": 1e-4,
    }
    assert {group["weight_decay"] for group in groups.values()} == {1e-4}
    grouped = {id(parameter) for group in groups.values() for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in run.model.parameters() if parameter.requires_grad}
    backbone = {
        id(parameter)
        for name, parameter in run.model.named_parameters()
        if name.startswith("backbone") and parameter.requires_grad
    }
    assert {id(parameter) for parameter in groups["backbone"]["params"]} == backbone != set()


def test_freeze_backbone(tmp_path):
    run = trainer(tmp_path, freeze_backbone=True, max_steps=2)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith("backbone") for name in changed)
    assert run.model.config.train_backbone is False


@pytest.mark.parametrize("recipe", ["detr", "fast", "fast_ref"])
def test_a_recipe_brings_its_aids_and_leaves_a_model_that_can_do_without(recipe, tmp_path):
    run = trainer(tmp_path, recipe=recipe, max_steps=2)
    config = run.model.config
    assert config.has_training_aids == (recipe != "detr") and config.reference_points == (recipe == "fast_ref")
    assert config.set_cost_class == (1 if recipe == "detr" else 4)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry][-1]
    assert ("loss_giou_dn" in logged and "loss_ce_enc" in logged) == (recipe != "detr")
    run.model.save_pretrained(tmp_path / "plain", inference_only=True)
    plain = DETRForObjectDetection.from_pretrained(tmp_path / "plain").eval()
    assert not plain.config.has_training_aids
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(pixels).logits, run.model.eval()(pixels).logits)


def test_the_log_has_the_loss_by_part(tmp_path):
    run = trainer(tmp_path, max_steps=4, logging_steps=2, save_strategy="no")
    run.train()
    first = next(entry for entry in run.state.log_history if "loss" in entry)
    expected = {
        "loss_ce",
        "loss_bbox",
        "loss_giou",
        "class_error",
        "grad_norm",
        "learning_rate",
        "learning_rate_backbone",
        "learning_rate_class_head",
    }
    assert expected <= first.keys()
    assert 0 <= first["class_error"] <= 100


def test_logged_parts_are_means_over_the_window(tmp_path):
    each = trainer(tmp_path / "each", max_steps=4, save_strategy="no")
    both = trainer(tmp_path / "both", max_steps=4, logging_steps=2, save_strategy="no")
    each.train()
    both.train()
    single = [entry["loss_ce"] for entry in each.state.log_history if "loss" in entry]
    double = [entry["loss_ce"] for entry in both.state.log_history if "loss" in entry]
    assert double == pytest.approx([np.mean(single[:2]), np.mean(single[2:])])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loss_that_is_not_finite_names_the_picture_and_spares_the_weights(workers, tmp_path):
    run = trainer(tmp_path, train=Scenes(8, bad=7), max_steps=8, dataloader_num_workers=workers)
    with pytest.raises(NonFiniteLossError, match=r"image_id 7 has pixels that are not finite.*The last checkpoint"):
        run.train()
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    saved = DETRForObjectDetection.from_pretrained(last_complete_checkpoint(tmp_path))
    assert all(torch.isfinite(parameter).all() for parameter in saved.parameters())
    assert run.state.global_step >= 1


def test_file_names_are_given_where_the_data_has_them(data, tmp_path):
    run = DETRTrainer(micro_model(), arguments(tmp_path, max_steps=1), data, processing_class=small_processor())
    with torch.no_grad():
        run.model.class_embed.weight.fill_(torch.nan)
    words = (
        r"train\d\.png \(image_id 1\d\).* 1 weights were not finite before .*class_embed.*No checkpoint was written"
    )
    with pytest.raises(NonFiniteLossError, match=words):
        run.train()


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    run = trainer(tmp_path, max_steps=3)
    run.model.class_embed.weight.register_hook(
        lambda gradient: gradient * (torch.nan if run.state.global_step == 1 else 1.0)
    )
    with pytest.raises(NonFiniteLossError, match="gradient is not finite"):
        run.train()
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_the_average_is_evaluated_saved_and_left_in_the_model(tmp_path):
    run = trainer(
        tmp_path,
        evaluation=Scenes(4, noise=False),
        eval_strategy="steps",
        eval_steps=3,
        save_steps=3,
        ema_decay=0.9,
        load_best_model_at_end=False,
    )
    run.train()
    logged = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    saved = DETRForObjectDetection.from_pretrained(tmp_path / "checkpoint-6")
    assert digest(saved) == digest(run.model)
    again = trainer(tmp_path / "again", saved, evaluation=Scenes(4, noise=False))
    assert again.evaluate()["eval_loss"] == pytest.approx(logged[-1], abs=1e-6)
    own = torch.load(tmp_path / "checkpoint-6" / "optimizer.pt", weights_only=True)  # plain tensors only
    assert len(own["state"]) > 10


def test_memory_does_not_follow_the_outputs(tmp_path):
    """What an evaluation keeps of a picture is its detections: 32 bytes each."""
    run = trainer(tmp_path, evaluation=Scenes(6, noise=False))
    kept = []
    update = run.evaluation_loop

    def loop(*args, **options):
        output = update(*args, **options)
        kept.append(output)
        return output

    run.evaluation_loop = loop
    run.evaluate()
    assert kept[0].predictions is None and kept[0].label_ids is None


def test_early_stopping_and_cosine_work(tmp_path):
    run = trainer(
        tmp_path, evaluation=Scenes(3, noise=False), eval_strategy="steps", eval_steps=1, lr_scheduler_type="cosine"
    )
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    run.evaluate, evaluate = lambda **options: {**evaluate(**options), "eval_ap": 0.5}, run.evaluate
    run.train()
    assert run.state.global_step == 3


def test_the_schedule_drops_once(tmp_path):
    run = trainer(tmp_path, max_steps=9, warmup_steps=2, lr_drop=2 / 3, save_strategy="no")
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0, 5e-4, *[1e-3] * 4, *[1e-4] * 3])


def test_accumulation_and_activation_checkpointing(tmp_path):
    plain = trainer(tmp_path / "plain", micro_model(dropout=0.0), max_steps=2, save_strategy="no")
    other = trainer(
        tmp_path / "other", micro_model(dropout=0.0), max_steps=2, save_strategy="no", activation_checkpointing=True
    )
    plain.train()
    other.train()
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_model_init(tmp_path):
    run = DETRTrainer(
        args=arguments(tmp_path, max_steps=1, freeze_backbone=True, recipe="fast", logging_steps=1),
        train_dataset=Scenes(),
        model_init=lambda: micro_model(),
    )
    for _ in range(2):  # each training begins with a new model
        run.train()
        assert not any(p.requires_grad for name, p in run.model.named_parameters() if name.startswith("backbone.0"))
        logged = next(entry for entry in run.state.log_history if "loss" in entry)
        assert {"loss_giou_dn", "loss_ce_enc"} <= logged.keys()
        assert run.model.config.set_cost_class == 4


def test_model_init_takes_processor_and_class_names_from_where_a_model_would(data, tmp_path):
    micro_model().save_pretrained(tmp_path / "start")
    small_processor().save_pretrained(tmp_path / "start")
    unnamed = {label: f"LABEL_{label}" for label in range(3)}
    run = DETRTrainer(
        args=arguments(tmp_path, max_steps=1),
        data=data,
        model_init=lambda: DETRForObjectDetection.from_pretrained(tmp_path / "start", id2label=unnamed),
    )
    assert run.processing_class.size["shortest_edge"] == 48
    run.train()
    assert run.model.config.id2label == NAMES


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_plain_trainer_works_with_model_and_collator(strategy, tmp_path):
    args = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        eval_strategy=strategy,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=2,
    )
    run = Trainer(micro_model(), args, DetectionCollator(id2label=NAMES), Scenes(), Scenes(5, noise=False))
    run.train()
    assert math.isfinite(run.evaluate()["eval_loss"])
    (batch,) = run.predict(Scenes(3, noise=False)).predictions
    parts, logits, boxes = batch  # at the places of transformers' DETR, and nothing else
    assert "loss_ce" in parts and (logits.shape, boxes.shape) == ((3, 7, 4), (3, 7, 4))
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"


class Refusals:
    """What is wrong, and what the message must say."""

    def classes(data, folder):
        DETRTrainer(micro_model(id2label={0: "cat"}), arguments(folder), data)

    def order(data, folder):
        DETRTrainer(micro_model(id2label={0: "dog", 1: "cat", 2: "owl"}), arguments(folder), data)

    def validation(data, folder):
        DETRTrainer(micro_model(), arguments(folder, eval_strategy="epoch"), train_dataset=Scenes())

    def empty(data, folder):
        DETRTrainer(micro_model(), arguments(folder), train_dataset=Scenes(0))

    def collator(data, folder):
        DETRTrainer(micro_model(), arguments(folder), DetectionCollator())

    def nothing(data, folder):
        DETRTrainer(micro_model(), arguments(folder)).train()

    def fp16(data, folder):
        DETRTrainer(micro_model(), arguments(folder, fp16=True), data)

    def parallel(data, folder):
        args = arguments(folder)
        args._n_gpu = 2
        type(args).n_gpu, before = property(lambda self: 2), type(args).n_gpu
        try:
            DETRTrainer(micro_model(), args, data)
        finally:
            del type(args).n_gpu
            assert type(args).n_gpu is before


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("classes", "The model has 1 classes and the data 3.*id2label=data.id2label"),
        ("order", "Class 0 is 'dog' to the model and 'cat' in the data"),
        ("validation", "no validation split.*eval_strategy='no'"),
        ("empty", "training set is empty"),
        ("collator", "data is a DetectionCollator"),
        ("nothing", "nothing to train on"),
        ("fp16", "Use bf16=True"),
        ("parallel", "torchrun --nproc_per_node 2"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(case, message, data, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(Refusals, case)(data, tmp_path)


def test_a_model_without_class_names_takes_those_of_the_data(data, tmp_path):
    config = DETRConfig(
        **{
            **tiny_config(backbone="test_resnet").to_diff_dict(),
            "id2label": {label: f"LABEL_{label}" for label in range(3)},
            "label2id": None,
        }
    )
    run = DETRTrainer(DETRForObjectDetection(config), arguments(tmp_path), data, processing_class=small_processor())
    assert run.model.config.id2label == NAMES
