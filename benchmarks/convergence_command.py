"""The command `python -m benchmarks convergence`, and its protocols: options that belong together, as data."""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .records import RESULTS

if TYPE_CHECKING:
    from .convergence_tasks import Settings

# Defaults by protocol. A: a frozen backbone's features of six crops a picture, a narrow transformer: minutes on a CPU.
# B: the README's photographs, the backbone trains. Both on one map at stride 16, or on those that an arm asks for.
LITE0 = {"backbone": "tf_efficientnet_lite0", "side": 256, "mean": (0.5,) * 3, "std": (0.5,) * 3}
PICTURES: dict[str, Any] = {**LITE0, "steps": 1000, "batch": 8, "num_queries": 50, "dropout": 0.1}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "digits": {},
    "A": {**PICTURES, "crops": 6, "eval_every": 100, "lr": 1e-3, "backbone_lr": 1e-4, "hidden_dim": 64, "nheads": 8},
    "B": {**PICTURES, "eval_every": 200, "lr": 1e-4, "backbone_lr": 1e-5, "hidden_dim": 256, "nheads": 8},
}
# By protocol and the folder's name: few objects in each picture.
OF_DATA: dict[tuple[str, str], dict[str, Any]] = {
    ("A", "cards"): {"num_queries": 25},
    ("B", "cards"): {"num_queries": 25, "batch": 16},
}
USUAL_ARMS = ["transformers-best", "detr", "fast"]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr_hf" / "convergence"


def convergence(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="digits, or the folder of a data set.")] = "digits",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Defaults of what follows. A: a frozen backbone (features of six crops a picture, computed once), a "
            "narrow transformer; B: photographs of 256 pixels, the backbone trains; digits. By default digits, or B."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Several with commas; all lists them. Transformers' conditional, deformable-1, deformable-4, rtdetr "
            "and dfine come as shipped, and with -mended. By default transformers-best,detr,fast; with --config none."
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="An arm as data, repeatable: a JSON object of fields of DETRConfig, with name, recipe (whose fields "
            'come first), ema_decay, and maps, the strides it is given: [16] or [8, 16, 32]. \'{"name": "wide", '
            '"recipe": "fast", "num_denoising": 40}\'.'
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Several with commas.")] = "0,1,2",
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time.")] = None,
    lr: Annotated[str | None, typer.Option(help="Of the transformer; several with commas are all run.")] = None,
    hidden_dim: Annotated[int | None, typer.Option(min=8)] = None,
    nheads: Annotated[int | None, typer.Option(min=1)] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Of encoder and decoder.")] = None,
    num_queries: Annotated[int | None, typer.Option(min=1)] = None,
    dropout: Annotated[float | None, typer.Option(min=0)] = None,
    side: Annotated[int | None, typer.Option(min=32, help="Longer side of the pictures, in pixels.")] = None,
    crops: Annotated[
        int | None, typer.Option(min=0, help="Of each picture, as features of a frozen backbone; 0: it trains.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A model of timm.")] = None,
    backbone_weights: Annotated[
        str | None, typer.Option(help="File of pretrained weights, or imagenet; for pictures.")
    ] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="Of the backbone, at the first --lr.")] = None,
    pixel_mean: Annotated[str | None, typer.Option(help="Mean and deviation of the pixels: imagenet or 0.5.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    work: Annotated[Path, typer.Option(help="Where scenes and features are kept.")] = CACHE,
    name: Annotated[str | None, typer.Option(help="Of the files that are written.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the files; by default that of the machine.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Its folder in benchmarks/results; by default guessed: amx, zen5, avx2, h100...")
    ] = None,
) -> None:
    """How many steps and seconds detectors take to learn: transformers' own, the original's recipe, and ours."""
    from .convergence import run_arms
    from .convergence_report import described, summarise
    from .measuring import machine_name

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    protocol = protocol or ("digits" if data == "digits" else "B")
    if protocol not in PROTOCOLS or (protocol == "digits") != (data == "digits"):
        choice = "digits for digits, A or B for pictures"
        raise typer.BadParameter(f"{protocol!r} is none for {data}; choose {choice}", param_hint="--protocol")
    chosen, settings = _arms(arms, config or ()), _settings(context.params, protocol)
    usual = "convergence" if protocol == "digits" else f"convergence-{protocol}-{Path(data).resolve().name}"
    path = (out or RESULTS / (machine or machine_name(device))) / f"{name or usual}.json"
    typer.echo(described(chosen))
    rates = [float(rate) for rate in lr.split(",")] if lr else None
    run_arms(chosen, [int(seed) for seed in seeds.split(",")], settings, path, jobs, rates)
    typer.echo(summarise(path))


def _arms(names: str | None, configs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the arms that were asked for, with their options, by name."""
    from .convergence_arms import arm_of_config, known_arms

    known = known_arms()
    chosen = [*known] if names == "all" else [arm.strip() for arm in (names or "").split(",") if arm.strip()]
    if names is None and not configs:
        chosen = USUAL_ARMS
    unknown = [arm for arm in chosen if arm not in known]
    if unknown:
        raise typer.BadParameter(
            f"there is no arm {unknown[0]!r}; choose from {', '.join(known)}", param_hint="--arms"
        )
    arms = {arm: known[arm] for arm in chosen}
    for text in configs:
        try:
            name, options = arm_of_config(json.loads(text))
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(f"{text}: {error}", param_hint="--config") from error
        if name in arms:
            raise typer.BadParameter(f"two arms are named {name!r}; give each its name", param_hint="--config")
        arms[name] = options
    return arms


def _settings(given: dict[str, Any], protocol: str) -> "Settings":
    """Returns the protocol's settings with those that were given; the backbone's rate goes with the first --lr."""
    from .convergence_tasks import IMAGENET, Settings

    found = Settings(**{**PROTOCOLS[protocol], **OF_DATA.get((protocol, Path(given["data"]).name), {})})
    asked = {name: given[name] for name in vars(found) if name != "lr" and given.get(name) is not None}
    if given["pixel_mean"]:
        mean = given["pixel_mean"]
        asked["mean"], asked["std"] = IMAGENET if mean == "imagenet" else ((float(mean),) * 3,) * 2
    if given["lr"]:
        asked["lr"] = float(given["lr"].split(",")[0])
        asked.setdefault("backbone_lr", found.backbone_lr * asked["lr"] / found.lr)
    return replace(found, **{**asked, "work": str(given["work"]), "processes": max(2, given["jobs"])})


__all__ = ["PROTOCOLS", "convergence"]
