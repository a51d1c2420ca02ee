"""A script, with no tests: `python -m tests.training.killed FOLDER KILLS [masks]` trains in a child process that saves
at every step, kills it at random moments, and resumes.

The children are forked from a process that has imported everything, so a kill costs a second. Prints one line of JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging

from detr_hf.training.checkpointing import UNFINISHED, checkpoints_in, fault_of, last_complete_checkpoint

from .scenes import Scenes, digest, micro_model, trainer


def train(folder: Path, max_steps: int, started: int | None = None, masks: bool = False) -> str:
    """Trains to `max_steps`, from the last checkpoint if there is one; writes the step of every save that starts to
    `started`."""
    run = trainer(
        folder,
        micro_model(masks=masks),
        train=Scenes(4, masks=masks),
        max_steps=max_steps,
        save_total_limit=2,
        ema_decay=0.9,
        logging_steps=1000,
        lr_drop=0,
        warmup_steps=0,
    )
    if started is not None:
        save = run._save_checkpoint

        def note_and_save(model, trial):
            os.pwrite(started, run.state.global_step.to_bytes(8), 0)
            save(model, trial)

        run._save_checkpoint = note_and_save
    run.train(resume_from_checkpoint="auto" if started is None or not checkpoints_in(folder) else True)
    return digest(run.model)


def child(folder: Path, started: int, masks: bool) -> int:
    """Starts a process that trains without end, and returns its id."""
    process = os.fork()
    if process == 0:
        try:
            train(folder, 100_000, started, masks)
        finally:
            os._exit(1)
    return process


def kill_again_and_again(folder: Path, kills: int, masks: bool, seed: int = 0) -> dict:
    """What was found after `kills` kills."""
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    started = os.open(folder / "started", os.O_RDWR | os.O_CREAT)
    os.pwrite(started, (0).to_bytes(8), 0)
    found = {"kills": 0, "resumable": 0, "while_saving": 0, "most_saves_lost": 0, "last_step": 0}
    for _ in range(kills):
        process = child(folder, started, masks)
        before = found["last_step"]
        until = time.time() + 120
        while (not checkpoints_in(folder) or last_step(folder) <= before) and time.time() < until:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.6))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "the run ended by itself: it could not resume, or failed"
        found["kills"] += 1
        found["while_saving"] += any(path.name.startswith(UNFINISHED) for path in folder.iterdir())
        last = last_complete_checkpoint(folder)
        assert all(fault_of(path) is None for path in checkpoints_in(folder)), "a checkpoint that is not whole"
        begun = int.from_bytes(os.pread(started, 8, 0))
        found["last_step"] = last_step(folder)
        found["most_saves_lost"] = max(found["most_saves_lost"], begun - found["last_step"])
        found["resumable"] += last is not None and found["last_step"] > before
    return found


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(path.name.rpartition("-")[2]) for path in checkpoints_in(folder))


def main(folder: Path, kills: int, masks: bool) -> None:
    """Kills, then compares the end of the resumed run with that of a run that was never stopped."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    micro_model()  # imports everything that children need
    found = kill_again_and_again(folder / "killed", kills, masks)
    end = found["last_step"] + 1
    resumed, straight = (train(folder / name, end, masks=masks) for name in ("killed", "straight"))
    found["same_as_straight"] = resumed == straight
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["masks"])
