"""The trainer's side of the Hub: what it publishes, and when.

Different on purpose from transformers' Trainer: every push is one commit of a whole repository (weights, config,
processor, code, card, digests), with the measured AP in the card and without `training_args.bin`, which is a pickle. A
push during training is laid out at once and sent in the background; if it fails, the log says why and training goes
on.
"""

import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..checkpoints.hub_errors import explain
from ..hub.card import METRICS, render_card
from ..hub.facts import data_facts_of, evaluation_numbers, facts_of, hardware_name
from ..hub.pushing import Publication, commit_folder, lay_out, make_repository
from ..hub.staging import CARD
from ..model.pretrained_detr import DETRPreTrainedModel
from ..whole_files import drop_folder, start_folder
from .freezing import has_frozen_detector

logger = logging.getLogger(__name__)

SHOWN_ARGUMENTS = (
    ("recipe", "recipe"),
    ("learning rate", "learning_rate"),
    ("of the backbone", "backbone_learning_rate"),
    ("of the class head", "head_learning_rate"),
    ("schedule", "lr_scheduler_type"),
    ("warm-up", "warmup_steps"),
    ("drop of the rates after", "lr_drop"),
    ("optimiser", "optim"),
    ("weight decay", "weight_decay"),
    ("gradients clipped at", "max_grad_norm"),
    ("average of weights", "ema_decay"),
    ("augmentation", "augment"),
    ("seed", "seed"),
)


