"""Measuring the checkpoint, and its model card: the numbers in it are measured here, or read from recipe and logs."""

import json
import re
import textwrap
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detr_hf.data.digits import SPLITS, DigitScenes, load_sources
from detr_hf.evaluation.coco import CocoMetrics, evaluate_boxes
from detr_hf.hub.card import render_card
from detr_hf.hub.facts import facts_of, hardware_name, library_versions
from detr_hf.hub.staging import write_json
from detr_hf.model.modeling_detr import DETRForObjectDetection
from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .recipe import DETECT_LOG, LOG_EVERY, PRETRAIN_LOG, Recipe


def make_processor() -> DETRImageProcessor:
    """Pictures are scaled to a shorter side of 256 pixels, the scale of the scenes."""
    return DETRImageProcessor(size={"shortest_edge": 256, "longest_edge": 448})


# The range of sizes that the scenes were first planned with.
HARDER_PX = (24, 112)
WANTED = {"AP": 0.80, "AP50": 0.97}


class Measured(NamedTuple):
    """What a measurement found: COCO metrics, the time a picture takes one by one, and the model's size."""

    metrics: CocoMetrics
    seconds_per_image: float
    num_parameters: int


class FinishedRun(NamedTuple):
    """What a card is written from: the saved model and its folder, the logs' folder, the recipe and the scores.

    `harder` was measured on scenes with digits of `HARDER_PX`; `renewed` counts the hidden units that never fired.
    """

    model: DETRForObjectDetection
    processor: DETRImageProcessor
    output: Path
    work: Path
    recipe: Recipe
    measured: Measured
    harder: Measured
    renewed: int


@torch.no_grad()
def evaluate(
    model: DETRForObjectDetection,
    processor: DETRImageProcessor,
    num_scenes: int = 500,
    digit_px: tuple[float, float] | None = None,
) -> Measured:
    """COCO metrics on the first validation scenes, by the way a user takes: processor, model, post-processing.

    `digit_px` gives the digits another range of sizes than the scenes' own.
    """
    scenes = DigitScenes("validation", length=num_scenes, digit_px=digit_px)
    categories = [{"id": label, "name": name} for label, name in scenes.id2label.items()]
    truth = {"images": [], "annotations": [], "categories": categories}
    detections, seconds = [], 0.0
    for index in range(num_scenes):
        scene = scenes[index]
        truth["images"].append({"id": index, "width": scene["width"], "height": scene["height"]})
        for box, label in zip(scene["objects"]["bbox"], scene["objects"]["category"], strict=True):
            truth["annotations"].append({"image_id": index, "category_id": label, "bbox": box})
        started = time.perf_counter()
        outputs = model(**processor(scene["image"], return_tensors="pt").to(model.device))
        size_hw = torch.tensor([[scene["height"], scene["width"]]])
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=size_hw)[0]
        seconds += time.perf_counter() - started
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True):
            x0, y0, x1, y1 = box.tolist()
            found_box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
            detections.append({"image_id": index, "category_id": int(label), **found_box})
    return Measured(evaluate_boxes(truth, detections), seconds / num_scenes, model.num_parameters())


def read_log(log_path: Path) -> list[dict[str, Any]]:
    """The lines of a `RunLog`."""
    return [json.loads(line) for line in log_path.read_text().splitlines()]


def training_minutes(log_path: Path) -> float:
    """Minutes that the steps of a stage took, from its log; a cut and resumed stage counts every step that was run."""
    entries = read_log(log_path)
    return sum(entry["step_seconds"] * LOG_EVERY for entry in entries if "step_seconds" in entry) / 60


def processes_used(log_path: Path) -> str:
    """How many processes and threads a stage, and each of its resumptions that took steps, ran with, from its log."""
    used, started = [], (1, 1)
    for entry in read_log(log_path):
        started = (entry["processes"], entry["threads"]) if "processes" in entry else started
        if "step_seconds" in entry:
            used.append(started)
    return ", then ".join(f"{processes} x {threads}" for processes, threads in dict.fromkeys(used))


