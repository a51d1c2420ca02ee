"""Checkpoints that are whole or not there.

transformers writes a checkpoint in place, so that a process killed meanwhile leaves a folder that looks like the last
checkpoint and cannot be resumed from. Here everything is written into a folder beside, flushed to the disk, listed
with its sizes in a manifest, and only then renamed; a folder is renamed away before it is deleted. So at any moment
`checkpoint-N` is complete, and after a kill the last one is at most one save old.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..whole_files import flush

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_files.json"
UNFINISHED = "_unfinished-"  # transformers leaves names with an underscore out of what it pushes
DELETED = "_deleted-"
CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")
STATE_NAME = "trainer_state.json"
RUN_NAME = "training_run.json"  # see `runs.py`
EARLIER = "_earlier_run_"
WEIGHT_NAMES = ("model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def start_writing(final: Path) -> Path:
    """Makes the empty folder in which the checkpoint `final` is written."""
    unfinished = final.with_name(UNFINISHED + final.name)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    return unfinished


def finish_writing(unfinished: Path, final: Path) -> None:
    """Flushes the folder to the disk and gives it its name, in place of an older one of that name."""
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in files}
    manifest = unfinished / MANIFEST
    manifest.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in (*files, manifest):
        flush(path)
    for folder in {path.parent for path in files} | {unfinished}:
        flush(folder)
    if final.exists() and run_of(final) == run_of(unfinished):
        delete_checkpoint(final)
    elif final.exists():
        logger.warning("%s is of another run, and was moved to %s.", final, set_aside([final]))
    os.rename(unfinished, final)
    flush(final.parent)


def delete_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint so that a kill meanwhile leaves nothing that looks like one."""
    doomed = folder.with_name(DELETED + folder.name)
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def set_aside(checkpoints: list[Path]) -> Path:
    """Returns the new folder beside that checkpoints of one folder were moved to."""
    folder = checkpoints[0].parent
    numbers = [
        int(path.name[len(EARLIER) :])
        for path in folder.glob(f"{EARLIER}[0-9]*")
        if path.name[len(EARLIER) :].isdigit()
    ]
    aside = folder / f"{EARLIER}{max(numbers, default=0) + 1}"
    aside.mkdir()
    for checkpoint in checkpoints:
        os.rename(checkpoint, aside / checkpoint.name)
    return aside


def noted_run(checkpoint: Path) -> dict[str, Any]:
    """Returns what a checkpoint says of its run, see `runs.py`; nothing where it says nothing."""
    try:
        return json.loads((checkpoint / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def run_of(checkpoint: Path) -> str | None:
    """Returns the id of the run that wrote a checkpoint; None where it does not say."""
    return noted_run(checkpoint).get("id")


def step_of(checkpoint: Path) -> int:
    """Returns the step that a checkpoint was written at."""
    match = CHECKPOINT_NAME.match(checkpoint.name)
    if match:
        return int(match[1])
    return int(json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))["global_step"])


def remove_leftovers(output_dir: Path) -> None:
    """Deletes what a killed process left unfinished."""
    if output_dir.is_dir():
        for folder in output_dir.iterdir():
            if folder.is_dir() and folder.name.startswith((UNFINISHED + "checkpoint-", DELETED + "checkpoint-")):
                shutil.rmtree(folder, ignore_errors=True)


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Returns the folders named as checkpoints, the oldest first; complete or not."""
    if not output_dir.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in output_dir.iterdir()
        if (match := CHECKPOINT_NAME.match(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def delete_old_checkpoints(output_dir: Path, keep: int | None, best: str | None, run: str | None = None) -> None:
    """Deletes the oldest checkpoints of a run beyond `keep`, never its last or best, nor one of another run."""
    if keep is None or keep <= 0:
        return
    checkpoints = [path for path in checkpoints_in(output_dir) if run_of(path) == run]
    protected = {checkpoints[-1].name} if checkpoints else set()
    protected |= {Path(best).name} if best else set()
    surplus = len(checkpoints) - max(keep, len(protected))
    for checkpoint in [path for path in checkpoints if path.name not in protected][: max(surplus, 0)]:
        logger.info("Deleting the older checkpoint %s (save_total_limit=%d).", checkpoint, keep)
        delete_checkpoint(checkpoint)


def fault_of(checkpoint: Path) -> str | None:
    """Returns what keeps a checkpoint from being resumed from; None when it is whole.

    Those of this package are compared with their manifest; those of plain Trainer must have a state that can be read
    and weights that open.
    """
    manifest = checkpoint / MANIFEST
    try:
        if manifest.exists():
            sizes = json.loads(manifest.read_text(encoding="utf-8"))
            for name, size in sizes.items():
                actual = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else None
                if actual != size:
                    found = "is missing" if actual is None else f"has {actual} bytes"
                    return f"{name} {found}, {size} bytes were written"
            return None
        json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        weights = [checkpoint / name for name in WEIGHT_NAMES if (checkpoint / name).exists()]
        if not weights:
            return "it has no weights"
        for path in weights:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """Returns the newest checkpoint of a folder that is whole, or None; the log names incomplete ones on the way."""
    for checkpoint in reversed(checkpoints_in(Path(output_dir))):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s is not complete (%s); trying the one before.", checkpoint, fault)
    return None


def cannot_write(final: Path, error: Exception) -> CheckpointError:
    """Returns the error to raise when writing `final` failed."""
    folder = final.parent
    free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free" if folder.is_dir() else "the folder is gone"
    last = last_complete_checkpoint(folder)
    advice = f"The last complete checkpoint is {last}" if last else "There is no earlier checkpoint"
    return CheckpointError(
        f"{final} could not be written ({type(error).__name__}: {error}); {free} in {folder}. {advice}; nothing "
        "partial was left. Make room (or lower save_total_limit) and start again with resume_from_checkpoint=True."
    )
