"""The life of a trainer's checkpoints: saved, resumed from, the best one loaded.

Different on purpose from transformers' Trainer: a checkpoint is whole or absent (`checkpointing.py`), one that does
not fit the model by exact name is refused, two runs are not mixed (`runs.py`), and where weights are averaged
(`ema.py`) the average is what is evaluated, saved and loaded as the best, while a resumed run goes on from the weights
themselves.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from ..errors import CheckpointError
from ..whole_files import open_to_umask
from .checkpointing import (
    STATE_NAME,
    cannot_write,
    checkpoints_in,
    delete_old_checkpoints,
    finish_writing,
    noted_run,
    remove_leftovers,
    run_of,
    start_writing,
)
from .ema import TRAINING_WEIGHTS, EMACallback
from .keeping import FoundByStep, Kept, choose
from .runs import (
    Run,
    check_resumed,
    chosen_checkpoint,
    clear_the_way,
    leave_folder,
    new_id,
    off_the_way,
    refuse_others,
    take_folder,
)

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


class WholeCheckpoints:
    """What `DETRTrainer` does in place of Trainer's own saving and loading; a mixin that stands before Trainer."""

    _ema: EMACallback | None = None  # where weights are averaged
    _run: Run | None = None  # from its start
    _resumed: Path | None = None  # what it goes on from
    _taken: Path | None = None  # the folder that no other training may write into until it ends
    kept: Kept | None = None  # of the last training, where there was a choice
    _found: FoundByStep
    command: dict[str, Any] | None = None  # noted in checkpoints, for whoever asks whether a run is theirs

    def _begin_run(self, wanted: str | Path | bool | None, trial: Any) -> str | None:
        """Returns the checkpoint that Trainer shall resume from, see `DETRTrainer.train`, or None to start.

        What a killed run left unfinished is removed, and checkpoints that this run does not lie on are out of its way
        (`runs.py`). Every process comes to the same.

        Raises:
            CheckpointError: what is wanted is not there, is of other classes, or another run's are to be refused;
                another training writes into the folder, or nobody can.
        """
        output_dir = Path(self._get_output_dir(trial))
        fault = None
        if self.args.should_save and self.args.save_strategy != SaveStrategy.NO:
            fault = take_folder(output_dir)
            self._taken = None if fault else output_dir
        faults = [each for each in gather_object([fault]) if each]
        if faults:
            raise CheckpointError(faults[0])
        if self.args.should_save:
            remove_leftovers(output_dir)
        self.accelerator.wait_for_everyone()
        run, checkpoint, others = self._agreed(lambda: self._plan_run(output_dir, wanted))
        self._run = run
        run.id = broadcast_object_list([run.id or new_id()])[0]
        self.accelerator.wait_for_everyone()  # before anything moves, all have looked
        if self.args.should_save:
            clear_the_way(others, getattr(self.args, "earlier_checkpoints", "set_aside"))
            if checkpoint is not None:
                for path in checkpoints_in(output_dir):
                    if run_of(path) is None:
                        run.write(path)
        self.accelerator.wait_for_everyone()
        self._resumed = checkpoint
        return None if checkpoint is None else str(checkpoint)

    def _end_run(self) -> None:
        """Lets others train into the folder."""
        if self._taken is not None:
            leave_folder(self._taken)
            self._taken = None

    def _plan_run(self, output_dir: Path, wanted: str | Path | bool | None) -> tuple[Run, Path | None, list[Path]]:
        """Returns the run, the checkpoint that it goes on from, and those that it does not lie on."""
        # with model_init there is no model before the run has begun
        config = None if self.model is None else self.accelerator.unwrap_model(self.model).config
        names = getattr(config, "id2label", None) or {}
        pictures = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        classes = [str(names[label]) for label in sorted(names)]
        run = Run("", classes, pictures, self.args.metric_for_best_model, self.command)
        checkpoint = chosen_checkpoint(output_dir, wanted)
        if checkpoint is not None:
            check_resumed(checkpoint, run)
            run.id = run_of(checkpoint) or ""
        elif self.args.save_strategy == SaveStrategy.NO:
            return run, None, []
        others = off_the_way(output_dir, run.id, checkpoint)
        if getattr(self.args, "earlier_checkpoints", None) == "refuse":
            refuse_others(others)
        return run, checkpoint, others

    def _agreed(self, plan: Callable[[], tuple[Run, Path | None, list[Path]]]) -> tuple[Run, Path | None, list[Path]]:
        """Returns a plan that every process has come to; an error in one is an error in all."""
        error = found = None
        try:
            found = plan()
        except CheckpointError as caught:
            error = caught
        seen = str(error) if error else f"{found[0].id} from {found[1]}"
        all_seen = gather_object([seen])
        if len(set(all_seen)) > 1:
            raise CheckpointError(
                f"The processes see other checkpoints: {' | '.join(all_seen)}. output_dir must be one folder for all."
            )
        if error:
            raise error
        return found

    def _init_training_state(self, *args: Any, **options: Any) -> Any:
        epochs = super()._init_training_state(*args, **options)
        if self._resumed is not None:
            self._find_best_again(self._resumed)
            if self.state.global_step >= self.state.max_steps:
                logger.warning(
                    "The run is at step %d and ends at step %d: there is nothing left to train. Raise max_steps or "
                    "num_train_epochs to go on.",
                    *(self.state.global_step, self.state.max_steps),
                )
        return epochs

    def _find_best_again(self, resumed: Path) -> None:
        """Makes the best checkpoint so far that of this run, wherever its folder is now."""
        state, metric = self.state, noted_run(resumed).get("metric", self.args.metric_for_best_model)
        if metric != self.args.metric_for_best_model:
            logger.warning(
                "%s chose the best checkpoint by %s; by %s, only those from here on are compared.",
                *(resumed, metric, self.args.metric_for_best_model),
            )
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if not state.best_global_step:
            return
        beside = resumed.with_name(f"checkpoint-{state.best_global_step}")
        best = beside if beside.is_dir() else Path(state.best_model_checkpoint or beside)
        same = best.is_dir() and run_of(best) in (None, self._run.id)
        state.best_model_checkpoint = str(best) if same else None

    def _run_epoch(self, **options: Any) -> None:
        """Runs an epoch, if any step is left: Trainer takes one more when it resumes a run that is at its end."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)
        else:
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `checkpoint-N` whole or not at all: into a folder beside it that is renamed at the end."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        final = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            unfinished = (
                start_writing(final) if self.args.should_save else final.with_name(f"_unfinished-{final.name}")
            )
            self.accelerator.wait_for_everyone()
            self._write_checkpoint(unfinished, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                finish_writing(unfinished, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                remove_leftovers(final.parent)
            raise cannot_write(final, error) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            run = self._run.id if self._run else None
            delete_old_checkpoints(final.parent, self.args.save_total_limit, self.state.best_model_checkpoint, run)

    def _write_checkpoint(self, folder: Path, final: Path) -> None:
        """Writes everything of a checkpoint that will be called `final`."""
        self.save_model(str(folder), _internal_call=True)
        if self._ema and self._ema.average is not None and self.args.should_save:
            own = self.accelerator.unwrap_model(self.model).state_dict()
            save_file({name: own[name].contiguous() for name in self._ema.average.average}, folder / TRAINING_WEIGHTS)
            open_to_umask(folder / TRAINING_WEIGHTS)
        if self.args.should_save:
            self._found.write(self.state.global_step, folder)
        if self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    self._note_state(type(callback).__name__, callback.state())
            self.state.save_to_json(str(folder / STATE_NAME))
            if self._run:
                self._run.write(folder)

    def _note_state(self, name: str, state: dict[str, Any]) -> None:
        states = self.state.stateful_callbacks
        if isinstance(states.get(name), list):
            states[name].append(state)
        else:
            states[name] = state

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        with self._averaged_weights():
            super()._save(output_dir, state_dict)

    def _averaged_weights(self) -> AbstractContextManager[None]:
        """Returns a context in which the model has the averaged weights, where weights are averaged."""
        if self._ema is None or self._ema.average is None:
            return nullcontext()
        return self._ema.average.swapped_in(self.accelerator.unwrap_model(self.model))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:  # tensors of another size
            raise ValueError(f"{resume_from_checkpoint} does not fit the model: {error}") from error
        self.accelerator.unwrap_model(self.model if model is None else model).mask_head_is_new = False
        own = Path(resume_from_checkpoint) / TRAINING_WEIGHTS
        if own.exists():
            if self._ema is not None:
                self._ema.resumed = load_file(Path(resume_from_checkpoint) / WEIGHTS)
            result = (self.model if model is None else model).load_state_dict(load_file(own), strict=False)
            if result.unexpected_keys:
                raise ValueError(f"{own} is of another model: it has {result.unexpected_keys[:3]}.")

    def _load_best_model(self) -> None:
        """Keeps the last step, or loads the best where it is better by more than noise, see `keeping.py`."""
        state = self.state
        self.kept = broadcast_object_list([self._choose()])[0]
        state.log_history.append({"step": state.global_step, "kept_step": self.kept.step, "kept": self.kept.text})
        if self.kept.step == state.global_step:
            last = Path(state.best_model_checkpoint).with_name(f"checkpoint-{state.global_step}")
            if last.is_dir():  # what Trainer spares where one checkpoint may stay
                state.best_model_checkpoint = str(last)
            return
        super()._load_best_model()
        self._evaluated_step: int | None = None
        if self._ema is not None:
            self._ema.best_is_loaded = True

    def _choose(self) -> Kept:
        """Returns what is kept; the last step is measured if it was not."""
        state, metric = self.state, (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        name = f"eval_{metric}"
        if not any(entry.get("step") == state.global_step and name in entry for entry in state.log_history):
            self.evaluate()
        values = {entry["step"]: entry[name] for entry in state.log_history if name in entry}
        best, last = state.best_global_step, state.global_step
        found = {best: self._found.of(best, state.best_model_checkpoint), last: self._found.of(last, None)}
        return choose(values, best, metric, bool(self.args.greater_is_better), found, self._found.truth)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint that does not fill the model by exact name; Trainer would go on with what it has."""
        missing, unexpected = list(load_result.missing_keys), list(load_result.unexpected_keys)
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(missing)} tensors are missing ({missing[:3]}), "
                f"{len(unexpected)} unknown ({unexpected[:3]}). Build the model as it was when the checkpoint "
                "was written."
            )
