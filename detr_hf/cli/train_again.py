"""The same `detr-hf train` command again: it goes on where it was.

Each checkpoint notes the command that it is of. One of another command is never gone on with unasked; what differs is
said.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..training.arguments import DETRTrainingArguments

# What changes nothing that is learnt: where results go, how they are shown, by how many processes pictures are read.
WITHOUT_EFFECT = {
    *("output_dir", "resume_from_checkpoint", "strict", "skip_check", "disable_tqdm", "report_to", "run_name"),
    *("logging_dir", "logging_steps", "dataloader_num_workers", "dataloader_pin_memory", "earlier_checkpoints"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "push_to_hub", "hub_model_id", "hub_token"),
    *("hub_private_repo", "hub_strategy", "hub_always_push", "save_total_limit", "figures"),
}


def command_of(given: dict[str, Any]) -> dict[str, Any]:
    """Returns what the flags that were given say of the training, by their names, as JSON can hold it."""
    return {
        name: value if isinstance(value, bool | int | float | str | list | None) else str(value)
        for name, value in given.items()
        if name not in WITHOUT_EFFECT
    }


def resume_choice(args: "DETRTrainingArguments", command: dict[str, Any]) -> str | bool | None:
    """Returns what the trainer shall go on from: what `--resume_from_checkpoint` says, else the run of this command.

    That is True, "auto", a path, or None to start; where nothing is said, what is done is.
    """
    wanted = args.resume_from_checkpoint
    if wanted:
        return {"true": True, "false": None}.get(str(wanted).lower(), wanted)
    from ..training.checkpointing import last_complete_checkpoint, noted_run, step_of

    last = last_complete_checkpoint(Path(args.output_dir))
    noted = noted_run(last).get("command") if last else None
    if noted is None:
        return None
    if noted == command:
        _say(
            args,
            f"{last} is of this command: it goes on from step {step_of(last)}. (--resume_from_checkpoint false "
            "starts anew.)",
        )
        return str(last)
    names = sorted(name for name in {*noted, *command} if noted.get(name) != command.get(name))
    differences = ", ".join(f"--{name} was {noted.get(name)}, is {command.get(name)}" for name in names)
    _say(args, f"{last} is of another command ({differences}): a new run starts.")
    return None


def _say(args: "DETRTrainingArguments", text: str) -> None:
    if args.process_index == 0:
        typer.echo(text, err=True)
