"""The life of a trainer's checkpoints: saved, resumed from, the best one loaded.

Different on purpose from transformers' Trainer: a checkpoint is whole or absent (`checkpointing.py`), one that does
not fit the model by exact name is refused, and where weights are averaged (`ema.py`) the average is what is evaluated,
saved and loaded as the best, while a resumed run goes on from the weights themselves.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState

from ..errors import CheckpointError
from .checkpointing import (
    cannot_write,
    checkpoints_in,
    delete_old_checkpoints,
    finish_writing,
    last_complete_checkpoint,
    remove_leftovers,
    start_writing,
)
from .ema import TRAINING_WEIGHTS, EMACallback

WEIGHTS = "model.safetensors"


class WholeCheckpoints:
    """What `DETRTrainer` does in place of Trainer's own saving and loading; a mixin that stands before Trainer."""

    _ema: EMACallback | None = None  # where weights are averaged

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | bool | None:
        """Returns what Trainer shall resume from, see `DETRTrainer.train`; removes what a killed run left unfinished.

        Raises:
            CheckpointError: `wanted` is True and there is no complete checkpoint.
        """
        output_dir = Path(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            remove_leftovers(output_dir)
        if wanted is not True and wanted != "auto":
            return wanted
        last = last_complete_checkpoint(output_dir)
        if last is None and wanted is True:
            there = ", ".join(path.name for path in checkpoints_in(output_dir)) or "none at all"
            raise CheckpointError(
                f"There is no complete checkpoint to resume from in {output_dir}; there are: {there}."
            )
        return None if last is None else str(last)

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
            delete_old_checkpoints(final.parent, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_checkpoint(self, folder: Path, final: Path) -> None:
        """Writes everything of a checkpoint that will be called `final`."""
        self.save_model(str(folder), _internal_call=True)
        if self._ema and self._ema.average is not None and self.args.should_save:
            own = self.accelerator.unwrap_model(self.model).state_dict()
            save_file({name: own[name].contiguous() for name in self._ema.average.average}, folder / TRAINING_WEIGHTS)
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
            self.state.save_to_json(str(folder / "trainer_state.json"))

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
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        own = Path(resume_from_checkpoint) / TRAINING_WEIGHTS
        if own.exists():
            if self._ema is not None:
                self._ema.resumed = load_file(Path(resume_from_checkpoint) / WEIGHTS)
            result = (self.model if model is None else model).load_state_dict(load_file(own), strict=False)
            if result.unexpected_keys:
                raise ValueError(f"{own} is of another model: it has {result.unexpected_keys[:3]}.")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._evaluated_step = None
        if self._ema is not None:
            self._ema.best_is_loaded = True

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint that does not fill the model by exact name; Trainer would go on with what it has."""
        missing, unexpected = list(load_result.missing_keys), list(load_result.unexpected_keys)
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(missing)} tensors are missing ({missing[:3]}), "
                f"{len(unexpected)} unknown ({unexpected[:3]}). Build the model as it was when the checkpoint "
                "was written."
            )
