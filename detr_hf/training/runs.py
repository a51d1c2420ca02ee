"""Which run a checkpoint is of, so that two runs into one output folder are never mixed.

transformers goes by step numbers alone: a second, shorter run loses each checkpoint as it is written, for the first
run's have higher numbers, and then the first run is what is resumed. Here a run is what `train()` starts, and resuming
goes on with it; each of its checkpoints holds its id and what it was trained on. Checkpoints that a run does not lie
on, those of other runs and those behind the one that it goes on from, are moved into a folder beside, deleted or
refused before the first step, as `earlier_checkpoints` says.
"""

import json
import logging
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..whole_files import hold, let_go
from .checkpointing import (
    EARLIER,
    MANIFEST,
    RUN_NAME,
    STATE_NAME,
    checkpoints_in,
    delete_checkpoint,
    fault_of,
    last_complete_checkpoint,
    noted_run,
    run_of,
    set_aside,
    step_of,
)

logger = logging.getLogger(__name__)

LOCK = "_training.lock"  # transformers leaves names with an underscore out of what it pushes


@dataclass
class Run:
    """A run: its id, and what must be the same when it is resumed.

    Attributes:
        id: of this run alone; "" before it is known.
        classes: the model's class names, by label.
        pictures: of the training set; None for a stream.
        metric: that the best checkpoint is chosen by.
        command: what `detr-hf train` was told, see `cli/train_again.py`.
    """

    id: str
    classes: list[str]
    pictures: int | None
    metric: str | None
    command: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Notes in a checkpoint that it is of this run."""
        (folder / RUN_NAME).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def take_folder(output_dir: Path) -> str | None:
    """Keeps other trainings out of a folder until `leave_folder`; returns in words why that cannot be, else None."""
    lock = output_dir / LOCK
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.touch()
        if hold(lock):
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            return None
        who = lock.read_text(encoding="utf-8") or "another process"
    except FileNotFoundError:  # the other one has just ended
        return take_folder(output_dir)
    except OSError as error:
        return f"{output_dir} cannot be written ({error}): choose another output_dir."
    return (
        f"{output_dir} is being trained into by {who}, and each would delete the other's checkpoints. Choose another "
        "output_dir, or wait until that training has ended."
    )


def leave_folder(output_dir: Path) -> None:
    """Lets others train into a folder that this process has taken."""
    (output_dir / LOCK).unlink(missing_ok=True)
    let_go(output_dir / LOCK)


def new_id() -> str:
    """Returns an id that no other run has."""
    return uuid.uuid4().hex


def chosen_checkpoint(output_dir: Path, wanted: str | Path | bool | None) -> Path | None:
    """Returns the checkpoint to go on from, see `DETRTrainer.train`; None to start.

    Raises:
        CheckpointError: there is none, it is not whole, or it is not clear of which run.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True or wanted == "auto":
        return _last_of_one_run(output_dir, needed=wanted is True)
    checkpoint = Path(wanted)
    if not (checkpoint / STATE_NAME).is_file():
        raise CheckpointError(
            f"resume_from_checkpoint is {str(wanted)!r}, no checkpoint of a training: it has no {STATE_NAME}. "
            f"{_what_there_is(output_dir)} To start a new run from a model's weights, load it with from_pretrained "
            "and leave resume_from_checkpoint out."
        )
    fault = fault_of(checkpoint) if (checkpoint / MANIFEST).exists() else None
    if fault:
        raise CheckpointError(f"{checkpoint} is not complete: {fault}. {_what_there_is(output_dir)}")
    return checkpoint


def _last_of_one_run(output_dir: Path, needed: bool) -> Path | None:
    there = checkpoints_in(output_dir)
    runs: dict[str | None, list[str]] = {}
    for checkpoint in there:
        runs.setdefault(run_of(checkpoint), []).append(checkpoint.name)
    if len(runs) > 1:
        of_each = "; ".join(
            f"{', '.join(names)} of run {(run or 'without a name')[:13]}" for run, names in runs.items()
        )
        raise CheckpointError(
            f"{output_dir} holds checkpoints of several runs: {of_each}. Name the one to go on from: "
            f"resume_from_checkpoint={str(there[-1])!r}, say."
        )
    last = last_complete_checkpoint(output_dir)
    if last is None and needed:
        raise CheckpointError(
            f"There is no complete checkpoint to resume from in {output_dir}. {_what_there_is(output_dir)}"
        )
    return last


