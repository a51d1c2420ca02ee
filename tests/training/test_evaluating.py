"""What an evaluation says depends on the pictures alone; several sets; what is measured is known before training."""

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from detr_hf.data.preparing.transform import prepare
from detr_hf.training.monitoring import loss_divisors

from .scenes import Scenes, micro_model, split_of, trainer

SAME = (64, 64)  # with pictures of several sizes the padding, and so the outputs, depend on the batch


class Picked(torch.utils.data.Dataset):
    """Some scenes in an order; those of `empty` without objects."""

    def __init__(self, order, empty=()):
        self.order, self.empty, self.scenes = list(order), set(empty), Scenes(20, noise=False, heights=SAME)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        row = self.scenes[self.order[index]]
        if self.order[index] in self.empty:
            keys = ("class_labels", "boxes", "area", "iscrowd")
            row["labels"] = {name: value[:0] if name in keys else value for name, value in row["labels"].items()}
        return row


def losses(folder, rows, model=None, **changes) -> dict[str, float]:
    metrics = trainer(folder, model or micro_model(), evaluation=rows, **changes).evaluate()
    return {name: value for name, value in metrics.items() if "loss" in name or "error" in name}


@pytest.mark.parametrize("empty", [(), (1, 4), range(7)], ids=["all with objects", "some without", "none with"])
def test_losses_are_those_of_one_batch(empty, tmp_path):
    """Whatever the batch size, the last batch and the order; as the model's own loss of all pictures at once."""
    whole = losses(tmp_path, Picked(range(7), empty), per_device_eval_batch_size=7)
    run = trainer(tmp_path, evaluation=Picked(range(7), empty))
    batch = run.data_collator([run.eval_dataset[index] for index in range(7)])
    with torch.no_grad():
        outputs = run.model.eval()(**batch)
    assert whole["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-5)
    for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
        assert whole.get(f"eval_{name}", 0) == pytest.approx(float(outputs.loss_dict[name]), rel=1e-5), name
    for size, order in ((1, range(7)), (2, (6, 2, 0, 5, 1, 4, 3)), (3, range(7)), (4, (6, 5, 4, 3, 2, 1, 0))):
        others = losses(tmp_path, Picked(order, empty), per_device_eval_batch_size=size)
        assert others == pytest.approx(whole, rel=1e-4), (size, order)


def test_more_objects_than_queries(tmp_path):
    model = micro_model(num_queries=2)
    results = [losses(tmp_path, Picked(range(7)), model, per_device_eval_batch_size=size) for size in (1, 7)]
    assert results[0] == pytest.approx(results[1], rel=1e-4)


class Weighed:
    """A criterion's weights."""

    eos_coef, class_weights = 0.1, (2.0, 1.0, 0.5)


def test_divisors_follow_the_weights_of_classes():
    labels = [{"class_labels": torch.tensor([0, 2, 2])}, {"class_labels": torch.tensor([], dtype=torch.int64)}]
    assert loss_divisors(labels, 7, Weighed) == pytest.approx((3 + 0.1 * 11, 3, 3))
    assert loss_divisors(labels, 2, Weighed) == pytest.approx((2 + 0.1 * 2, 3, 2))


def test_a_loss_of_the_users_is_trainers_mean(tmp_path):
    from detr_hf.training.trainer import DETRTrainer

    from .scenes import arguments

    def loss(outputs, labels, num_items_in_batch=None):
        return outputs.logits.square().mean()

    args = arguments(tmp_path, per_device_eval_batch_size=2)
    rows = Picked(range(4))
    run = DETRTrainer(micro_model(), args, train_dataset=Scenes(), eval_dataset=rows, compute_loss_func=loss)
    with torch.no_grad():
        expected = run.model.eval()(torch.stack([rows[index]["pixel_values"] for index in range(4)])).logits.square()
    assert run.evaluate()["eval_loss"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_drop_last_is_for_training(tmp_path, caplog):
    run = trainer(tmp_path, evaluation=Picked(range(7)), dataloader_drop_last=True)
    run.evaluate()
    assert run.last_evaluation.num_images == 7 and "pictures of the ground truth were evaluated" not in caplog.text
    with pytest.raises(ValueError, match=r"dataloader_drop_last leaves nothing.*: 8 pictures .* batch of 9"):
        trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=9).train()


# --- several sets


def sets() -> dict:
    return {"day": Picked(range(3)), "night": Picked(range(3, 8))}


class Hears(TrainerCallback):
    """Notes every evaluation that callbacks are told of."""

    def __init__(self):
        self.heard = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.heard.append(metrics)


def test_several_sets_are_one_evaluation_with_a_mean(tmp_path):
    run = trainer(tmp_path, evaluation=sets(), eval_strategy="steps", eval_steps=1, max_steps=2)
    hears = Hears()
    run.add_callback(hears)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=5))
    run.train()
    logged = [entry for entry in run.state.log_history if "eval_day_ap" in entry]
    assert len(hears.heard) == len(logged) == 2
    for entry in logged:
        assert entry["eval_ap"] == pytest.approx((entry["eval_day_ap"] + entry["eval_night_ap"]) / 2)
        assert {"eval_day_loss", "eval_night_loss", "eval_night_ap50", "eval_runtime"} <= entry.keys()
    assert run.state.best_metric == max(entry["eval_ap"] for entry in logged)
    assert run.last_evaluations["day"].num_images == 3 and run.last_evaluations["night"].num_images == 5
    alone = trainer(tmp_path, run.model, evaluation=sets()["night"]).evaluate()
    assert alone["eval_ap"] == pytest.approx(run.evaluate()["eval_night_ap"])
    assert alone["eval_loss"] == pytest.approx(run.evaluate(sets())["eval_night_loss"])
    assert run.evaluate(sets()["day"], metric_key_prefix="test")["test_ap"] >= 0 and not run.last_evaluations