def card_facts(run: FinishedRun) -> dict[str, Any]:
    """What the card says; every number is measured here or read from the recipe and the logs."""
    recipe, work, measured = run.recipe, run.work, run.measured
    sources = {split: load_sources(split) for split in SPLITS}
    images = {split: sum(len(digits) for digits in source.digits.values()) for split, source in sources.items()}
    sections = card_sections(
        **template_values(run),
        num_scenes=measured.metrics.num_images,
        num_objects=sum(row["objects"] for row in measured.metrics.per_class.values()),
        train_images=images["train"],
        validation_images=images["validation"],
        pretrain_minutes=f"{training_minutes(work / PRETRAIN_LOG):.0f}",
        detect_minutes=f"{training_minutes(work / DETECT_LOG):.0f}",
        scenes_pretrain=f"{recipe.pretrain_steps * recipe.batch_size:,}",
        scenes_detect=f"{recipe.steps * recipe.batch_size:,}",
        pretrain_processes=processes_used(work / PRETRAIN_LOG),
        detect_processes=processes_used(work / DETECT_LOG),
        versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
    )
    known = facts_of(run.model, "detr-digits", run.processor, measured.metrics, license="apache-2.0")
    megabytes = (run.output / "model.safetensors").stat().st_size / 1e6
    return assemble(known, sections, round(megabytes, 1))


def continued_facts(before: dict[str, Any], run: FinishedRun) -> dict[str, Any]:
    """What the card says of a run that went on from `recipe.init`, whose facts are `before`: its history and this run.

    Every number is measured here or read from the recipe and the log.
    """
    recipe, measured = run.recipe, run.measured
    log = read_log(run.work / DETECT_LOG)
    steps = max(entry["step"] for entry in log if "step" in entry)
    began = next(entry for entry in log if "device" in entry)
    sections = card_sections(
        template="card_continued.md",
        **{**template_values(run), "steps": steps},  # those that were run
        before_AP=f"{before['evaluation']['AP']:.3f}",
        before_AP50=f"{before['evaluation']['AP50']:.3f}",
        scenes=f"{steps * recipe.batch_size:,}",
        minutes_spent=f"{training_minutes(run.work / DETECT_LOG):.1f}",
        device=f"a CPU (processes x threads: {processes_used(run.work / DETECT_LOG)})"
        if began["device"] == "CPU"
        else f"one {began['device']}",
        launcher="python" if began["processes"] == 1 else f"torchrun --nproc-per-node {began['processes']}",
        part=1 + len(re.findall(r"^\d+\. ", before["training"]["text"], flags=re.MULTILINE)),
        options=wrapped_options(recipe),
        wanted_AP=WANTED["AP"],
        wanted_AP50=WANTED["AP50"],
        outcome=outcome_of(measured.metrics.summary),
        **how_it_trained(
            recipe, steps, any(entry.get("drawn_by") == "device" for entry in log), processes=began["processes"]
        ),
    )
    known = facts_of(run.model, "detr-digits", run.processor, measured.metrics, license="apache-2.0")
    same_scenes = {name: before["evaluation"][name] for name in ("dataset", "type", "text")}
    return {
        **before,
        "evaluation": {**known["evaluation"], **same_scenes, "note": sections["note"]},
        "training": {"text": f"{before['training']['text']}\n\n{sections['training']}"},
        "speed": {"text": sections["speed"]},
    }


def outcome_of(summary: dict[str, float]) -> str:
    """What the card says after "were aimed at": which of `WANTED` were not reached."""
    missed = [name for name, value in WANTED.items() if summary[name] < value]
    if len(missed) == len(WANTED):
        return " and not reached"
    return f"; {' and '.join(missed)} was not reached" if missed else " and reached"


