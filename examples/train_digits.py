"""Trains the checkpoint that ships with detr_hf: a small DETR that finds handwritten digits, from nothing.

    torchrun --nproc-per-node 2 examples/train_digits.py

About two hours on two slow cores; one process with a GPU also draws the scenes of the second stage there. Score and
recipe of the shipped weights are in `model_cards/detr-digits.md`, which this script writes. Two stages: a thin ResNet
with live batch norm learns to name the digit of every cell; then DETR is trained around it. States are kept in
`--work`: started again, it goes on where it was, and measures again what is at its end. Needs the extras `train` and
`eval`.
"""

import argparse
import json
import logging
import os
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from digits.backbone import BACKBONE_WEIGHTS, pretrain_backbone
from digits.detector import train_detector
from digits.recipe import Recipe, rank_and_world_size
from digits.report import HARDER_PX, FinishedRun, card_facts, continued_facts, evaluate, make_processor, write_card
from digits.silent import renew_silent_units

from detr_hf import DETRForObjectDetection
from detr_hf.data import DigitScenes
from detr_hf.hub import write_manifest

logger = logging.getLogger("train_digits")
DEMO_SCENE = 631  # not among the 500 that are measured


def parse_arguments() -> tuple[Recipe, argparse.Namespace]:
    """The recipe with the command line's changes, and the rest of the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/digits"), help="states and logs; run again to resume")
    parser.add_argument("--output", type=Path, help="checkpoint folder to write (default: WORK/detr-digits)")
    parser.add_argument("--card", type=Path, help="model card to write (default: OUTPUT/README.md)")
    parser.add_argument(
        "--validation-scenes", type=int, default=500, help="scenes that the final score is measured on"
    )
    parser.add_argument("--before", type=Path, help="facts of the card of the checkpoint that --init names, a JSON")
    parser.add_argument("--scene", type=Path, help="also write the picture of the demo, a PNG")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process; another draws scenes")
    for entry in fields(Recipe):
        default = getattr(Recipe(), entry.name)
        kind = {"type": int, "nargs": "+"} if isinstance(default, list) else {"type": type(default)}
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else kind
        parser.add_argument(f"--{entry.name.replace('_', '-')}", default=default, **kind)
    options = parser.parse_args()
    return Recipe(**{entry.name: getattr(options, entry.name) for entry in fields(Recipe)}), options


def main() -> None:
    """Pre-trains, trains, measures and publishes."""
    recipe, options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if "WORLD_SIZE" in os.environ:  # started by torchrun; the others wait for the first process's measurements
        dist.init_process_group("gloo", timeout=timedelta(hours=3))
    options.work.mkdir(parents=True, exist_ok=True)
    processor = make_processor()
    first_process = rank_and_world_size()[0] == 0
    if first_process and not recipe.init:
        pretrain_backbone(recipe, options.work)
    if dist.is_initialized():
        dist.barrier()
    backbone_weights = options.work / BACKBONE_WEIGHTS
    model = train_detector(recipe, backbone_weights, options.work, processor)
    if not first_process:
        return
    output = options.output or options.work / "detr-digits"
    model.set_attn_implementation("sdpa")
    model.strip_training_aids()
    renewed = renew_silent_units(model, processor)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    saved = DETRForObjectDetection.from_pretrained(output).eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    harder = evaluate(saved.to(device), processor, options.validation_scenes, digit_px=HARDER_PX)
    measured = evaluate(
        saved.to("cpu"), processor, options.validation_scenes
    )  # the card's time of a picture is a CPU's
    logger.info("%s\n%s", measured, harder)
    run = FinishedRun(saved, processor, output, options.work, recipe, measured, harder, renewed)
    if recipe.init and options.before is None:
        logger.warning("No card: a run that goes on from --init needs the facts of that checkpoint, --before FILE.")
    elif recipe.init:
        before = json.loads(options.before.read_text(encoding="utf-8"))
        write_card(options.card or output / "README.md", continued_facts(before, run))
    else:
        write_card(options.card or output / "README.md", card_facts(run))
    write_manifest(output)
    if options.scene is not None:
        scene = DigitScenes("validation").draw(DEMO_SCENE, size_hw=(512, 512))["image"]
        scene.quantize(128).save(options.scene, optimize=True)


if __name__ == "__main__":
    main()