class HubPublishing:
    """What `DETRTrainer` does in place of Trainer's own pushing; a mixin that stands before Trainer."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository `args.hub_model_id`, by default named as the output folder.

        Raises:
            HubError: saying what to do.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        self.hub_model_id = make_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            private=args.hub_private_repo if private is None else private,
            token=token or args.hub_token,
            revision=args.hub_revision,
        )
        self.push_in_progress = None

    def create_model_card(self, **known: Any) -> None:
        """Writes the card of the model as it is now into the output folder.

        Args:
            **known: of transformers' arguments `license`, `tags`, `model_name`, `finetuned_from`, `dataset`; the
                others have no place in the card.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, DETRPreTrainedModel):  # an adapter (PEFT): Trainer knows what it saved of it
            return super().create_model_card(**known)
        if not self.is_world_process_zero():
            return None
        name = known.get("model_name") or Path(self.args.output_dir).absolute().name
        facts = facts_of(model, name, self.processing_class) | self._run_facts(known)
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(self.args.output_dir, CARD).write_text(render_card(facts), encoding="utf-8")
        return None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **known: Any,
    ) -> Any:
        """Publishes the model with card, pictures of the validation split and curves, in one commit.

        Args:
            commit_message, token, revision, private: as in transformers; by default those of the arguments.
            blocking: wait for it, and return `CommitInfo`; otherwise return a future.
            **known: as for `create_model_card`, and `format` as in `detr_hf.hub.push`.

        Raises:
            HubError: nothing was committed; the message says what to do.
        """
        if not isinstance(self.accelerator.unwrap_model(self.model), DETRPreTrainedModel):
            return super().push_to_hub(commit_message, blocking, token, revision, private, **known)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        revision = revision or self.args.hub_revision
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        scratch = start_folder(Path(tempfile.gettempdir()) / "push")
        try:
            self._lay_out(scratch, self.args.output_dir, known, with_pictures=True)
            shutil.copyfile(scratch / CARD, Path(self.args.output_dir, CARD))
        except BaseException:
            drop_folder(scratch)
            raise
        commit = partial(
            _commit,
            scratch,
            self.hub_model_id,
            commit_message=commit_message or "End of training",
            token=token,
            revision=revision,
        )
        return commit() if blocking else HfApi().run_as_future(commit)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the model of a checkpoint in the background, where `args.hub_strategy` asks for it."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not isinstance(self.accelerator.unwrap_model(self.model), DETRPreTrainedModel):
            super()._push_from_checkpoint(checkpoint_folder)
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        steps = self.args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch or 0)}"
        scratch = start_folder(Path(tempfile.gettempdir()) / "push")
        checkpoint = None
        try:
            self._lay_out(scratch / "model", checkpoint_folder, {}, with_pictures=False)
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                # the folder may be deleted to make room before it is sent; resuming builds the arguments anew
                without_pickle = shutil.ignore_patterns("training_args.bin")
                shutil.copytree(checkpoint_folder, scratch / "state", ignore=without_pickle)
                last = strategy == HubStrategy.CHECKPOINT
                checkpoint = (scratch / "state", "last-checkpoint" if last else Path(checkpoint_folder).name)
        except OSError as error:
            drop_folder(scratch)
            logger.warning(
                "%s was not pushed, training goes on: %s", where, explain(error, self.hub_model_id) or error
            )
            return
        future = HfApi().run_as_future(
            _commit,
            scratch,
            self.hub_model_id,
            where,
            commit_message=f"Training in progress, {where}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            checkpoint=checkpoint,
        )
        if busy:
            self.push_in_progress.jobs.append(future)
        else:
            self.push_in_progress = PushInProgress([future])

    def _lay_out(self, folder: Path, saved: str, known: dict[str, Any], with_pictures: bool) -> None:
        """Writes the repository into `folder`, from the model, or from where it was just `saved` if it is sharded."""
        folder.mkdir(exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            model = type(model).from_pretrained(saved)
        has_pictures = "image" in (getattr(self.eval_dataset, "column_names", None) or [])
        publication = Publication(
            processor=self.processing_class,
            examples=self.eval_dataset if with_pictures and has_pictures else None,
            log_history=self.state.log_history if with_pictures else None,
            facts=self._run_facts(known),
            format=known.get("format", "detr_hf"),
        )
        with self._averaged_weights():
            lay_out(folder, model, self.hub_model_id, publication)

    # --- what the card says of the run ---

    def _run_facts(self, known: dict[str, Any]) -> dict[str, Any]:
        """Returns the facts that only the trainer knows."""
        data = data_facts_of(self._data) if self._data is not None else None
        dataset = known.get("dataset")
        if dataset and data:
            data["name"] = dataset if isinstance(dataset, str) else ", ".join(dataset)
        tags = known.get("tags") or []
        facts = {
            "license": known.get("license"),
            "tags": [tags] if isinstance(tags, str) else list(tags),
            "data": data,
            "evaluation": self._evaluation_facts(data),
            "training": self._training_facts(),
        }
        named = {"name": known.get("model_name"), "base_model": known.get("finetuned_from")}
        return facts | {key: value for key, value in named.items() if value}

    def _evaluation_facts(self, data: dict[str, Any] | None) -> dict[str, Any] | None:
        """Returns the numbers of the weights as they are: of the last evaluation, or the best step's logged ones."""
        name = data["name"] if data else "the validation split"
        where = {"dataset": name, "type": str((data or {}).get("hub_id") or name), "note": self._used_twice()}
        if self._evaluated_step == self.state.global_step and self.last_evaluation is not None:
            first = next(iter(self.last_evaluations), None)
            whole = self.whole_evaluation(first)
            of_set = {} if first is None else {"dataset": f"{name} ({first})"}
            return where | of_set | evaluation_numbers(whole or self.last_evaluation)
        if isinstance(self.eval_dataset, dict):
            return None  # the log has a mean of sets
        best = self.state.best_global_step
        logged = [entry for entry in self.state.log_history if entry.get("step") == best and "eval_ap" in entry]
        if self._evaluated_step is not None or not best or not logged:
            return None
        pictures = len(self.eval_dataset) if hasattr(self.eval_dataset, "__len__") else 0
        return where | {name: logged[0].get(f"eval_{name.lower()}") for name in METRICS} | {"num_images": pictures}

    def _used_twice(self) -> str | None:
        """Returns a sentence where the pictures that are measured have chosen something before."""
        stops = any(isinstance(one, EarlyStoppingCallback) for one in self.callback_handler.callbacks)
        chosen = ["when to stop"] * stops
        if self.kept and self.kept.evaluations > 1:
            chosen.append(f"which of {self.kept.evaluations} steps to keep")
        if not chosen:
            return None
        return (
            f"These pictures were used twice: to choose {' and '.join(chosen)}, and for these numbers. On pictures "
            "that chose nothing, such as a test split, they may be lower."
        )

    def _training_facts(self) -> dict[str, Any] | None:
        if not self.state.global_step:
            return None
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seconds = [entry["train_runtime"] for entry in self.state.log_history if "train_runtime" in entry]
        hardware = hardware_name()
        time = f", {seconds[-1] / 60:.1f} minutes" if seconds else ""
        epochs = f" ({self.state.epoch:.4g} epochs)" if self.state.epoch else ""
        text = (
            f"{self.state.global_step} steps of {batch} pictures{epochs}{time}, with {args.world_size} "
            f"process{'es' if args.world_size > 1 else ''} on {hardware}, by `DETRTrainer` of detr_hf."
        )
        if has_frozen_detector(self.accelerator.unwrap_model(self.model)):
            text += " The mask head learnt alone, on a frozen detector."
        if self.kept:
            text += f" {self.kept.text}"
        values = [(what, getattr(args, name, None)) for what, name in SHOWN_ARGUMENTS]
        rows = [[what, str(getattr(value, "value", value))] for what, value in values if value not in (None, 0, "")]
        return {"text": text, "rows": rows, "hardware": hardware, "minutes": seconds[-1] / 60 if seconds else None}


def _commit(scratch: Path, repo_id: str, where: str | None = None, **commit: Any) -> Any:
    """Commits a folder that was laid out, and removes it; in the background (`where` given) a failure is logged."""
    try:
        return commit_folder(scratch if where is None else scratch / "model", repo_id, **commit)
    except Exception as error:
        if where is None:
            raise
        logger.warning("%s was not pushed, training goes on: %s", where, error)
        return None
    finally:
        drop_folder(scratch)