def how_it_trained(recipe: Recipe, steps: int, drawn: bool, processes: int = 1) -> dict[str, str]:
    """What the text of a continued run says of its scenes, drawn by the device or not, and of what learnt how."""
    small = "every other batch with many small digits"
    if recipe.kept_batches:
        drawn_by = f"first of all for the backbone's features of {recipe.kept_batches * recipe.batch_size:,} scenes"
        backbone = "backbone left as it was"
        small += f" among the first {min(recipe.small_until / recipe.kept_batches, 1):.0%} of these"
    else:
        drawn_by = "which also drew the scenes" if drawn else f"{processes * recipe.workers} more drawing scenes"
        too = "all of it, scale and shift of the norms too" if recipe.whole_backbone else "its first stage too"
        backbone = f"backbone {recipe.lr_backbone}, {too}"
        if drawn:
            small += f" but for the last {recipe.final_fraction:.0%}, whose scenes are like those of validation"
        elif recipe.small_until < steps:
            small += f" up to step {recipe.small_until}"
    if recipe.padded_fraction:
        small += f", {recipe.padded_fraction:.0%} of the batches with padded scenes of several sizes"
    optimisers = f"AdamW {recipe.lr} ({backbone})"
    if recipe.muon_lr:
        optimisers = f"Muon {recipe.muon_lr} for the transformer's matrices, {optimisers} for the rest"
    if recipe.autocast:
        optimisers += ", forward and backward pass in bfloat16"
    return {
        "drawn_by": drawn_by,
        "small_digits": small,
        "box_losses": "" if recipe.box_weight == 1 else f"; box losses weighted {recipe.box_weight:g} times",
        "optimisers": optimisers,
        "denoising": f" and about {recipe.num_denoising} denoising queries" if recipe.num_denoising else "",
    }


def wrapped_options(recipe: Recipe) -> str:
    """The command line's options that make this recipe, in lines; a folder of this machine is called FOLDER."""
    changes = {**recipe.changes(), **({"init": "FOLDER"} if recipe.init else {})}
    words = []
    for name, value in changes.items():
        values = map(str, value) if isinstance(value, list) else [] if value is True else [str(value)]
        words.append(" ".join([f"--{name}", *values]))
    return " \\\n  ".join(textwrap.wrap(" ".join(words), 110, break_on_hyphens=False, break_long_words=False))


def template_values(run: FinishedRun) -> dict[str, Any]:
    """What every template may name: the recipe's fields, the score on harder scenes, the time of a picture."""
    return {
        **{entry.name: getattr(run.recipe, entry.name) for entry in fields(Recipe)},
        "harder_px": "{} to {}".format(*HARDER_PX),
        "harder_AP": f"{run.harder.metrics.summary['AP']:.3f}",
        "harder_AP50": f"{run.harder.metrics.summary['AP50']:.3f}",
        "milliseconds": f"{1000 * run.measured.seconds_per_image:.0f}",
        "hardware": hardware_name(),
        "renewed": run.renewed,
    }


def card_sections(template: str = "card_sections.md", **values: Any) -> dict[str, str]:
    """The texts of the card by name, from a template beside this file with the values put in."""
    text = Path(__file__).with_name(template).read_text().format(**values)
    parts = re.split(r"^# (\w+)\n", text, flags=re.MULTILINE)
    return {name: part.strip() for name, part in zip(parts[1::2], parts[2::2], strict=True)}


def assemble(known: dict[str, Any], sections: dict[str, str], megabytes: float) -> dict[str, Any]:
    """The facts: what is known of the model, and the texts."""
    return {
        **known,
        "summary": sections["summary"],
        "use": sections["use"],
        "base_model": None,
        "megabytes": megabytes,
        "model": {**known["model"], "backbone_text": sections["backbone"]},
        "evaluation": {
            **known["evaluation"],
            "dataset": "digit scenes (validation)",
            "type": "digit-scenes",
            "text": sections["score"],
            "note": sections["note"],
        },
        "data": {"name": "digit scenes", "text": sections["data"]},
        "training": {"text": sections["training"]},
        "speed": {"text": sections["speed"]},
        "limits": sections["limits"],
        "licence_text": sections["licence"],
    }


def write_card(path: Path, facts: dict[str, Any]) -> None:
    """Writes the card, and its facts into the folder `facts` beside it."""
    source = path.parent / "facts" / f"{path.stem}.json"
    source.parent.mkdir(parents=True, exist_ok=True)
    write_json(source, facts)
    path.write_text(render_card(facts), encoding="utf-8")
