"""`hyperparameter_search` for DETR: what is sought is AP.

Different on purpose from transformers' Trainer, which by default minimises the sum of all metrics; here that would add
AP, recall and errors. Learning rates that follow another one go with it in every trial.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

READ_ONCE = ("recipe", "augment", "ema_decay")  # when the trainer is made, and of a recipe all but its aids


class HyperparameterSearch:
    """What `DETRTrainer` does in place of Trainer's own search; a mixin that stands before Trainer."""

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Trains `n_trials` models and returns the best run, as transformers' Trainer does.

        Args:
            hp_space: from a trial to arguments by name, such as
                `{"learning_rate": trial.suggest_float("learning_rate", 2e-5, 4e-4, log=True)}`.
            compute_objective: from the metrics of an evaluation to a number; by default `metric_for_best_model`, AP.
            direction: "maximize" or "minimize"; by default what suits that metric.
            n_trials, backend, hp_name, kwargs: as in transformers' Trainer.

        Raises:
            ValueError: there is no search space, a function of yours has no direction, or a trial sets what the
                trainer reads only when it is made (`READ_ONCE`).
        """
        if hp_space is None:
            raise ValueError(
                "hyperparameter_search needs hp_space: transformers' default is meant for language models. For "
                'example: lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 2e-5, 4e-4, log=True)}.'
            )
        if compute_objective is None:
            name = self.args.metric_for_best_model or "loss"
            compute_objective = partial(metric_of, name=name)
            direction = direction or ("minimize" if name.endswith("loss") else "maximize")
        if direction is None:
            raise ValueError("compute_objective goes with a direction: 'maximize' or 'minimize'.")
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
        )

    def _hp_search_setup(self, trial: Any) -> None:
        args = self.args
        rate, head_rate = args.learning_rate, getattr(args, "head_learning_rate", None)
        before = {name: getattr(args, name, None) for name in READ_ONCE}
        schedule = args.lr_scheduler_type
        super()._hp_search_setup(trial)
        drawn = trial if isinstance(trial, Mapping) else getattr(trial, "params", {})
        if ("lr_scheduler_type" in drawn or args.lr_scheduler_type != schedule) and hasattr(args, "unset"):
            args.unset = tuple(name for name in args.unset if name != "lr_scheduler_type")
            args.keep_given_schedule()
        for name, value in before.items():
            if getattr(args, name, None) != value:
                raise ValueError(
                    f"hp_space sets {name}, which DETRTrainer reads when it is made (it was {value!r}). Make a "
                    "trainer, and a search, for each value."
                )
        follows = "head_learning_rate" in getattr(args, "unset", ())
        if follows and rate and args.head_learning_rate == head_rate:
            args.head_learning_rate = head_rate / rate * args.learning_rate


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """Returns the metric `name` of an evaluation, with or without its prefix.

    Raises:
        ValueError: it was not measured.
    """
    full = name if name.startswith("eval_") else f"eval_{name}"
    if full not in metrics:
        raise ValueError(f"The search looks at {full!r}, and an evaluation gave only {', '.join(sorted(metrics))}.")
    return metrics[full]
