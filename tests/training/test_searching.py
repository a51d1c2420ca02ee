"""hyperparameter_search: AP is sought, rates follow each other, and what is missing is said."""

import pytest

from detr_hf.training.searching import metric_of
from detr_hf.training.trainer import DETRTrainer

from .scenes import Scenes, arguments, micro_model


def searching_trainer(folder, **changes):
    options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": None, "save_strategy": "no"}
    return DETRTrainer(
        args=arguments(folder, **{**options, **changes}),
        train_dataset=Scenes(),
        eval_dataset=Scenes(3, noise=False),
        model_init=lambda trial=None: micro_model(),
    )


def space(trial):
    return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-4, 3e-4])}


@pytest.mark.slow
def test_the_best_run_is_the_one_with_the_best_ap_and_the_head_follows_the_learning_rate(tmp_path):
    pytest.importorskip("optuna")
    run = searching_trainer(tmp_path, recipe="finetune")
    seen, aps = [], iter([0.2, 0.7, 0.4])
    create, evaluate = run.create_optimizer, run.evaluate

    def noting(model=None):
        optimizer = create(model)
        seen.append({group["name"]: group["lr"] for group in run.optimizer.param_groups})
        return optimizer

    run.create_optimizer = noting
    run.evaluate = lambda *args, **options: {**evaluate(*args, **options), "eval_ap": next(aps)}
    best = run.hyperparameter_search(hp_space=space, n_trials=3, backend="optuna")
    assert best.run_id == "1" and best.objective == 0.7
    assert len(seen) == 3
    for rates in seen:
        assert rates["class_head"] == pytest.approx(4 * rates["transformer"])
        assert rates["transformer"] in (1e-4, 3e-4) and rates["backbone"] == 1e-5


@pytest.mark.parametrize("values", [("ema_decay", [0.9]), ("augment", ["strong"]), ("recipe", ["fast"])])
def test_a_trial_cannot_set_what_was_read_before_it(values, tmp_path):
    pytest.importorskip("optuna")
    run = searching_trainer(tmp_path)
    with pytest.raises(ValueError, match=f"hp_space sets {values[0]}, which DETRTrainer reads when it is made"):
        run.hyperparameter_search(
            hp_space=lambda trial: {values[0]: trial.suggest_categorical(*values)}, n_trials=1, backend="optuna"
        )


def test_a_head_rate_that_was_given_does_not_follow(tmp_path):
    pytest.importorskip("optuna")
    run = searching_trainer(tmp_path, head_learning_rate=7e-4)
    run.hyperparameter_search(hp_space=space, n_trials=1, backend="optuna")
    assert run.args.head_learning_rate == 7e-4


def test_what_is_missing_is_said(tmp_path):
    run = searching_trainer(tmp_path)
    with pytest.raises(ValueError, match="needs hp_space"):
        run.hyperparameter_search(n_trials=1)
    with pytest.raises(ValueError, match="goes with a direction"):
        run.hyperparameter_search(hp_space=space, compute_objective=lambda metrics: 0.0)


def test_the_metric_is_found_with_and_without_its_prefix():
    assert metric_of({"eval_ap": 0.5, "eval_loss": 3.0}, "ap") == metric_of({"eval_ap": 0.5}, "eval_ap") == 0.5
    with pytest.raises(ValueError, match=r"'eval_ap'.*gave only eval_loss"):
        metric_of({"eval_loss": 3.0}, "ap")