SPELLINGS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("eval_night_loss", "loss", "day_ap50", "class_error")
]


@pytest.mark.parametrize("metric", ["night_ap", *SPELLINGS])
def test_the_best_checkpoint_may_be_that_of_one_set(metric, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "metric_for_best_model": metric}
    run = trainer(tmp_path, evaluation=sets(), **options)
    run.train()
    values = [
        entry[f"eval_{metric.removeprefix('eval_')}"] for entry in run.state.log_history if "eval_runtime" in entry
    ]
    assert run.state.best_metric == (min if metric.endswith("loss") else max)(values)


def test_early_stopping_hears_of_the_mean(tmp_path):
    run = trainer(tmp_path, evaluation=sets(), eval_strategy="steps", eval_steps=1)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    run._mean_of_sets = lambda *_: {"eval_ap": 0.5}
    run.train()
    assert run.state.global_step == 3


WRONG = {
    "unknown": (
        {"metric_for_best_model": "map"},
        Scenes(2),
        "is 'map', and .* only ap, ap50.*Take 'ap'",
    ),
    "of no set": ({"metric_for_best_model": "dawn_ap"}, sets(), "'dawn_ap'.*each also of one set, as 'day_ap'"),
    "loss alone": (
        {"metric_for_best_model": "ap", "prediction_loss_only": True},
        Scenes(2),
        "prediction_loss_only=True",
    ),
    "no set": ({}, {}, "The validation set is empty"),
    "an empty set": ({}, {"day": Scenes(2), "night": Scenes(0)}, "The validation night set is empty"),
    "columns": ({"remove_unused_columns": True}, None, "remove_unused_columns=True would take away"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_evaluation_will_not_measure_is_refused_before_training(case, tmp_path):
    changes, rows, message = WRONG[case]
    if rows is None:
        rows = prepare(split_of([[0]]), trainer(tmp_path).processing_class)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, evaluation=rows, eval_strategy="steps", eval_steps=1, **changes)


def test_the_loss_alone(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "prediction_loss_only": True}
    run = trainer(tmp_path, evaluation=Picked(range(3)), **options)
    run.train()
    logged = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert len(logged) == 2 and "eval_ap" not in logged[0]
    assert run.state.best_metric == min(entry["eval_loss"] for entry in logged)


class Stream(torch.utils.data.IterableDataset):
    """Scenes without a length."""

    def __iter__(self):
        return (Scenes(5, noise=False, heights=SAME)[index] for index in range(5))


def test_streams_train_and_are_measured(tmp_path):
    run = trainer(tmp_path, train=Stream(), evaluation=Stream(), eval_strategy="steps", eval_steps=2, max_steps=4)
    run.train()
    assert run.last_evaluation.num_images == 5 and run.state.global_step == 4
