"""`Watch`: what a person reads while a DETR trains: what begins, a line an evaluation, the time left, what was kept.

Different on purpose from transformers' callbacks, which print a dictionary of some twenty numbers: the numbers are in
the log all the same. Lines go to stderr; a bar only where that is a terminal.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback

from ..hub.facts import hardware_name
from .verdict import LEAST_STEPS, Curve, verdict

TIMED = 8  # steps whose time makes the first estimate; the very first is none of them
RECENT = 200  # steps whose time counts later
QUIET_SECONDS = 30.0  # without an evaluation, a line no more often than this
LONG_MINUTES = 60.0  # of a training on a CPU, from which it is said what makes it shorter


class Watch(ProgressCallback):
    """Says what happens, in lines.

    Args:
        head: returns the lines that say what begins.
        kept: returns the line that says what was kept, or None.

    Attributes:
        lines: whether evaluations are said; a notebook has its own table.
    """

    def __init__(self, head: Callable[[], list[str]], kept: Callable[[], str | None]):
        super().__init__()
        self.head, self.kept, self.lines = head, kept, True
        self.words: Callable[[str], str] = str  # how arguments are called where this is read
        self.curve = Curve()
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._evaluations: deque[float] = deque(maxlen=5)
        self._mark = self._last_line = time.perf_counter()
        self._steps = 0
        self._best: tuple[float, int] | None = None
        self._trains = False

    def take_place_in(self, trainer: Any) -> None:
        """Takes the place of what prints a trainer's dictionaries; a notebook's table stays."""
        there = [type(one) for one in trainer.callback_handler.callbacks]
        printing = [kind for kind in there if kind in (ProgressCallback, PrinterCallback)]
        for kind in printing:
            trainer.remove_callback(kind)
        self.lines = bool(printing)
        trainer.add_callback(self)

    def note_loss(self, loss: Tensor) -> None:
        """Adds the loss of a batch, which may still be on its way."""
        self.curve.add(loss)

    def say(self, text: str) -> None:
        """Writes a line."""
        tqdm.write(self.words(text), file=sys.stderr)
        self._last_line = time.perf_counter()

    # --- what Trainer calls ---

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Says what begins."""
        self.curve, self._steps, self._best, self._trains = Curve(), 0, None, True
        self._seconds.clear()
        self._evaluations.clear()
        self.current_step = state.global_step
        if state.global_step:
            self.curve.close()  # a resumed run has not seen the first losses
        if not state.is_world_process_zero:
            return
        for line in self.head():
            self.say(line)
        if self._has_bar(args):
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True)
        self._mark = time.perf_counter()

    def _has_bar(self, args: Any) -> bool:
        return self.lines and not args.disable_tqdm and sys.stderr.isatty()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Measures the step; says once how long all of them take, and once whether the model learns."""
        if not state.is_world_process_zero:
            return
        now = time.perf_counter()
        self._steps += 1
        if self._steps > 1:  # the first one plans kernels and starts workers
            self._seconds.append(now - self._mark)
        self._mark = now
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
        if self._steps == 1 + TIMED:
            self.say(self._expected(args, state))
        due, every = _due(state), self._steps_between_evaluations(args, state)
        if state.global_step == due and not (every and math.ceil(due / every) * every <= 2 * due):
            self._judge(None, state)  # else with the next evaluation

    def on_save(self, args, state, control, **kwargs) -> None:
        """Leaves the time of saving out of that of a step."""
        self._mark = time.perf_counter()

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs) -> None:
        """Moves the bar of an evaluation."""
        if self._has_bar(args):
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_evaluate(self, args, state, control, metrics: Mapping[str, float] | None = None, **kwargs) -> None:
        """Says what was measured."""
        super().on_evaluate(args, state, control, **kwargs)
        now = time.perf_counter()
        if self._seconds:
            self._evaluations.append(now - self._mark)
        self._mark = now
        if state.is_world_process_zero and self._trains and metrics:
            if self.lines:
                self.say(self._measured(args, state, metrics))
            if state.global_step >= _due(state):
                self._judge(metrics.get("eval_ap"), state)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs) -> None:
        """Says where training is, where no evaluation has said it for a while."""
        if not state.is_world_process_zero or not self.lines or not logs or "loss" not in logs:
            return
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3g}")
        elif time.perf_counter() - self._last_line >= QUIET_SECONDS:
            self.say(f"{_where(state)}  loss {logs['loss']:.3g}{self._pace(args, state)}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Says what was kept."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
        kept, self._trains = self.kept(), False
        if state.is_world_process_zero and kept:
            self.say(kept)

    # --- its lines ---

    def _judge(self, ap: float | None, state: Any) -> None:
        """Says once whether it learns; not where a resumed run has not seen the first steps, or most are over."""
        losses = self.curve.close()
        if losses and self._steps == state.global_step <= state.max_steps / 2:
            self.say(verdict(losses, ap, state.global_step, state.max_steps))

    def _measured(self, args: Any, state: Any, metrics: Mapping[str, float]) -> str:
        """Returns the line of an evaluation."""
        name = (args.metric_for_best_model or "loss").removeprefix("eval_")
        shown = {"loss": "loss", "ap": "AP", "ap50": "AP50", "mask_ap": "mask AP", "pq": "PQ", name: name}
        shown = {key: label for key, label in shown.items() if f"eval_{key}" in metrics}
        shown |= {key: label for key, label in (("ap", "AP"), ("ap50", "AP50")) if key in shown}
        parts = [f"{label} {metrics[f'eval_{key}']:.3f}" for key, label in shown.items()]
        value = metrics.get(f"eval_{name}")
        if value is not None and not math.isnan(value):
            better = self._best is None or (value > self._best[0]) == bool(args.greater_is_better)
            if better and (self._best is None or value != self._best[0]):
                self._best = (value, state.global_step)
            step = self._best[1]
            best = f"best {self._best[0]:.3f} at step {step}" if step != state.global_step else "the best so far"
            parts += [best] if self._best[0] else []
        return f"{_where(state)}  {'  '.join(parts)}{self._pace(args, state)}"

    def _pace(self, args: Any, state: Any) -> str:
        if not self._seconds:
            return ""
        left = self.seconds_left(args, state)
        return f"  {self.seconds_a_step:.2f} s a step" + (f"  {_clock(left)} left" if left > 0 else "")

    @property
    def seconds_a_step(self) -> float:
        """Returns the mean time of the last steps."""
        return sum(self._seconds) / len(self._seconds)

    def seconds_left(self, args: Any, state: Any) -> float:
        """Returns the expected time of all steps and evaluations that are left."""
        left, every = state.max_steps - state.global_step, self._steps_between_evaluations(args, state)
        evaluation = sum(self._evaluations) / len(self._evaluations) if self._evaluations else 0.0
        return left * self.seconds_a_step + (left / every * evaluation if every else 0.0)

    def _steps_between_evaluations(self, args: Any, state: Any) -> float:
        """Returns how many steps lie between two evaluations; 0 where there are none."""
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        of_epoch = state.global_step / state.epoch if state.epoch else 0.0
        return {"steps": state.eval_steps or 0, "epoch": of_epoch}.get(strategy, 0)

    def _expected(self, args: Any, state: Any) -> str:
        """Returns how long the run will take, and on a CPU what would make it shorter."""
        minutes = self.seconds_left(args, state) / 60
        evaluates = self._steps_between_evaluations(args, state) and not self._evaluations
        besides = ", evaluations not counted" if evaluates else ""
        text = f"{self.seconds_a_step:.2f} s a step (of {TIMED} measured): some {_long(minutes)} to go{besides}."
        if args.device.type == "cpu" and minutes > LONG_MINUTES:
            text += (
                " On a CPU smaller pictures (half the sides: a quarter to a half of the time), freeze_backbone=True, "
                "fewer steps (max_steps) or a smaller backbone make it shorter."
            )
        return text


def head_lines(trainer: Any, recipe: str, is_trained: bool) -> list[str]:
    """Returns what begins: model, device, recipe, rates, pictures, sizes and steps."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    threads = f", {torch.get_num_threads()} threads" if args.device.type == "cpu" else ""
    name = getattr(model.config, "backbone", "")
    lines = [
        f"{type(model).__name__}{f' on {name}' if isinstance(name, str) else ''}: {count:.1f} M parameters, "
        f"{learns:.1f} M of them learn; {precision} on {hardware_name() if args.device.type != 'cpu' else 'the CPU'}"
        f"{threads}."
    ]
    if hasattr(args, "recipe"):
        why = {True: "the transformer's weights are trained ones", False: "the transformer is new"}[is_trained]
        chosen = recipe if args.recipe in ("auto", recipe) else f"{args.recipe}, rates of {recipe}"
        frozen = not any(p.requires_grad for name, p in model.named_parameters() if "backbone" in name)
        of_backbone = "frozen" if frozen else f"{args.backbone_learning_rate:g}"
        schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        lines.append(
            f"Recipe {chosen} ({why}): learning rate {args.learning_rate:g}, backbone {of_backbone}, class head "
            f"{args.head_learning_rate:g}; {schedule}"
            + (f", a tenth after {args.lr_drop:.0%}" if args.lr_drop else "")
            + (f"; weights averaged ({args.ema_decay:g})" if args.ema_decay else "")
            + "."
        )
    lines.append(
        f"{_pictures(trainer)}{_sizes(trainer.processing_class)}; augmentation {getattr(args, 'augment', 'none')}."
    )
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    lines.append(
        f"{trainer.state.max_steps} steps of {batch} pictures{_epochs(trainer, batch)}"
        + (f", from step {trainer.state.global_step}" if trainer.state.global_step else "")
        + f"; into {args.output_dir}."
    )
    return lines