def _what_there_is(output_dir: Path) -> str:
    """Returns a sentence with the checkpoints of a folder, those of earlier runs too."""
    found = [*checkpoints_in(output_dir)]
    for folder in sorted(output_dir.glob(f"{EARLIER}*")):
        found += checkpoints_in(folder)
    names = ", ".join(str(path.relative_to(output_dir)) for path in found)
    return f"In {output_dir} there are: {names or 'none at all'}."


def check_resumed(checkpoint: Path, run: Run) -> None:
    """Compares what a checkpoint was trained on with what the run that resumes it is.

    Raises:
        CheckpointError: the classes are others: the weights would load, and mean something else.
    """
    noted = noted_run(checkpoint)
    classes = noted.get("classes") or _classes_in_config(checkpoint)
    known = classes and run.classes  # a model that is made when the run begins has told nothing yet
    if known and [name.casefold() for name in classes] != [name.casefold() for name in run.classes]:
        raise CheckpointError(
            f"{checkpoint} was trained with the classes {_shown(classes)}, and this model has {_shown(run.classes)}. "
            "To go on with other classes, start a new run from its weights: "
            f"DETRForObjectDetection.from_pretrained({str(checkpoint)!r}, id2label=data.id2label)."
        )
    if not noted:
        logger.warning(
            "%s does not say which run it is of (it was written by plain Trainer, or by an earlier version). It is "
            "taken as one run with the checkpoints before it.",
            checkpoint,
        )
    elif noted.get("pictures") != run.pictures:
        logger.warning(
            "%s was trained on %s pictures, and there are %s now: the place in the data is not the same, nor is the "
            "learning rate. For other data, start a new run from its weights: from_pretrained(%r).",
            checkpoint,
            noted.get("pictures"),
            run.pictures,
            str(checkpoint),
        )
    if not any(checkpoint.glob("optimizer*")) and not any(checkpoint.glob("global_step*")):
        logger.warning(
            "%s has no state of the optimiser (save_only_model): weights and step go on, the optimiser starts anew.",
            checkpoint,
        )


def _classes_in_config(checkpoint: Path) -> list[str]:
    try:
        names = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    except OSError:
        return []
    return [str(names[label]) for label in sorted(names, key=int)]


def _shown(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def off_the_way(output_dir: Path, run: str, resumed: Path | None) -> list[Path]:
    """Returns the checkpoints of a folder that a run which starts, or goes on from `resumed`, does not lie on."""
    there = checkpoints_in(output_dir)
    if resumed is None:
        return there
    own = {run, run_of(resumed)}
    return [path for path in there if run_of(path) not in own or step_of(path) > step_of(resumed)]


def clear_the_way(others: list[Path], how: str) -> None:
    """Moves the checkpoints that a run does not lie on into a folder beside, or deletes them."""
    if not others:
        return
    names = ", ".join(path.name for path in others)
    if how == "delete":
        for path in others:
            delete_checkpoint(path)
        logger.warning("%s of an earlier run were deleted from %s.", names, others[0].parent)
        return
    aside = set_aside(others)
    logger.warning(
        "%s are not of this run, and were moved to %s. If you meant to go on with that run, stop and start again with "
        "resume_from_checkpoint=%r.",
        names,
        aside,
        str(aside / others[-1].name),
    )


def refuse_others(others: list[Path]) -> None:
    """Raises a CheckpointError where a run finds checkpoints that it does not lie on."""
    if others:
        raise CheckpointError(
            f"{others[0].parent} holds {', '.join(path.name for path in others)} of an earlier run. Go on with it by "
            "resume_from_checkpoint=True, take another output_dir, or let earlier_checkpoints be 'set_aside' or "
            "'delete'."
        )
