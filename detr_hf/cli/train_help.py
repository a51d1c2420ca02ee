"""`detr-hf train --help`: the flags that people need, a line each; and what other trainers call them."""

import re
from collections.abc import Mapping
from typing import Any

import typer

FLAG_WIDTH = 30
# The flags of the short help, in groups; each is said by the first sentence of its own help, or as here.
NEEDED: dict[str, dict[str, str]] = {
    "what to start from": {
        "model": "",
        "backbone": "",
        "backbone_weights": "Of a new model: imagenet (by default), a FILE with timm's, or none (random).",
        "preset": "Of a new model: precise (by default) or detr (the paper's).",
        "recipe": "What learns how: auto, scratch, finetune, mask_head, fast, fast_ref, precise.",
        "num_queries": "",
        "task": "detection, instance (a mask for each object) or panoptic.",
    },
    "the data": {
        "data": "A folder, a COCO .json, a YOLO data.yaml, or a Hub id.",
        "validation_share": "Set this part of the training pictures aside for validation, as 0.1.",
        "split": "Read this split only; NEW=NAME gives it another name: train=default.",
        "format": "",
        "image_root": "The folder that file names start from, or SPLIT=FOLDER.",
        "box_format": "",
        "classes": "Class names where the data has none: cat,dog, ID=NAME or a file.",
        "on_fault": "'drop' leaves out what is faulty, with a warning.",
        "strict": "",
        "skip_check": "",
    },
    "the pictures": {
        "shortest_edge": "Of pictures; by default the checkpoint's, of a new model what suits the data.",
        "longest_edge": "The longer side is at most this; in proportion by default.",
        "augment": "Of training pictures: none, paper (flip, multi-scale, crop) or strong.",
        "balance_classes": "Draw pictures of rare classes more often: 0.1, say.",
    },
    "how long": {
        "max_steps": "Steps of the optimiser, in the place of epochs.",
        "num_train_epochs": "300 for a new transformer, 50 for a trained one, 25 for a mask head.",
        "per_device_train_batch_size": "Pictures of a step, in each process.",
        "gradient_accumulation_steps": "Batches of a step.",
    },
    "how fast it learns": {
        "learning_rate": "",
        "backbone_learning_rate": "Of the backbone, 1e-5.",
        "head_learning_rate": "Of the class head.",
        "lr_scheduler_type": "Constant with one drop for a new transformer, else cosine.",
        "warmup_steps": "",
        "freeze_backbone": "Train the transformer and heads only: faster.",
        "freeze_detector": "Train the mask head alone.",
        "ema_decay": "Average the weights over steps, by 0.999 say.",
        "seed": "",
    },
    "measuring and keeping": {
        "output_dir": "Where checkpoints and the model go.",
        "eval_strategy": "AP after every epoch; steps or no.",
        "eval_steps": "Steps from one evaluation to the next, with --eval_strategy steps.",
        "figures": "Curves and plots in output_dir/figures; false: none.",
        "load_best_model_at_end": "Keep an earlier step where it is better than the last by more than noise.",
        "resume_from_checkpoint": "A checkpoint, true for the last one, or false: start anew.",
        "report_to": "Loggers: none, tensorboard, wandb, ...",
        "push_to_hub": "Publish the model, with a card.",
        "hub_model_id": "Where to: owner/name.",
    },
    "the machine": {
        "use_cpu": "Train on the processor; by default a GPU is taken where there is one.",
        "bf16": "Compute in bfloat16, where the hardware has it.",
        "dataloader_num_workers": "Processes that read pictures.",
    },
}
# What transformers' users, ultralytics' and the original's write -> what it is here; a sentence where it is no flag.
OTHER_NAMES = {
    "epochs": "--num_train_epochs",
    "batch_size": "--per_device_train_batch_size",
    "batch": "--per_device_train_batch_size",
    "lr": "--learning_rate",
    "lr0": "--learning_rate",
    "lr_backbone": "--backbone_learning_rate",
    "wd": "--weight_decay",
    "clip_max_norm": "--max_grad_norm",
    "imgsz": "--shortest_edge",
    "img_size": "--shortest_edge",
    "image_size": "--shortest_edge",
    "workers": "--dataloader_num_workers",
    "num_workers": "--dataloader_num_workers",
    "resume": "--resume_from_checkpoint",
    "output": "--output_dir",
    "out": "--output_dir",
    "project": "--output_dir",
    "steps": "--max_steps",
    "coco_path": "--data",
    "dataset": "--data",
    "dataset_name": "--data",
    "model_name_or_path": "--model",
    "pretrained": "--model",
    "weights": "--model",
    "ignore_mismatched_sizes": "(nothing: another number of classes is taken as it is)",
    "device": "--use_cpu for the processor; else a GPU is taken where there is one (CUDA_VISIBLE_DEVICES says which)",
    "device_map": "--use_cpu for the processor; else a GPU is taken where there is one",
}


def other_name(flag: str) -> str | None:
    """Returns what a flag of another trainer is called here; None where it is not known."""
    return OTHER_NAMES.get(flag.lstrip("-").replace("-", "_"))


def short_help(actions: Mapping[str, Any]) -> str:
    """Returns the help with the flags that people need; `actions` are argparse's, by name."""
    lines = ["Usage: detr-hf train --data DATA [--model M | --backbone NAME] --output_dir OUT [FLAGS]"]
    for title, flags in NEEDED.items():
        lines.append(f"{title}:")
        for name, text in flags.items():
            said = text or first_sentence(actions[name].help or "")
            lines.append(f"  {f'--{name}':<{FLAG_WIDTH}} {said}")
    lines.append(f"--help-all lists all {len(actions)} flags, with reasons and defaults.")
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Returns a help text up to its first full stop or semicolon."""
    return re.split(r"(?<=[a-z\])])[.;](?:\s|$)", " ".join(text.split()), maxsplit=1)[0] + "."


def show(text: str) -> None:
    """Prints a help and leaves with exit code 0."""
    typer.echo(text)
    raise SystemExit(0)