def _pictures(trainer: Any) -> str:
    def count(rows: Any) -> str:
        return f"{len(rows)}" if hasattr(rows, "__len__") else "a stream of"

    sets = trainer.eval_dataset
    measured = "+".join(map(count, sets.values())) if isinstance(sets, dict) else count(sets) if sets else "no"
    return f"{count(trainer.train_dataset)} pictures to learn from, {measured} to measure on"


def _sizes(processor: Any) -> str:
    from ..data.preparing.transform import model_sides

    if processor is None or not getattr(processor, "size", None):
        return ""
    shortest, longest = model_sides(processor)
    mean = ", ".join(f"{value:g}" for value in dict.fromkeys(getattr(processor, "image_mean", None) or ()))
    return f", of {shortest} pixels (shortest side, the longest {longest} at most), mean {mean}"


def _epochs(trainer: Any, batch: int) -> str:
    count = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else 0
    return f" ({trainer.state.max_steps / math.ceil(count / batch):.3g} epochs)" if count else ""


def _due(state: Any) -> int:
    """Returns from which step on it can be said whether the model learns."""
    return max(LEAST_STEPS, math.ceil(0.1 * state.max_steps))


def _where(state: Any) -> str:
    epoch = f" (epoch {state.epoch:.4g})" if state.epoch else ""
    return f"step {state.global_step} of {state.max_steps}{epoch}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _long(minutes: float) -> str:
    if minutes < 1:
        return f"{max(round(minutes * 60), 1)} seconds"
    return f"{round(minutes)} minute{'s' * (round(minutes) != 1)}" if minutes < 90 else f"{minutes / 60:.1f} hours"
